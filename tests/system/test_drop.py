"""`TokenDrop`: plans of single views, whatever the batch, and nothing read back from the device."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tatscli.data.motion import MotionField
from tatscli.draws import Draws
from tatscli.errors import RecipeError
from tatscli.nn.vit import build_encoder
from tatscli.recipe import schema
from tatscli.recipe.keys import kind_name
from tatscli.system.drop import TokenDrop
from tests.fields import motion_of
from tests.system.fake_device import GPU, NoWaits, pretend_gpu, to_gpu
from tests.teaching import recipe_of

KINDS = [kind_name(section) for section in get_args(schema.masks.Fixed)]
CLIPS = 5


def config_of(kind: str, ratio: float = 0.5) -> dict[str, Any]:
    return {"kind": kind, "ratio": ratio} | ({"keep": 0.8} if kind == "everest" else {})


def drop_of(kind: str, ratio: float = 0.5) -> TokenDrop:
    recipe = recipe_of(
        data={"store": "", "frames": 8, "size": 32}, evaluate={"drop": config_of(kind, ratio)}
    )
    torch.manual_seed(0)
    encoder = build_encoder(recipe.model, recipe.grid)
    assert recipe.evaluate.drop is not None
    return TokenDrop(recipe.evaluate.drop, key="evaluate.drop", recipe=recipe, encoder=encoder)


def views() -> tuple[Tensor, MotionField]:
    generator = torch.Generator().manual_seed(3)
    video = torch.randint(0, 256, (CLIPS, 3, 8, 32, 32), dtype=torch.uint8, generator=generator)
    motion = motion_of(4 * torch.randn(CLIPS, 8, 4, 4, 2, generator=generator), patch=8)
    motion.missing_B[1] = True
    return video, motion


def test_every_mask_that_does_not_learn_is_there() -> None:
    assert {"tube", "random", "still", "everest", "future"} <= set(KINDS)
    assert not {"tats", "adamae", "schedule"} & set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_kept_of_a_view_depends_on_itself_alone(kind: str) -> None:
    drop, (video, motion) = drop_of(kind), views()
    rows, numbers = [3, 3, 8, 9, 11], [0, 1, 0, 2, 0]
    kept = drop.fixed(video, motion, rows, numbers)
    assert kept.shape == (CLIPS, drop.kept) and kept.dtype == torch.int64
    assert (kept.diff(dim=1) > 0).all() and kept.min() >= 0 and kept.max() < 64
    torch.manual_seed(99)
    for order in ([4, 2, 0, 1, 3], [2], [1, 3]):
        some = drop.fixed(
            video[order],
            motion.each(lambda one, at=order: one[at]),
            [rows[place] for place in order],
            [numbers[place] for place in order],
        )
        assert torch.equal(some, kept[order])


def test_another_seed_row_or_view_draws_anew() -> None:
    drop, (video, motion) = drop_of("random"), views()
    same = video[:1].expand(CLIPS, -1, -1, -1, -1)
    kept = drop.fixed(same, motion, [0, 0, 1, 1, 0], [0, 1, 0, 1, 0])
    assert torch.equal(kept[0], kept[4])
    assert len(kept.unique(dim=0)) == 4
    drop.seed += 1
    assert not torch.equal(drop.fixed(same[:1], motion, [0], [0])[0], kept[0])


@given(ratio=st.sampled_from([0.2, 0.25, 0.5, 0.9]))
def test_lvmaes_tube_leaves_out_its_share(ratio: float) -> None:
    drop = drop_of("tube", ratio)
    assert drop.kept == 4 * (16 - int(ratio * 16))
    video, motion = views()
    kept = drop.fixed(video, motion, range(CLIPS), [0] * CLIPS)
    by_slice = kept.view(CLIPS, 4, -1) % 16
    assert (by_slice == by_slice[:, :1]).all()


def test_a_ratio_that_keeps_or_drops_nothing_names_its_own_key() -> None:
    with pytest.raises(
        RecipeError, match=r"`evaluate\.drop\.ratio: 0\.02` hides none of the 16 tokens of a slice"
    ):
        drop_of("tube", 0.02)
    with pytest.raises(RecipeError, match=r"`evaluate\.drop\.ratio: 0\.99` leaves none of 64"):
        drop_of("still", 0.99)


@pytest.mark.parametrize("kind", KINDS)
def test_training_by_it_waits_for_nothing(
    kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    drop, (video, motion) = drop_of(kind), views()
    with pretend_gpu(monkeypatch):
        to_gpu(drop.masker, drop.form, drop.encoder)
        there = torch.empty(video.shape, dtype=torch.uint8, device=GPU)
        moving = motion.each(lambda one: torch.empty(one.shape, dtype=one.dtype, device=GPU))
        draws = Draws(0)
        with NoWaits():
            plan = drop.plan(there, moving, draws)
            faults = plan.faulty_B(64)
        assert plan.visible_BK.device == faults.device == GPU
        assert plan.visible_BK.shape == (CLIPS, drop.kept)
