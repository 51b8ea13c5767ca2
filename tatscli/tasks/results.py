"""Results of evaluations on disk: what is in them, read back (`result_files.py` writes them).

    finetuned-val-2x3.json           numbers, and everything needed to repeat the evaluation
    finetuned-val-2x3.safetensors    `scores` (R, L) float32, `label`, `row` and `source` (R) int64;
                                     metadata `videos` (ids) and `class_names`, both JSON lists

Nothing here needs torch. Shapes: R videos, L classes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
from pydantic import BaseModel, Field, ValidationError, model_validator

from tatscli.errors import DataError
from tatscli.files import sha256
from tatscli.jsonfiles import UNREADABLE, read_json, reason_of
from tatscli.store.reader import Store
from tatscli.weights.paths import name_of

Array = np.ndarray[Any, Any]

INDIFFERENT = {
    "data": (
        *("store", "workers", "timeout", "cache", "cache_gb", "resize_on", "decode"),
        "max_bad_share",
    ),
    "evaluate": ("batch_per_device",),
    "run": (
        *("out", "device", "threads", "compile", "max_steps", "log_every", "save_every", "keep"),
        *(
            "parallel",
            "peers_timeout",
            "watch",
            "track",
            "track_pictures",
            "max_bad_steps",
            "skip_above_std",
        ),
    ),
}
"""Recipe keys that do not affect an evaluation; the store is compared by its fingerprint."""


@dataclass(frozen=True, slots=True)
class VideoScores:
    """The scores of each video in an evaluation.

    Attributes:
        videos: Their ids.
        class_names: Names of the classes.
        label_R: Class of each video, int64.
        score_RL: Probabilities, or shares of the vote, float32.
        row_R: Row of the store's manifest, int64.
        source_R: Number of the file it was cut from, int64.
    """

    videos: list[str]
    class_names: list[str]
    label_R: Array
    score_RL: Array
    row_R: Array
    source_R: Array

    @property
    def right_R(self) -> Array:
        """Whether each video is classified correctly."""
        return self.score_RL.argmax(axis=1) == self.label_R


def scores_path(path: Path) -> Path:
    """Return the file of the scores of single videos, beside the result `path`."""
    return path.with_suffix(".safetensors")


def results_home(path: Path, checkpoint: Path) -> Path:
    """Return the folder of results: the run's, or for weights that belong to no run `runs/<name of
    their folder or file>`."""
    if (path / "checkpoints").is_dir():
        return path
    if checkpoint.parent.name == "checkpoints":
        return checkpoint.parents[1]
    return Path("runs") / name_of(path)


def identity(result: dict[str, Any]) -> dict[str, Any]:
    """Return what identifies an evaluation: weights, data, skipped videos, and the recipe without
    the keys that do not affect the result."""
    recipe = {
        name: {key: one for key, one in value.items() if key not in INDIFFERENT.get(name, ())}
        if isinstance(value, dict)
        else value
        for name, value in result["recipe"].items()
    }
    plain = ("protocol", "split", "untrained", "checkpoint_sha256", "store_fingerprint")
    left_out = [
        one["video"] for key in ("skipped", "train_skipped") for one in result.get(key) or ()
    ]
    return {key: result.get(key) for key in plain} | {"left_out": left_out, "recipe": recipe}


def read_result(path: Path) -> dict[str, Any]:
    """Read a result.

    Raises:
        DataError: If it is not a result, or damaged.
    """
    try:
        result = read_json(path)
    except FileNotFoundError:
        raise DataError(f"`{path}` does not exist") from None
    if not _is_result(result):
        raise DataError(
            f"`{path}` is not a result of `tats evaluate`",
            hint="results are the `.json` files in the `results` folder of a run",
        )
    try:
        _Result.model_validate(result, strict=True)
    except ValidationError as error:
        raise DataError(f"the result `{path}` is damaged: {reason_of(error)}") from error
    return result


def results_in(run: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield the readable results of a run, newest first."""
    found = []
    for path in (run / "results").glob("*.json"):
        with suppress(DataError):
            found.append((path, read_result(path)))
    yield from sorted(found, key=lambda one: (_when(*one), one[0].name), reverse=True)


def read_scores(path: Path, result: dict[str, Any]) -> VideoScores:
    """Read the scores of single videos that belong to a result.

    Raises:
        DataError: If there are none, or they are damaged or of another evaluation.
    """
    from safetensors import SafetensorError, safe_open

    again = "evaluate the run again"
    if "scores_file" not in result:
        raise DataError(f"`{path}` has no scores of single videos", hint=again)
    beside = path.with_name(Path(result["scores_file"]).name)
    try:
        if sha256(beside) != result.get("scores_sha256"):
            raise DataError(f"`{beside}` has changed since `{path}` was written", hint=again)
        with safe_open(beside, framework="numpy") as file:
            texts = file.metadata()
            return VideoScores(
                json.loads(texts["videos"]),
                json.loads(texts["class_names"]),
                file.get_tensor("label"),
                file.get_tensor("scores"),
                file.get_tensor("row"),
                file.get_tensor("source"),
            )
    except (SafetensorError, *UNREADABLE) as error:
        raise DataError(
            f"the scores `{beside}` cannot be read: {reason_of(error)}", hint=again
        ) from error


def unreadable_videos(
    skipped: dict[int, str] | None,
    store: Store,
    split: str | None,
    rows: Sequence[int] | None = None,
) -> list[dict[str, str]]:
    """Return `video` and `reason` of the skipped rows of a split, in order.

    Args:
        skipped: Rows that cannot be read or could not be prepared, and why.
        store: Their store.
        split: The split; None is the whole store.
        rows: Its prepared rows that were used; None is all of them.
    """
    asked = {*(store.part(split) if rows is None else rows), *store.failed(split)}
    return [
        {"video": store.rows[row].id, "reason": reason}
        for row, reason in sorted((skipped or {}).items())
        if row in asked
    ]


Number = float | None
Interval = Annotated[list[float], Field(min_length=2, max_length=2)] | None


class _Class(BaseModel):
    name: Annotated[str, Field(alias="class")]
    videos: int
    top1: Number


class _Result(BaseModel):
    """What the keys of a result must be where they are there; there are others."""

    protocol: str
    split: str | None
    segments: int
    crops: int
    recipe: dict[str, Any]
    videos: int = 0
    views: int = 0
    untrained: bool = False
    skipped: list[dict[str, Any]] | None = None
    train_skipped: list[dict[str, Any]] | None = None
    top1: Number = None
    top5: Number = None
    mean_class: Number = None
    ece: Number = None
    nll: Number = None
    psnr: Number = None
    ssim: Number = None
    top1_interval: Interval = None
    mean_class_interval: Interval = None
    group_top1: dict[str, Number] = {}
    per_class: list[_Class] = []
    class_names: list[str] = []
    confusion: list[list[int]] = []
    store: str | None = None
    store_fingerprint: str | None = None
    checkpoint_sha256: str | None = None
    started: str | None = None
    scores_file: str | None = None
    scores_sha256: str | None = None

    @model_validator(mode="after")
    def _square(self) -> Self:
        classes = len(self.class_names)
        if self.confusion and [len(row) for row in self.confusion] != [classes] * classes:
            raise ValueError("`confusion` is not of the classes in `class_names`")
        return self


def _is_result(found: Any) -> bool:
    """Whether an object has the keys of every result."""
    if not isinstance(found, dict) or not {"protocol", "split", "segments"} <= found.keys():
        return False
    recipe = found.get("recipe")
    run = recipe.get("run") if isinstance(recipe, dict) else None
    return isinstance(run, dict) and type(run.get("seed")) is int and "crops" in found


def _when(path: Path, result: dict[str, Any]) -> str:
    written = datetime.fromtimestamp(path.stat().st_mtime, UTC).isoformat(timespec="seconds")
    return str(result.get("started") or written)
