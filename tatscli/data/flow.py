"""Displacements made elsewhere, optical flow for instance: safetensors files, memory-mapped."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from tatscli.errors import DataError

_SUFFIX = "/motion"
_KNOWN = "/valid"
_FLOATS = ("F16", "F32", "F64")
_FLAGS = ("BOOL", "U8")
_LARGEST = float(np.finfo(np.float16).max)  # a store holds motion in half precision
_OPEN_FILES = 512  # mapped at the same time in one process
_HINT = (
    "for each video a tensor `<id>/motion` (frames, rows, columns, 2) of floats, x first, in stored"
    " pixels per stored frame, with the store's cells"
)


class FlowFiles:
    """Fields of many videos. Picklable: every process opens the files it touches for itself.

    The tensor `<id>/motion` has the shape and the units of the store's; frame t holds how content
    moved since frame t - 1. `<id>/valid` (frames,) bool or uint8, in the same file or another,
    tells where that is known; without it everywhere but in frame 0, into which nothing can have
    moved.

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
        self._home: dict[str, Path] = {}  # of each tensor, of both kinds
        self._files: OrderedDict[Path, Any] = OrderedDict()
        for file in files:
            names: list[str] = self._open(file).keys()
            for name in names:
                if not name.endswith((_SUFFIX, _KNOWN)):
                    continue
                if name in self._home:
                    raise DataError(f"`{name}` is in both `{self._home[name]}` and `{file}`")
                self._home[name] = file
        if self.example is None:
            raise DataError(f"`data.motion.path: {path}` holds no tensor `<id>{_SUFFIX}`", _HINT)

    def __contains__(self, video: str) -> bool:
        return f"{video}{_SUFFIX}" in self._home

    @property
    def example(self) -> str | None:
        """The id of one of the videos."""
        names = (name for name in self._home if name.endswith(_SUFFIX))
        return next((name.removesuffix(_SUFFIX) for name in names), None)

    def check(self, video: str, shape: tuple[int, int, int, int]) -> bool:
        """Look at the headers of a video's tensors, not at their values.

        Args:
            video: Its id in the store.
            shape: Of the store's own field of the whole video: frames, rows, columns, 2.

        Returns:
            Whether its motion may be known: it is there, and not of a lone frame without flags.

        Raises:
            DataError: A tensor has another shape or type.
        """
        if video not in self:
            return False
        self._field(video, shape)
        return self._flags(video, shape) is not None or shape[0] > 1

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
            DataError: The tensor has another shape or type, or values that are not finite or too
                large for a store.
        """
        if video not in self:
            count = len(frames)
            return np.zeros((count, *shape[1:]), np.float32), np.zeros(count, bool)
        part = slice(frames.start, frames.stop)
        with np.errstate(over="ignore"):  # what overflows is refused below
            field = self._field(video, shape)[part].astype(np.float32)
        if not np.abs(field).max(initial=0) <= _LARGEST:  # nor is NaN
            name = f"{video}{_SUFFIX}"
            raise DataError(
                f"`{name}` of `{self._home[name]}` holds values that are not finite or beyond"
                f" {_LARGEST:.0f} pixels",
                _HINT,
            )
        flags = self._flags(video, shape)
        known = (
            flags[part].astype(bool) if flags is not None else np.arange(part.start, part.stop) > 0
        )
        return field, known

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": OrderedDict()}

    def _field(self, video: str, shape: tuple[int, ...]) -> Any:
        return self._tensor(f"{video}{_SUFFIX}", shape, _FLOATS)

    def _flags(self, video: str, shape: tuple[int, ...]) -> Any | None:
        name = f"{video}{_KNOWN}"
        return self._tensor(name, shape[:1], _FLAGS) if name in self._home else None

    def _tensor(self, name: str, shape: tuple[int, ...], kinds: tuple[str, ...]) -> Any:
        """Return a tensor as a slice: indexing it copies just those elements."""
        file = self._home[name]
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
