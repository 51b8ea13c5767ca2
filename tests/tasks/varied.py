"""Twenty videos of differing lengths and a classifier of them, by which evaluations are tried."""

from __future__ import annotations

from pathlib import Path

from tatscli.cli import main
from tatscli.recipe.schema import Recipe
from tests.clips import pan, render
from tests.small_runs import tiny_recipe

LENGTHS = {  # frames of the videos of each class; the same names in each folder
    "down": [16, 17, 18, 21, 24, 29, 33],
    "left": [16, 19, 20, 22, 31, 32, 40],
    "right": [23, 25, 26, 27, 28, 30],
}
MOVES = {"down": (0, 2), "left": (-2, 0), "right": (2, 0)}
FRAMES, STRIDE, SIDE = 8, 2, 48


def varied_store(root: Path) -> Path:
    """Prepare the videos, in three folders, as one split."""
    for number, (name, lengths) in enumerate(LENGTHS.items()):
        for place, length in enumerate(lengths):
            clip = pan(MOVES[name], frames=length, height=48, width=64, seed=10 * number + place)
            render(root / "videos" / "val" / name / f"{place}.mp4", clip)
    words = ["prepare", root / "videos", "--out", root / "store", "--workers", "1", "-q"]
    assert main([str(word) for word in words]) == 0
    return root / "store"


def varied_recipe(store: Path) -> Recipe:
    """Return the recipe of a classifier of them."""
    return tiny_recipe(
        store,
        data={"frames": FRAMES, "size": SIDE, "sampling": {"mode": "dense", "stride": STRIDE}},
        evaluate={"batch_per_device": 7, "knn": {"split": "val", "neighbours": 3}},
    )
