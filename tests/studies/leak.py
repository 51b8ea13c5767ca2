"""How much of what a mask hides is seen at the same site in another slice of the clip?

    PYTHONPATH=. python tests/studies/leak.py STORE

STORE is `OUT/stores/both` of `tests/studies/grid.py`, whose clips and masks these are.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tatscli.data.dataset import PretrainClips
from tatscli.data.motion import MotionField
from tatscli.recipe.load import load_recipe
from tatscli.store.reader import Store
from tatscli.tasks.build import build_system
from tests.studies.grid import MASKS, RECIPE

EVERY = 11  # of the videos, one of so many


def seen_elsewhere(store: Store, section: str) -> float:
    """Return the share of hidden tokens that are visible in another slice."""
    words = (f"mask={{{section}}}", f"data.store={store.path}", *RECIPE)
    recipe = load_recipe("demo", words).recipe
    rows = store.part("train")
    clips = PretrainClips(store, rows, recipe.data, patch=recipe.model.patch, seed=0)
    samples = [clips[0, place][0] for place in range(0, len(rows), EVERY)]
    motion = MotionField.cat([sample.motion for sample in samples if sample.motion is not None])
    system = build_system(recipe, lr_scale=1)
    cubes_BNP = system.encoder.cubes(torch.stack([s.video_CTHW for s in samples]).float())
    generator = torch.Generator().manual_seed(0)
    plan = system.masker.plan(cubes_BNP, motion=motion, generator=generator)
    seen_BN = torch.zeros(cubes_BNP.shape[:2], dtype=torch.bool)
    seen_BN.scatter_(1, plan.visible_BK, True)
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
