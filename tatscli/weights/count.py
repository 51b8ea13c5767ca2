"""Counting the tensors of a source: matched, missing, unexpected, dropped on purpose."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from tatscli.errors import CheckpointError
from tatscli.weights.spec import Shapes


@dataclass(slots=True)
class Count:
    """What happened to each tensor of a source.

    Attributes:
        layout: Layout of the source.
        total: Number of its tensors.
        matched: Number of tensors that were read, completely or in part.
        missing: Tensors that are missing, by our names.
        misshapen: Tensors with another shape, by our names, with both shapes in words.
        unexpected: Tensors that no rule matches, by their own names.
        dropped: Tensors that are not used, by their own names, for each reason.
        made: Tensors that such a source never has and that were created, by our names, for each
            reason.
        notes: Further remarks for the user.
    """

    layout: str
    total: int
    matched: int = 0
    missing: list[str] = field(default_factory=list)
    misshapen: dict[str, str] = field(default_factory=dict)
    unexpected: list[str] = field(default_factory=list)
    dropped: dict[str, list[str]] = field(default_factory=dict)
    made: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def whole(self) -> bool:
        """Whether everything fits."""
        return not (self.missing or self.misshapen or self.unexpected)

    def drop(self, reason: str, names: Iterable[str]) -> None:
        """Record tensors that are not used, and why."""
        self.dropped.setdefault(reason, []).extend(names)

    def make(self, reason: str, names: Iterable[str]) -> None:
        """Record tensors that are created because such a source never has them."""
        self.made.setdefault(reason, []).extend(names)

    @property
    def problems(self) -> str:
        """What does not fit, with the first names of each kind."""
        kinds = {
            "missing": self.missing,
            "of another shape": [f"{name} ({said})" for name, said in self.misshapen.items()],
            "unexpected": self.unexpected,
        }
        return "; ".join(
            f"{len(names)} {kind}, first {_first(names)}" for kind, names in kinds.items() if names
        )

    def lines(self) -> list[str]:
        """Return everything in sentences, the counts first."""
        said = [f"{self.layout}: {self.matched} of {self.total} tensors read"]
        for reason, names in self.dropped.items():
            said.append(f"{len(names)} tensors not used: {reason}")
        for reason, names in self.made.items():
            said.append(f"{len(names)} tensors created: {reason}")
        return said + self.notes

    def facts(self) -> dict[str, Any]:
        """Return the counts for JSON, with the names of what does not fit."""
        return {
            "layout": self.layout,
            "tensors": self.total,
            "matched": self.matched,
            "missing": [*self.missing, *self.misshapen],
            "unexpected": self.unexpected,
            "dropped": {reason: len(names) for reason, names in self.dropped.items()},
            "made": {reason: len(names) for reason, names in self.made.items()},
            "notes": self.notes,
        }

    def refuse(self, called: str) -> None:
        """Refuse a source of which not everything fits.

        Raises:
            CheckpointError: If so, with counts and first names.
        """
        if not self.whole:
            raise CheckpointError(
                f"`{called}` ({self.layout}): {self.matched} of {self.total} tensors match; "
                f"{self.problems}",
                hint="`tats convert --partial` reads what fits and reports the rest",
            )


class Renaming:
    """Renames the tensors of a source to our names, and accounts for every one.

    Args:
        source: All of its tensors.
        layout: Name of its layout.

    Attributes:
        left: Tensors that no rule has matched yet.
        tensors: Renamed tensors, in float32.
        count: What happened so far.
    """

    def __init__(self, source: dict[str, Tensor], layout: str) -> None:
        self.left = dict(source)
        self.tensors: dict[str, Tensor] = {}
        self.count = Count(layout, len(source))
        self._dropped = 0
        halves = sum(one.is_floating_point() and one.element_size() < 4 for one in source.values())
        if halves:
            self.count.notes.append(f"{halves} tensors in half precision were converted to float32")

    def pop(self, name: str) -> Tensor:
        """Take a tensor of the source, in float32."""
        return self.left.pop(name).float()

    def take(self, theirs: str, ours: str) -> None:
        """Rename a tensor."""
        self.tensors[ours] = self.pop(theirs)

    def take_all(self, rename: Callable[[str], str | None]) -> None:
        """Rename every tensor for which a rule returns a name."""
        for theirs in list(self.left):
            ours = rename(theirs)
            if ours is not None:
                self.take(theirs, ours)

    def drop(self, reason: str, wanted: Callable[[str], bool]) -> None:
        """Drop the tensors that a rule selects, for a reason."""
        names = [name for name in self.left if wanted(name)]
        if names:
            self.count.drop(reason, names)
        for name in names:
            del self.left[name]
        self._dropped += len(names)

    def make(self, ours: str, value: Tensor, reason: str) -> None:
        """Add a tensor that such a source never has."""
        self.tensors[ours] = value
        self.count.make(reason, [ours])

    def compare(self, wanted: Shapes) -> None:
        """Compare with the shapes of a model: count missing, misshapen and unexpected tensors."""
        count = self.count
        count.missing = [name for name in wanted if name not in self.tensors]
        count.misshapen = {
            name: f"{_sides(self.tensors[name].shape)}, not {_sides(shape)}"
            for name, shape in wanted.items()
            if name in self.tensors and tuple(self.tensors[name].shape) != shape
        }
        strange = [name for name in self.tensors if name not in wanted]
        count.unexpected = [*self.left, *strange]
        lost = len(self.left) + self._dropped + len(count.misshapen) + len(strange)
        count.matched = max(0, count.total - lost)


def _first(names: list[str], count: int = 3) -> str:
    return ", ".join(f"`{name}`" for name in names[:count]) + (" ..." if len(names) > count else "")


def _sides(shape: Iterable[int]) -> str:
    return " x ".join(map(str, shape)) or "a single number"
