"""Videos whose class is the order of four short events, and what the best decision from a part of
one can be.

An event is 8 frames long: a wave of light, as long as the picture is wide and closed like a torus,
appears in any phase, goes round once to the right (A) or to the left (B), and is gone. A single
frame of it is as likely in A as in B. There are four, two of them A, in one of the orders AABB,
ABAB, BABA and BBAA: the classes. In each the second half is the first one backwards with A and B
exchanged, so every class has as many A as B, and one of each among the outer and the inner two.
Between two events, before the first and after the last there are at least 15 frames, so that no 16
frames touch two; all layouts that leave so much are equally likely. Of every 8th frame one falls
into each event, and that one does not tell A from B. The ground is the same in all videos, and a
blob drifts over it all the time.

Shapes: T frames, S side of the picture in pixels, L layouts, W windows, E events, C classes.
"""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
from numpy.typing import NDArray

from tatscli.demo.movements import dark_texture

CLASSES = ("AABB", "ABAB", "BABA", "BBAA")
FRAMES, SIDE = 128, 24
EVENT, CLEAR, EVENTS = 8, 15, 4  # frames of an event and of the pause, at least; events
WINDOW = 16
SLACK = FRAMES - EVENTS * EVENT - (EVENTS + 1) * CLEAR
_PLACES = SLACK + EVENTS  # of the slack's frames and of the events among them


def starts_of(places: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the first frames of the events, given their places among the frames of slack."""
    before = np.arange(EVENTS)
    return places - before + CLEAR + before * (EVENT + CLEAR)


def draw_starts(generator: np.random.Generator) -> NDArray[np.int64]:
    """Draw the first frames of the events, (E,)."""
    return starts_of(np.sort(generator.choice(_PLACES, EVENTS, replace=False)))


def render(order: str, generator: np.random.Generator) -> NDArray[np.uint8]:
    """Render one video, (T, S, S, 3); the same generator state gives the same video."""
    starts_E = draw_starts(generator)
    ground = dark_texture(SIDE, generator=np.random.default_rng(0))  # a camera that stands still
    pictures = np.repeat(ground[None], FRAMES, 0)
    _paint(pictures, _blob(generator), 0.2 + 1.2 * dark_texture(SIDE, generator=generator))
    for kind, start in zip(order, starts_E, strict=True):
        steps = slice(int(start), int(start) + EVENT)
        colour_3 = generator.uniform(0.75, 1, 3).astype(np.float32)
        _paint(pictures[steps], _wave(kind, generator), colour_3)
    return (pictures * 255).round().astype(np.uint8)


def _paint(
    pictures: NDArray[np.float32], alpha_TSS: NDArray[np.float32], colour: NDArray[np.float32]
) -> None:
    """Lay a colour, or a picture, over pictures."""
    pictures += alpha_TSS[..., None] * (colour - pictures)


def _blob(generator: np.random.Generator) -> NDArray[np.float32]:
    """Return how much a blob covers each pixel while it drifts all over the torus, (T, S, S)."""
    speed, bearing = generator.uniform(0.15, 0.3), generator.uniform(0, 2 * np.pi)
    step_2 = speed * np.array([np.cos(bearing), np.sin(bearing)])
    centre_T2 = generator.uniform(0, SIDE, 2) + np.arange(FRAMES)[:, None] * step_2
    offset_T2S = (np.arange(SIDE) - centre_T2[..., None] + SIDE / 2) % SIDE - SIDE / 2
    distance = np.hypot(offset_T2S[:, 0, None, :], offset_T2S[:, 1, :, None])
    return np.clip(generator.uniform(3, 5) - distance + 0.5, 0, 1).astype(np.float32)


def _wave(kind: str, generator: np.random.Generator) -> NDArray[np.float32]:
    """Return how much the light covers each pixel in the frames of an event, (EVENT, S, S)."""
    way = np.arange(EVENT) * SIDE / EVENT * (1 if kind == "A" else -1)
    offset_TS = np.arange(SIDE) - (generator.uniform(0, SIDE) + way)[:, None]
    half = generator.uniform(9, 12)
    middle = generator.uniform(half, SIDE - half)
    across_TS = 0.5 + 0.5 * np.cos(2 * np.pi * offset_TS / SIDE)
    along_S = np.clip(half - np.abs(np.arange(SIDE) - middle) + 0.5, 0, 1)
    return (across_TS[:, None, :] * along_S[:, None]).astype(np.float32)


def all_starts() -> NDArray[np.int64]:
    """Return every layout there is, (L, E)."""
    return starts_of(np.array(list(combinations(range(_PLACES), EVENTS))))


def seen_by_window() -> NDArray[np.float64]:
    """Return what 16 frames show, from the true times of the events, for every window there is.

    Returns:
        (W, C, O), the probability of each sight given the class and where the window lies: which
        kind of event begins how many frames before or after the window does; the last is none.
    """
    starts_LE = all_starts()
    places = EVENT - 1 + WINDOW  # of the event's first frame, where a window touches it
    found = np.zeros((FRAMES - WINDOW + 1, len(CLASSES), 2 * places + 1))
    for window, event in product(range(len(found)), range(EVENTS)):
        place_L = starts_LE[:, event] - window + EVENT - 1
        counts = np.bincount(place_L[(place_L >= 0) & (place_L < places)], minlength=places)
        for number, order in enumerate(CLASSES):
            first = places * (order[event] == "B")
            found[window, number, first : first + places] += counts / len(starts_LE)
    found[..., -1] = 1 - found.sum(-1)
    return found


def window_oracle() -> dict[str, float]:
    """Return the accuracy of the best decision from 16 frames.

    `blind`: of a window anywhere, all equally likely; the frames do not say where they lie.
    `middle`: of the window in the middle of the video. `placed`: of a window anywhere, whose place
    is known.
    """
    seen_WCO = seen_by_window()
    best_W = seen_WCO.max(1).sum(-1) / len(CLASSES)
    return {
        "blind": float(seen_WCO.mean(0).max(0).sum() / len(CLASSES)),
        "middle": float(best_W[len(best_W) // 2]),
        "placed": float(best_W.mean()),
    }
