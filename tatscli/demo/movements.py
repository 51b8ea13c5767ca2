"""The demo's videos: a light textured sprite on a dark textured background, labelled by how the
sprite moves.

Texture, outline, colours, place, size and speed are drawn independently of the class. Position and
size are periodic (the picture wraps around like a torus; a size that reaches its limit restarts at
the other one) and start uniformly at random. So in every single frame they are uniform for every
class: a single picture gives no clue.

Shapes: T frames, S side of the picture in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

_SCALE_RANGE = (0.6, 1.6)  # sizes a sprite runs through, times its own radius
_ORBIT = 0.2  # radius of circling, in sides
_TEXTURE = 64  # side of the sprite's texture in texels


@dataclass(frozen=True, slots=True)
class Movement:
    """What changes from frame to frame, in signs.

    Attributes:
        right: Place along x.
        down: Place along y.
        orbit: Bearing on a circle, clockwise.
        growth: Size.
    """

    right: int = 0
    down: int = 0
    orbit: int = 0
    growth: int = 0


MOVEMENTS = {
    "anticlockwise": Movement(orbit=-1),
    "clockwise": Movement(orbit=1),
    "down": Movement(down=1),
    "grow": Movement(growth=1),
    "left": Movement(right=-1),
    "right": Movement(right=1),
    "shrink": Movement(growth=-1),
    "up": Movement(down=-1),
}


@dataclass(frozen=True, slots=True)
class Track:
    """Where the sprite is in each frame.

    Attributes:
        centre_T2: pixels, x first, in [0, S).
        scale_T: factor on the sprite's radius.
    """

    centre_T2: Floats
    scale_T: Floats


def draw_track(
    movement: Movement, *, frames: int, side: int, generator: np.random.Generator
) -> Track:
    """Draw a start and a speed, and follow the movement for `frames` frames.

    Speeds: 3 to 5 % of the side, 12 to 20 degrees of a circle, or 4 to 7 % of the size in a frame.
    """
    start_2, bearing, phase = generator.random(2), generator.random(), generator.random()
    speed = generator.uniform(0.03, 0.05)
    orbit = generator.uniform(12, 20) / 360
    growth = generator.uniform(0.04, 0.07)
    low, high = np.log(_SCALE_RANGE)
    steps_T = np.arange(frames)
    bearing_T = 2 * np.pi * (bearing + steps_T * movement.orbit * orbit)
    circle_T2 = _ORBIT * np.stack([np.cos(bearing_T), np.sin(bearing_T)], axis=1)
    line_T2 = steps_T[:, None] * np.array([movement.right, movement.down]) * speed
    phase_T = (phase + steps_T * movement.growth * growth / (high - low)) % 1
    return Track(
        ((start_2 + circle_T2 + line_T2) % 1 * side).astype(np.float32),
        np.exp(low + phase_T * (high - low)).astype(np.float32),
    )


def noise(side: int, *, octaves: int, generator: np.random.Generator) -> Floats:
    """Return smooth noise in [0, 1] that tiles without a seam, (side, side).

    It adds up waves of every direction, the shorter the weaker; `octaves` bounds how short.
    """
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None]) * side
    band = (frequency >= 1) & (frequency < 2**octaves)
    amplitude = np.where(band, 1 / np.maximum(frequency, 1), 0)
    phase = generator.uniform(0, 2 * np.pi, frequency.shape)
    field = np.fft.irfft2(amplitude * np.exp(1j * phase), s=(side, side))
    return ((field - field.min()) / np.ptp(field)).astype(np.float32)


def dark_texture(side: int, *, generator: np.random.Generator) -> Floats:
    """Return noise painted between two random dark colours, (side, side, 3) in [0, 0.45]."""
    one_3, other_3 = generator.uniform(0, 0.45, (2, 3))
    blend = noise(side, octaves=3, generator=generator)[..., None]
    return (one_3 + blend * (other_3 - one_3)).astype(np.float32)


def render(
    movement: Movement, *, frames: int, side: int, generator: np.random.Generator
) -> NDArray[np.uint8]:
    """Render one clip, (T, S, S, 3); the same generator state gives the same clip."""
    track = draw_track(movement, frames=frames, side=side, generator=generator)
    background = dark_texture(side, generator=generator)
    texture = 0.55 + dark_texture(_TEXTURE, generator=generator)
    radius = side * generator.uniform(0.16, 0.24)
    lobes_3 = generator.uniform(0, 0.15, 3)
    turns_3 = generator.uniform(0, 2 * np.pi, 3)

    pixels = np.arange(side, dtype=np.float32)
    # The nearest copy of the sprite on the torus: offsets lie within half a side.
    dx = (pixels - track.centre_T2[:, :1] + side / 2) % side - side / 2
    dy = (pixels - track.centre_T2[:, 1:] + side / 2) % side - side / 2
    size = radius * track.scale_T[:, None, None]
    # Each pixel asks which point of the sprite covers it: scale back.
    u, v = dx[:, None, :] / size, dy[:, :, None] / size
    bearing = np.arctan2(v, u)
    outline = 1 + sum(
        a * np.cos(k * bearing + t) for k, a, t in zip((2, 3, 5), lobes_3, turns_3, strict=True)
    )
    alpha = np.clip((outline - np.hypot(u, v)) * size + 0.5, 0, 1)[..., None]
    sprite = _sample(texture, (u + 2) * (_TEXTURE / 4), (v + 2) * (_TEXTURE / 4))
    picture = background * (1 - alpha) + sprite * alpha
    return (picture * 255).round().astype(np.uint8)


def _sample(texture: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Read `texture` (R, R, 3) bilinearly at fractional texels, wrapping around: (T, S, S, 3)."""
    side = texture.shape[0]
    left, top = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
    fx, fy = (x - left)[..., None], (y - top)[..., None]
    left, top, right, bottom = left % side, top % side, (left + 1) % side, (top + 1) % side
    upper = texture[top, left] * (1 - fx) + texture[top, right] * fx
    lower = texture[bottom, left] * (1 - fx) + texture[bottom, right] * fx
    return upper * (1 - fy) + lower * fy
