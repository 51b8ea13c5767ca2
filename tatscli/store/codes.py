"""Codes of a tokenizer beside the videos of a store: what `tats store encode` writes.

    STORE/codes/<key>/index.json  <shard>.safetensors: `<id>/codes`, int32 (F, h, w)

They belong to one view of every stored frame: the largest crop of the view's aspect in the middle.

Shapes: F stored frames, T of them, h and w codes along the picture.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from tatscli.errors import DataError
from tatscli.files import write_safely
from tatscli.store.reader import Store
from tatscli.tensors import Tensor, write_tensors

INDEX = "index.json"
_STAMP = "videos"  # in the metadata of a file: `stamp_of` what it was made of
_OPEN_FILES = 512  # mapped at the same time in one process


def codes_key(digest: str, size: tuple[int, int], scale: float) -> str:
    """Name the codes of a tokenizer on frames of a size, which are resized by `scale` first."""
    resized = "" if scale == 1 else f"-x{scale:g}"
    return f"{digest[:16]}-{size[0]}x{size[1]}{resized}"


class Codes:
    """The codes of a tokenizer for all videos of a store. Picklable, as `Store` is.

    Args:
        store: Whose videos.
        key: From `codes_key`.

    Raises:
        DataError: If there are none, or the store has changed since.
    """

    def __init__(self, store: Store, key: str) -> None:
        self.store = store
        self.folder = folder_of(store, key)
        self._files: OrderedDict[str, Any] = OrderedDict()
        again = (
            "`tats store encode STORE --tokenizer PATH --size N` writes them, with the target's "
            "`--kind` and `--scale`"
        )
        try:
            facts = json.loads((self.folder / INDEX).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(
                f"`{store.path}` holds no codes of this tokenizer for this view (`{key}`)", again
            ) from error
        if facts.get("store_fingerprint") != store.fingerprint():
            raise DataError(f"the codes in `{self.folder}` are of other videos", again)

    def read(self, row: int, frames: Sequence[int]) -> np.ndarray:
        """Return the codes of some frames of a video: int64 (T, h, w).

        Raises:
            DataError: If they are damaged or missing.
        """
        record = self.store.rows[row]
        assert record.shard is not None
        try:
            codes = self._file(record.shard).get_slice(f"{record.id}/codes")
            first, last = min(frames), max(frames)
            found = codes[first : last + 1]
        except (SafetensorError, OSError) as error:
            raise DataError(
                f"the codes of `{record.id}` in `{self.folder}` are damaged or missing: {error}",
                "delete the folder and run `tats store encode` again",
            ) from error
        return found[np.asarray(frames) - first].astype(np.int64)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": OrderedDict()}

    def _file(self, shard: str) -> Any:
        if shard in self._files:
            self._files.move_to_end(shard)
            return self._files[shard]
        self._files[shard] = safe_open(_file_of(self.folder, shard), framework="numpy")
        if len(self._files) > _OPEN_FILES:
            self._files.popitem(last=False)
        return self._files[shard]


def folder_of(store: Store, key: str) -> Path:
    """Return where codes lie."""
    return store.path / "codes" / key


def stamp_of(store: Store, rows: Sequence[int]) -> str:
    """Name what the codes of a shard are made of: its videos, and the bytes of each."""
    digest = blake2b(digest_size=16)
    for row in rows:
        digest.update(f"{store.rows[row].id}\n{store.rows[row].checksum}\n".encode())
    return digest.hexdigest()


def write_codes(folder: Path, shard: str, codes: Mapping[str, np.ndarray], *, stamp: str) -> None:
    """Write the codes of a shard's videos, by id; whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = [Tensor.of(f"{name}/codes", one.astype("<i4")) for name, one in sorted(codes.items())]
    write_tensors(_file_of(folder, shard), tensors, {_STAMP: stamp})


def has_codes(folder: Path, shard: str, *, stamp: str) -> bool:
    """Whether those of a shard are there, and of the videos that it holds now."""
    try:
        with safe_open(_file_of(folder, shard), framework="numpy") as file:
            return bool((file.metadata() or {}).get(_STAMP) == stamp)
    except (OSError, SafetensorError):
        return False


def finish_codes(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write the index, which says that all are there."""
    write_safely(folder / INDEX, json.dumps(dict(facts), indent=1) + "\n")


def _file_of(folder: Path, shard: str) -> Path:
    return folder / f"{Path(shard).stem}.safetensors"
