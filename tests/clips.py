"""Renders test clips with PyAV: pictures of known motion through any codec and option."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

CLEAN_VECTORS = {"bf": "0", "refs": "1", "crf": "12"}
"""x264 options with which every vector is the displacement from the previous frame."""


def texture(height: int, width: int, *, seed: int = 0) -> np.ndarray:
    """Return a random colour texture (H, W, 3) uint8 with detail at several scales."""
    rng = np.random.default_rng(seed)
    picture = np.zeros((height, width, 3))
    for cell in (4, 8, 16, 32):
        coarse = rng.uniform(0, 1, (height // cell + 3, width // cell + 3, 3))
        rows, columns = np.arange(height) / cell, np.arange(width) / cell
        top, left = rows.astype(int), columns.astype(int)
        y, x = (rows - top)[:, None, None], (columns - left)[None, :, None]
        across = [
            coarse[top + down][:, left] * (1 - x) + coarse[top + down][:, left + 1] * x
            for down in (0, 1)
        ]
        picture += across[0] * (1 - y) + across[1] * y
    low, high = picture.min(), picture.max()
    return np.round(20 + 215 * (picture - low) / (high - low)).astype(np.uint8)


def pan(
    step: tuple[int, int] = (3, -2),
    *,
    frames: int = 24,
    height: int = 192,
    width: int = 256,
    seed: int = 0,
) -> Iterator[np.ndarray]:
    """Yield a texture whose content moves by `step` (x, y) pixels from frame to frame."""
    dx, dy = step
    room_x, room_y = abs(dx) * (frames - 1), abs(dy) * (frames - 1)
    ground = texture(height + room_y, width + room_x, seed=seed)
    for index in range(frames):
        left = room_x - index * dx if dx > 0 else -index * dx
        top = room_y - index * dy if dy > 0 else -index * dy
        yield ground[top : top + height, left : left + width]


def moving_patch(
    step: tuple[int, int] = (4, 2),
    *,
    frames: int = 16,
    height: int = 192,
    width: int = 256,
    side: int = 64,
    start: tuple[int, int] = (32, 32),
    seed: int = 0,
) -> Iterator[np.ndarray]:
    """Yield a textured square moving by `step` (x, y) over a still ground, from `start` (x, y)."""
    ground, patch = texture(height, width, seed=seed), texture(side, side, seed=seed + 1)
    for index in range(frames):
        picture = ground.copy()
        left, top = start[0] + index * step[0], start[1] + index * step[1]
        picture[top : top + side, left : left + side] = patch
        yield picture


def static(
    *, frames: int = 16, height: int = 96, width: int = 128, seed: int = 0
) -> Iterator[np.ndarray]:
    """Yield the same textured picture again and again."""
    picture = texture(height, width, seed=seed)
    return (picture for _ in range(frames))


def render(
    path: Path,
    frames: Iterable[np.ndarray],
    *,
    codec: str = "libx264",
    fps: float | Fraction = 25,
    options: Mapping[str, str] | None = None,
    pix_fmt: str = "yuv420p",
    pts: Iterable[int] | None = None,
    bit_rate: int | None = None,
    matrix: tuple[int, ...] | None = None,
) -> Path:
    """Encode RGB frames into a file; the suffix decides the container.

    Args:
        path: Where to write; missing folders are made.
        frames: (H, W, 3) uint8.
        codec: FFmpeg's name of the encoder.
        fps: Frame rate; one tick of `pts`.
        options: Options of the encoder; `CLEAN_VECTORS` for exact motion.
        pix_fmt: Pixel format of the stream.
        pts: Presentation time of each frame in ticks of 1 / fps; 0, 1, 2 ... if None.
        bit_rate: For encoders that choose motion by their budget (mpeg4, mpeg2video).
        matrix: Display matrix, nine integers; needs PyAV 18.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    rate = Fraction(fps).limit_denominator(1001)
    with av.open(str(path), "w") as container:
        stream = None
        for index, (picture, tick) in enumerate(zip(frames, pts or _ticks(), strict=False)):
            if stream is None:
                stream = container.add_stream(codec, rate=rate, options=dict(options or {}))
                stream.height, stream.width = picture.shape[:2]
                stream.pix_fmt = pix_fmt
                stream.codec_context.time_base = 1 / rate
                stream.codec_context.thread_count = 1
                if bit_rate is not None:
                    stream.bit_rate = bit_rate
                if matrix is not None:
                    stream.set_display_matrix(matrix)
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts, frame.time_base = (index if pts is None else tick), 1 / rate
            container.mux(stream.encode(frame))
        assert stream is not None, "no frames"
        container.mux(stream.encode())
    return path


def _ticks() -> Iterator[int]:
    tick = 0
    while True:
        yield tick
        tick += 1
