"""`Store`: reads what `tats prepare` wrote, memory-mapped and only the bytes needed."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open

from tatscli.errors import DataError
from tatscli.store.schema import (
    DATASET,
    FORMAT_VERSION,
    MANIFEST,
    ClassGroups,
    Dataset,
    Row,
    Settings,
    read_rows,
)

_OPEN_SHARDS = 512  # mapped at the same time in one process


class Store:
    """A prepared data set. Picklable: every process opens the shards it touches for itself.

    Attributes:
        path: The store's folder.
        dataset: Content of `dataset.json`.
        rows: All sources, failed ones included, sorted by id.
    """

    def __init__(self, path: Path, dataset: Dataset, rows: list[Row]) -> None:
        self.path = path
        self.dataset = dataset
        self.rows = rows
        self._shards: OrderedDict[str, Any] = OrderedDict()

    @classmethod
    def open(cls, path: str | Path) -> Store:
        """Open a store.

        Raises:
            DataError: There is no store, it is unfinished, damaged, or of another format version.
        """
        path = Path(path)
        again = (
            "create one with `tats prepare SRC --out STORE`; if it has moved, set `--store` or "
            "`data.store`"
        )
        if not path.is_dir():
            raise DataError(f"there is no store at `{path}`", again)
        try:
            text = (path / DATASET).read_bytes()
        except FileNotFoundError:
            raise DataError(f"`{path}` is not a store: it has no `{DATASET}`", again) from None
        try:
            version = json.loads(text).get("format_version")
            if version != FORMAT_VERSION:
                raise DataError(
                    f"`{path}` has store format `{version}`; this tats reads {FORMAT_VERSION}",
                    "prepare it again, or use the tats version that wrote it",
                )
            dataset, rows = Dataset.model_validate_json(text), read_rows(path / MANIFEST)
        except (ValidationError, ValueError, AttributeError) as error:
            raise DataError(f"the store `{path}` is damaged: {error}", again) from error
        if not dataset.complete:
            raise DataError(
                f"the store `{path}` is unfinished: {len(rows)} sources so far",
                "rerun the same `tats prepare` command; it continues where it stopped",
            )
        if not (path / MANIFEST).is_file():
            raise DataError(f"the store `{path}` is damaged: it has no `{MANIFEST}`", again)
        return cls(path, dataset, rows)

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def class_names(self) -> list[str]:
        return list(self.dataset.class_names)

    @property
    def class_groups(self) -> ClassGroups:
        """By name, which member of a group each class is; where classes are combinations."""
        return dict(self.dataset.class_groups)

    @property
    def settings(self) -> Settings:
        return self.dataset.settings

    @property
    def motion_cell(self) -> int:
        return self.dataset.settings.motion_cell

    def part(self, split: str | None) -> list[int]:
        """Return the indices of the ok rows of a split, in the order of their ids; None takes all.

        Raises:
            DataError: The store has no such split, or no readable video in it.
        """
        self.check_split(split)
        readable = [
            index
            for index, row in enumerate(self.rows)
            if row.status == "ok" and row.in_split(split)
        ]
        if not readable:
            where = f"split `{split}` of " if split else ""
            raise DataError(
                f"{where}`{self.path}` holds no readable video",
                "`tats store list STORE --status failed` shows why each source failed",
            )
        return readable

    def check_split(self, split: str | None) -> None:
        """Refuse a split that the store does not have; None is the whole store.

        Raises:
            DataError: There is no such split.
        """
        splits = sorted({s for row in self.rows for s in (row.split, *row.also_in) if s})
        if split is not None and split not in splits:
            named = ", ".join(f"`{s}`" for s in splits) if splits else "none"
            how = (
                "splits come from folders named `train` and `val`, from `tats prepare --annotations"
                " SPLIT=FILE` or `--val-share 0.2`; `finetune.val_share=0.2` divides a store for"
                " fine-tuning alone"
            )
            raise DataError(
                f"the store `{self.path}` has no split `{split}`; it has {named}",
                None if splits else how,
            )

    def jpegs(self, row: int, frames: Sequence[int]) -> list[np.ndarray]:
        """Return the JPEG files of some frames of a video, each a writable uint8 vector.

        Raises:
            DataError: The store holds no pictures, or the shard is damaged.
        """
        if self.settings.frames == "none":
            raise DataError(
                f"the store `{self.path}` holds no frames: it was prepared with `--frames none`",
                "prepare the videos with `--frames jpeg` into another store",
            )
        offsets, images = self._tensor(row, "offsets"), self._tensor(row, "jpeg")
        result = []
        for frame in frames:
            self._check_frame(row, frame)
            start, end = offsets[frame : frame + 2].tolist()
            result.append(images[start:end])
        return result

    def motion(self, row: int, frames: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Return the motion of some frames of a video.

        Returns:
            The field (T, gh, gw, 2) float32 in pixels of the stored picture, x first, and its
            validity (T,) bool.
        """
        first, last = min(frames), max(frames)
        for frame in (first, last):
            self._check_frame(row, frame)
        # One piece from the first to the last: a slice for each frame takes ten times as long.
        field = self._tensor(row, "motion")[first : last + 1].astype(np.float32)
        known = self._tensor(row, "valid")[first : last + 1].astype(bool)
        if frames == range(first, last + 1):
            return field, known
        place = np.asarray(frames) - first
        return field[place], known[place]

    def times(self, row: int) -> np.ndarray:
        """Return the presentation times of a video in seconds, (T,) float64."""
        return self._tensor(row, "times")[:]

    def fingerprint(self) -> str:
        """Return the SHA-256 of `dataset.json` and the manifest; equal runs give equal ones."""
        digest = hashlib.sha256()
        for name in (DATASET, MANIFEST):
            digest.update((self.path / name).read_bytes())
        return digest.hexdigest()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_shards": OrderedDict()}

    def _check_frame(self, row: int, frame: int) -> None:
        if not 0 <= frame < self.rows[row].frames:
            record = self.rows[row]
            raise IndexError(f"frame {frame} of `{record.id}`, which has {record.frames}")

    def _tensor(self, row: int, name: str) -> Any:
        """Return a tensor of a video as a slice: indexing it copies just those elements."""
        record = self.rows[row]
        if record.shard is None:
            raise DataError(f"`{record.id}` has no frames in the store: {record.reason}")
        try:
            return self._shard(record.shard).get_slice(f"{record.id}/{name}")
        except (SafetensorError, OSError) as error:
            raise DataError(
                f"the shard `{self.path / record.shard}` is damaged or missing: {error}",
                "`tats store verify STORE --repair` drops what is broken; the same `tats prepare`"
                " command then converts it again",
            ) from error

    def _shard(self, name: str) -> Any:
        if name in self._shards:
            self._shards.move_to_end(name)
            return self._shards[name]
        self._shards[name] = safe_open(self.path / name, framework="numpy")
        if len(self._shards) > _OPEN_SHARDS:
            self._shards.popitem(last=False)
        return self._shards[name]
