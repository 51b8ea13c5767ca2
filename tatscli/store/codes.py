"""Codes of a tokenizer beside the videos of a store: what `tats store encode` writes.

    STORE/codes/<key>/index.json  <shard>.safetensors: `<id>/codes`, perhaps `<id>/scores`

They belong to the largest crop of the view's aspect in the middle: of every stored frame, int32
(F, h, w), or where a code depends on the frames beside it, of the fixed clips of a recipe
(`data.sampling.clips`), int32 (clips, t, h, w) and float16 scores of the same shape.

In a batch codes are found under their key, their scores under `scores_key`.

Shapes: F stored frames, T of them, t codes along time, h and w along the picture.
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
from tatscli.recipe.schema import Data
from tatscli.store.reader import Store
from tatscli.tensors import Tensor, write_tensors

INDEX = "index.json"
_STAMP = "videos"  # in the metadata of a file: `stamp_of` what it was made of
_OPEN_FILES = 512  # mapped at the same time in one process


def codes_key(digest: str, size: tuple[int, int], scale: float, clips: str | None = None) -> str:
    """Name the codes of a tokenizer on frames of a size, which are resized by `scale` first.

    Args:
        digest: SHA-256 of the tokenizer's weights.
        size: Height and width of the view.
        scale: As the target's.
        clips: From `clips_key`, for codes of fixed clips; None are those of single frames.
    """
    resized = "" if scale == 1 else f"-x{scale:g}"
    fixed = "" if clips is None else f"-{clips}"
    return f"{digest[:16]}-{size[0]}x{size[1]}{resized}{fixed}"


def clips_key(data: Data) -> str | None:
    """Name the fixed clips of a recipe: frames x clips, and a digest of all that chooses them.

    None where clips are drawn anywhere.
    """
    sampling = data.sampling
    if sampling.clips is None:
        return None
    chosen = json.dumps([sampling.mode, sampling.stride, sampling.fps, sampling.short])
    digest = blake2b(chosen.encode(), digest_size=4).hexdigest()
    return f"{data.frames}x{sampling.clips}-{digest}"


def scores_key(key: str) -> str:
    """Name the scores of codes."""
    return f"{key}/scores"


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
        self.key = key
        self.folder = folder_of(store, key)
        self._files: OrderedDict[str, Any] = OrderedDict()
        again = (
            "`tats store encode STORE --recipe RECIPE` writes the codes that the recipe reads "
            "(or `--tokenizer PATH --size N`, with the target's `--kind` and `--scale`)"
        )
        try:
            facts = json.loads((self.folder / INDEX).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            others = sorted(self.folder.parent.glob(f"{key[:16]}-*/{INDEX}"))
            there = ", ".join(f"`{one.parent.name}`" for one in others if one.parent.name != key)
            raise DataError(
                f"`{store.path}` has no codes of this tokenizer for this view (`{key}`)"
                + (f"; it has codes for other views: {there}" if there else ""),
                again,
            ) from error
        if facts.get("store_fingerprint") != store.fingerprint():
            raise DataError(f"the codes in `{self.folder}` belong to other videos", again)
        self.by_clip = facts.get("clips") is not None
        self.scored = bool(facts.get("scores"))

    def read(self, row: int, frames: Sequence[int], clip: int | None) -> dict[str, np.ndarray]:
        """Return the codes of a clip and their scores, by their keys.

        Args:
            row: Of the manifest.
            frames: The clip's, for codes of single frames.
            clip: Its number, for codes of fixed clips.

        Returns:
            Codes, int64 (T, h, w) or (t, h, w), and where there are any, scores, float32.

        Raises:
            DataError: If they are damaged or missing.
        """
        record = self.store.rows[row]
        assert record.shard is not None
        try:
            file = self._file(record.shard)
            codes = file.get_slice(f"{record.id}/codes")
            if not self.by_clip:
                first, last = min(frames), max(frames)
                found = codes[first : last + 1][np.asarray(frames) - first]
                return {self.key: found.astype(np.int64)}
            assert clip is not None
            known = {self.key: codes[clip].astype(np.int64)}
            if self.scored:
                scores = file.get_slice(f"{record.id}/scores")
                known[scores_key(self.key)] = scores[clip].astype(np.float32)
            return known
        except (SafetensorError, OSError, IndexError) as error:
            raise DataError(
                f"the codes of `{record.id}` in `{self.folder}` are damaged or missing: {error}",
                "delete the folder and run `tats store encode` again",
            ) from error

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


def write_codes(
    folder: Path,
    shard: str,
    codes: Mapping[str, np.ndarray],
    scores: Mapping[str, np.ndarray],
    *,
    stamp: str,
) -> None:
    """Write codes and scores of a shard's videos, by id; whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"{name}/codes": one.astype("<i4") for name, one in codes.items()}
    most = np.finfo(np.float16).max  # larger ones would be infinite, and the same
    tensors |= {f"{name}/scores": one.clip(max=most).astype("<f2") for name, one in scores.items()}
    ordered = [Tensor.of(name, one) for name, one in sorted(tensors.items())]
    write_tensors(_file_of(folder, shard), ordered, {_STAMP: stamp})


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
