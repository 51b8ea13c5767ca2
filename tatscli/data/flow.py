"""Displacements made elsewhere, optical flow for instance: safetensors files, memory-mapped."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from tatscli.errors import DataError

_SUFFIX = "/motion"
_FLOATS = ("F16", "F32", "F64")
_OPEN_FILES = 512  # mapped at the same time in one process
_HINT = (
    "for each video a tensor `<id>/motion` (frames, rows, columns, 2) of floats, x first, in stored"
    " pixels per stored frame, with the store's cells"
)


class FlowFiles:
    """Fields of many videos. Picklable: every process opens the files it touches for itself.

    The tensor `<id>/motion` has the shape and the units of the store's; frame t holds how content
    moved since frame t - 1. `<id>/valid` (frames,) bool or uint8 tells where that is known; without
    it everywhere but in frame 0, into which nothing can have moved.

    Args:
        path: A .safetensors file or a folder of them; all headers are read once.

    Raises:
        DataError: There are no such files, one cannot be read, no tensor has a fitting name, or two
            have the same.
    """

    def __init__(self, path: str | Path) -> None:
        path = Path(path)
        files = sorted(path.glob("**/*.safetensors")) if path.is_dir() else [path]
        if not path.exists() or not files:
            lacking = "holds no .safetensors file" if path.exists() else "does not exist"
            raise DataError(f"`data.motion.path: {path}` {lacking}", _HINT)
        self._home: dict[str, Path] = {}
        self._valid: set[str] = set()
        self._files: OrderedDict[Path, Any] = OrderedDict()
        for file in files:
            names = list(self._open(file).keys())
            for name in names:
                if not name.endswith(_SUFFIX):
                    continue
                video = name.removesuffix(_SUFFIX)
                if video in self._home:
                    raise DataError(
                        f"the motion of `{video}` is in both `{self._home[video]}` and `{file}`"
                    )
                self._home[video] = file
            self._valid.update(set(names) & {f"{video}/valid" for video in self._home})
        if not self._home:
            raise DataError(f"`data.motion.path: {path}` holds no tensor `<id>{_SUFFIX}`", _HINT)

    def read(
        self, video: str, frames: range, shape: tuple[int, int, int, int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the motion of successive frames of a video, all unknown if it is not there.

        Args:
            video: Its id in the store.
            frames: Which.
            shape: Of the store's own field of the whole video: frames, rows, columns, 2.

        Returns:
            The field (F, rows, columns, 2) float32 and its validity (F,) bool, as the store's.

        Raises:
            DataError: The tensor has another shape or type, or values that are not finite.
        """
        count = len(frames)
        file = self._home.get(video)
        if file is None:
            return np.zeros((count, *shape[1:]), np.float32), np.zeros(count, bool)
        part = slice(frames.start, frames.stop)
        field = self._tensor(file, f"{video}{_SUFFIX}", shape, _FLOATS)[part].astype(np.float32)
        if not np.isfinite(field).all():
            raise DataError(f"`{video}{_SUFFIX}` of `{file}` holds values that are not finite")
        if f"{video}/valid" in self._valid:
            valid = self._tensor(file, f"{video}/valid", shape[:1], ("BOOL", "U8"))[part]
            return field, valid.astype(bool)
        return field, np.arange(frames.start, frames.stop) > 0

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": OrderedDict()}

    def _tensor(self, file: Path, name: str, shape: tuple[int, ...], kinds: tuple[str, ...]) -> Any:
        """Return a tensor as a slice: indexing it copies just those elements."""
        try:
            tensor = self._open(file).get_slice(name)
        except SafetensorError as error:
            raise DataError(f"`{file}` has no tensor `{name}`: {error}", _HINT) from error
        found, kind = tuple(tensor.get_shape()), tensor.get_dtype()
        if found != shape or kind not in kinds:
            raise DataError(
                f"`{name}` of `{file}` is {kind} of shape `{found}`,"
                f" not {' or '.join(kinds)} of shape `{shape}`",
                _HINT,
            )
        return tensor

    def _open(self, file: Path) -> Any:
        if file in self._files:
            self._files.move_to_end(file)
            return self._files[file]
        try:
            self._files[file] = safe_open(file, framework="numpy")
        except (SafetensorError, OSError) as error:
            raise DataError(
                f"`{file}` cannot be read as a safetensors file: {error}", _HINT
            ) from error
        if len(self._files) > _OPEN_FILES:
            self._files.popitem(last=False)
        return self._files[file]
