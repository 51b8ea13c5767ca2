"""A patch of known motion, from the encoded file to the mask that must follow it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor
from torch.nn import functional

from tatscli.data.batch import Batch, collate
from tatscli.data.clip import ClipForm
from tatscli.data.dataset import PretrainClips
from tatscli.draws import Draws
from tatscli.masking import build_masker
from tatscli.recipe.schema import Data, Mask, Motion, Sampling
from tatscli.store.reader import Store
from tatscli.store.schema import Settings
from tests.clips import CLEAN_VECTORS, render, texture
from tests.store.stores import prepare

SIDE, FRAMES, PATCH = 192, 33, 48
STEP = (3, -1)  # pixels a frame
START = (8, 136)
GRID = (8, 12, 12)
DRAWS = 24

Camera = Callable[[int], tuple[float, float, float]]  # frame -> zoom, x, y of the ground

CAMERAS: dict[str, Camera] = {
    "rest": lambda t: (1.0, 0.0, 0.0),
    "pan": lambda t: (1.0, 3.0 * t, -2.0 * t),
    "zoom": lambda t: (1.02**t, 0.0, 0.0),
    "shake": lambda t: (1.0, 6 * math.sin(1.7 * t), 6 * math.cos(2.3 * t)),
}


def place(frame: float) -> tuple[float, float]:
    return START[0] + STEP[0] * frame, START[1] + STEP[1] * frame


def scene(camera: Camera) -> Iterator[np.ndarray]:
    """Yield a ground that the camera moves over, and a patch that moves on its own before it."""
    world = torch.from_numpy(texture(3 * SIDE, 3 * SIDE, seed=0)).permute(2, 0, 1)[None].float()
    patch = texture(PATCH, PATCH, seed=1)
    at = (torch.arange(SIDE) - (SIDE - 1) / 2) * 2 / (3 * SIDE)
    for frame in range(FRAMES):
        zoom, x, y = camera(frame)
        rows, columns = at / zoom + y * 2 / (3 * SIDE), at / zoom + x * 2 / (3 * SIDE)
        read = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1)[None]
        ground = functional.grid_sample(world, read, align_corners=False)
        picture = ground[0].permute(1, 2, 0).round().byte().numpy().copy()
        left, top = map(round, place(frame))
        picture[top : top + PATCH, left : left + PATCH] = patch
        yield picture


def patch_tokens(frames: list[int]) -> Tensor:
    """Return which tokens the patch fills for the most part, slice by slice: (T, h, w)."""
    found = torch.zeros(GRID, dtype=torch.bool)
    for t in range(GRID[0]):
        x, y = place(sum(frames[2 * t : 2 * t + 2]) / 2)
        for row in range(GRID[1]):
            for column in range(GRID[2]):
                across = min(x + PATCH, 16 * column + 16) - max(x, 16 * column)
                down = min(y + PATCH, 16 * row + 16) - max(y, 16 * row)
                found[t, row, column] = across > 0 and down > 0 and across * down > 128
    return found


def prepared(folder: Path, camera: Camera, name: str, *, motion: Any = "auto", **how: Any) -> Store:
    render(folder / "videos" / name, scene(camera), **how)
    settings = Settings(short_side=SIDE, motion=motion)
    prepare(folder / "videos", folder / "store", settings=settings)
    return Store.open(folder / "store")


def clip_of(store: Store, **motion: Any) -> Batch:
    """Read the whole picture of every second frame."""
    data = Data(
        store="",
        frames=16,
        size=SIDE,
        sampling=Sampling(stride=2),
        crop_scales=[1],
        motion=Motion(**motion),
    )
    return collate(PretrainClips(store, [0], data, patch=16, seed=0)[0, 0] * DRAWS)


def covered(kind: str, batch: Batch, ratio: float = 0.5) -> float:
    """Return the share of slices in which the mask hides nine tenths of the patch, or more."""
    section: Any = TypeAdapter(Mask).validate_python({"kind": kind, "ratio": ratio})
    masker = build_masker(section, grid=GRID, width=8)
    clip = ClipForm(GRID, 2, 16).clip(batch.video_BCTHW, motion=batch.motion)
    plan = masker.plan(clip, Draws(0))
    hidden = plan.hidden_BN(masker.tokens).reshape(DRAWS, *GRID)
    first = batch_start(batch)
    where = patch_tokens([first + 2 * k for k in range(16)])
    share = (hidden & where).sum(dim=(2, 3)) / where.sum(dim=(1, 2))
    return (share >= 0.9).float().mean().item()


def batch_start(batch: Batch) -> int:
    """Find the clip's first frame by the place of the patch: rendered frames differ nowhere else.

    A clip of 16 frames at stride 2 fits into 33 frames at two places only.
    """
    patch = torch.from_numpy(texture(PATCH, PATCH, seed=1)).permute(2, 0, 1).float()
    distances = []
    for first in (0, 1):
        left, top = map(round, place(first))
        cut = batch.video_BCTHW[0, :, 0, top : top + PATCH, left : left + PATCH].float()
        distances.append((cut - patch).abs().mean().item())
    return int(np.argmin(distances))


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("h264.mp4", {"options": CLEAN_VECTORS}),
        ("default.mp4", {"options": {"crf": "18"}}),
        ("vp9.webm", {"codec": "libvpx-vp9", "options": {"crf": "20"}, "bit_rate": 4_000_000}),
        (
            "hevc.mp4",
            {"codec": "libx265", "options": {"crf": "18", "x265-params": "log-level=none"}},
        ),
    ],
)
def test_mgm_follows_a_patch_through_any_codec(
    tmp_path: Path, name: str, how: dict[str, Any]
) -> None:
    store = prepared(tmp_path, CAMERAS["rest"], name, **how)
    batch = clip_of(store)
    assert covered("mgm", batch) >= 0.9
    assert covered("mgm_topk", batch) >= 0.9
    assert covered("mgm", batch, ratio=0.75) >= 0.9
    assert covered("tube", batch) < 0.1  # nine tenths of a dozen tokens by chance at one half
    assert covered("block", batch) < 0.75
    assert covered("simulated", batch) < 0.75


@pytest.mark.parametrize("camera", ["pan", "zoom", "shake"])
def test_a_moving_camera_asks_for_its_motion_to_be_taken_out(tmp_path: Path, camera: str) -> None:
    store = prepared(tmp_path, CAMERAS[camera], "clip.mp4", options=CLEAN_VECTORS)
    blind, affine = clip_of(store), clip_of(store, camera="affine")
    assert covered("mgm", affine) >= 0.85
    assert covered("mgm", affine) > covered("mgm", blind) + 0.2
    assert covered("mgm_topk", affine) >= 0.9
    if camera != "zoom":
        assert covered("mgm", clip_of(store, camera="median")) >= 0.8


def test_frame_differences_see_the_patch_without_vectors(tmp_path: Path) -> None:
    store = prepared(tmp_path, CAMERAS["rest"], "a.mp4", motion="none", options=CLEAN_VECTORS)
    assert covered("mgm_topk", clip_of(store, fallback="framediff")) >= 0.9
    assert covered("mgm_topk", clip_of(store, source="framediff")) >= 0.9
    tube = clip_of(store)
    assert tube.motion is not None and tube.motion.missing_B.all()
    assert covered("mgm_topk", tube) < 0.1
