"""Where results of evaluations go, what they are called, and writing them once."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from tatscli.console import Reporter, without_nan
from tatscli.engine import distributed
from tatscli.engine.session import Session
from tatscli.errors import DataError, UsageError
from tatscli.files import (
    refuse_existing,
    refuse_unwritable,
    sha256,
    system_error,
    unwritable,
    write_safely,
)
from tatscli.lock import LOCK, locked
from tatscli.recipe.schema import FixedMask
from tatscli.tasks.results import VideoScores, identity, read_result, scores_path
from tatscli.tensors import Tensor, write_tensors

WAIT = 60.0
"""Seconds that one evaluation waits for another to have written its result."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a result is written.

    Attributes:
        folder: The folder it goes into, under a name of what was done; None where no file can be
            made there, so that it is only printed.
        file: The file that the user named instead.
        prefer: Which checkpoint of the run was chosen, `last` or `best`.
        trained_frames: Frames of the clips that the weights were trained on.
    """

    folder: Path | None
    file: Path | None = None
    prefer: str = "last"
    trained_frames: int | None = None


def find_place(
    file: Path | None,
    home: Path,
    prefer: str,
    reporter: Reporter,
    *,
    trained_frames: int | None = None,
) -> Place:
    """Decide, before any work, where a result is written.

    Args:
        file: The file that the user named, from `checked_out`.
        home: The run folder.
        prefer: Which checkpoint was chosen.
        reporter: Told where nothing can be written.
        trained_frames: Frames of the clips that the weights were trained on.
    """
    folder: Path | None = home / "results"
    if file is None and (reason := unwritable(home / "results" / "result.json")):
        reporter.warn(f"{reason}; the result is only printed: `--out FILE` writes it elsewhere")
        folder = None
    return Place(folder, file, prefer, trained_frames)


def checked_out(out: Path | str | None, *, overwrite: bool) -> Path | None:
    """Refuse, before any work, a result file that cannot be written.

    Raises:
        UsageError: If it is a folder or no `.json`, or would replace something.
    """
    if out is None:
        return None
    path, name = Path(out), "name a file, such as `result.json`"
    if path.is_dir():
        raise UsageError(f"`{out}` is a folder", hint=name)
    if path.suffix != ".json":  # else the scores of two results could have one name
        raise UsageError(f"`--out {out}` must end in .json", hint=name)
    scores = scores_path(path)
    for one in (path, scores):
        refuse_existing(one, overwrite=overwrite)
    if scores.exists() and not _is_scores(scores):
        raise UsageError(
            f"the scores would go to `{scores}`, which is another kind of file and is not replaced",
            hint="choose another `--out`",
        )
    refuse_unwritable(path)
    return path


def results_path(
    result: dict[str, Any], folder: Path, prefer: str, *, trained_frames: int | None = None
) -> Path:
    """Return the path of a result in a folder, named after what was done.

    `linear-val-1x1.json`, `attentive-efficient8-val-2x3-layer4-shots5-seed1.json`,
    `finetuned-val-1x1-frames32-drop-still0.5.json`, `untrained-knn-val-1x1-seed0.json`: the seed is
    named where labels or weights are drawn with it, frames where they differ from the training's.
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
    return free_path(folder / ("-".join(words) + ".json"), result)


def drop_words(drop: dict[str, Any]) -> str:
    """Name a mask that drops tokens: kind, ratio, and other values that are not its default."""
    masks: TypeAdapter[Any] = TypeAdapter(FixedMask)
    usual = {key: drop[key] for key in ("kind", "ratio")}
    with suppress(ValidationError):  # some masks are none without their other keys
        usual = masks.validate_python(usual).model_dump(mode="json")
    other = [f"-{key}{value}" for key, value in drop.items() if value != usual.get(key)]
    return f"{drop['kind']}{drop['ratio']:g}" + "".join(other)


def free_path(path: Path, result: dict[str, Any]) -> Path:
    """Return `path` if it is free or holds the same evaluation; otherwise a name with a digest of
    the evaluation, which the same evaluation finds again."""
    if not path.exists() or _same(path, result):
        return path
    text = json.dumps(identity(result), sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return path.with_name(f"{path.stem}-{digest[:8]}{path.suffix}")


def save_result(
    result: dict[str, Any], place: Place, here: Session, scores: VideoScores | None = None
) -> None:
    """Write a result by the first process, and warn of videos left out.

    Every process's result then has `results`, its path, or None where it could not be written:
    hours of work are not thrown away for that, so the caller prints it.
    """
    for part, left in (("", "videos"), ("train_", "train_videos")):
        if bad := result.get(f"{part}skipped"):
            total, name = len(bad) + result[left], left.replace("_", "ing ")
            here.reporter.warn(
                f"{len(bad)} of {total} {name} are left out; the first: {bad[0]['reason']}"
            )
    result["results"] = None
    if here.world.main and (place.file or place.folder):
        _write(result, place, here.reporter, scores)
    result |= distributed.gathered([result])[0]


def _write(
    result: dict[str, Any], place: Place, reporter: Reporter, scores: VideoScores | None
) -> None:
    """Write a result; where that fails, say so."""
    folder = place.folder if place.file is None else place.file.parent
    assert folder is not None
    path: Path | None = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Another evaluation may be about to take the same name.
        with locked(folder / LOCK, folder, reporter, wait=WAIT):
            path = place.file or results_path(
                result, folder, place.prefer, trained_frames=place.trained_frames
            )
            write_result(path, result, scores)
    except (OSError, DataError) as error:
        number = system_error(error)
        reason = str(error) if number is None else os.strerror(number)
        reporter.warn(f"the result cannot be written to `{place.file or folder}`: {reason}")
        if path is not None and not path.exists():
            scores_path(path).unlink(missing_ok=True)
        for key in ("scores_file", "scores_sha256"):
            result.pop(key, None)
        result |= {"results": None, "write_failed": reason}


def write_result(path: Path, result: dict[str, Any], scores: VideoScores | None = None) -> None:
    """Write a result, and before it the scores that it names.

    Args:
        path: The result's file.
        result: Gets `results`, its path; with scores also `scores_file`, the name of a file beside
            it, and `scores_sha256`.
        scores: The scores of each video.
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


def _same(path: Path, result: dict[str, Any]) -> bool:
    try:
        return identity(read_result(path)) == json.loads(json.dumps(identity(result)))
    except (DataError, TypeError, KeyError, AttributeError):
        return False


def _is_scores(path: Path) -> bool:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return {"videos", "class_names"} <= (file.metadata() or {}).keys()
    except (OSError, SafetensorError):
        return False
