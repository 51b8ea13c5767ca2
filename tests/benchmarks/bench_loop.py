"""What the training loop adds to bare steps.

    python tests/benchmarks/bench_loop.py
    python tests/benchmarks/bench_loop.py --models base --batch 1 --steps 4 --rounds 3

`loop`: `train` of `engine/loop.py` with a run folder, on one batch that is always there: learning
rates, gradient norms, averages, a line of metrics every `run.log_every` steps, signals, progress;
no checkpoint, which `bench_save.py` measures. `bare`: forward pass, loss, backward pass and the
fused optimisers of the same system, nothing else: no norm, no metrics. `norm` is bare with the
gradient norm, which every training measures.

The sides take turns in one process, some steps in each round. Prints one JSON object: medians,
milliseconds of a step, and what the loop takes more than the others, in per cent of the bare step.
"""

from __future__ import annotations

import argparse
import gc
import io
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmarks.measure import load

MODELS: dict[str, tuple[str, list[str]]] = {
    "nano": ("demo", []),
    "small": ("ssv2", ["model.size=small", "mask={kind: tube, ratio: 0.9}"]),
    "base": ("ssv2", ["model.size=base", "mask={kind: tube, ratio: 0.9}"]),
}


class Unsaved:
    """Stands for the `Saver` of a loop, and saves nothing."""

    saved = None

    def check(self) -> None:
        """Nothing can have failed."""

    def save(self, *, best: bool, state: Any = None) -> None:
        """Leave it."""

    def waited(self) -> dict[str, float]:
        """Return no seconds."""
        return {}


def sides(model: str, options: dict[str, Any]) -> dict[str, Callable[[], float]]:
    """Return what takes `steps` steps, and says the processor seconds of one."""
    import torch

    from tatscli.console import Reporter
    from tatscli.draws import Draws
    from tatscli.engine import loop
    from tatscli.recipe.load import load_recipe
    from tatscli.system.system import build_system
    from tatscli.tasks import pretrain
    from tests.benchmarks.steps import FIRST, Steps, noise

    name, overrides = MODELS[model]
    recipe = load_recipe(name, overrides).recipe
    torch.manual_seed(0)
    system = build_system(recipe)
    batch = noise(recipe, options["batch"], motion=system.follows_motion)
    held = Steps(recipe, system, batch)
    held()
    training, steps = held.training, options["steps"]
    draws = Draws(0)
    learners = list(training.learners.values())

    def bare(norm: bool) -> Callable[[], float]:
        def run() -> float:
            began = time.process_time()
            for _ in range(steps):
                lesson = pretrain.step(system, batch, draws)
                assert lesson.loss is not None
                lesson.loss.backward()
                for learner in learners:
                    if norm:
                        learner.update()
                        continue
                    learner.optimizer.found_inf = torch.zeros(())  # type: ignore[attr-defined]
                    learner.optimizer.step()
                    learner.optimizer.zero_grad(set_to_none=True)
            return (time.process_time() - began) / steps

        return run

    def whole() -> float:
        with tempfile.TemporaryDirectory() as folder:
            training.folder = Path(folder)
            training.meta = {"kind": "pretrained"}
            training.reporter = Reporter(stdout=io.StringIO(), stderr=io.StringIO())
            training.done = FIRST
            training.run = training.run.model_copy(update={"max_steps": FIRST + steps})
            gc.collect()
            gc.freeze()  # the loop does it once; that is no part of a step
            began = time.process_time()
            with mock.patch.object(loop, "saving", lambda _: nullcontext(Unsaved())):
                loop.train(training)
            return (time.process_time() - began) / steps

    return {"bare": bare(norm=False), "norm": bare(norm=True), "loop": whole}


def measured(model: str, options: dict[str, Any]) -> dict[str, Any]:
    """Measure a model."""
    runs = sides(model, options)
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(options["rounds"] + 1):
        for name, run in runs.items():
            seconds = run()
            if number:
                taken[name].append(seconds)
    more = {
        f"loop_over_{name}_percent": round(
            100
            * statistics.median(
                (whole - other) / other
                for whole, other in zip(taken["loop"], taken[name], strict=True)
            ),
            2,
        )
        for name in ("bare", "norm")
    }
    return {
        **{name: round(1000 * statistics.median(one), 3) for name, one in taken.items()},
        **more,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["nano"])
    for name, default in {"batch": 8, "steps": 100, "rounds": 7, "threads": 1}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = vars(parser.parse_args())
    import torch

    from tatscli.engine.allocator import kept_memory

    torch.set_num_threads(options["threads"])
    result: dict[str, Any] = {"settings": options, "load_before": load()}
    with kept_memory(torch.device("cpu")):
        for model in options["models"]:
            result[model] = measured(model, options)
    result["load_after"] = load()
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
