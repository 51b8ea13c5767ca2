"""How much of a hidden token can be told from what is shown?

    python tests/studies/predictable.py FOLDER --cut 30 20 72

Windows of 8 frames of the videos of a folder, grey, 32 x 32 pixels, are cut into 4 x 4 x 4 tokens.
Printed, as JSON: what of the tokens' variance is left if a token is said to be the mean of the
other slices at its site, which needs no understanding; and of what moves (a token less the clip's
mean at its site) at the four liveliest sites, how much ridge regression on the shown tokens
explains, by ratio hidden and stride, with tokens hidden at random and with whole sites hidden
(tubes). It is linear, so of videos where things lie in place, and a network can do better; but
where it finds little there is little to learn from. Fitted on three fifths of the videos, the
penalty chosen on one fifth, reported on the last.
"""

from __future__ import annotations

import argparse
import json
import random
from functools import partial
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

FRAMES, SIDE, PATCH, TUBELET = 8, 32, 8, 2
SLICES, ACROSS = FRAMES // TUBELET, SIDE // PATCH
SITES = ACROSS**2
WINDOWS = 12  # of a video
VALUES = 8  # principal components that a token is described by
LIVELIEST = 4  # sites
RATIOS, STRIDES = (0.25, 0.5, 0.75, 0.9), (1, 2, 3)
KINDS = {"explained of what moves": False, "explained of what moves, tubes": True}
PENALTIES = (0.01, 0.1, 1.0, 10.0)  # times the mean of the normal equations' diagonal


def read(path: Path, square: tuple[int, int, int]) -> Floats:
    """Return the square of all frames, grey: (frames, SIDE, SIDE)."""
    top, left, side = square
    frames = []
    with av.open(str(path)) as video:
        for frame in video.decode(video=0):
            whole = frame.to_ndarray(format="gray").astype(np.uint8)
            part = np.ascontiguousarray(whole[top : top + side, left : left + side])
            small = av.VideoFrame.from_ndarray(part, format="gray").reformat(SIDE, SIDE)
            frames.append(small.to_ndarray())
    return np.stack(frames).astype(np.float32) / np.float32(255)


def tokens(videos: list[Floats], stride: int, rng: random.Random) -> Floats:
    """Cut windows into tokens: (videos, windows, slices, sites, tubelet, pixels)."""
    span = (FRAMES - 1) * stride + 1
    windows = []
    for video in videos:
        for _ in range(WINDOWS):
            first = rng.randrange(len(video) - span + 1)
            windows.append(video[first : first + span : stride])
    cubes = np.stack(windows).reshape(-1, SLICES, TUBELET, ACROSS, PATCH, ACROSS, PATCH)
    cubes = cubes.transpose(0, 1, 3, 5, 2, 4, 6)
    return cubes.reshape(len(videos), WINDOWS, SLICES, SITES, TUBELET, PATCH**2)


def left_by_copying(token: Floats) -> float:
    """Return the share of the variance that is left by the best multiple of the mean of the other
    slices at a token's site, both less the mean of all clips there."""
    own = token - token.mean((0, 1, 2), keepdims=True)
    others = (own.sum(2, keepdims=True) - own) / (SLICES - 1)
    best = (own * others).sum() / np.square(others).sum()
    return float(np.square(own - best * others).sum() / np.square(own).sum())


def explained(token: Floats, ratio: float, rng: np.random.Generator, *, tubes: bool) -> float:
    """Return how much of what moves is explained, at the liveliest sites of the inner slices."""
    moving = token - token.mean((2, 4), keepdims=True)
    energy = np.square(moving).mean((0, 1, 2, 4, 5))
    moving = moving.reshape(-1, SLICES, SITES, TUBELET * PATCH**2)
    value = np.empty((*moving.shape[:3], VALUES), np.float32)
    for site in range(SITES):
        values = moving[:, :, site].reshape(-1, moving.shape[-1])
        _, axes = np.linalg.eigh(values.T @ values)
        value[:, :, site] = (values @ axes[:, -VALUES:]).reshape(*moving.shape[:2], VALUES)
    number = np.arange(len(token)).repeat(WINDOWS) * 5 // len(token)  # fifth that a window is in
    fit, choose, score = number < 3, number == 3, number == 4
    missed = total = 0.0
    for site in np.argsort(energy)[-LIVELIEST:]:
        for slice_ in range(1, SLICES - 1):
            slices = 1 if tubes else SLICES
            drawn = rng.random((len(value), slices, SITES)) >= ratio
            drawn[:, 0 if tubes else slice_, site] = False
            shown = np.broadcast_to(drawn, value.shape[:3])
            given, asked = (
                (value * shown[..., None]).reshape(len(value), -1),
                value[:, slice_, site],
            )
            product, aim = given[fit].T @ given[fit], given[fit].T @ asked[fit]
            unit = np.eye(len(product), dtype=np.float32) * np.trace(product) / len(product)
            maps = [np.linalg.solve(product + penalty * unit, aim) for penalty in PENALTIES]
            best = min(maps, key=lambda one: np.square(given[choose] @ one - asked[choose]).sum())
            missed += float(np.square(given[score] @ best - asked[score]).sum())
            total += float(np.square(asked[score] - asked[fit].mean(0)).sum())
    return 1 - missed / total


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="videos")
    parser.add_argument(
        "--cut", type=int, nargs=3, required=True, help="top, left and side of a square"
    )
    asked = parser.parse_args()
    paths = sorted(asked.folder.rglob("*.mp4"))
    videos = [read(path, tuple(asked.cut)) for path in paths]
    videos = [video for video in videos if len(video) > (FRAMES - 1) * max(STRIDES)]
    draws = partial(np.random.default_rng, 0)
    found = []
    for stride in STRIDES:
        token = tokens(videos, stride, random.Random(0))
        flat = token - token.mean((4, 5), keepdims=True)
        standardised = flat / (token.std((4, 5), keepdims=True) + 1e-6)
        found.append(
            {
                "stride": stride,
                "left by copying": round(left_by_copying(token), 3),
                "left by copying, standardised": round(left_by_copying(standardised), 3),
                **{
                    name: {
                        ratio: round(explained(token, ratio, draws(), tubes=tubes), 3)
                        for ratio in RATIOS
                    }
                    for name, tubes in KINDS.items()
                },
            }
        )
    print(json.dumps({"videos": len(videos), "found": found}, indent=1))


if __name__ == "__main__":
    main()
