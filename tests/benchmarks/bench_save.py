"""What saving costs a training: seconds it waits, beside those of the writing it is spared.

The state of a masked autoencoder with its moments, after a step, is saved by the loop's `Saver`,
and by the same writer in the foreground, in turns; steps are taken while a checkpoint is being
written and while none is. The floor of the wait is one copy of every byte, at the speed at which
this process copies into fresh memory.

Prints one JSON object of medians: bytes, seconds of waiting with and without the thread, the floor,
seconds of a step with and without a write beside it, and the share of a window of 100 steps.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


def seconds(work: Callable[[], object]) -> float:
    """Time one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def measure(name: str, changes: list[str], batch: int, rounds: int, out: Path) -> dict[str, float]:
    """Save and step in turns."""
    import torch

    from tatscli.engine.keeping import save_checkpoint
    from tatscli.engine.saving import Saver
    from tatscli.recipe.load import load_recipe
    from tatscli.system.system import build_system
    from tests.benchmarks.steps import Steps, noise

    recipe = load_recipe(name, changes).recipe
    step = Steps(recipe, build_system(recipe), noise(recipe, batch))
    step()
    training = step.training
    training.folder, training.meta = out, {"kind": "pretrained"}
    tensors = {part: one.tensors() for part, one in training.parts.items()}
    size = sum(one.nbytes for named in tensors.values() for one in named.values())
    block = torch.zeros(1 << 26)
    saver = Saver(training)
    found: dict[str, list[float]] = {}

    def note(key: str, work: Callable[[], object]) -> None:
        found.setdefault(key, []).append(seconds(work))

    for _ in range(rounds):
        note("copy", lambda: torch.empty_like(block).copy_(block))
        note("step_alone", step)
        note("wait_thread", lambda: saver.save(best=False))
        note("step_beside_write", step)
        saver.wait()
        note(
            "wait_foreground",
            lambda: save_checkpoint(
                out, step=1, tensors=tensors, meta=training.meta, keep=2, best=False
            ),
        )
    medians = {key: statistics.median(values) for key, values in found.items()}
    return {
        "bytes": size,
        **medians,
        "floor": size / block.nbytes * medians["copy"],
        "share_of_100_steps": medians["wait_thread"] / (100 * medians["step_alone"]),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="videomae/ssv2")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="where to write; a temporary folder by default")
    parser.add_argument("changes", nargs="*")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.out) as folder:
        found = measure(given.recipe, given.changes, given.batch, given.rounds, Path(folder))
    print(json.dumps({key: float(f"{value:.4g}") for key, value in found.items()}))


if __name__ == "__main__":
    main()
