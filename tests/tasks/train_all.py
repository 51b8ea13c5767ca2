"""Pretrain several recipes one after the other; `torchrun` starts it on several processes.

    python -m torch.distributed.run --nproc-per-node=2 tests/tasks/train_all.py JOBS.json

JOBS.json lists a recipe file, overrides and a run folder for each.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from tatscli.console import Reporter
from tatscli.recipe.load import load_recipe
from tatscli.tasks.pretrain import pretrain

Job = tuple[str, Sequence[str], str]


def train_all(jobs: Sequence[Job]) -> None:
    for recipe, overrides, out in jobs:
        pretrain(load_recipe(recipe, overrides), reporter=Reporter(quiet=True), out=out)


if __name__ == "__main__":
    train_all(json.loads(Path(sys.argv[1]).read_text()))
