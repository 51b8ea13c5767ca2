"""How much of what a mask hides is seen at the same site in another slice of the clip?

    PYTHONPATH=. python tests/studies/leak.py STORE

STORE is `OUT/stores/both` of `tests/studies/grid.py`, whose clips and masks these are.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tatscli.data.batch import collate
from tatscli.data.dataset import PretrainClips
from tatscli.draws import Draws
from tatscli.recipe.load import load_recipe
from tatscli.store.reader import Store
from tatscli.system.system import build_system
from tests.studies.grid import MASKS, RECIPE

EVERY = 11  # of the videos, one of so many


def seen_elsewhere(store: Store, section: str) -> float:
    """Return the share of hidden tokens that are visible in another slice."""
    words = (f"mask={{{section}}}", f"data.store={store.path}", *RECIPE)
    recipe = load_recipe("demo", words).recipe
    rows = store.part("train")
    clips = PretrainClips(store, rows, recipe.data, patch=recipe.model.patch, seed=0)
    batch = collate([clips[0, place][0] for place in range(0, len(rows), EVERY)])
    system = build_system(recipe)
    clip = system.clip(batch.video_BCTHW, motion=batch.motion)
    plan = system.masker.plan(clip, Draws(0))
    seen_BN = ~plan.hidden_BN(system.form.tokens)
    seen_BTS = seen_BN.unflatten(1, (recipe.grid[0], -1))
    ever_BTS = seen_BTS.any(dim=1, keepdim=True).expand_as(seen_BTS)
    return float((ever_BTS & ~seen_BTS).sum() / (~seen_BTS).sum())


def main() -> None:
    """Print a line for each mask."""
    store = Store.open(sys.argv[1])
    for mask, section in MASKS.items():
        print(f"| `{mask}` | {seen_elsewhere(store, section):.2f} |")


if __name__ == "__main__":
    main()
