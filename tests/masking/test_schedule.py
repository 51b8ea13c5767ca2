"""`schedule`: whose step it is, equal counts, routing of what a learned mask learns, its state."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tatscli.draws import Draws
from tatscli.errors import DataError, RecipeError
from tatscli.masking.adamae import AdamaeMasker
from tatscli.masking.plan import MaskPlan
from tatscli.masking.schedule import ScheduleMasker
from tests.masking.kinds import MASKS, clip_of, clip_on, mask_of, schedule_of, tokens_on

GRID = (4, 4, 5)
LEARNED = {"width": 8, "heads": 2}
ONE = sorted(set(MASKS) - {"schedule"})


def make(first: Any, second: Any, *, grid: Any = GRID, **changes: Any) -> ScheduleMasker:
    ratio = changes.pop("ratio", 0.75)
    masker = mask_of("schedule", grid, ratio, **{"from": first}, to=second, **changes)
    assert isinstance(masker, ScheduleMasker)
    return masker


def section(kind: str) -> dict[str, Any]:
    more = {"tats": LEARNED, "adamae": LEARNED, "everest": {"keep": 0.9}}
    return {"kind": kind} | more.get(kind, {})


def used_to(masker: ScheduleMasker, steps: int) -> list[bool]:
    """Train for so many steps and say which of them used the second mask."""
    masker.train().learners(schedule_of(steps))
    clip, found = clip_on(masker.grid, 2), []
    for step in range(steps):
        plan = masker.plan(clip, Draws(step))
        lesson = masker.learn(plan, torch.rand(plan.predict_BM.shape))
        found.append(bool(lesson.metrics["mask/to_share"]))
        masker.after_step(step + 1, steps)
    return found


@pytest.mark.parametrize("over", [0.25, 0.5, 1.0])
def test_the_share_of_steps_rises_as_promised(over: float) -> None:
    masker = make("random", "tube", over=over)
    steps = 60
    used = used_to(masker, steps)
    promised = [min(1.0, step / (over * steps)) for step in range(steps)]
    for done in range(steps + 1):
        assert -1 < sum(used[:done]) - sum(promised[:done]) <= 1e-9, done
    assert not any(used[: round(steps * over * 0.1)])
    assert all(used[math.ceil(steps * over) :])
    assert sum(used) == masker.turned(steps)


def test_a_plan_is_that_of_the_mask_whose_step_it_is() -> None:
    masker = make("frame", "tube", over=0.5)
    masker.train().learners(schedule_of(10))
    clip = clip_of(GRID, 3)
    slices = masker.plan(clip, Draws(0)).visible_BK // 20
    assert all(len(one.unique()) == 1 for one in slices)  # one whole slice, and it is `frame`
    masker.after_step(9, 10)
    by_slice = masker.plan(clip, Draws(0)).visible_BK.unflatten(1, (4, 5)) % 20
    assert torch.equal(by_slice, by_slice[:, :1].expand_as(by_slice))  # `tube`
    # Outside of a training it is the second one from the start.
    for looked in (make("frame", "tube"), make("frame", "tube").eval()):
        by_slice = looked.plan(clip, Draws(0)).visible_BK.unflatten(1, (4, 5)) % 20
        assert torch.equal(by_slice, by_slice[:, :1].expand_as(by_slice))


@settings(max_examples=60)
@given(
    first=st.sampled_from(ONE),
    second=st.sampled_from(ONE),
    grid=st.tuples(st.integers(2, 4), st.integers(1, 5), st.integers(2, 5)),
    ratio=st.sampled_from([0.5, 0.75, 0.9]),
    quota=st.booleans(),
)
def test_both_masks_show_and_predict_equally_many(
    first: str, second: str, grid: tuple[int, int, int], ratio: float, quota: bool
) -> None:
    assume(not {first, second} <= {"tats", "adamae"})
    sides = [section(one) for one in (first, second)]
    for one in sides:
        if quota and one["kind"] in ("tats", "adamae"):
            one["quota"] = True
    try:
        masker = make(*sides, grid=grid, ratio=ratio)
    except RecipeError:
        assume(False)
    masker.train().learners(schedule_of(10))
    tokens = grid[0] * grid[1] * grid[2]
    parts = {0: masker.from_mask, 9: masker.to_mask}
    assert masker.visible == min(one.visible for one in parts.values())
    for done, mask in parts.items():
        masker.after_step(done, 10)
        plan = masker.plan(clip_on(grid, 3), Draws(done))
        assert plan.visible_BK.shape == (3, masker.visible)
        assert plan.predict_BM.shape == (3, masker.predicted)
        assert not plan.faulty_B(tokens).any()
        # What is seen is what the mask would have shown, or less.
        own = mask.plan(clip_on(grid, 3), Draws(done))
        seen = own.hidden_BN(tokens).logical_not()
        assert seen.gather(1, plan.visible_BK).all()


def test_a_surplus_is_hidden_by_chance_and_predicted() -> None:
    grid = (8, 14, 14)
    masker = make("tube", "random", grid=grid, ratio=0.9)
    assert (masker.from_mask.visible, masker.to_mask.visible) == (160, 156)
    assert (masker.visible, masker.predicted) == (156, 1412)
    masker.train().learners(schedule_of(10))
    clip = clip_of(grid, 64)
    plan = masker.plan(clip, Draws(0))
    tube = masker.from_mask.plan(clip, Draws(0))
    lost = plan.hidden_BN(1568) & ~tube.hidden_BN(1568)
    assert (lost.sum(dim=1) == 4).all()
    assert (lost.nonzero()[:, 1] // 196).bincount().min() > 10  # of any slice


@pytest.mark.parametrize("kind", ["tats", "adamae"])
def test_only_the_mask_that_planned_learns(kind: str) -> None:
    masker = make("tube", section(kind), over=0.5)
    assert masker.needs_embeddings and not masker.needs_motion
    assert masker.reaches_encoder == (kind == "adamae")
    assert masker.temperature == 1
    learners = masker.train().learners(schedule_of(10))
    assert list(learners) == ["sampler"]
    clip = clip_of(GRID, tokens=tokens_on(GRID, 2))
    plan = masker.plan(clip, Draws(0))
    lesson = masker.learn(plan, torch.rand(plan.predict_BM.shape))
    assert lesson.loss is None and lesson.metrics == {"mask/to_share": 0.0}
    masker.after_step(9, 10)
    plan = masker.plan(clip, Draws(0))
    lesson = masker.learn(plan, torch.rand(plan.predict_BM.shape))
    assert lesson.loss is not None and lesson.metrics["mask/to_share"] == 1.0
    assert "entropy" in lesson.metrics and "restored" in masker.after_step(10, 10).metrics
    lesson.loss.backward()
    assert any(one.grad is not None for one in masker.to_mask.parameters())


class Strict(AdamaeMasker):
    """Refuses errors of tokens that it did not hide."""

    def learn(self, plan: MaskPlan, error_BM: Tensor) -> Any:
        assert self._rollout is not None
        shown = torch.zeros(len(plan.predict_BM), self.tokens, dtype=torch.bool)
        shown.scatter_(1, self._rollout.order_BK, True)
        assert not shown.gather(1, plan.predict_BM).any()
        return super().learn(plan, error_BM)


def test_a_learned_mask_is_judged_by_what_it_hid_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where some of what it showed was hidden from the encoder."""
    from tatscli.masking import MASKERS

    monkeypatch.setitem(MASKERS, "adamae", Strict)
    masker = make({"kind": "future", "gap": 2}, section("adamae"), ratio=0.5)
    assert masker.to_mask.visible > masker.visible
    assert masker.predicted <= masker.to_mask.predicted
    masker.train().learners(schedule_of(10))
    masker.after_step(9, 10)
    plan = masker.plan(clip_of(GRID, tokens=tokens_on(GRID, 2)), Draws(0))
    masker.learn(plan, torch.rand(plan.predict_BM.shape))


def test_its_state_is_the_step_and_what_the_masks_keep() -> None:
    masker = make("tube", section("tats"))
    masker.train().learners(schedule_of(10))
    masker.after_step(7, 10)
    kept = masker.tensors()
    weights = {name.removeprefix("weights/") for name in kept if name.startswith("weights/")}
    assert weights == set(masker.state_dict())
    other = make("tube", section("tats"))
    other.train().learners(schedule_of(10))
    other.load({name: one + 1 if one.is_floating_point() else one for name, one in kept.items()})
    assert other.done == 7
    for name, value in other.state_dict().items():
        assert torch.equal(value, masker.state_dict()[name] + 1), name


def test_motion_is_asked_for_from_the_first_step_on() -> None:
    masker = make("random", "mgm")
    assert masker.needs_motion
    masker.train().learners(schedule_of(10))
    with pytest.raises(DataError, match=r"`mask\.kind: schedule` needs motion"):
        masker.plan(clip_of(GRID, 2), Draws(0))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"from": "tats", "to": "adamae"}, "`from: tats` and `to: adamae` are both learned"),
        ({"to": {"kind": "mgm", "ratio": 0.5}}, r"`to\.ratio: 0\.5` differs from the schedule's"),
        (
            {"to": {"kind": "everest", "keep": 0.2}},
            "`keep: 0.2` must be more than the visible fraction",
        ),
        ({"to": "schedule"}, "does not match any of the expected tags"),
    ],
)
def test_masks_that_do_not_go_together_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MASKS["schedule"](kind="schedule", ratio=0.75, **given)


def test_a_name_is_a_section_and_one_ratio_is_both_masks() -> None:
    short = MASKS["schedule"](kind="schedule", ratio=0.6, **{"from": "tube"}, to="block")
    long = MASKS["schedule"](
        kind="schedule", ratio=0.6, **{"from": {"kind": "tube"}}, to={"kind": "block"}
    )
    assert short == long
    assert [one.ratio for one in short.both] == [0.6, 0.6]
    for side in ("from", "to"):  # editors know both spellings
        section_or_name = MASKS["schedule"].model_json_schema()["properties"][side]["anyOf"]
        assert "mgm" in section_or_name[1]["enum"] and "discriminator" in section_or_name[0]
    written = short.model_dump(mode="json")
    assert written["from"] == {"kind": "tube"} and "from_" not in written
    assert type(short).model_validate(written) == short
