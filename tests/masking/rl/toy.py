"""A toy world for learned masks: a tenth of the tokens are marked, and three times as hard."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from tatscli.data.clip import Clip
from tatscli.draws import Draws
from tatscli.engine.learner import Learner
from tatscli.engine.part import Lesson
from tatscli.masking import build_masker
from tatscli.masking.plan import MaskPlan
from tatscli.masking.rl.learned import LearnedMasker
from tatscli.recipe import schema
from tests.masking.kinds import clip_of, schedule_of, seeded

GRID, TOKENS, WIDTH = (2, 4, 5), 40, 6
SMALL = {"ratio": 0.75, "width": 16, "heads": 4, "base_lr": 1e-3, "warmup": 0.0}
LONG = 1_000_000
"""Steps of a training in which no test sees the learning rate fall."""

Errors = Callable[[MaskPlan], Tensor]


def make(kind: str = "tats", *, steps: int | None = LONG, **changes: Any) -> LearnedMasker:
    """Build a small learned mask in training mode, and begin a training of so many steps."""
    torch.manual_seed(0)
    section = schema.TatsMask if kind == "tats" else schema.AdamaeMask
    small = SMALL if kind == "tats" else SMALL | {"dropout": 0}  # so that a policy answers alike
    config = section(kind=kind, **(small | changes))
    masker = build_masker(config, grid=GRID, width=WIDTH)
    assert isinstance(masker, LearnedMasker)
    if steps is not None:
        learners = masker.learners(schedule_of(steps))
        assert list(learners) == ["sampler"]
        _note_updates(learners["sampler"])
    return masker.train()


def _note_updates(learner: Learner) -> None:
    """Note of each update whether its gradients were not finite; copies of the learner do too."""
    learner.noted = []  # type: ignore[attr-defined]
    learner.update = partial(_noted, learner)  # type: ignore[method-assign]


def _noted(learner: Any, *, skip: Tensor | None = None) -> Tensor | None:
    norm = Learner.update(learner, skip=skip)
    if norm is not None:
        learner.noted.append(not bool(norm.isfinite()))
    return norm


def bad_updates(masker: LearnedMasker) -> list[bool]:
    """Return of each update since the last call whether its gradients were not finite."""
    learner: Any = learner_of(masker)
    found, learner.noted = learner.noted, []
    return list(found)


def learner_of(masker: LearnedMasker) -> Learner:
    assert masker.learner is not None
    return masker.learner


def random_errors(plan: MaskPlan) -> Tensor:
    return torch.rand(plan.predict_BM.shape)


@dataclass
class Taught:
    """What became of an optimiser step.

    Attributes:
        plans: Of its micro-batches.
        lessons: What `learn` returned for each.
        norm: Of the gradient before clipping; None where none was there.
        after: What `after_step` returned.
    """

    plans: list[MaskPlan] = field(default_factory=list)
    lessons: list[Lesson] = field(default_factory=list)
    norm: Tensor | None = None
    after: Lesson = field(default_factory=Lesson)

    @property
    def plan(self) -> MaskPlan:
        return self.plans[-1]

    @property
    def metrics(self) -> dict[str, float]:
        """All numbers; where names are alike, those of `after_step`."""
        found = dict(self.lessons[-1].metrics)
        if self.norm is not None:
            found["sampler_grad_norm"] = self.norm
        found |= self.after.metrics
        return {name: torch.as_tensor(value).item() for name, value in found.items()}


def teach(
    masker: LearnedMasker,
    step: int,
    *clips: Clip,
    errors: Errors = random_errors,
    change: Callable[[MaskPlan], MaskPlan] = lambda plan: plan,
    seed: int | None = None,
    planning: AbstractContextManager[Any] | None = None,
    learning: AbstractContextManager[Any] | None = None,
) -> Taught:
    """Take an optimiser step as the training loop does.

    Args:
        masker: Learns.
        step: From 0.
        clips: The micro-batches.
        errors: What the autoencoder makes of a plan.
        change: A selection.
        seed: Of the draws; by default the step.
        planning: In which context plans are made.
        learning: In which context `learn` and `after_step` are called.
    """
    learner, taught = learner_of(masker), Taught()
    learner.begin(step)
    draws = Draws(step if seed is None else seed)
    for clip in clips:
        with planning or nullcontext():
            plan = change(masker.plan(clip, draws))
        with learning or nullcontext():
            lesson = masker.learn(plan, errors(plan))
        if lesson.loss is not None:
            (lesson.loss / len(clips)).backward()
        taught.plans.append(plan)
        taught.lessons.append(lesson)
    taught.norm = learner.update()
    with learning or nullcontext():
        taught.after = masker.after_step(step + 1, LONG)
    return taught


def batch(seed: int, clips: int = 8) -> tuple[Clip, Tensor]:
    """Return clips the first feature of whose tokens shows which are marked, and the marks."""
    generator = seeded(seed)
    marked = torch.rand(clips, TOKENS, generator=generator).argsort(1) < TOKENS // 10
    tokens = torch.randn(clips, TOKENS, WIDTH, generator=generator)
    tokens[..., 0] = 2.0 * marked
    return clip_of(GRID, tokens=tokens), marked


def noise(clips: int = 4, seed: int = 0) -> Clip:
    """Return clips in which no token is like another."""
    tokens = torch.randn(clips, TOKENS, WIDTH, generator=seeded(seed))
    return clip_of(GRID, tokens=tokens)


def train(
    masker: LearnedMasker, steps: int, *, start: int = 0, credit: float = 1.0
) -> dict[str, float]:
    """Let a mask learn, and return the last number of each name."""
    metrics: dict[str, float] = {}
    for step in range(start, start + steps):
        clip, marked = batch(step)
        hard = credit * torch.where(marked, 1.0, 0.3)
        taught = teach(
            masker, step, clip, errors=lambda plan, hard=hard: hard.gather(1, plan.predict_BM)
        )
        metrics |= taught.metrics
    return metrics


def share(masker: LearnedMasker) -> float:
    """Return the marked tokens' share of what fresh draws show; 0.1 is chance."""
    masker.eval()
    shown = []
    for seed in range(1000, 1020):
        clip, marked = batch(seed)
        visible = masker.plan(clip, Draws(seed)).visible_BK
        shown.append(marked.gather(1, visible).float().mean())
    masker.train()
    return torch.stack(shown).mean().item()


def copied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copy what will go on changing."""
    return {name: value.detach().clone() for name, value in tensors.items()}


def filed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Pass tensors through the bytes of a checkpoint's file."""
    return load(save({name: value.contiguous() for name, value in tensors.items()}))


def differing(a: dict[str, Tensor], b: dict[str, Tensor]) -> list[str]:
    """Return the names of what differs in a bit, or is in one only."""
    shared = a.keys() & b.keys()
    return sorted(
        (a.keys() ^ b.keys()) | {one for one in shared if not torch.equal(a[one], b[one])}
    )


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return not differing(a, b)
