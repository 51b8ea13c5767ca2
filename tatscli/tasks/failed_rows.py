"""Videos of a store that could not be prepared: they must not vanish from what is counted."""

from __future__ import annotations

from collections.abc import Iterable

from tatscli.console import Reporter
from tatscli.errors import DataError
from tatscli.evaluation.views import Skipped
from tatscli.store.reader import Store


def take_failed(store: Store, split: str | None, skipped: Skipped | None) -> None:
    """Count the videos of a split that could not be prepared among those that are skipped.

    Args:
        store: The store.
        split: A split; None is the whole store.
        skipped: Where they are entered; None refuses them.

    Raises:
        DataError: If there are some and `skipped` is None.
    """
    failed = store.failed(split)
    if failed and skipped is None:
        raise DataError(
            _sentence(store, split, failed),
            hint="`--skip-bad` leaves them out and names them in the result; `tats prepare` tries "
            "them again once their files are mended",
        )
    if skipped is not None:
        for row in failed:
            record = store.rows[row]
            skipped[row] = f"`{record.id}` could not be prepared: {record.reason}"


def tell_failed(store: Store, splits: Iterable[str | None], reporter: Reporter) -> None:
    """Warn of the videos of some splits that could not be prepared, once for each split."""
    for split in dict.fromkeys(splits):
        failed = store.failed(split)
        if failed:
            reporter.warn(f"{_sentence(store, split, failed)}; they are left out")


def _sentence(store: Store, split: str | None, failed: list[int]) -> str:
    total = sum(row.in_split(split) for row in store.rows)
    where = f"split `{split}` of " if split else ""
    first = store.rows[failed[0]]
    return (
        f"{len(failed)} of {total} videos in {where}`{store.path}` could not be prepared; the "
        f"first: `{first.id}`: {first.reason}"
    )
