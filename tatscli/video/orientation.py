"""Which way up a picture is shown: the display matrix of MP4 and MOV files."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from av.video.frame import VideoFrame


@dataclass(frozen=True, slots=True)
class Orientation:
    """A rotation by a multiple of 90 degrees, possibly mirrored: transpose, then flip axes.

    Attributes:
        transpose: Swap rows and columns.
        flip_x: Swap left and right, after transposing.
        flip_y: Swap top and bottom, after transposing.
    """

    transpose: bool = False
    flip_x: bool = False
    flip_y: bool = False

    @classmethod
    def from_matrix(cls, matrix: bytes) -> Orientation:
        """Read a display matrix: nine int32 `a b u c d v x y w`, x' = ax + cy, y' = bx + dy.

        A matrix that shears, rotates by another angle or holds garbage leaves the picture as
        coded.
        """
        a, b, _, c, d, *_ = (int(n) for n in np.frombuffer(matrix, np.int32, count=9))
        straight, crossed = min(abs(a), abs(d)), min(abs(b), abs(c))
        if straight > 100 * max(abs(b), abs(c)):
            return cls(False, a < 0, d < 0)
        if crossed > 100 * max(abs(a), abs(d)):
            return cls(True, c < 0, b < 0)
        return cls()

    @property
    def mirrored(self) -> bool:
        """Whether the picture is mirrored."""
        return self.transpose ^ self.flip_x ^ self.flip_y

    @property
    def rotation(self) -> int:
        """Clockwise rotation in degrees, 0 to 270; a mirrored picture is flipped in x first."""
        x, y = (0, -1 if self.flip_y else 1) if self.transpose else (-1 if self.flip_x else 1, 0)
        if self.mirrored:
            x, y = -x, -y
        return round(math.degrees(math.atan2(y, x))) % 360

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Return the upright width and height of a coded picture."""
        return (height, width) if self.transpose else (width, height)

    def image(self, image: np.ndarray) -> np.ndarray:
        """Rotate an image (H, W, ...) upright; returns a view."""
        if self.transpose:
            image = image.swapaxes(0, 1)
        return image[:: -1 if self.flip_y else 1, :: -1 if self.flip_x else 1]


UPRIGHT = Orientation()


def frame_orientation(frame: VideoFrame) -> Orientation:
    """Return how a decoded frame has to be turned to be upright."""
    matrix: Any = frame.side_data.get("DISPLAYMATRIX")
    return UPRIGHT if matrix is None else Orientation.from_matrix(bytes(matrix))
