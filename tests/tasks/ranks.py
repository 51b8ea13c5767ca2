"""Many trainings by several processes that are started once.

    torchrun --nproc-per-node 2 ranks.py jobs.json

A job names a `recipe`, further `words`, and the run folder `out`; a fine-tuning sets `finetune`.
With `begun` it goes on from a copy of another run, cut back to the checkpoint of a step.
"""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tatscli.console import Reporter
from tatscli.engine import distributed, joining
from tatscli.recipe.load import load_recipe
from tatscli.tasks.finetune import finetune
from tatscli.tasks.pretrain import pretrain


def take(job: dict[str, Any], world: distributed.World) -> None:
    """Do one job."""
    if job["begun"] and world.main:
        run, step = job["begun"]
        cut_back(Path(run), Path(job["out"]), step)
    distributed.wait()
    loaded = load_recipe(Path(job["recipe"]), job["words"])
    reporter = Reporter(stdout=io.StringIO(), stderr=io.StringIO())
    options = {"reporter": reporter, "out": job["out"], "resume": bool(job["begun"])}
    if job["finetune"]:
        finetune(loaded, init=None, **options)
    else:
        pretrain(loaded, **options)


def cut_back(run: Path, out: Path, step: int) -> None:
    """Copy a run as it was when it had saved a step."""
    shutil.copytree(run, out, symlinks=True)
    for later in (out / "checkpoints").glob("step-*"):
        if later.name > f"step-{step:07d}":
            shutil.rmtree(later)
    for link in ("last", "best"):
        (out / "checkpoints" / link).unlink(missing_ok=True)
    (out / "checkpoints" / "last").symlink_to(f"step-{step:07d}")


def main() -> None:
    jobs = json.loads(Path(sys.argv[1]).read_text())
    with joining.joined("cpu", patience=60, say=print) as world:

        @contextmanager
        def joined(device_type: str, **_: object) -> Iterator[distributed.World]:
            yield world

        joining.joined = joined
        for job in jobs:
            take(job, world)


if __name__ == "__main__":
    main()
