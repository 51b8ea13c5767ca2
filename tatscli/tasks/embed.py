"""Writing features of videos to disk: of every clip, window or token; resumable after a kill."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tatscli import __version__
from tatscli.api import load
from tatscli.console import Reporter
from tatscli.data.footage import FileFootage, Footage, StoreFootage, find_videos
from tatscli.data.loader import worker_count
from tatscli.data.windows import Windows
from tatscli.errors import UsageError
from tatscli.evaluation.views import Skipped
from tatscli.evaluation.windows import show_progress
from tatscli.files import refuse_unwritable
from tatscli.lock import locked
from tatscli.store.features import FeatureParts, Rows
from tatscli.store.reader import Store
from tatscli.store.schema import DATASET
from tatscli.tasks.embedding import Embedding, Per, Precision
from tatscli.tasks.failed_rows import take_failed, tell_failed

PART_BYTES = 1 << 24  # of features that wait in memory
PART_SECONDS = 30.0  # of work that a kill may lose


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
    """Write the features of videos to a file; repeating the command resumes an interrupted one.

    Args:
        sources: A store; or video files, and folders of them.
        run: Pretrained or fine-tuned run or checkpoint.
        reporter: Speaks to the user.
        out: The file; by default `<name of the first source>.features.safetensors`.
        per: What a row is: a `clip`, the mean over windows and tokens; a `window`, the mean over
            its tokens; or a window with all its tokens, `token`.
        layer: Blocks to run; None runs all, and the last norm.
        precision: Precision of the numbers on disk.
        split: Split of a store; None is the whole store.
        windows: Number of evenly spread windows of each video; None covers it.
        every: Seconds from one window to the next; None takes consecutive windows.
        skip_bad: Skip videos that cannot be read or prepared.
        overwrite: Replace the file, and discard the parts of another command.
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
    unprepared: dict[str, str] | None = {} if skip_bad else None
    videos, labels, origin = _open(sources, split, unprepared, reporter)
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
        "resize": model.recipe.data.resize,
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
            reporter.info(f"resuming after {done} of {len(videos)} videos")
        reporter.info(f"{model.run.checkpoint.path}, on {model.device}")
        for remark in model.run.checkpoint.remarks:
            reporter.info(f"weights: {remark}")
        work = Embedding(
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
        "skipped": [
            {"name": name, "reason": why}
            for name, why in [
                *((videos[n].name, why) for n, why in skipped.items()),
                *(unprepared or {}).items(),
            ]
        ],
        "continued_at": done,
        "seconds": round(time.perf_counter() - began, 3),
    }


def _open(
    sources: Sequence[Path],
    split: str | None,
    unprepared: dict[str, str] | None,
    reporter: Reporter,
) -> tuple[Sequence[Footage], list[int] | None, dict[str, Any]]:
    """Return the videos, their labels if they are from a store, and what identifies the source.

    Rows of a store that could not be prepared are added to `unprepared`, by id; None refuses
    them.
    """
    if len(sources) == 1 and (sources[0] / DATASET).is_file():
        store = Store.open(sources[0])
        by_row: Skipped | None = None if unprepared is None else {}
        take_failed(store, split, by_row)
        if unprepared is not None and by_row:
            tell_failed(store, [split], reporter)
            unprepared |= {store.rows[row].id: reason for row, reason in by_row.items()}
        stored = StoreFootage.all(store, split)
        known = [store.rows[one.row].label for one in stored]
        labels = [-1 if label is None else label for label in known]
        by = {"store_fingerprint": store.fingerprint(), "split": split}
        return stored, labels, {**by, "class_names": store.class_names}
    if split is not None:
        raise UsageError(f"`--split {split}` is for stores, and `{sources[0]}` is not a store")
    videos, closed = find_videos(sources)
    for folder in closed:
        reporter.warn(f"the folder `{folder}` cannot be read: its videos are skipped")
    return videos, None, {"files_sha256": _listing(videos)}


def _listing(videos: Sequence[FileFootage]) -> str:
    """Return a digest of names, sizes and dates, which changes when a file does."""
    digest = hashlib.sha256()
    for video in videos:
        status = video.path.stat()
        digest.update(f"{video.name}\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
    return digest.hexdigest()


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _write(work: Embedding, parts: FeatureParts, cut: Windows, reporter: Reporter) -> None:
    """Compute the missing features, part by part."""
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
