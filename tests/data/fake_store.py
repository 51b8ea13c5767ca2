"""A store in memory: every frame is one colour that says which video and which frame it is."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from PIL import Image

from tatscli.errors import DataError
from tatscli.store.schema import Settings


def jpeg(picture: np.ndarray) -> np.ndarray:
    """Encode (H, W, 3) or (H, W) uint8 as JPEG bytes, writable uint8 (n,)."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=95)
    return np.frombuffer(file.getvalue(), np.uint8).copy()


class FakeStore:
    """Looks like `tatscli.store.reader.Store`.

    Red is 20 x row, green 5 x frame; motion is (row, frame) everywhere, absent each twelfth frame.

    Args:
        lengths: Frames of each video.
        size: Height and width of the frames.
        broken: Rows whose bytes are no JPEG.
        labels: Class of each row; None where there is none.
    """

    motion_cell = 16

    def __init__(
        self,
        lengths: Sequence[int],
        *,
        size: tuple[int, int] = (48, 64),
        broken: Sequence[int] = (),
        labels: Sequence[int | None] | None = None,
    ) -> None:
        self.size = size
        self.path = Path("fake")
        self.settings = Settings()
        self.broken = set(broken)
        self.read: Counter[tuple[int, int]] = Counter()
        self.rows = [
            SimpleNamespace(
                id=f"videos/{row}.mp4",
                frames=length,
                label=label,
                height=size[0],
                width=size[1],
                motion="native",
                moving=length - -(-length // 12),
            )
            for row, (length, label) in enumerate(
                zip(lengths, labels or range(len(lengths)), strict=True)
            )
        ]

    def times(self, row: int) -> np.ndarray:
        return np.arange(self.rows[row].frames) / 25

    def jpegs(self, row: int, frames: Sequence[int]) -> list[np.ndarray]:
        for frame in frames:
            if not 0 <= frame < self.rows[row].frames:
                raise IndexError(frame)
            self.read[row, frame] += 1
        if row in self.broken:
            return [np.zeros(100, np.uint8) for _ in frames]
        return [self._picture(row, frame) for frame in frames]

    def motion(self, row: int, frames: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        if not all(0 <= frame < self.rows[row].frames for frame in frames):
            raise DataError("no such frame")
        height, width = self.size
        field = np.zeros((len(frames), -(-height // 16), -(-width // 16), 2), np.float32)
        field[..., 0] = row
        field[..., 1] = np.asarray(frames)[:, None, None]
        return field, np.asarray(frames) % 12 != 0

    def _picture(self, row: int, frame: int) -> np.ndarray:
        picture = np.zeros((*self.size, 3), np.uint8)
        picture[..., 0], picture[..., 1] = 20 * row % 256, 5 * frame % 256
        return jpeg(picture)
