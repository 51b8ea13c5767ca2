"""128 frames, 64 slices: every mask and selection makes exact plans, and systems train there."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tatscli.data.batch import Batch
from tatscli.draws import Draws
from tatscli.engine.learner import Learner
from tatscli.engine.optim import build_optimizer
from tatscli.engine.schedule import lr_at
from tatscli.masking import MASKERS
from tatscli.masking.predict import PREDICT_RULES
from tatscli.nn.trajectory import TrajectoryAttention
from tatscli.recipe.derive import derive_schedule
from tatscli.recipe.schema import Recipe
from tatscli.system.system import build_system
from tatscli.tasks.pretrain import step
from tests.fields import motion_of
from tests.masking.kinds import clip_on, mask_of, selection_of

GRID = (64, 2, 2)
TOKENS = 256


@pytest.mark.parametrize("kind", MASKERS)
def test_every_mask_and_selection_is_exact_at_64_slices(kind: str) -> None:
    clip, masker = clip_on(GRID, 3), mask_of(kind, GRID, 0.75)
    plan = masker.plan(clip, Draws(0))
    assert plan.visible_BK.shape == (3, masker.visible)
    assert plan.predict_BM.shape == (3, masker.predicted)
    assert not plan.faulty_B(TOKENS).any()
    for name in PREDICT_RULES:
        selection = selection_of(name, GRID, masker.predicted)
        chosen = selection.select(plan, clip, Draws(1))
        assert torch.equal(chosen.visible_BK, plan.visible_BK), name
        assert chosen.predict_BM.shape == (3, selection.budget), name
        assert not chosen.faulty_B(TOKENS).any(), name


def long_recipe(mask: dict[str, Any], predict: str = "all", **model: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "data": {"store": "", "frames": 128, "size": 8, "sampling": {"stride": 1}},
            "model": {"width": 16, "depth": 1, "heads": 2, "patch": 4} | model,
            "mask": {"ratio": 0.75} | mask,
            "predict": {"kind": predict},
            "head": {"kind": "decoder", "depth": 1},
            "optim": {"total_batch": 2, "batch_per_device": 2, "warmup_epochs": 0},
        }
    )


def batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    video = torch.randint(0, 256, (2, 3, 128, 8, 8), dtype=torch.uint8, generator=generator)
    motion = motion_of(4 * torch.randn(2, 128, 2, 2, 2, generator=generator), patch=4)
    none_B = torch.zeros(2, dtype=torch.int64)
    return Batch(video, motion, none_B, none_B, none_B)


LEARNED = {"width": 16, "heads": 2, "warmup": 0.0}
LEARNED_KINDS = ("tats", "adamae")


@pytest.mark.parametrize(
    ("mask", "predict"),
    [
        ({"kind": "tats"} | LEARNED, "all"),
        ({"kind": "tats"} | LEARNED, "flow"),
        ({"kind": "adamae"} | LEARNED, "uniform"),
        ({"kind": "mgm", "blocks": 2}, "running_cell"),
        ({"kind": "mgm_advect"}, "random"),
        ({"kind": "still"}, "everest"),
    ],
    ids=lambda one: one if isinstance(one, str) else one["kind"],
)
def test_a_system_takes_a_step_on_128_frames(mask: dict[str, Any], predict: str) -> None:
    recipe = long_recipe(mask, predict)
    assert recipe.grid == GRID
    torch.manual_seed(0)
    system = build_system(recipe).train()
    attentions = [one for one in system.masker.modules() if isinstance(one, TrajectoryAttention)]
    assert bool(attentions) == (mask["kind"] == "tats")
    assert not any(one.keeps for one in attentions)  # worked off in chunks: 64 slices are many
    schedule = derive_schedule(recipe.optim, videos=8, repeats=1, world=1)
    main = Learner(
        system.autoencoder,
        build_optimizer(system.autoencoder, recipe.optim),
        lr=lambda number: lr_at(number, schedule),
    )
    learners = {"autoencoder": main} | system.masker.learners(schedule)
    trained = [system.autoencoder, *([system.masker] if mask["kind"] in LEARNED_KINDS else [])]
    before = [[one.detach().clone() for one in part.parameters()] for part in trained]
    for number in range(2):
        for learner in learners.values():
            learner.begin(number)
        lesson = step(system, batch(), Draws(number))
        assert lesson.loss is not None and torch.isfinite(lesson.loss)
        assert lesson.metrics["plan_faults"] == 0
        lesson.loss.backward()
        for learner in learners.values():
            learner.update()
        system.masker.after_step(number + 1, schedule.total_steps)
    for part, old in zip(trained, before, strict=True):
        moved = [not torch.equal(x, y) for x, y in zip(part.parameters(), old, strict=True)]
        assert any(moved)
        assert all(torch.isfinite(one).all() for one in part.parameters())
