"""Which frames of a video make a clip: lists of indices, in integer arithmetic.

Training draws a dense window, as VideoMAE's pretraining, or TSN's one frame per segment (Wang et
al. 2016, section 3.1). Evaluation spaces windows evenly on the stride's grid, or takes interleaved
phases of the same even grid (VideoMAE's `kinetics.py` and `ssv2.py`). `fps` reads the video by the
clock first. Where VideoMAE's code takes other frames, `indices: videomae` takes those.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from tatscli.errors import DataError
from tatscli.recipe.schema import Sampling
from tatscli.store.reader import Store

Chosen = TypeVar("Chosen", list[int], list[list[int]])

TICK = 1e-3  # of a tick: time stamps are rounded to the clock of their container


def train_indices(
    length: int,
    sampling: Sampling,
    frames: int,
    rng: random.Random,
    clip: int | None = None,
    *,
    labelled: bool = False,
) -> list[int]:
    """Draw the frames of one training clip.

    Dense: a window of `frames x stride` source frames at a random start, read at the stride.
    Uniform: a random frame of each of `frames` equal segments. With `sampling.clips`: one of the
    fixed clips of `fixed_indices`.

    Args:
        length: Frames in the video; ticks of its clock if `sampling.fps` is set.
        sampling: Mode, stride and what a short video does.
        frames: Frames in the clip.
        rng: Where the start, the frame of each segment, or the fixed clip is drawn from.
        clip: Number of the fixed clip, where it has been drawn; see `drawn_clip`.
        labelled: The clip is for fine-tuning or a probe, not for pretraining: VideoMAE's code
            draws the two differently (`indices: videomae`).

    Returns:
        `frames` indices below `length`; ascending, unless a short video loops.

    Raises:
        DataError: If the video has no frames, or is too short under `short: error`.
    """
    _check(length)
    if sampling.clips is not None:
        number = rng.randrange(sampling.clips) if clip is None else clip
        return fixed_indices(length, sampling, frames)[number]
    if sampling.indices == "videomae":
        return _videomae_indices(length, sampling, frames, rng, labelled=labelled)
    stride = _pace(sampling)
    if stride is not None:
        start = rng.randrange(max(1, length - frames * stride + 1))
        return _fit(_window(start, stride, frames), length, sampling)
    if length < frames:
        return _fit(_window(0, 1, frames), length, sampling)
    return [rng.randrange(i * length // frames, (i + 1) * length // frames) for i in range(frames)]


def _videomae_indices(
    length: int, sampling: Sampling, frames: int, rng: random.Random, *, labelled: bool
) -> list[int]:
    """Draw the frames that VideoMAE's code draws (MCG-NJU/VideoMAE, `kinetics.py`, `ssv2.py`).

    The floating-point arithmetic of `linspace` is part of it: its rounding decides some frames.
    """
    stride = sampling.stride
    if stride is None:
        segment = length // frames
        return [i * segment + (rng.randrange(segment) if segment else 0) for i in range(frames)]
    span = frames * stride
    if not labelled:
        indices = [rng.randrange(max(1, length - span + 1))]
        while len(indices) < frames:
            following = indices[-1] + stride
            indices.append(following if following < length - 1 else indices[-1])
        return indices
    if length <= span:
        reached = np.linspace(0, length, num=length // stride)
        held = np.full(frames - len(reached), length)
        return np.concatenate((reached, held)).clip(0, length - 1).astype(int).tolist()
    end = rng.randrange(span, length)
    return np.linspace(end - span, end, num=frames).clip(end - span, end - 1).astype(int).tolist()


def drawn_clip(sampling: Sampling, rng: random.Random) -> int | None:
    """Draw the number of a fixed clip; None where clips are drawn anywhere."""
    return None if sampling.clips is None else rng.randrange(sampling.clips)


def fixed_indices(length: int, sampling: Sampling, frames: int) -> list[list[int]]:
    """Return the frames of all fixed clips of a video: `eval_indices` of `sampling.clips`.

    Raises:
        DataError: As `eval_indices`.
    """
    assert sampling.clips is not None
    return eval_indices(length, sampling, frames, sampling.clips)


def eval_indices(length: int, sampling: Sampling, frames: int, segments: int) -> list[list[int]]:
    """Return the frames of the clips that score a video, the same at every call.

    Dense: `segments` windows, evenly spaced from the first frame the stride reaches to the last; a
    single one lies in the centre. Uniform: clip `p` takes the frame at `p / segments` of each
    segment; a single one takes its middle. Under `indices: videomae` that also holds for videos
    shorter than a clip, whose frames then repeat; else those follow `short`.

    Raises:
        DataError: If the video has no frames, or is too short under `short: error`.
    """
    _check(length)
    stride = _pace(sampling)
    if stride is not None:
        spare = max(0, -(-length // stride) - frames)
        starts = [spare // 2] if segments == 1 else _spread(spare, segments)
        return [_fit(_window(start * stride, stride, frames), length, sampling) for start in starts]
    if length < frames and sampling.indices == "even":
        return [_fit(_window(0, 1, frames), length, sampling)] * segments
    parts, offsets = (2, [1]) if segments == 1 else (segments, list(range(segments)))
    return [
        [(parts * i + offset) * length // (parts * frames) for i in range(frames)]
        for offset in offsets
    ]


def chosen_frames(
    store: Store, row: int, sampling: Sampling, choose: Callable[[int], Chosen]
) -> Chosen:
    """Choose frames of a stored video given its length, by its clock if `sampling.fps` is set.

    Args:
        store: The store.
        row: Of its manifest.
        sampling: Says whether the length is in frames or in ticks.
        choose: From the length to indices, or lists of them.

    Raises:
        DataError: As `choose`, naming the video.
    """
    try:
        if sampling.fps is None:
            return choose(store.rows[row].frames)
        shown = shown_at_rate(store.times(row), sampling.fps)
        return _at(shown, choose(len(shown)))
    except DataError as error:
        raise DataError(f"`{store.rows[row].id}`: {error.message}", error.hint) from None


def _at(shown: list[int], ticks: Any) -> Any:
    """Put frames in place of ticks, in lists of any depth."""
    return shown[ticks] if isinstance(ticks, int) else [_at(shown, one) for one in ticks]


def shown_at_rate(times: np.ndarray, fps: float) -> list[int]:
    """Return the frame on the screen at each tick of a clock that starts with the first frame.

    Args:
        times: Presentation times in seconds, rising.
        fps: Ticks a second. Frames are repeated where the video is slower, left out where it is
            faster.
    """
    ticks = times[0] + np.arange(int((times[-1] - times[0]) * fps + TICK) + 1) / fps
    return (np.searchsorted(times, ticks + TICK / fps, side="right") - 1).tolist()


def _pace(sampling: Sampling) -> int | None:
    """Return the stride; a video at its own rate in frames a second is read one by one."""
    return 1 if sampling.fps is not None else sampling.stride


def _window(start: int, stride: int, frames: int) -> list[int]:
    return list(range(start, start + frames * stride, stride))


def _spread(spare: int, segments: int) -> list[int]:
    return [k * spare // (segments - 1) for k in range(segments)]


def _check(length: int) -> None:
    if length < 1:
        raise DataError(f"a video of `{length}` frames has nothing to sample from")


def _fit(indices: list[int], length: int, sampling: Sampling) -> list[int]:
    """Apply the policy for short videos to ascending indices that may run past the end."""
    if indices[-1] < length:
        return indices
    if sampling.short == "error":
        raise DataError(
            f"a video of `{length}` frames is too short: {len(indices)} frames"
            f" at stride {_pace(sampling) or 1} need {indices[-1] - indices[0] + 1}",
            hint="`short: repeat_last` or `short: loop` fill it; a smaller stride needs less",
        )
    if sampling.short == "loop":
        return [index % length for index in indices]
    reached = [index for index in indices if index < length]
    return reached + reached[-1:] * (len(indices) - len(reached))
