"""Results of evaluations on disk: what they are called, written once, read back.

    finetuned-val-2x3.json           numbers, and everything needed to repeat the evaluation
    finetuned-val-2x3.safetensors    `scores` (R, L) float32, `label`, `row` and `source` (R) int64;
                                     metadata `videos` (ids) and `class_names`, both JSON lists

Nothing here needs torch. Shapes: R videos, L classes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from tatscli.console import without_nan
from tatscli.errors import DataError, UsageError
from tatscli.files import refuse_existing, refuse_unwritable, sha256, write_safely
from tatscli.recipe.schema import FixedMask
from tatscli.store.reader import Store
from tatscli.tensors import Tensor, write_tensors
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
"""Keys of a recipe that change nothing about an evaluation; the store's fingerprint is compared."""


@dataclass(frozen=True, slots=True)
class VideoScores:
    """What an evaluation said of each video.

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
        """Whether each video is named rightly."""
        return self.score_RL.argmax(axis=1) == self.label_R


def checked_out(out: Path | str | None, *, overwrite: bool) -> Path | None:
    """Find out, before any work, that a result can be written where the user says.

    Raises:
        UsageError: If it is a folder, would replace something, or its name is that of the scores.
    """
    if out is None:
        return None
    path, name = Path(out), "name a file, such as `result.json`"
    if path.is_dir():
        raise UsageError(f"`{out}` is a folder", hint=name)
    scores = scores_path(path)
    if scores == path:
        raise UsageError(f"`{out}` is the name of a file of scores, not of a result", hint=name)
    for one in (path, scores):
        refuse_existing(one, overwrite=overwrite)
    if scores.exists() and not _is_scores(scores):
        raise UsageError(
            f"`{scores}`, where the scores would go, is not a file of scores: it is not replaced",
            hint="name another `--out`",
        )
    refuse_unwritable(path)
    return path


def scores_path(path: Path) -> Path:
    """Return where the scores of the videos are, beside the result `path`."""
    return path.with_suffix(".safetensors")


def results_home(path: Path, checkpoint: Path) -> Path:
    """Return the folder that results go into: the run's, and for weights that belong to no run
    `runs/<name of their folder or file>`."""
    if (path / "checkpoints").is_dir():
        return path
    if checkpoint.parent.name == "checkpoints":
        return checkpoint.parents[1]
    return Path("runs") / name_of(path)


def results_path(
    result: dict[str, Any], home: Path, prefer: str, *, trained_frames: int | None = None
) -> Path:
    """Return where a result belongs: in the run, named by what was done.

    `linear-val-1x1.json`, `attentive-efficient8-val-2x3-layer4-shots5-seed1.json`,
    `finetuned-val-1x1-frames32-drop-still0.5.json`, `untrained-knn-val-1x1-seed0.json`: the seed is
    named where it decides on labels or weights, frames where they are not those of the training.
    """
    probe = result.get("probe", {})
    words = ["untrained"] if result.get("untrained") else []
    words.append(result["protocol"])
    if "form" in probe:
        words.append(f"{probe['form']}{probe['queries']}")
    words += [result["split"] or "all", f"{result['segments']}x{result['crops']}"]
    frames = result["recipe"]["data"]["frames"]
    if trained_frames not in (None, frames):
        words.append(f"frames{frames}")
    for key in ("layer", "shots"):
        if result.get(key) is not None:
            words.append(f"{key}{result[key]}")
    if result.get("drop") is not None:
        words.append(f"drop-{drop_words(result['drop'])}")
    if result.get("shots") is not None or result.get("untrained"):
        words.append(f"seed{result['recipe']['run']['seed']}")
    words += ["best"] if prefer == "best" else []
    return free_path(home / "results" / ("-".join(words) + ".json"), result)


def drop_words(drop: dict[str, Any]) -> str:
    """Name a mask that leaves tokens out: kind, ratio, and what else is not its default."""
    masks: TypeAdapter[Any] = TypeAdapter(FixedMask)
    usual = {key: drop[key] for key in ("kind", "ratio")}
    with suppress(ValidationError):  # some masks are none without their other keys
        usual = masks.validate_python(usual).model_dump(mode="json")
    other = [f"-{key}{value}" for key, value in drop.items() if value != usual.get(key)]
    return f"{drop['kind']}{drop['ratio']:g}" + "".join(other)


def free_path(path: Path, result: dict[str, Any]) -> Path:
    """Return `path` if it is free or holds the same evaluation; else a name with a digest of what
    was done, which the same evaluation finds again."""
    if not path.exists() or _same(path, result):
        return path
    text = json.dumps(identity(result), sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return path.with_name(f"{path.stem}-{digest[:8]}{path.suffix}")


def identity(result: dict[str, Any]) -> dict[str, Any]:
    """Return what an evaluation is of: weights, data, videos left out, and the recipe but for keys
    that change nothing."""
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


def write_result(path: Path, result: dict[str, Any], scores: VideoScores | None = None) -> None:
    """Write a result, and the scores it names before it.

    Args:
        path: The result's file.
        result: Gets `results`, its path; and with scores `scores_file`, a name beside it, and
            `scores_sha256`.
        scores: Of each video.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    result["results"] = str(path)
    if scores is not None:
        beside = scores_path(path)
        tensors = {
            "label": scores.label_R,
            "row": scores.row_R,
            "source": scores.source_R,
            "scores": scores.score_RL,
        }
        texts = {
            "videos": json.dumps(scores.videos, ensure_ascii=False),
            "class_names": json.dumps(scores.class_names, ensure_ascii=False),
        }
        write_tensors(beside, [Tensor.of(name, one) for name, one in tensors.items()], texts)
        result |= {"scores_file": beside.name, "scores_sha256": sha256(beside)}
    text = json.dumps(without_nan(result), indent=1, ensure_ascii=False, allow_nan=False)
    write_safely(path, text + "\n")


def read_result(path: Path) -> dict[str, Any]:
    """Read a result.

    Raises:
        DataError: If it is none, or damaged.
    """
    try:
        result = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"`{path}` does not exist") from None
    except (OSError, ValueError) as error:
        raise DataError(f"`{path}` cannot be read as a result: {error}") from error
    if not _is_result(result):
        raise DataError(
            f"`{path}` is not a result of `tats evaluate`",
            hint="results are the `.json` files in the `results` folder of a run",
        )
    return result


def results_in(run: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield the results of a run that can be read, the newest first."""
    found = []
    for path in (run / "results").glob("*.json"):
        with suppress(DataError):
            found.append((path, read_result(path)))
    yield from sorted(found, key=lambda one: (_when(*one), one[0].name), reverse=True)


def read_scores(path: Path, result: dict[str, Any]) -> VideoScores:
    """Read the scores of the videos that belong to a result.

    Raises:
        DataError: If it has none, or they are damaged or of another evaluation.
    """
    from safetensors import SafetensorError, safe_open

    again = "evaluate the run again"
    if "scores_file" not in result:
        raise DataError(f"`{path}` has no scores of single videos beside it", hint=again)
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
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"the scores `{beside}` cannot be read: {error}", hint=again) from error


def unreadable_videos(
    skipped: dict[int, str] | None,
    store: Store,
    split: str | None,
    rows: Sequence[int] | None = None,
) -> list[dict[str, str]]:
    """Return `video` and `reason` of the rows of a split that were left out, in their order.

    Args:
        skipped: Rows that cannot be read or could not be prepared, and why.
        store: Their store.
        split: The split that was asked for; None is the whole store.
        rows: The rows of it that were asked for, of those that were prepared; None is all.
    """
    asked = {*(store.part(split) if rows is None else rows), *store.failed(split)}
    return [
        {"video": store.rows[row].id, "reason": reason}
        for row, reason in sorted((skipped or {}).items())
        if row in asked
    ]


def _is_result(found: Any) -> bool:
    """Whether an object has what every result has."""
    if not isinstance(found, dict) or not {"protocol", "split", "segments"} <= found.keys():
        return False
    recipe = found.get("recipe")
    run = recipe.get("run") if isinstance(recipe, dict) else None
    return isinstance(run, dict) and "seed" in run and "crops" in found


def _same(path: Path, result: dict[str, Any]) -> bool:
    try:
        return identity(read_result(path)) == json.loads(json.dumps(identity(result)))
    except (DataError, TypeError, KeyError, AttributeError):
        return False


def _when(path: Path, result: dict[str, Any]) -> str:
    written = datetime.fromtimestamp(path.stat().st_mtime, UTC).isoformat(timespec="seconds")
    return str(result.get("started") or written)


def _is_scores(path: Path) -> bool:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return {"videos", "class_names"} <= (file.metadata() or {}).keys()
    except (OSError, SafetensorError):
        return False
