"""Classifying videos: windows of every clip, merged, and optionally drawn on it."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from tatscli.api import VideoModel, about_video, load, refuse_not_finite
from tatscli.console import Reporter
from tatscli.data.footage import FileFootage, find_videos
from tatscli.data.loader import worker_count
from tatscli.data.windows import Windows
from tatscli.errors import DataError, UsageError
from tatscli.evaluation.predictions import Merged, Prediction, best_classes
from tatscli.evaluation.windows import Seen, show_progress
from tatscli.files import refuse_unwritable
from tatscli.nn.trained import refuse_no_classifier
from tatscli.video.encode import H264, write_timed
from tatscli.video.frames import shown_frames
from tatscli.video.reader import VideoReader
from tatscli.visualize.predictions import draw_predictions


@dataclass(slots=True)
class _Clip:
    """The predictions for a clip so far.

    Attributes:
        footage: The file.
        merged: Mean probabilities.
        windows: Frames and best classes of each window.
        best: Best classes of the whole clip, once it has ended.
    """

    footage: FileFootage
    merged: Merged = field(default_factory=Merged)
    windows: list[tuple[list[int], list[Prediction]]] = field(default_factory=list)
    best: list[Prediction] = field(default_factory=list)

    def at(self, seconds: float) -> tuple[list[Prediction], str]:
        """Return the classes to show at a time, and their caption: those of the last window that
        has begun and not ended, or those of the whole clip in gaps between windows."""
        begun = bisect_right(self.windows, seconds, key=lambda window: window[1][0].start)
        if begun:
            _, window = self.windows[begun - 1]
            if seconds < window[0].end:
                return window, f"{window[0].start:.2f} to {window[0].end:.2f} s"
        return self.best, "whole video"

    def facts(self) -> dict[str, Any]:
        """Return the predictions as a JSON object."""
        return {
            "clip": self.footage.name,
            "seconds": self.best[0].end,
            "top": [_class_facts(one) for one in self.best],
            "windows": [
                {
                    "start": window[0].start,
                    "end": window[0].end,
                    "frames": frames,
                    "top": [_class_facts(one) for one in window],
                }
                for frames, window in self.windows
            ],
            "problem": self.footage.problem,
        }


def predict(
    clips: Sequence[Path],
    run: Path | str,
    *,
    reporter: Reporter,
    top: int = 5,
    windows: int | None = None,
    every: float | None = None,
    crops: int = 1,
    out: Path | None = None,
    device: str = "auto",
    prefer: str = "last",
) -> dict[str, Any]:
    """Classify videos, window by window and as a whole.

    A clip that cannot be read is reported, and the others are still processed. Frames are decoded
    as they are needed: only a few windows are in memory, however long the video is.

    Args:
        clips: Video files, and folders of them.
        run: Fine-tuned run or checkpoint.
        reporter: Speaks to the user.
        top: Number of classes to return.
        windows: Number of evenly spread windows of each clip; None covers it.
        every: Seconds from one window to the next; None takes consecutive windows.
        crops: Views of a window, 1 or 3.
        out: Where to write clips with their predictions drawn: a file for one clip, else a
            folder.
        device: As `tatscli.load`.
        prefer: Which checkpoint of a run to take.

    Returns:
        `run`, `checkpoint`, `checkpoint_sha256`, `class_names`, `clips` (`clip`, `seconds`, `top`,
            `windows`, `problem`, with `out` also `out`), `failed` (`clip`, `reason`) and `seconds`.

    Raises:
        TatsError: If clips, run or options cannot be used, or scores are not finite.
    """
    began = time.perf_counter()
    videos, closed = find_videos(clips)
    for folder in closed:
        reporter.warn(f"the folder `{folder}` cannot be read: its videos are skipped")
    targets = {} if out is None else _targets(clips, videos, out)
    model = load(run, device=device, checkpoint=prefer)
    refuse_no_classifier(model.run)
    cut = model.windows(count=windows, every=every, crops=crops)
    reporter.info(f"{model.run.checkpoint.path}, on {model.device}; {_cut_words(model, cut)}")
    for remark in model.run.checkpoint.remarks:
        reporter.info(f"weights: {remark}")
    if model.recipe.evaluate.drop is not None:
        reporter.info("`evaluate.drop` of the run is ignored: the model sees every token")
    found: list[dict[str, Any]] = []
    failed: list[dict[str, str]] = []
    with _progress(videos, reporter) as bar:
        for clip, error in _seen(model, videos, cut, top, bar):
            name = clip.footage.name
            if error is not None:
                reporter.warn(about_video(clip.footage, error).message)
                failed.append({"clip": name, "reason": error.message})
                continue
            if clip.footage.problem is not None:
                reporter.warn(f"`{name}`: {clip.footage.problem}")
            facts = clip.facts()
            if out is not None:
                target = targets[clip.footage.path]
                facts["out"] = str(target)
                try:
                    _draw(clip, target)
                except OSError as problem:  # what was predicted is not lost for that
                    reason = f"cannot write `{target}`: {problem.strerror}"
                    reporter.warn(reason)
                    failed.append({"clip": name, "reason": reason})
                    facts["out"] = None
            found.append(facts)
    return {
        "run": str(run),
        "checkpoint": str(model.run.checkpoint.path),
        "checkpoint_sha256": model.run.checkpoint.digest(),
        "class_names": model.class_names,
        "clips": found,
        "failed": failed,
        "seconds": round(time.perf_counter() - began, 3),
    }


def _class_facts(one: Prediction) -> dict[str, Any]:
    return {"class": one.name, "index": one.index, "probability": one.probability}


def _cut_words(model: VideoModel, cut: Windows) -> str:
    """Describe the windows of videos."""
    sampling = cut.sampling
    if sampling.mode == "uniform":
        pace = "spread over the whole video"
    elif sampling.fps is not None:
        pace = f"{sampling.fps:g} frames a second"
    else:
        pace = f"stride {sampling.stride}" if sampling.stride != 1 else "consecutive"
    if cut.every is not None:
        number = f"a window every {cut.every:g} s"
    elif cut.count is not None or sampling.mode == "uniform":
        number = f"{cut.count or 1} windows, evenly spread"
    else:
        number = "windows that cover the video"
    return f"{cut.frames} frames a window, {pace}; {number}; {cut.crops} crops"


def _progress(videos: Sequence[FileFootage], reporter: Reporter) -> tqdm:
    return reporter.progress(total=len(videos), description="predict", unit="clip")


def _seen(
    model: VideoModel, videos: Sequence[FileFootage], cut: Windows, top: int, bar: tqdm
) -> Iterator[tuple[_Clip, DataError | None]]:
    """Yield every clip once it has ended, with the error if it could not be read."""
    threads = min(worker_count(model.recipe.data.workers), len(videos))
    runner = model.runner(model.probabilities, threads=threads)
    clip: _Clip | None = None
    for batch in runner.run(videos, cut):
        for seen in batch:
            clip = clip or _Clip(videos[seen.video])
            if seen.span is None:
                if seen.error is None:
                    clip.best = best_classes(
                        clip.merged.score_L,
                        model.class_names,
                        top=top,
                        start=0.0,
                        end=max(window[0].end for _, window in clip.windows),
                    )
                yield clip, seen.error
                clip = None
            else:
                _add(clip, seen, model, top)
            show_progress(bar, videos, seen)


def _add(clip: _Clip, seen: Seen, model: VideoModel, top: int) -> None:
    """Add the output of a window.

    Raises:
        CheckpointError: If its scores are not finite.
    """
    assert seen.span is not None and seen.output is not None
    refuse_not_finite(seen.output, clip.footage)
    clip.merged.add(seen.output)
    best = best_classes(
        seen.output.mean(dim=0),
        model.class_names,
        top=top,
        start=seen.span.start,
        end=seen.span.end,
    )
    clip.windows.append((seen.span.frames, best))


def _targets(clips: Sequence[Path], videos: Sequence[FileFootage], out: Path) -> dict[Path, Path]:
    """Choose the output file of every clip.

    Raises:
        UsageError: If two clips, or a clip and its output, would share a file.
    """
    film = out.suffix.lower() in H264 and not out.is_dir()
    one = len(videos) == 1 and clips[0] == videos[0].path
    if film and not one:
        raise UsageError(
            f"`{out}` is a single video file, and there are {len(videos)} clips"
            if len(videos) > 1
            else f"`{out}` is a video file, and `{clips[0]}` is a folder",
            hint="give a folder as `--out`",
        )
    if one and not film and out.suffix and not out.is_dir():
        raise UsageError(
            f"cannot write `{out}`: its suffix must be one of {', '.join(H264)}",
            hint="without a suffix, `--out` is a folder",
        )
    inside: dict[Path, Path] = {}
    for video in videos:
        home = next((place for place in clips if place in video.path.parents), None)
        inside[video.path] = video.path.relative_to(home) if home else Path(video.path.name)
    stems = Counter(path.with_suffix("") for path in set(inside.values()))
    targets: dict[Path, Path] = {}
    for video in videos:
        name = inside[video.path]
        if stems[name.with_suffix("")] > 1:  # `a.avi` and `a.mkv` become `a.avi.mp4`, `a.mkv.mp4`
            name = name.with_name(f"{name.name}.mp4")
        target = out if film else (out / name).with_suffix(".mp4")
        if target in targets.values():
            raise UsageError(
                f"two clips would be written to `{target}`, one of them `{video.path}`",
                hint="rename them, or run the command on each alone",
            )
        if target.exists() and target.samefile(video.path):
            raise UsageError(f"`{target}` is the clip itself", hint="choose another `--out`")
        refuse_unwritable(target)
        targets[video.path] = target
    return targets


def _draw(clip: _Clip, out: Path) -> None:
    """Write the clip with its predictions drawn, with the times and size of its own frames."""
    reader = VideoReader(clip.footage.path)
    frames = shown_frames(reader, short_side=None)
    first = next(frames)  # it has been read before; now the reader knows its rate

    def drawn() -> Iterator[tuple[float, np.ndarray]]:
        for seconds, picture in chain([first], frames):
            image = picture().copy()
            best, caption = clip.at(seconds - first[0])
            draw_predictions(image, best, caption=caption)
            yield seconds, image

    write_timed(out, drawn(), fps=1 / reader.step)
