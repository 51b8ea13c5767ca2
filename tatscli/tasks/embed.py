"""Features of videos, written to disk: of every clip, window or token; continued after a kill.

Shapes: B batch, V views of a window, N tokens, D width, R rows.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor

from tatscli import __version__
from tatscli.api import VideoModel, load, named
from tatscli.console import Reporter
from tatscli.data.footage import FileFootage, Footage, StoreFootage, find_videos
from tatscli.data.loader import worker_count
from tatscli.data.windows import Windows
from tatscli.errors import CheckpointError, DataError, UsageError
from tatscli.evaluation.windows import Seen, show_progress
from tatscli.files import refuse_unwritable
from tatscli.store.features import FeatureParts, Rows, State
from tatscli.store.lock import locked
from tatscli.store.reader import Store
from tatscli.store.schema import DATASET

Per = Literal["clip", "window", "token"]
Precision = Literal["float32", "float16"]

PART_BYTES = 1 << 24  # of features that wait in memory
PART_SECONDS = 30.0  # of work that a kill may cost


def embed(
    sources: Sequence[Path],
    run: Path | str,
    *,
    reporter: Reporter,
    out: Path | None = None,
    per: Per = "clip",
    layer: int | None = None,
    precision: Precision = "float32",
    split: str | None = None,
    windows: int | None = None,
    every: float | None = None,
    skip_bad: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    prefer: str = "last",
) -> dict[str, Any]:
    """Write the features of videos to a file; the same command goes on where a killed one stopped.

    Args:
        sources: A store; or video files, and folders of them.
        run: Pretrained or fine-tuned run or checkpoint.
        reporter: Speaks to the user.
        out: The file; by default `<name of the first source>.features.safetensors`.
        per: What a row is: a `clip`, the mean over windows and tokens; a `window`, the mean over
            its tokens; or a window with all its tokens, `token`.
        layer: Blocks to run; None runs all, and the last norm.
        precision: Of the numbers on disk.
        split: Part of a store; None is all of it.
        windows: Windows of each video, spread evenly; None covers it.
        every: Seconds from one window to the next; None is one behind the other.
        skip_bad: Leave out videos that cannot be read.
        overwrite: Replace the file, and throw away the beginning of another run.
        device: As `tatscli.load`.
        prefer: Which checkpoint of a run to take.

    Returns:
        `out`, `source`, `run`, `checkpoint_sha256`, `per`, `layer`, `precision`, `videos`, `rows`,
            `shape`, `skipped` (`name`, `reason`), `continued_at` (videos done before) and
            `seconds`.

    Raises:
        TatsError: If sources, run or options cannot be used, a video cannot be read, or features
            are not finite.
    """
    began = time.perf_counter()
    out = out or Path(f"{sources[0].resolve().stem}.features.safetensors")
    if out.suffix != ".safetensors":
        raise UsageError(f"cannot write `{out}`: its suffix must be .safetensors")
    refuse_unwritable(out)
    videos, labels, origin = _open(sources, split, reporter)
    model = load(run, device=device, checkpoint=prefer)
    model.check_layer(layer)
    cut = model.windows(count=windows, every=every)
    digest = model.run.checkpoint.digest()
    facts = {
        "tats": __version__,
        "checkpoint_sha256": digest,
        "per": per,
        "layer": layer,
        "precision": precision,
        "sampling": cut.sampling.model_dump(mode="json"),
        "frames": cut.frames,
        "size": list(cut.size),
        "mean": list(model.recipe.data.mean),
        "std": list(model.recipe.data.std),
        "windows": windows,
        "every": every,
        "grid": list(model.encoder.grid),
    }
    dtype = model.runner(model).dtype
    batch = model.recipe.evaluate.batch_per_device
    plan = {**facts, **origin, "computed": [model.device.type, str(dtype), batch]}
    out.parent.mkdir(parents=True, exist_ok=True)
    with locked(out.with_name(f".{out.name}.lock"), out, reporter):
        parts = FeatureParts(out, plan, overwrite=overwrite)
        state, carry = parts.last()
        done = state.video
        if parts.files:
            reporter.info(f"continues behind {done} of {len(videos)} videos")
        reporter.info(f"{model.run.checkpoint.path}, on {model.device}")
        work = _Embedding(
            model,
            videos,
            per=per,
            layer=layer,
            precision=precision,
            skip_bad=skip_bad,
            reporter=reporter,
            state=state,
            carry=carry,
        )
        _write(work, parts, cut, reporter)
        skipped = parts.skipped()
        texts = {key: _text(value) for key, value in {**facts, "run": str(run), **origin}.items()}
        shape = parts.join([one.name for one in videos], labels, texts)
    return {
        "out": str(out),
        "source": [str(place) for place in sources],
        "run": str(run),
        "checkpoint_sha256": digest,
        "per": per,
        "layer": layer,
        "precision": precision,
        "videos": len(videos) - len(skipped),
        "rows": shape[0],
        "shape": list(shape),
        "skipped": [{"name": videos[n].name, "reason": why} for n, why in skipped.items()],
        "continued_at": done,
        "seconds": round(time.perf_counter() - began, 3),
    }


def _open(
    sources: Sequence[Path], split: str | None, reporter: Reporter
) -> tuple[Sequence[Footage], list[int] | None, dict[str, Any]]:
    """Return the videos, their classes where a store knows them, and what they are known by."""
    if len(sources) == 1 and (sources[0] / DATASET).is_file():
        store = Store.open(sources[0])
        stored = StoreFootage.all(store, split)
        known = [store.rows[one.row].label for one in stored]
        labels = [-1 if label is None else label for label in known]
        by = {"store_fingerprint": store.fingerprint(), "split": split}
        return stored, labels, {**by, "class_names": store.class_names}
    if split is not None:
        raise UsageError(f"`--split {split}` is for stores, and `{sources[0]}` is none")
    videos, closed = find_videos(sources)
    for folder in closed:
        reporter.warn(f"the folder `{folder}` cannot be read: videos in there are left out")
    return videos, None, {"files_sha256": _listing(videos)}


def _listing(videos: Sequence[FileFootage]) -> str:
    """Return a digest of names, sizes and dates: it changes where a file does."""
    digest = hashlib.sha256()
    for video in videos:
        status = video.path.stat()
        digest.update(f"{video.name}\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
    return digest.hexdigest()


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


class _Embedding:
    """From what comes of batches to rows.

    Args:
        model: The network.
        videos: All of them.
        per: What a row is.
        layer: Blocks to run.
        precision: Of the numbers on disk.
        skip_bad: Whether a video that cannot be read may be left out.
        reporter: Is told of those.
        state: Where to go on.
        carry: Sum of the features of the video that is not done.

    Attributes:
        state: Behind the last batch that was taken in whole; so is `carry`.
    """

    def __init__(
        self,
        model: VideoModel,
        videos: Sequence[Footage],
        *,
        per: Per,
        layer: int | None,
        precision: Precision,
        skip_bad: bool,
        reporter: Reporter,
        state: State,
        carry: np.ndarray | None,
    ) -> None:
        self.model = model
        self.videos = videos
        self.per = per
        self.layer = layer
        self.dtype = np.dtype(precision)
        self.skip_bad = skip_bad
        self.reporter = reporter
        self.state = state
        self.carry = carry
        encoder = model.encoder
        tokens = (encoder.tokens,) if per == "token" else ()
        self.shape = (*tokens, encoder.width)

    def network(self, video_BCTHW: Tensor) -> Tensor:
        """Return what is kept of every view: all tokens, or their mean."""
        tokens_BND = self.model.features(video_BCTHW, self.layer)
        return tokens_BND if self.per == "token" else tokens_BND.mean(dim=1)

    def take(self, batch: Sequence[Seen]) -> Rows:
        """Take in a batch and return the rows that it completes.

        Raises:
            DataError: If a video cannot be read and that is not put up with.
            CheckpointError: If features are not finite.
            UsageError: If they are too large for the precision.
        """
        video, window, skipped = self.state.video, self.state.window, [*self.state.skipped]
        views, start, end = self.state.views, self.state.start, self.state.end
        carry = self.carry
        rows: list[tuple[np.ndarray, int, float, float]] = []
        for seen in batch:
            if seen.span is not None and seen.output is not None:
                window += 1
                value = self._checked(seen, seen.output[0])
                if self.per != "clip":
                    rows.append((self._cast(value, seen), seen.video, *seen.span[:2]))
                    continue
                added = value.astype(np.float64)
                carry, views = added if carry is None else carry + added, views + 1
                start, end = (seen.span.start if views == 1 else start), seen.span.end
                continue
            if seen.error is not None:
                skipped.append((seen.video, self._give_up(seen.video, seen.error)))
            elif carry is not None:
                mean = (carry / views).astype(np.float32)
                rows.append((self._cast(mean, seen), seen.video, start, end))
            self._warn(seen)
            video, window, views, carry = seen.video + 1, 0, 0, None
        self.state = State(video, window, skipped, views, start, end)
        self.carry = carry
        features = np.empty((len(rows), *self.shape), self.dtype)
        for place, row in enumerate(rows):
            features[place] = row[0]
        return Rows(
            features,
            np.array([row[1] for row in rows], np.int64),
            np.array([row[2] for row in rows], np.float64),
            np.array([row[3] for row in rows], np.float64),
        )

    def _checked(self, seen: Seen, value: Tensor) -> np.ndarray:
        if not value.isfinite().all():
            raise CheckpointError(
                f"the features of `{self.videos[seen.video].name}` are not finite",
                hint="take an earlier checkpoint of the run, or another layer",
            )
        return value.numpy()

    def _cast(self, value: np.ndarray, seen: Seen) -> np.ndarray:
        with np.errstate(over="ignore"):
            cast = value.astype(self.dtype)
        if not np.isfinite(cast).all():
            raise UsageError(
                f"features of `{self.videos[seen.video].name}` as large as "
                f"{np.abs(value).max():.3g} do not fit into {self.dtype}",
                hint="`--precision float32` holds them",
            )
        return cast

    def _give_up(self, number: int, error: DataError) -> str:
        """Return the reason why a video is left out.

        Raises:
            DataError: If none may be.
        """
        if not self.skip_bad:
            problem = named(self.videos[number], error)
            problem.hint = "`--skip-bad` leaves such videos out" + (
                f"; {error.hint}" if error.hint else ""
            )
            raise problem from error
        self.reporter.warn(f"`{self.videos[number].name}` is left out: {error.message}")
        return error.message

    def _warn(self, seen: Seen) -> None:
        footage = self.videos[seen.video]
        if seen.error is None and footage.problem is not None:
            self.reporter.warn(f"`{footage.name}`: {footage.problem}")


def _write(work: _Embedding, parts: FeatureParts, cut: Windows, reporter: Reporter) -> None:
    """Compute what is missing, part by part."""
    recipe, state = work.model.recipe, work.state
    threads = min(worker_count(recipe.data.workers), len(work.videos))
    runner = work.model.runner(work.network, threads=threads)
    waiting: list[Rows] = []

    def save() -> None:
        if waiting:
            parts.add(Rows.joined(waiting), work.state, work.carry)
            work.state = replace(work.state, skipped=[])
            waiting.clear()

    since = time.monotonic()
    bar = reporter.progress(
        total=len(work.videos), initial=state.video, description="embed", unit="video"
    )
    with bar:
        try:
            for batch in runner.run(work.videos, cut, first=state.video, skip=state.window):
                waiting.append(work.take(batch))
                show_progress(bar, work.videos, batch[-1])
                size = sum(rows.features.nbytes for rows in waiting)
                if size >= PART_BYTES or time.monotonic() - since >= PART_SECONDS:
                    save()
                    since = time.monotonic()
        finally:  # after an error or Ctrl-C too: what came before is kept
            save()
