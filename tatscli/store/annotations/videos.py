"""The videos of a folder, in all its sub-folders, found by name."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath

_SUFFIXES = """
    .264 .265 .3g2 .3gp .amv .apng .asf .avi .divx .dv .f4v .flv .gif .h264 .h265 .hevc .ivf
    .m1v .m2ts .m2v .m4v .mjpeg .mjpg .mkv .mov .mp2v .mp4 .mpe .mpeg .mpg .mts .mxf .nut .obu
    .ogm .ogv .rm .rmvb .ts .vob .webm .wmv .y4m
"""
VIDEO_SUFFIXES = frozenset(_SUFFIXES.split())
"""Suffixes of video files, in any letter case."""


def has_video_suffix(path: str) -> bool:
    """Whether a path has a video suffix."""
    return os.path.splitext(path)[1].lower() in VIDEO_SUFFIXES


class Videos:
    """The videos below a folder, which is searched when they are first needed.

    Attributes:
        folder: Where they are.
        others: Suffixes of other files, counted; complete once `paths` is known.
        closed: Folders that cannot be read; complete once `paths` is known.
        loops: Links to a folder that they lie in, which are not followed; complete likewise.
        again: Folders that are reached twice, by links, each with its other path: their videos
            count twice; complete likewise.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.others: Counter[str] = Counter()
        self.closed: list[str] = []
        self.loops: list[str] = []
        self.again: list[tuple[str, str]] = []

    @cached_property
    def paths(self) -> list[PurePosixPath]:
        """Every file with a video suffix, relative to the folder."""
        found = []
        for path in self._walk():
            if has_video_suffix(path.name):
                found.append(path)
            else:
                self.others[path.suffix.lower() or "no suffix"] += 1
        return found

    def _walk(self) -> Iterator[PurePosixPath]:
        """Yield all files, following links, without hidden ones (macOS' `._a.mp4`)."""

        def refused(error: OSError) -> None:
            self.closed.append(readable(os.fspath(error.filename)))

        above: dict[str, frozenset[tuple[int, int]]] = {}  # the folders that each one lies in
        first: dict[tuple[int, int], str] = {}
        for root, folders, files in os.walk(self.folder, followlinks=True, onerror=refused):
            relative = Path(root).relative_to(self.folder)
            name = readable(relative.as_posix())
            try:
                status = os.stat(root)
            except OSError as error:  # gone meanwhile
                refused(error)
                folders.clear()
                continue
            place = status.st_dev, status.st_ino
            holders = above.get(os.path.dirname(root), frozenset())
            if place in holders:
                self.loops.append(name)
                folders.clear()
                continue
            if place in first:
                self.again.append((name, first[place]))
            first.setdefault(place, name)
            above[root] = holders | {place}
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for file in files:
                if not file.startswith("."):
                    yield PurePosixPath(relative, file)

    def named(self, *stems: str, folders: Sequence[str] = ()) -> Path | None:
        """Return the video with one of some names, without suffix, wherever it lies.

        Args:
            stems: Names, the preferred one first.
            folders: Of several files, one in the first of these folders is taken; `a b` and `a_b`
                are the same. Then the one that lies highest.
        """
        wanted = [_plain(folder) for folder in folders]
        for stem in stems:
            found = self._by_stem.get(stem)
            if not found:
                continue
            if len(found) == 1:
                return self.folder / found[0]

            def rank(path: PurePosixPath) -> tuple[int, int, str]:
                parents = {_plain(part) for part in path.parts[:-1]}
                places = [n for n, folder in enumerate(wanted) if folder in parents]
                return min(places, default=len(wanted)), len(path.parts), str(path)

            return self.folder / min(found, key=rank)
        return None

    @cached_property
    def _by_stem(self) -> dict[str, list[PurePosixPath]]:
        index: dict[str, list[PurePosixPath]] = {}
        for path in self.paths:
            index.setdefault(path.stem, []).append(path)
        return index


def readable(name: str) -> str:
    """Return a file name as valid text: Linux allows any bytes in names, JSON does not."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _plain(folder: str) -> str:
    return folder.casefold().replace("_", " ")
