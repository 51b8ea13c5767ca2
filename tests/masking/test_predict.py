"""What every predict-selection must do, over all grids, ratios and masks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tatscli.draws import Draws
from tatscli.errors import RecipeError
from tatscli.masking.base import Masker
from tatscli.masking.plan import MaskPlan
from tatscli.masking.predict import PREDICT_RULES
from tests.masking.kinds import (
    MASKS,
    PREDICTS,
    clip_of,
    clip_on,
    mask_of,
    motion_on,
    selection_of,
    tokens_on,
)

BUDGETED = sorted(set(PREDICTS) - {"all"})


def plan_of(masker: Masker, clips: int) -> MaskPlan:
    return masker.plan(clip_on(masker.grid, clips), Draws(0))


def test_every_kind_of_recipe_has_its_selection() -> None:
    assert set(PREDICT_RULES) == set(PREDICTS)
    assert {type(selection_of(kind, (2, 2, 2), 4)) for kind in PREDICTS} == set(
        PREDICT_RULES.values()
    )


@pytest.mark.parametrize("kind", PREDICTS)
@settings(max_examples=60)
@given(
    mask=st.sampled_from(sorted(MASKS)),
    grid=st.tuples(st.integers(1, 5), st.integers(1, 6), st.integers(1, 6)),
    ratio=st.sampled_from([0.3, 0.5, 0.75, 0.9]),
    budget=st.one_of(st.none(), st.integers(1, 30)),
    missing=st.booleans(),
)
def test_exactly_the_budget_of_the_masks_tokens_is_predicted(
    kind: str,
    mask: str,
    grid: tuple[int, int, int],
    ratio: float,
    budget: int | None,
    missing: bool,
) -> None:
    try:
        masker = mask_of(mask, grid, ratio)
    except RecipeError:
        assume(False)
    assume(masker.predicted > 0)
    changes = {} if budget is None or kind == "all" else {"budget": budget}
    if changes and budget > masker.predicted:
        with pytest.raises(RecipeError, match=r"`predict\.budget: "):
            selection_of(kind, grid, masker.predicted, **changes)
        return
    selection = selection_of(kind, grid, masker.predicted, **changes)
    assert 1 <= selection.budget <= masker.predicted
    assert not changes or selection.budget == budget
    plan, motion = plan_of(masker, 3), motion_on(grid, 3)
    motion.missing_B[1] = missing
    chosen = selection.select(
        plan, clip_of(grid, tokens=tokens_on(grid, 3), motion=motion), Draws(0)
    )
    assert torch.equal(chosen.visible_BK, plan.visible_BK)
    assert chosen.predict_BM.shape == (3, selection.budget)
    assert not chosen.faulty_B(masker.tokens).any()
    for before, after in zip(plan.predict_BM.tolist(), chosen.predict_BM.tolist(), strict=True):
        assert set(after) <= set(before)


@pytest.mark.parametrize(
    ("kind", "budget"),
    [
        ("all", 1408),
        ("random", 235),
        ("flow", 235),
        ("everest", 235),
        ("tokenizer", 235),
        ("uniform", 224),
        ("running_cell", 704),
    ],
)
def test_the_default_budgets_are_the_published_shares(kind: str, budget: int) -> None:
    masker = mask_of("tube", (8, 14, 14), 0.9)
    assert selection_of(kind, masker.grid, masker.predicted).budget == budget


def test_defaults_are_capped_by_what_is_hidden_and_never_nothing() -> None:
    for kind in BUDGETED:
        assert selection_of(kind, (8, 14, 14), 100).budget <= 100
        assert selection_of(kind, (1, 1, 2), 1).budget == 1


def test_a_budget_beyond_the_hidden_tokens_is_refused() -> None:
    for kind in BUDGETED:
        assert selection_of(kind, (2, 2, 2), 6, budget=6).budget == 6
        with pytest.raises(RecipeError, match=r"`predict\.budget: 7` .* at most 6 of 8 tokens"):
            selection_of(kind, (2, 2, 2), 6, budget=7)


def test_a_plan_with_fewer_tokens_than_the_budget_is_refused() -> None:
    plan = MaskPlan.from_visible(torch.tensor([[0, 1, 2]]), 8)
    with pytest.raises(ValueError, match="cannot choose 6 of 5"):
        selection_of("random", (2, 2, 2), 6, budget=6).select(plan, clip_of((2, 2, 2), 1), Draws(0))


@pytest.mark.parametrize("kind", BUDGETED)
def test_the_draws_alone_decide(kind: str) -> None:
    grid = (6, 5, 5)
    masker = mask_of("random", grid, 0.8)
    selection = selection_of(kind, grid, masker.predicted)
    plan, clip = plan_of(masker, 8), clip_on(grid, 8)

    def predicted(seed: int) -> torch.Tensor:
        return selection.select(plan, clip, Draws(seed)).predict_BM

    torch.manual_seed(1)
    first = predicted(7)
    torch.manual_seed(2)
    assert torch.equal(first, predicted(7))
    assert not torch.equal(first, predicted(8))


@pytest.mark.parametrize("kind", BUDGETED)
def test_a_clip_is_predicted_alike_whoever_shares_its_batch(kind: str) -> None:
    grid = (4, 5, 5)
    masker, (tokens, motion) = (
        mask_of("random", grid, 0.8),
        (tokens_on(grid, 6), motion_on(grid, 6)),
    )
    selection, plan = selection_of(kind, grid, masker.predicted), plan_of(masker, 6)

    def predicted(places: slice) -> torch.Tensor:
        clip = clip_of(grid, tokens=tokens[places], motion=motion.each(lambda one: one[places]))
        part = MaskPlan(plan.visible_BK[places], plan.predict_BM[places])
        return selection.select(part, clip, Draws(5, first=places.start)).predict_BM

    parts = [predicted(slice(first, first + 2)) for first in (0, 2, 4)]
    assert torch.equal(torch.cat(parts), predicted(slice(0, 6)))


@pytest.mark.parametrize("kind", PREDICTS)
def test_they_have_nothing_to_learn_or_to_save(kind: str) -> None:
    selection = selection_of(kind, (4, 3, 3), 20)
    assert not list(selection.parameters()) and not selection.state_dict()
    assert selection.needs_motion == (kind == "flow")
    assert selection.needs_embeddings == (kind == "everest")


@pytest.mark.parametrize("kind", PREDICTS)
def test_those_that_follow_something_tell_what(kind: str) -> None:
    clip = clip_on((4, 3, 3), 2)
    saliency = selection_of(kind, (4, 3, 3), 20).saliency_BN(clip)
    if kind in ("flow", "everest", "tokenizer"):
        assert saliency is not None and saliency.shape == (2, 36) and (saliency >= 0).all()
    else:
        assert saliency is None


def test_all_leaves_the_plan_as_it_is() -> None:
    masker = mask_of("tube", (4, 3, 3), 0.75)
    plan = plan_of(masker, 2)
    draws = Draws(0)
    selection = selection_of("all", masker.grid, masker.predicted)
    assert selection.select(plan, clip_of(masker.grid, 2), draws) is plan
    assert draws.seed() == Draws(0).seed()


@pytest.mark.needs_cuda
@pytest.mark.parametrize("kind", PREDICTS)
def test_one_seed_gives_one_choice_on_every_device(kind: str) -> None:
    grid = (4, 5, 5)
    masker = mask_of("random", grid, 0.8)
    selection = selection_of(kind, grid, masker.predicted)
    plan, tokens, motion = plan_of(masker, 2), tokens_on(grid, 2), motion_on(grid, 2)
    here = selection.select(plan, clip_of(grid, tokens=tokens, motion=motion), Draws(3))
    away = clip_of(grid, tokens=tokens.cuda(), motion=motion.to("cuda"))
    plan = MaskPlan(plan.visible_BK.cuda(), plan.predict_BM.cuda())
    there = selection.cuda().select(plan, away, Draws(3))
    assert torch.equal(here.predict_BM, there.predict_BM.cpu())
