"""A toy world for learned masks: a tenth of the tokens are marked, and three times as hard."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tatscli.masking import build_masker
from tatscli.masking.learning.learned import LearnedMasker
from tatscli.recipe import schema

GRID, TOKENS, WIDTH = (2, 4, 5), 40, 6
SMALL = {"ratio": 0.75, "width": 16, "heads": 4, "base_lr": 1e-3, "warmup": 0.0}


def make(kind: str = "tats", **changes: Any) -> LearnedMasker:
    """Build a small learned mask in training mode."""
    torch.manual_seed(0)
    section = schema.TatsMask if kind == "tats" else schema.AdamaeMask
    config = section(kind=kind, **(SMALL | changes))
    masker = build_masker(config, grid=GRID, width=WIDTH)
    assert isinstance(masker, LearnedMasker)
    return masker.train()


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(seed: int, clips: int = 8) -> tuple[Tensor, Tensor]:
    """Return tokens whose first feature shows which are marked, and the marks."""
    generator = seeded(seed)
    marked = torch.rand(clips, TOKENS, generator=generator).argsort(1) < TOKENS // 10
    tokens = torch.randn(clips, TOKENS, WIDTH, generator=generator)
    tokens[..., 0] = 2.0 * marked
    return tokens, marked


def train(masker: LearnedMasker, steps: int, *, start: int = 0) -> dict[str, float]:
    """Let a mask learn, and return the metrics of the last update."""
    metrics: dict[str, float] = {}
    for step in range(start, start + steps):
        tokens, marked = batch(step)
        plan = masker.plan(tokens, generator=seeded(step))
        error = torch.where(marked, 1.0, 0.3).gather(1, plan.predict_BM)
        metrics |= masker.learn(plan, error)
    return metrics


def share(masker: LearnedMasker) -> float:
    """Return the marked tokens' share of what fresh draws show; 0.1 is chance."""
    masker.eval()
    shown = []
    for seed in range(1000, 1020):
        tokens, marked = batch(seed)
        visible = masker.plan(tokens, generator=seeded(seed)).visible_BK
        shown.append(marked.gather(1, visible).float().mean())
    masker.train()
    return torch.stack(shown).mean().item()
