"""Videos that are too short for a recipe: found before anything is written or read."""

from __future__ import annotations

from collections.abc import Sequence

from tatscli.data.sampling import chosen_frames, eval_indices
from tatscli.errors import DataError
from tatscli.recipe.schema import Sampling
from tatscli.store.reader import Store


def refuse_short(store: Store, rows: Sequence[int], sampling: Sampling, frames: int) -> None:
    """Refuse videos that are shorter than a clip, where `short: error` allows none.

    Args:
        store: The store, whose manifest has the lengths.
        rows: Rows that a stage reads.
        sampling: How it draws frames.
        frames: Frames of a clip.

    Raises:
        DataError: If there are some; it counts them and names the first.
    """
    if sampling.short != "error":
        return
    found: list[DataError] = []
    for row in rows:
        try:
            chosen_frames(store, row, sampling, lambda n: eval_indices(n, sampling, frames, 1))
        except DataError as error:
            found.append(error)
    if found:
        first = found[0]
        text = f"{len(found)} of {len(rows)} videos are too short; {first.message}"
        raise DataError(first.message if len(found) == 1 else text, first.hint)
