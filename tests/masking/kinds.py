"""Every kind of mask and of predict-selection, as a recipe asks for it, and clips to give them."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from tatscli.data.clip import Clip, ClipForm
from tatscli.data.motion import MotionField
from tatscli.masking import build_masker
from tatscli.masking.base import Masker
from tatscli.masking.predict import build_predict
from tatscli.masking.predict.base import PredictRule
from tatscli.recipe import schema
from tatscli.recipe.derive import Schedule, derive_schedule
from tatscli.recipe.keys import Kinds, node_of
from tatscli.recipe.schema import RunTokenizer
from tests.fields import motion_of
from tests.tokenizer.windows import DIGEST, WindowTokenizer

Grid = tuple[int, int, int]

WIDTH = 6


def sections(union: Any) -> dict[str, Any]:
    """Return the sections of a union by their kind."""
    kinds = node_of(union)
    assert isinstance(kinds, Kinds)
    return dict(kinds.by_name)


MASKS = sections(schema.Mask)
PREDICTS = sections(schema.Predict)


def mask_of(kind: str, grid: Grid, ratio: float, **changes: Any) -> Masker:
    """Build a mask for tokens of `WIDTH`."""
    torch.manual_seed(0)
    if kind in ("tats", "adamae"):
        changes = {"width": 8, "heads": 2} | changes
    if kind == "adamae":
        changes = {"dropout": 0} | changes
    if kind == "everest":
        changes = {"keep": 1 - ratio / 2} | changes
    return build_masker(MASKS[kind](kind=kind, ratio=ratio, **changes), grid=grid, width=WIDTH)


def selection_of(kind: str, grid: Grid, predicted: int, **changes: Any) -> PredictRule:
    """Build a selection over a mask that gives `predicted` tokens to predict."""
    if kind == "tokenizer":
        changes = {"tokenizer": RunTokenizer(kind="run", path="runs/windows")} | changes
    form = ClipForm(grid, tubelet=1, patch=1)
    tokenizer = WindowTokenizer(stride=1, frames=1, window=2)
    with patch("tatscli.tokenizer.asked.open_tokenizer", lambda source: (tokenizer, DIGEST)):
        return build_predict(PREDICTS[kind](kind=kind, **changes), form=form, predicted=predicted)


def clip_of(
    grid: Grid,
    clips: int | None = None,
    *,
    tokens: Tensor | None = None,
    motion: MotionField | None = None,
) -> Clip:
    """Make clips of black pixels around given patch embeddings or motion, or a number of clips."""
    given = tokens if motion is None else motion.missing_B
    device = torch.device("cpu") if given is None else given.device
    if clips is None:
        assert given is not None
        clips = len(given)
    form = ClipForm(grid, tubelet=1, patch=1).to(device)
    pixels = torch.zeros(1, 1, 1, dtype=torch.uint8, device=device)
    embed = None if tokens is None else lambda _: tokens
    return Clip(form, pixels.expand(clips, form.tokens, 3), motion=motion, embed=embed)


def clip_on(grid: Grid, clips: int, seed: int = 0) -> Clip:
    """Make clips with random embeddings and motion."""
    return clip_of(grid, tokens=tokens_on(grid, clips, seed), motion=motion_on(grid, clips, seed))


def tokens_on(grid: Grid, clips: int, seed: int = 0) -> Tensor:
    """Return random embeddings."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(clips, grid[0] * grid[1] * grid[2], WIDTH, generator=generator)


def motion_on(grid: Grid, clips: int, seed: int = 0) -> MotionField:
    """Return random motion, two frames a slice."""
    generator = torch.Generator().manual_seed(seed)
    return motion_of(8 * torch.randn(clips, 2 * grid[0], *grid[1:], 2, generator=generator))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def schedule_of(steps: int, *, total_batch: int = 256) -> Schedule:
    """Return the schedule of a training of so many steps."""
    optim = schema.Optim(epochs=steps, total_batch=total_batch, batch_per_device=total_batch)
    return derive_schedule(optim, videos=total_batch, repeats=1, world=1)
