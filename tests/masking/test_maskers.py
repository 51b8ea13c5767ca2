"""What every mask must do, over all grids and ratios, and what sets `random` and `tube` apart."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tatscli.errors import RecipeError
from tatscli.masking import MASKERS, build_masker
from tatscli.masking.base import Masker
from tatscli.recipe import schema

SECTIONS: dict[str, Any] = {
    "random": schema.RandomMask,
    "tube": schema.TubeMask,
    "adamae": schema.AdamaeMask,
    "tats": schema.TatsMask,
}


def make(kind: str, grid: tuple[int, int, int], ratio: float) -> Masker:
    torch.manual_seed(0)
    extra = {"width": 8, "heads": 2} if kind in ("tats", "adamae") else {}
    config = SECTIONS[kind](kind=kind, ratio=ratio, **extra)
    return build_masker(config, grid=grid, width=6)


def expected_count(kind: str, grid: tuple[int, int, int], thousandths: int) -> int:
    sites = grid[1] * grid[2]
    if kind == "tube":
        return grid[0] * (sites - sites * thousandths // 1000)
    return grid[0] * sites * (1000 - thousandths) // 1000


def test_every_kind_of_recipe_has_its_masker() -> None:
    assert set(MASKERS) == set(SECTIONS)
    assert {type(make(kind, (2, 2, 2), 0.5)) for kind in SECTIONS} == set(MASKERS.values())


@pytest.mark.parametrize("kind", SECTIONS)
@settings(max_examples=40, deadline=None)
@given(
    grid=st.tuples(st.integers(1, 5), st.integers(1, 6), st.integers(1, 6)),
    thousandths=st.integers(1, 999),
    batch=st.integers(1, 3),
)
def test_plans_partition_the_clip_with_exact_counts(
    kind: str, grid: tuple[int, int, int], thousandths: int, batch: int
) -> None:
    tokens = grid[0] * grid[1] * grid[2]
    count = expected_count(kind, grid, thousandths)
    assume(0 < count < tokens)
    masker = make(kind, grid, thousandths / 1000)
    plan = masker.plan(torch.randn(batch, tokens, 6))
    assert masker.visible == plan.visible_BK.shape[1] == count
    both = torch.cat([plan.visible_BK, plan.predict_BM], dim=1).sort(dim=1).values
    assert torch.equal(both, torch.arange(tokens).expand(batch, -1))
    for part in (plan.visible_BK, plan.predict_BM):
        assert (part.diff(dim=1) > 0).all()


@pytest.mark.parametrize("kind", SECTIONS)
def test_the_generator_alone_decides(kind: str) -> None:
    masker = make(kind, (4, 5, 5), 0.8)
    tokens = torch.randn(3, 100, 6)

    def visible(seed: int) -> torch.Tensor:
        return masker.plan(tokens, generator=torch.Generator().manual_seed(seed)).visible_BK

    torch.manual_seed(1)
    first = visible(7)
    torch.manual_seed(2)
    assert torch.equal(first, visible(7))
    assert not torch.equal(first, visible(8))
    assert not torch.equal(first[0], first[1])  # each clip has its own draw


@pytest.mark.parametrize("kind", SECTIONS)
def test_untrained_masks_show_every_token_alike(kind: str) -> None:
    masker = make(kind, (2, 3, 4), 0.75).eval()
    plan = masker.plan(torch.randn(6000, 24, 6), generator=torch.Generator().manual_seed(0))
    shown = 1 - plan.hidden_BN(24).float().mean(dim=0)
    torch.testing.assert_close(shown, torch.full((24,), 0.25), atol=0.025, rtol=0)


@pytest.mark.parametrize("kind", ["random", "tube"])
def test_fixed_masks_learn_nothing_and_cost_nothing(kind: str) -> None:
    masker = make(kind, (2, 3, 4), 0.75)
    masker.schedule(3, 10)
    plan = masker.plan(torch.empty(2, 24, 0))  # not even the tokens are read
    assert masker.learn(plan, torch.rand(plan.predict_BM.shape)) == {}
    assert masker.macs() == 0
    assert masker.scores_BN(torch.empty(2, 24, 0)) is None
    assert not masker.needs_embeddings
    assert not list(masker.parameters())


@pytest.mark.parametrize(("ratio", "visible"), [(0.9, 160), (0.75, 392), (0.95, 80), (0.85, 240)])
def test_tube_rounds_as_videomae(ratio: float, visible: int) -> None:
    assert make("tube", (8, 14, 14), ratio).visible == visible


def test_tube_shows_the_same_sites_in_every_slice() -> None:
    visible = make("tube", (4, 5, 6), 0.9).plan(torch.empty(3, 120, 0)).visible_BK
    slices = visible.reshape(3, 4, -1)
    for t in range(4):
        assert torch.equal(slices[:, t], slices[:, 0] + 30 * t)


def test_ratios_that_leave_nothing_to_see_or_guess_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"`mask.ratio: 0.95` leaves none of 8 tokens visible"):
        make("random", (2, 2, 2), 0.95)
    with pytest.raises(RecipeError, match=r"`mask.ratio: 0.2` hides none of 4 sites"):
        make("tube", (2, 2, 2), 0.2)


@pytest.mark.needs_cuda
@pytest.mark.parametrize("kind", SECTIONS)
def test_one_seed_gives_one_plan_on_every_device(kind: str) -> None:
    masker = make(kind, (4, 5, 5), 0.8)
    tokens = torch.randn(2, 100, 6)
    here = masker.plan(tokens, generator=torch.Generator().manual_seed(3))
    there = masker.cuda().plan(tokens.cuda(), generator=torch.Generator().manual_seed(3))
    assert torch.equal(here.visible_BK, there.visible_BK.cpu())
