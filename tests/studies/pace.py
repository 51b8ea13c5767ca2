"""How many passes does each arm of a study get in the time of its reference?

    python tests/studies/pace.py tests/studies/systems.yaml --data DATA --out OUT

Trains every arm for a few passes and for some more, turn by turn, and takes the difference in
processor time, which leaves the start out; of several turns the shortest.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.studies.run import Runner
from tests.studies.study import Study, read_study

FEW, MORE = 2, 14


def seconds_of(study: Study, arm: str, passes: int, runner: Runner) -> float:
    """Return the processor seconds of a pretraining of so many passes."""
    known, out = study.arms[arm], runner.out / "pace"
    keys = [*study.set, *study.pretrain, *runner.keys([*known.set, *known.pretrain])]
    keys += [f"optim.epochs={passes}", "optim.warmup_epochs=1", "run.watch.every=1000"]
    store = runner.out / "stores" / study.pretrain_store
    _, seconds = runner.tats("pretrain", study.recipe, *keys, "--store", store, "--out", out)
    shutil.rmtree(out)
    return seconds


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("study", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="folder of the labelled sets")
    parser.add_argument("--out", type=Path, required=True, help="folder for stores and runs")
    parser.add_argument("--turns", type=int, default=3)
    asked = parser.parse_args()
    study = read_study(asked.study)
    runner = Runner(asked.data.resolve(), asked.out.resolve())
    runner.prepare(study, study.arms)
    arms = [name for name, arm in study.arms.items() if arm.pretrained]
    least = dict.fromkeys(arms, float("inf"))
    for _ in range(asked.turns):
        for arm in arms:
            few, more = (seconds_of(study, arm, passes, runner) for passes in (FEW, MORE))
            least[arm] = min(least[arm], (more - few) / (MORE - FEW))
    for arm, seconds in least.items():
        print(f"{arm}: {seconds:.3f} s a pass, {seconds / least[study.reference]:.3f} of it")


if __name__ == "__main__":
    main()
