"""Features of videos on disk: what `tats embed` writes, in parts first, then as one file.

    features.safetensors         features (R, ...)   video, start, end (R,)   names   label (V,)
    features.safetensors.parts/  plan.json  000000.safetensors  000001.safetensors ...

`video` says which of the names a row belongs to. `names` are UTF-8 texts, joined by zero bytes: in
the header of the file they would not fit beyond a million. A part ends where a batch did; its
metadata say where to go on.

Shapes: R rows, V videos.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from tatscli.errors import DataError, UsageError
from tatscli.files import refuse_existing, write_safely
from tatscli.tensors import Tensor, write_tensors

PLAN = "plan.json"
_STATE = "state"
_CARRY = "carry"
_ROW_FACTS = ("video", "start", "end")
_DTYPES: dict[str, np.dtype] = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16)}


@dataclass(frozen=True, slots=True)
class State:
    """Where a run stands after a batch.

    Attributes:
        video: Number of the video to go on with.
        window: Windows of it that are done.
        skipped: Number and reason of each video given up since the part before.
        views: Windows in `carry`.
        start: When the first of these is.
        end: When the last of these ends.
    """

    video: int = 0
    window: int = 0
    skipped: list[tuple[int, str]] = field(default_factory=list)
    views: int = 0
    start: float = 0.0
    end: float = 0.0


class Rows(NamedTuple):
    """Rows of features: the features, the number of their video, and when they are in it."""

    features: np.ndarray
    video: np.ndarray
    start: np.ndarray
    end: np.ndarray

    @classmethod
    def joined(cls, parts: Sequence[Rows]) -> Rows:
        """Join rows of the same shape."""
        return cls(*(np.concatenate(column) for column in zip(*parts, strict=True)))


class FeatureParts:
    """The parts of a file of features that is being written.

    Args:
        out: The file.
        plan: What decides on its content, as JSON has it. Parts of another plan are not continued.
        overwrite: Discard such parts, and replace the file if it exists.

    Raises:
        UsageError: If the file, or parts of another plan, exist and may not be replaced.
    """

    def __init__(self, out: Path, plan: dict[str, Any], *, overwrite: bool) -> None:
        self.out = out
        self.folder = out.with_name(f"{out.name}.parts")
        known = self._known_plan()
        if known != plan:
            self._refuse(known, plan, overwrite)
            self.clear()
            self.folder.mkdir(parents=True)
            write_safely(self.folder / PLAN, json.dumps(plan, indent=1) + "\n")
        self.files = self._whole_parts()

    def last(self) -> tuple[State, np.ndarray | None]:
        """Return where to go on, and the sum of the features of the video that is not done."""
        if not self.files:
            return State(), None
        state, carry = _read_state(self.files[-1])
        return state, carry

    def add(self, rows: Rows, state: State, carry: np.ndarray | None) -> None:
        """Write a part, atomically."""
        path = self.folder / f"{len(self.files):06d}.safetensors"
        tensors = [Tensor.of(name, getattr(rows, name)) for name in _ROW_FACTS]
        if carry is not None:
            tensors.append(Tensor.of(_CARRY, carry))
        tensors.append(Tensor.of("features", rows.features))
        write_tensors(path, tensors, {_STATE: json.dumps(asdict(state), ensure_ascii=False)})
        self.files.append(path)

    def skipped(self) -> dict[int, str]:
        """Return which videos were given up, and why."""
        return {n: why for file in self.files for n, why in _read_state(file)[0].skipped}

    def join(
        self, names: Sequence[str], labels: Sequence[int] | None, metadata: Mapping[str, str]
    ) -> tuple[int, ...]:
        """Write the file from its parts, one of which is in memory at a time, and remove them.

        Videos that were given up have no rows and no name.

        Args:
            names: Of all videos.
            labels: Their classes, -1 where there is none; None writes no labels.
            metadata: Texts beside the tensors.

        Returns:
            The shape of the features.

        Raises:
            DataError: If no video is left.
        """
        gone = self.skipped()
        left = [number for number in range(len(names)) if number not in gone]
        if not left:
            first, why = next(iter(gone.items()))
            raise DataError(f"none of the {len(names)} videos can be read: `{names[first]}`: {why}")
        place = np.full(len(names), -1, np.int64)
        place[left] = np.arange(len(left))
        columns: dict[str, list[np.ndarray]] = {name: [] for name in _ROW_FACTS}
        shape: tuple[int, ...] = ()
        dtype = np.dtype(np.float32)
        for file in self.files:
            with safe_open(file, framework="numpy") as part:
                kept = place[part.get_tensor("video")] >= 0
                for name, column in columns.items():
                    column.append(part.get_tensor(name)[kept])
                one = part.get_slice("features")
                shape, dtype = tuple(one.get_shape()), _DTYPES[one.get_dtype()]
        rows = {name: np.concatenate(column) for name, column in columns.items()}
        shape = (len(rows["video"]), *shape[1:])
        tensors = [
            Tensor.of("video", place[rows["video"]]),
            Tensor.of("start", rows["start"]),
            Tensor.of("end", rows["end"]),
        ]
        if labels is not None:
            tensors.append(Tensor.of("label", np.array(labels, np.int64)[left]))
        tensors.append(Tensor("features", dtype, shape, lambda: self._features(place)))
        text = "\0".join(names[number] for number in left).encode()
        tensors.append(Tensor.of("names", np.frombuffer(text, np.uint8)))
        write_tensors(self.out, tensors, metadata)
        self.clear()
        return shape

    def clear(self) -> None:
        """Remove the parts; a kill on the way leaves none that would be taken for whole."""
        (self.folder / PLAN).unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _features(self, place: np.ndarray) -> Iterator[bytes]:
        for file in self.files:
            with safe_open(file, framework="numpy") as part:
                kept = place[part.get_tensor("video")] >= 0
                features = part.get_tensor("features")
            yield (features if kept.all() else features[kept]).tobytes()

    def _known_plan(self) -> dict[str, Any] | None:
        try:
            return json.loads((self.folder / PLAN).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None

    def _refuse(self, known: dict[str, Any] | None, plan: dict[str, Any], overwrite: bool) -> None:
        if overwrite:
            return
        if known is not None:
            changed = sorted(key for key in plan if plan[key] != known.get(key))
            raise UsageError(
                f"`{self.folder}` holds part of another run: "
                + ", ".join(
                    f"`{key}` was {known.get(key)!r}, not {plan[key]!r}" for key in changed
                ),
                hint="rerun that command to continue it, or discard it with `--overwrite`",
            )
        refuse_existing(self.out, overwrite=overwrite)

    def _whole_parts(self) -> list[Path]:
        """Return the parts from the first on, up to one that is missing."""
        found: list[Path] = []
        while (path := self.folder / f"{len(found):06d}.safetensors").is_file():
            found.append(path)
        return found


def _read_state(file: Path) -> tuple[State, np.ndarray | None]:
    try:
        with safe_open(file, framework="numpy") as part:
            state = State(**json.loads(part.metadata()[_STATE]))
            return state, part.get_tensor(_CARRY) if _CARRY in part.keys() else None  # noqa: SIM118
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"`{file}` is damaged: {error}", "`--overwrite` starts from scratch"
        ) from error
