"""`predict.kind: tokenizer`: which tokens a tokenizer's scores choose."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tatscli.data.clip import Clip, ClipForm
from tatscli.draws import Draws
from tatscli.errors import RecipeError
from tatscli.masking.plan import MaskPlan
from tatscli.masking.predict import build_predict
from tatscli.masking.predict.tokenizer import TokenizerRule
from tatscli.recipe.schema import PredictTokenizer, Recipe
from tatscli.system.system import build_system
from tests.masking.kinds import clip_of, mask_of
from tests.tokenizer.windows import DIGEST, WindowTokenizer, give

RUN = {"kind": "run", "path": "runs/windows"}


def build(
    form: ClipForm, predicted: int, tokenizer: WindowTokenizer | None = None, **keys: Any
) -> TokenizerRule:
    tokenizer = tokenizer or WindowTokenizer(stride=form.patch)
    config = PredictTokenizer.model_validate({"kind": "tokenizer", "tokenizer": RUN} | keys)
    with patch("tatscli.tokenizer.asked.open_tokenizer", lambda source: (tokenizer, DIGEST)):
        selection = build_predict(config, form=form, predicted=predicted)
    assert isinstance(selection, TokenizerRule)
    return selection


def moving(slices: int, rows: int, columns: int, clips: int = 2) -> Clip:
    """Clips of noise, cubes of 2 x 4 x 4."""
    form = ClipForm((slices, rows, columns), 2, 4)
    shape = (clips, 3, 2 * slices, 4 * rows, 4 * columns)
    generator = torch.Generator().manual_seed(7 * slices + rows)
    return form.clip(torch.randint(256, shape, dtype=torch.uint8, generator=generator))


@settings(max_examples=80)
@given(
    slices=st.integers(1, 9),  # a window has two
    sides=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    hidden=st.floats(0.05, 0.98),
    share=st.one_of(st.none(), st.floats(0.01, 1.0)),
    random=st.sampled_from([0.0, 1 / 3, 0.5, 1.0]),
    sampled=st.booleans(),
)
def test_counts_are_exact_and_two_to_one_at_any_length_ratio_and_budget(
    slices: int,
    sides: tuple[int, int],
    hidden: float,
    share: float | None,
    random: float,
    sampled: bool,
) -> None:
    clip = moving(max(slices, 2 if sides == (1, 1) else 1), *sides)
    tokens = clip.form.tokens
    seen = min(tokens - 1, max(1, round(tokens * (1 - hidden))))
    visible = torch.stack([torch.randperm(tokens)[:seen].sort().values for _ in range(2)])
    plan = MaskPlan.from_visible(visible, tokens)
    predicted = tokens - seen
    budget = None if share is None else max(1, round(share * predicted))
    selection = build(clip.form, predicted, budget=budget, random=random, sampled=sampled)
    chosen = selection.select(plan, clip, Draws(0))
    wanted = budget or max(1, min(predicted, int(0.15 * tokens + 1e-9)))
    assert chosen.predict_BM.shape == (2, wanted)
    assert not chosen.faulty_B(tokens).any()  # ascending, and none that is visible
    assert torch.equal(chosen.visible_BK, plan.visible_BK)
    top = wanted - round(random * wanted)
    assert selection.salient == top
    if random == 1 / 3:
        assert abs(top - 2 * wanted / 3) <= 0.5
    if sampled:
        return
    scores = WindowTokenizer(stride=4).code(clip.unit_BCTHW).scores_Bthw
    for one in range(2):
        values = scores[one].flatten()[plan.predict_BM[one]].sort(descending=True).values
        taken = scores[one].flatten()[chosen.predict_BM[one]].sort(descending=True).values
        # The highest of the hidden ones are all there, whatever chance added.
        assert torch.equal(taken[:top].sort().values, values[:top].sort().values)


def test_all_of_the_budget_by_score_is_the_highest_hidden_tokens() -> None:
    clip = moving(5, 3, 4, clips=3)
    plan = mask_of("random", clip.form.grid, 0.75).plan(clip_of(clip.form.grid, 3), Draws(0))
    selection = build(clip.form, plan.predict_BM.shape[1], budget=11, random=0.0)
    chosen = selection.select(plan, clip, Draws(0))
    scores = WindowTokenizer(stride=4).code(clip.unit_BCTHW).scores_Bthw.flatten(1)
    assert torch.equal(selection.saliency_BN(clip), scores)
    for one in range(3):
        hidden = plan.predict_BM[one].tolist()
        best = sorted((float(scores[one, token]) for token in hidden), reverse=True)[:11]
        taken = chosen.predict_BM[one].tolist()
        # The first two slices are equally far from one another: values, since there are ties.
        assert sorted((float(scores[one, token]) for token in taken), reverse=True) == best


def shares(scores: Tensor, clips: int, **keys: Any) -> Tensor:
    """How often each of the tokens is predicted, the first one being visible."""
    form = ClipForm((1, 1, len(scores)), 1, 1)
    plan = MaskPlan.from_visible(torch.zeros(clips, 1, dtype=torch.int64), len(scores))
    selection = build(form, len(scores) - 1, WindowTokenizer(stride=1, frames=1), **keys)
    selection.saliency_BN = lambda clip: scores.expand(clips, -1)
    chosen = selection.select(plan, clip_of(form.grid, clips), Draws(0))
    counts = torch.zeros(clips, len(scores)).scatter_(1, chosen.predict_BM, 1.0)
    return counts.mean(dim=0)


def test_sampled_draws_in_proportion_to_the_scores() -> None:
    scores = torch.tensor([9.0, 1.0, 2.0, 3.0, 4.0, 0.0])
    found = shares(scores, 30_000, budget=1, random=0.0, sampled=True)
    torch.testing.assert_close(
        found, torch.tensor([0.0, 0.1, 0.2, 0.3, 0.4, 0.0]), atol=0.012, rtol=0
    )
    # Of two, the second is drawn from what the first has left.
    found = shares(torch.tensor([9.0, 1.0, 1.0, 2.0]), 30_000, budget=2, random=0.0, sampled=True)
    last = 0.5 + 0.5 * (2 / 3)
    expected = torch.tensor([0.0, (2 - last) / 2, (2 - last) / 2, last])
    torch.testing.assert_close(found, expected, atol=0.012, rtol=0)


@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize("score", [0.0, 2.0])
def test_a_still_clip_is_predicted_by_chance(sampled: bool, score: float) -> None:
    found = shares(torch.full((8,), score), 20_000, budget=3, sampled=sampled)
    expected = torch.tensor([0.0] + [3 / 7] * 7)
    torch.testing.assert_close(found, expected, atol=0.015, rtol=0)


def test_scores_of_zero_come_last_and_fill_the_budget_by_chance() -> None:
    scores = torch.tensor([5.0, 1.0, 0.0, 0.0, 0.0])
    found = shares(scores, 20_000, budget=2, random=0.0, sampled=True)
    torch.testing.assert_close(
        found, torch.tensor([0.0, 1.0, 1 / 3, 1 / 3, 1 / 3]), atol=0.015, rtol=0
    )


def test_a_tokenizer_without_scores_is_refused() -> None:
    plain = WindowTokenizer(stride=4)
    plain.scored = False
    words = "`predict.kind: tokenizer` needs a tokenizer with scores, and `runs/windows` has none"
    with pytest.raises(RecipeError, match=words) as refused:
        build(ClipForm((2, 2, 2), 2, 4), 4, plain)
    assert "`tokenizer.kind: adaptive`" in str(refused.value.hint)
    words = "`predict`: `tokenizer` of `runs/windows`: with a code for each 4 x 4 pixels"
    with pytest.raises(RecipeError, match=words):
        build(ClipForm((2, 2, 2), 2, 6), 4, WindowTokenizer(stride=4))


def recipe_of(predict: dict[str, Any], targets: list[dict[str, Any]], **data: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "data": {"store": "", "frames": 6, "size": 16, "sampling": {"stride": 1}} | data,
            "model": {"width": 16, "depth": 1, "heads": 2, "patch": 8},
            "mask": {"kind": "random", "ratio": 0.75},
            "head": {"kind": "decoder", "depth": 1},
            "predict": {"kind": "tokenizer"} | predict,
            "targets": targets,
        }
    )


LATENTS = {"kind": "latents", "tokenizer": RUN, "scale": 2.0, "cached": True}
CENTRE = {"crop": "centre"}


def test_it_takes_over_the_tokenizer_of_the_first_target_that_has_one() -> None:
    other = {"kind": "codes", "tokenizer": {"kind": "run", "path": "runs/other"}}
    recipe = recipe_of({}, [{"kind": "pixels"}, LATENTS, other], **CENTRE)
    settled = recipe.resolved_predict
    assert (settled.tokenizer.path, settled.scale, settled.cached) == ("runs/windows", 2.0, True)
    settled = recipe_of({"scale": 1.0, "cached": False}, [LATENTS], **CENTRE).resolved_predict
    assert (settled.tokenizer.path, settled.scale, settled.cached) == ("runs/windows", 1.0, False)
    settled = recipe_of({"tokenizer": other["tokenizer"]}, [LATENTS], **CENTRE).resolved_predict
    assert (settled.tokenizer.path, settled.scale, settled.cached) == ("runs/other", 1.0, False)
    assert recipe.predict.tokenizer is None  # what a run keeps is what was written


@pytest.mark.parametrize(
    "predict, targets, words",
    [
        ({}, [{"kind": "pixels"}], "`predict.kind: tokenizer` needs `predict.tokenizer`, or a"),
        (
            {"tokenizer": RUN, "cached": True},
            [{"kind": "pixels"}],
            "`predict.cached: true` reads precomputed codes of one fixed view",
        ),
    ],
)
def test_recipes_that_cannot_be_are_refused(
    predict: dict[str, Any], targets: list[dict[str, Any]], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        recipe_of(predict, targets)


def test_a_step_shows_the_clip_to_one_network_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = WindowTokenizer()
    give(monkeypatch, tokenizer)
    target = {"kind": "latents", "tokenizer": RUN}
    system = build_system(recipe_of({}, [target, target | {"kind": "codes"}]))
    assert [one.facts["sha256"] for one in system.frozen()] == [DIGEST] * 3
    video = torch.randint(256, (2, 3, 6, 16, 16), dtype=torch.uint8)
    system.errors(system.clip(video), Draws(0)).loss.backward()
    assert tokenizer.parts == [4, 2]  # six frames in windows of four
    assert not Path("runs/windows").exists()
