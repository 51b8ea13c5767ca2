"""Holding videos out for validation where a data set has no split for it: always the same ones."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b

from tatscli.errors import DataError, UsageError
from tatscli.store.reader import Store
from tatscli.store.sources import Sources

TRAIN, VAL = "train", "val"


@dataclass(frozen=True, slots=True)
class Holdout:
    """How videos are held out.

    Attributes:
        share: Of the videos of every class.
        group: A regular expression: videos in whose path it finds the same text stay together. Its
            first group counts, if it has any. None: every file is on its own, with its segments.
    """

    share: float
    group: str | None = None

    def pattern(self) -> re.Pattern[str] | None:
        """Compile `group`.

        Raises:
            UsageError: It is no regular expression.
        """
        if self.group is None:
            return None
        try:
            return re.compile(self.group)
        except re.error as error:
            raise UsageError(
                f"the group `{self.group}` is not a regular expression: {error}",
                "such as `_(g\\d+)_` for `v_Jump_g01_c02.avi`",
            ) from None

    def keys(self, files: Sequence[str]) -> list[str]:
        """Return what each file is grouped by.

        Raises:
            UsageError: The expression is wrong, or finds nothing in a file's path.
        """
        pattern = self.pattern()
        if pattern is None:
            return list(files)
        keys = []
        for file in files:
            found = pattern.search(file)
            text = found and (found[1] if pattern.groups else found[0])
            if not text:
                raise UsageError(
                    f"the group `{self.group}` finds nothing in `{file}`",
                    "it has to name the group of every video",
                )
            keys.append(text)
        return keys


def held_out(keys: Sequence[str], labels: Sequence[int | None], share: float) -> list[bool]:
    """Choose videos for validation by the hash of their group, so that no seed is needed.

    Groups stay whole. Each class gives its share as nearly as groups allow, at least one group if
    it has two, and never all. Adding videos moves few of the others.

    Args:
        keys: Group of each video.
        labels: Its class; None is a class like any other.
        share: Between 0 and 1.
    """
    members: dict[str, Counter[int | None]] = defaultdict(Counter)
    for key, label in zip(keys, labels, strict=True):
        members[key][label] += 1
    order = sorted(members, key=lambda key: (blake2b(key.encode(), digest_size=8).digest(), key))
    size, groups = Counter(labels), Counter(label for key in order for label in members[key])
    wanted = {label: max(1.0, share * size[label]) if groups[label] > 1 else 0.0 for label in size}
    taken: Counter[int | None] = Counter()
    chosen: set[str] = set()

    def take(key: str) -> None:
        chosen.add(key)
        taken.update(members[key])

    def spares_some(key: str) -> bool:
        return all(taken[label] + n < size[label] for label, n in members[key].items())

    for key in order:
        gain = sum(
            abs(taken[label] - wanted[label]) - abs(taken[label] + n - wanted[label])
            for label, n in members[key].items()
        )
        if gain > 0 and spares_some(key):
            take(key)
    for label in sorted(size, key=str):  # groups too large for their class's share
        if wanted[label] and not taken[label]:
            having = (key for key in order if members[key][label] and spares_some(key))
            smallest = min(having, key=lambda key: members[key].total(), default=None)
            if smallest is not None:
                take(smallest)
    return [key in chosen for key in keys]


def split_sources(sources: Sources, holdout: Holdout) -> Sources:
    """Divide the videos without a split, and those of `train`, into `train` and `val`.

    Raises:
        UsageError: There is a split `val` already, nothing to divide, or the group is wrong.
    """
    splits = {split for item in sources.items for split in (item.split, *item.also_in) if split}
    eligible = [
        index
        for index, item in enumerate(sources.items)
        if item.split in (None, TRAIN) and not item.also_in
    ]
    _check_splits(splits, len(eligible), "--val-share")
    items = [sources.items[index] for index in eligible]
    keys = holdout.keys([item.file for item in items])
    chosen = held_out(keys, [item.label for item in items], holdout.share)
    _check_chosen(chosen, keys)
    divided = list(sources.items)
    for index, item, out in zip(eligible, items, chosen, strict=True):
        divided[index] = replace(item, split=VAL if out else TRAIN)
    grouped = f" in {len(set(keys))} groups" if holdout.group else ""
    finding = (
        f"{sum(chosen)} of {len(items)} videos{grouped} are held out as split `{VAL}`, the others"
        f" are `{TRAIN}`"
    )
    return replace(sources, items=divided, findings=[*sources.findings, finding])


def split_store(store: Store, holdout: Holdout, *, train: str, val: str) -> Store:
    """Return a store as if its videos without a split, and those of `train`, were divided.

    Raises:
        UsageError: As `split_sources`.
    """
    splits = {split for row in store.rows for split in (row.split, *row.also_in) if split}
    eligible = [
        index
        for index, row in enumerate(store.rows)
        if row.split in (None, train) and not row.also_in
    ]
    _check_splits(splits, len(eligible), "finetune.val_share", train, val)
    found = [store.rows[index] for index in eligible]
    keys = holdout.keys([row.path or row.id for row in found])
    chosen = held_out(keys, [row.label for row in found], holdout.share)
    _check_chosen(chosen, keys)
    rows = list(store.rows)
    for index, row, out in zip(eligible, found, chosen, strict=True):
        rows[index] = row.model_copy(update={"split": val if out else train})
    return Store(store.path, store.dataset, rows)


def _check_splits(
    splits: set[str], eligible: int, option: str, train: str = TRAIN, val: str = VAL
) -> None:
    if val in splits:
        raise UsageError(
            f"there is a split `{val}` already, so `{option}` would mix it with training videos",
            f"leave out `{option}`",
        )
    if not eligible:
        named = ", ".join(f"`{split}`" for split in sorted(splits)) or "none"
        raise UsageError(
            f"`{option}` divides videos without a split or of `{train}`; the splits are {named}",
            f"call the list of training videos `{train}`: `--annotations {train}=FILE`",
        )


def _check_chosen(chosen: Sequence[bool], keys: Sequence[str]) -> None:
    if not any(chosen):
        raise DataError(
            f"no video can be held out: there are {len(chosen)} videos in {len(set(keys))} groups",
            "no class has two groups of videos; hold out none, or name smaller groups",
        )
