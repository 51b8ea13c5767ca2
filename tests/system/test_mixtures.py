"""Any mask with any head, any targets and any selection, at any size: drawn at random, trained."""

from __future__ import annotations

import copy
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tatscli.data.batch import Batch
from tatscli.data.motion import MotionField
from tatscli.draws import Draws
from tatscli.engine.learner import Learner
from tatscli.engine.optim import build_optimizer
from tatscli.engine.part import Lesson, Weights
from tatscli.engine.schedule import lr_at
from tatscli.heads import HEADS
from tatscli.masking import MASKERS
from tatscli.masking.predict import PREDICT_RULES
from tatscli.recipe.derive import Schedule, derive_schedule
from tatscli.recipe.schema import FsqTokenizer, Recipe
from tatscli.system.system import build_system
from tatscli.targets import TARGETS, AllTargets
from tatscli.tasks.pretrain import step
from tests.tokenizer.saved import save_tokenizer

CLIPS = 2
ON_DISK = {"teacher", "tokenizer"}  # these need a network that was trained, and fits one grid
LEARNED = {"width": st.just(16), "heads": st.just(2), "quota": st.booleans()}
OPTIONS: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "tats": LEARNED | {"epochs": st.integers(1, 2), "rollouts": st.integers(1, 2)},
    "adamae": LEARNED | {"detach": st.booleans()},
    "everest": {"keep": st.just(0.8)},
    "future": {"gap": st.just(0)},
    "schedule": {
        "from": st.sampled_from(["random", "tube", {"kind": "adamae", "width": 16, "heads": 2}]),
        "to": st.sampled_from(["mgm", "frame", "future"]),
        "over": st.sampled_from([0.1, 0.5]),
    },
    "block": {"blocks": st.integers(1, 2)},
    "decoder": {"depth": st.integers(1, 2), "shared": st.booleans()},
    "regressor": {
        "shared": st.booleans(),
        "depth": st.integers(0, 1),
        "regressor_depth": st.integers(1, 2),
        "alignment": st.sampled_from([0.0, 2.0]),
    },
    "pixels": {"normalize": st.booleans(), "weight": st.sampled_from([0.5, 1.0])},
    "hog": {"cell": st.sampled_from([2, 4]), "frames": st.sampled_from(["middle", "all"])},
    "motion": {"scale": st.sampled_from(["clip", "patch", "none"])},
    "ema": {
        "momentum": st.sampled_from([0.0, 0.9]),
        "norm": st.sampled_from(["layer", "final"]),
        "beta": st.sampled_from([0.0, 1.0]),
    },
    "difference": {
        "span": st.sampled_from(["cube", "clip"]),
        "normalize": st.booleans(),
        "weight": st.sampled_from([0.25, 1.0]),
    },
}


def section(kind: str) -> st.SearchStrategy[dict[str, Any]]:
    options = OPTIONS.get(kind, {})
    if kind in ("codes", "latents"):
        options = {
            "tokenizer": st.just({"kind": "run", "path": str(coder())}),
            "frames": st.sampled_from(["all", "first", "middle"]),
        }
    return st.fixed_dictionaries({"kind": st.just(kind)} | options)


@cache
def coder() -> Path:
    """A tokenizer whose codes fill any grid of patches of 4 pixels."""
    config = FsqTokenizer(kind="fsq", stride=4, widths=[4], blocks=1, levels=[3, 3])
    return save_tokenizer(Path(tempfile.mkdtemp()), config, size=16)


def any_of(kinds: Any) -> st.SearchStrategy[dict[str, Any]]:
    return st.sampled_from(sorted(kinds)).flatmap(section)


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    tubelet = draw(st.sampled_from([1, 2]))
    targets = draw(st.lists(any_of(TARGETS.keys() - ON_DISK), min_size=1, max_size=3))
    for target in targets:
        if target["kind"] == "difference" and tubelet == 1:
            target["span"] = "clip"  # a cube of one frame has no difference
    return Recipe.model_validate(
        {
            "data": {
                "store": "",
                "frames": tubelet * draw(st.integers(2, 4)),
                "size": [4 * draw(st.integers(2, 5)), 4 * draw(st.integers(2, 5))],
                "sampling": {"stride": 1},
            },
            "model": {
                "width": 16,
                "depth": draw(st.integers(1, 2)),
                "heads": 2,
                "mlp": draw(st.sampled_from([None, 24])),
                "patch": 4,
                "tubelet": tubelet,
            },
            "mask": draw(any_of(MASKERS)) | {"ratio": draw(st.sampled_from([0.5, 0.75]))},
            "predict": {"kind": draw(st.sampled_from(sorted(PREDICT_RULES.keys() - ON_DISK)))},
            "head": draw(any_of(HEADS)),
            "targets": targets,
            "optim": {"total_batch": CLIPS, "batch_per_device": CLIPS, "warmup_epochs": 0},
        }
    )


class Trained:
    """A training as the loop runs it, step by step."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.schedule: Schedule = derive_schedule(recipe.optim, videos=8, repeats=1, world=1)
        torch.manual_seed(0)
        self.system = build_system(recipe).train()
        model = self.system.autoencoder
        main = Learner(
            model,
            build_optimizer(model, recipe.optim),
            lr=lambda number: lr_at(number, self.schedule),
        )
        self.learners = {"autoencoder": main} | self.system.masker.learners(self.schedule)
        self.parts = {
            "model": Weights(model),
            "optimizer": main,
            "masker": self.system.masker,
            "targets": AllTargets(self.system.targets),
        }

    def step(self, number: int) -> Lesson:
        for learner in self.learners.values():
            learner.begin(number)
        torch.manual_seed(number)  # of dropout, as the training loop seeds it
        lesson = step(self.system, self.batch(number), Draws(number))
        assert lesson.loss is not None
        lesson.loss.backward()
        for learner in self.learners.values():
            learner.update()
        for part in self.parts.values():
            part.after_step(number + 1, self.schedule.total_steps)
        return lesson

    def batch(self, number: int) -> Batch:
        generator = torch.Generator().manual_seed(100 + number)
        (t, h, w), tubelet = self.recipe.grid, self.recipe.model.tubelet
        frames, (height, width) = t * tubelet, self.recipe.data.view_size
        shape = (CLIPS, 3, frames, height, width)
        video = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        field = 4 * torch.randn(CLIPS, frames, h, w, 2, generator=generator)
        unknown_B = torch.zeros(CLIPS, dtype=torch.bool)
        motion = MotionField(
            field,
            field.norm(dim=-1),
            torch.ones(CLIPS, frames, dtype=torch.bool),
            unknown_B,
            unknown_B,
            self.recipe.model.patch,
        )
        label_B = torch.zeros(CLIPS, dtype=torch.int64)
        return Batch(video, motion, label_B, label_B, label_B)

    def state(self) -> dict[str, dict[str, Tensor]]:
        return copy.deepcopy({name: part.tensors() for name, part in self.parts.items()})

    def load(self, state: dict[str, dict[str, Tensor]]) -> None:
        for name, part in self.parts.items():
            if state[name]:
                part.load(state[name])


@given(recipe=recipes())
@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
def test_any_mixture_trains_two_steps_with_exact_counts_and_resumes_bit_for_bit(
    recipe: Recipe,
) -> None:
    straight, halves = Trained(recipe), Trained(recipe)
    system = straight.system
    seen: list[tuple[int, int]] = []
    system.autoencoder.register_forward_hook(
        lambda _, inputs, output: seen.append(
            (inputs[1].visible_BK.shape[1], inputs[1].predict_BM.shape[1])
        )
    )
    for number in range(2):
        lesson = straight.step(number)
        for name in ("loss", *(f"loss/{target}" for target in system.targets)):
            assert torch.isfinite(torch.as_tensor(lesson.metrics[name])), name
        assert lesson.metrics["plan_faults"] == 0
    counts = (system.masker.visible, system.predict.budget)
    assert seen == [counts, counts]
    assert counts[0] + counts[1] <= system.form.tokens

    halves.step(0)
    resumed = Trained(recipe)
    with torch.no_grad():
        for part in (resumed.system.autoencoder, *resumed.system.targets.values()):
            for parameter in part.parameters():
                parameter.add_(1.0)  # a resumed run must not owe anything to its own start
    resumed.load(halves.state())
    resumed.step(1)
    expected, got = straight.state(), resumed.state()
    assert {name: part.keys() for name, part in got.items()} == {
        name: part.keys() for name, part in expected.items()
    }
    for name, part in expected.items():
        for key, value in part.items():
            assert torch.equal(got[name][key], value), (name, key)
