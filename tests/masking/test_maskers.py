"""What every mask must do, over all grids and ratios, and what sets `random` and `tube` apart."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tatscli.draws import Draws
from tatscli.engine.part import Lesson
from tatscli.errors import DataError, RecipeError
from tatscli.masking import MASKERS
from tatscli.masking.plan import MaskPlan
from tests.masking.kinds import (
    MASKS,
    clip_of,
    clip_on,
    mask_of,
    motion_on,
    schedule_of,
    tokens_on,
)

FIXED = sorted(set(MASKERS) - {"adamae", "tats"})
BY_SLICE = {"tube", "block", "simulated", "mgm", "mgm_topk", "mgm_advect"}
EXCHANGEABLE = ["random", "tube", "motion_bins", "everest", "adamae", "tats"]
"""Masks that prefer no place where all tokens are alike."""


def expected_count(kind: str, grid: tuple[int, int, int], thousandths: int) -> int:
    slices, sites = grid[0], grid[1] * grid[2]
    if kind == "future":
        return sites + (slices - 1) * sites * (1000 - thousandths) // 1000
    if kind == "frame":
        return sites * (slices - slices * thousandths // 1000)
    if kind in BY_SLICE:
        return slices * (sites - sites * thousandths // 1000)
    return slices * sites * (1000 - thousandths) // 1000


def test_every_kind_of_recipe_has_its_masker() -> None:
    assert set(MASKERS) == set(MASKS)
    assert {type(mask_of(kind, (2, 2, 2), 0.5)) for kind in MASKS} == set(MASKERS.values())


@pytest.mark.parametrize("kind", MASKS)
@settings(max_examples=40)
@given(
    grid=st.tuples(st.integers(1, 5), st.integers(1, 6), st.integers(1, 6)),
    thousandths=st.integers(1, 999),
    batch=st.integers(1, 3),
    missing=st.booleans(),
)
def test_plans_have_exact_counts_and_nothing_twice(
    kind: str, grid: tuple[int, int, int], thousandths: int, batch: int, missing: bool
) -> None:
    tokens = grid[0] * grid[1] * grid[2]
    count = expected_count(kind, grid, thousandths)
    assume(0 < count < tokens)
    try:
        masker = mask_of(kind, grid, thousandths / 1000)
    except RecipeError as error:
        refused = {"everest": "to predict", "future": "to predict", "schedule": "hides none of"}
        assert refused[kind] in error.message
        assert kind != "future" or grid[0] == 1
        assume(False)
    motion = motion_on(grid, batch)
    motion.missing_B[0] = missing
    plan = masker.plan(clip_of(grid, tokens=tokens_on(grid, batch), motion=motion), Draws(0))
    assert masker.visible == plan.visible_BK.shape[1] == count
    assert masker.predicted == plan.predict_BM.shape[1]
    if kind != "everest":
        assert masker.predicted == tokens - count
    assert not plan.faulty_B(tokens).any()


@pytest.mark.parametrize("kind", MASKS)
def test_the_draws_alone_decide(kind: str) -> None:
    grid = (6, 5, 5)
    masker, clip = mask_of(kind, grid, 0.8), clip_on(grid, 8)

    def visible(seed: int) -> torch.Tensor:
        return masker.plan(clip, Draws(seed)).visible_BK

    torch.manual_seed(1)
    first = visible(7)
    torch.manual_seed(2)
    assert torch.equal(first, visible(7))
    if kind not in ("mgm_topk", "still"):  # where no tokens move alike, they draw nothing
        assert not torch.equal(first, visible(8))
    assert len(first.unique(dim=0)) > 2  # each clip has its own draw


@pytest.mark.parametrize("kind", MASKS)
def test_a_clip_is_masked_alike_whoever_shares_its_batch(kind: str) -> None:
    grid = (4, 5, 5)
    masker, tokens, motion = mask_of(kind, grid, 0.8), tokens_on(grid, 6), motion_on(grid, 6)
    motion.missing_B[2] = True

    def planned(places: slice) -> MaskPlan:
        clip = clip_of(grid, tokens=tokens[places], motion=motion.each(lambda one: one[places]))
        return masker.plan(clip, Draws(5, first=places.start))

    whole = planned(slice(0, 6))
    for parts in ([slice(0, 3), slice(3, 6)], [slice(place, place + 1) for place in range(6)]):
        plans = [planned(part) for part in parts]
        assert torch.equal(torch.cat([plan.visible_BK for plan in plans]), whole.visible_BK)
        assert torch.equal(torch.cat([plan.predict_BM for plan in plans]), whole.predict_BM)


@pytest.mark.parametrize("kind", EXCHANGEABLE)
def test_untrained_masks_show_every_token_alike(kind: str) -> None:
    grid = (2, 3, 4)
    masker = mask_of(kind, grid, 0.75).eval()
    plan = masker.plan(clip_on(grid, 6000), Draws(0))
    shown = 1 - plan.hidden_BN(24).float().mean(dim=0)
    torch.testing.assert_close(shown, torch.full((24,), 0.25), atol=0.025, rtol=0)


@pytest.mark.parametrize("kind", sorted(set(FIXED) - {"schedule"}))
def test_fixed_masks_learn_nothing_and_keep_nothing(kind: str) -> None:
    grid = (2, 3, 4)
    masker = mask_of(kind, grid, 0.75).train()
    assert masker.learners(schedule_of(10)) == {}
    # Not even the tokens are read, but by the one mask that says so.
    tokens = tokens_on(grid, 2) if masker.needs_embeddings else None
    motion = motion_on(grid, 2) if masker.needs_motion else None
    plan = masker.plan(clip_of(grid, 2, tokens=tokens, motion=motion), Draws(0))
    assert masker.learn(plan, torch.rand(plan.predict_BM.shape)) == Lesson()
    assert masker.after_step(1, 10) == Lesson()
    assert masker.scores_BN(clip_of(grid, 2)) is None
    assert masker.needs_embeddings == (kind == "everest")
    assert not masker.reaches_encoder
    assert masker.temperature is None
    assert not list(masker.parameters())
    assert not masker.state_dict() and not masker.tensors()  # nothing to resume
    masker.load({})


@pytest.mark.parametrize(("ratio", "visible"), [(0.9, 160), (0.75, 392), (0.95, 80), (0.85, 240)])
def test_tube_rounds_as_videomae(ratio: float, visible: int) -> None:
    assert mask_of("tube", (8, 14, 14), ratio).visible == visible


def test_tube_shows_the_same_sites_in_every_slice() -> None:
    visible = mask_of("tube", (4, 5, 6), 0.9).plan(clip_of((4, 5, 6), 3), Draws(0)).visible_BK
    slices = visible.reshape(3, 4, -1)
    for t in range(4):
        assert torch.equal(slices[:, t], slices[:, 0] + 30 * t)


def test_ratios_that_leave_nothing_to_see_or_guess_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"`mask.ratio: 0.95` leaves none of 8 tokens visible"):
        mask_of("random", (2, 2, 2), 0.95)
    with pytest.raises(
        RecipeError, match=r"`mask.ratio: 0.2` hides none of the 4 tokens of a slice"
    ):
        mask_of("tube", (2, 2, 2), 0.2)


@pytest.mark.needs_cuda
@pytest.mark.parametrize("kind", MASKS)
def test_one_seed_gives_one_plan_on_every_device(kind: str) -> None:
    grid = (4, 5, 5)
    masker, tokens, motion = mask_of(kind, grid, 0.8), tokens_on(grid, 2), motion_on(grid, 2)
    here = masker.plan(clip_of(grid, tokens=tokens, motion=motion), Draws(3))
    away = clip_of(grid, tokens=tokens.cuda(), motion=motion.to("cuda"))
    there = masker.cuda().plan(away, Draws(3))
    assert torch.equal(here.visible_BK, there.visible_BK.cpu())
    assert torch.equal(here.predict_BM, there.predict_BM.cpu())


@pytest.mark.parametrize("kind", FIXED)
def test_autocast_changes_no_plan(kind: str) -> None:
    """Scores of many sites lie closer together than bf16 tells apart."""
    grid = (4, 12, 12)
    masker, tokens, motion = mask_of(kind, grid, 0.4), tokens_on(grid, 32), motion_on(grid, 32)
    motion.field_BThw2.add_(7.3)  # noise alone would take rectangles nowhere
    clip = clip_of(grid, tokens=tokens, motion=motion)
    plain = masker.plan(clip, Draws(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = masker.plan(clip, Draws(0))
    assert torch.equal(plain.visible_BK, cast.visible_BK)
    assert torch.equal(plain.predict_BM, cast.predict_BM)


@pytest.mark.parametrize("kind", MASKS)
def test_masks_that_follow_motion_say_so_where_there_is_none(kind: str) -> None:
    masker = mask_of(kind, (2, 3, 3), 0.5)
    if masker.needs_motion:
        with pytest.raises(DataError, match=f"`mask.kind: {kind}` needs motion, but these"):
            masker.plan(clip_of((2, 3, 3), tokens=tokens_on((2, 3, 3), 2)), Draws(0))
    else:
        masker.plan(clip_of((2, 3, 3), tokens=tokens_on((2, 3, 3), 2)), Draws(0))
