"""Run what is missing of a study, and print its table.

    python tests/studies/run.py tests/studies/pays.yaml --data DATA --out OUT --jobs 2
    python tests/studies/run.py tests/studies/pays.yaml --table
    python tests/studies/run.py tests/studies/*.yaml --write

Each arm and seed becomes one file, `docs/studies/<study>/<arm>-<seed>.json`; what is there is not
run again, so a study continues on any machine. Stores and run folders lie in OUT, the latter until
their file is written; an interrupted training goes on from its last checkpoint. While there is a
file `OUT/pause`, everything stands still.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.studies.cut import cut_folder
from tests.studies.figures import draw
from tests.studies.study import Score, Study, read_study
from tests.studies.tables import begun, markdown, page

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs" / "studies"
OF_MASKS = ("motion_share", "motion_lift", "motion_hidden", "entropy")
LOOK = 0.5  # seconds between two looks at a command that runs


class Failed(Exception):
    """A command that did not end well."""


@dataclass(frozen=True)
class Runner:
    """Runs `tats`, one thread a process, at the lowest priority.

    Attributes:
        data: Folder of the labelled sets.
        out: Folder for stores and runs.
    """

    data: Path
    out: Path

    def tats(self, *words: object, answers: bool = True) -> tuple[dict[str, Any], float]:
        """Run a command.

        Returns:
            Its JSON object, and the processor seconds that it took.

        Raises:
            Failed: With what it said.
        """
        command = [sys.executable, "-m", "tatscli", *map(str, words), "--quiet"]
        command += ["--json"] if answers else []
        with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as errors:
            process = subprocess.Popen(
                ["nice", "-n", "19", *command],
                stdout=said,
                stderr=errors,
                cwd=self.out,
                env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            )
            status, seconds = self._wait(process)
            said.seek(0)
            errors.seek(0)
            if status:
                raise Failed(f"{' '.join(command)}\n{errors.read().decode()}")
            return (json.loads(said.read()) if answers else {}), seconds

    def _wait(self, process: subprocess.Popen[bytes]) -> tuple[int, float]:
        """Wait for a process, and hold it while the study is paused."""
        held = False
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                process.returncode = os.waitstatus_to_exitcode(status)
                return process.returncode, usage.ru_utime + usage.ru_stime
            paused = (self.out / "pause").exists()
            if paused != held:
                process.send_signal(signal.SIGSTOP if paused else signal.SIGCONT)
                held = paused
            time.sleep(LOOK)

    def prepare(self, study: Study, arms: Iterable[str]) -> None:
        """Make the stores of a study, and the networks that arms name, where they are missing."""
        for name, videos in study.stores.items():
            store, source = self.out / "stores" / name, self.data / videos.source
            if (store / "dataset.json").is_file():
                continue
            if videos.cut is not None:
                target = self.out / "cut" / f"{videos.source}-{videos.shift}"
                source = cut_folder(source, target, videos.cut, shift=videos.shift)
            options = [one.format(videos=source) for one in videos.options]
            words = ["--workers", 1, "--out", store]
            self.tats("prepare", source, *options, *words, answers=False)
        keys_of_arms = " ".join(key for arm in arms for key in study.keys_of(arm))
        for name, one in study.networks.items():
            run = self.out / "networks" / name
            if f"NETWORKS/{name}" in keys_of_arms and not run.is_dir():
                recipe, store, keys = one.recipe, one.store, one.set
                if one.arm is not None:
                    recipe, store = study.recipe, study.pretrain_store
                    keys = study.keys_of(one.arm)
                draft = run.with_name(f"{name}.tmp")
                words = ["--store", self.out / "stores" / store, "--out", draft]
                self.tats("pretrain", recipe, *self.keys(keys), *words, "--resume", "auto")
                draft.rename(run)

    def keys(self, keys: Iterable[str]) -> list[str]:
        """Return recipe keys, in which networks are named by where they are."""
        return [key.replace("NETWORKS", str(self.out / "networks")) for key in keys]


@dataclass
class Cell:
    """An arm with a seed, and what is known of it so far."""

    study: Study
    name: str
    arm: str
    seed: int
    runner: Runner

    def __post_init__(self) -> None:
        """Read what an interrupted run has found."""
        self.folder = self.runner.out / "runs" / self.name / f"{self.arm}-{self.seed}"
        self._notes = self.folder / "notes.json"
        self.found: dict[str, Any] = {
            **{"commit": commit(), "arm": self.arm, "seed": self.seed, "views": 0},
            **{"seconds": {}, "machine": machine(), "scores": {}, "curve": []},
        }
        if self._notes.is_file():
            self.found = json.loads(self._notes.read_text())

    @property
    def result(self) -> Path:
        """The file of this cell."""
        return RESULTS / self.name / f"{self.arm}-{self.seed}.json"

    def run(self) -> None:
        """Take every step that is missing, and write the file."""
        self.folder.mkdir(parents=True, exist_ok=True)
        arm, pretrained = self.study.arms[self.arm], self.folder / "pretrained"
        seed = f"run.seed={self.seed}"
        store = self.runner.out / "stores"
        scored = ["--store", store / self.study.score_store]
        if arm.pretrained and "pretrain" not in self.found["seconds"]:
            _, seconds = self.runner.tats(
                *("pretrain", self.study.recipe, *self.runner.keys(self.study.keys_of(self.arm))),
                seed,
                *("--store", store / self.study.pretrain_store),
                *("--out", pretrained, "--resume", "auto"),
            )
            self.found |= curve_of(pretrained)
            self._note("pretrain", seconds)
        if arm.pretrained and self.study.along and "along" not in self.found["seconds"]:
            self._along(self.study.along, pretrained, scored)
        for name, score in self.study.scores_of(self.arm).items():
            if name in self.found["scores"]:
                continue
            start = pretrained if arm.pretrained else self.study.recipe
            given = [] if arm.pretrained else [*self.study.set, *self.runner.keys(arm.set), seed]
            if score.protocol == "finetuned":
                seconds = self._finetune(name, score, start, given, arm.pretrained, scored)
                start, given = self.folder / name, []
            else:
                seconds, given = 0.0, [*given, *score.set]
            words = [] if score.protocol == "finetuned" else ["--protocol", score.protocol]
            words += [] if arm.pretrained or score.protocol == "finetuned" else ["--untrained"]
            out = self.folder / f"{name}.json"
            said, more = self.runner.tats(
                *("evaluate", start, *given, *words, *scored, "--out", out, "--overwrite")
            )
            self.found["scores"][name] = said["top1"]
            self._note(name, seconds + more)
        self.result.parent.mkdir(parents=True, exist_ok=True)
        draft = self.result.with_suffix(".tmp")
        draft.write_text(json.dumps(self.found, indent=1) + "\n")
        draft.replace(self.result)
        shutil.rmtree(self.folder)

    def _along(self, score: Score, pretrained: Path, scored: list[Any]) -> None:
        """Probe the checkpoints of a pretraining, and add that to its curve."""
        taken = 0.0
        for checkpoint in sorted((pretrained / "checkpoints").glob("step-*")):
            words = ["--protocol", score.protocol, *scored, "--out", self.folder / "along.json"]
            said, seconds = self.runner.tats(
                "evaluate", checkpoint, *score.set, *words, "--overwrite"
            )
            taken += seconds
            step = int(checkpoint.name.removeprefix("step-"))
            self.found["curve"].append({"views": step * self.found["batch"], "probe": said["top1"]})
        self._note("along", taken)

    def _finetune(
        self,
        name: str,
        score: Score,
        start: Path | str,
        given: list[str],
        pretrained: bool,
        scored: list[Any],
    ) -> float:
        begun = [] if pretrained else ["--scratch"]
        _, seconds = self.runner.tats(
            *("finetune", start, *given, *score.set, *begun, *scored),
            *("--out", self.folder / name, "--resume", "auto"),
        )
        return seconds

    def _note(self, part: str, seconds: float) -> None:
        """Keep what is known; of a part that was interrupted, the seconds are those that came
        after."""
        self.found["seconds"][part] = round(seconds, 1)
        draft = self._notes.with_suffix(".tmp")
        draft.write_text(json.dumps(self.found))
        draft.replace(self._notes)


def curve_of(run: Path) -> dict[str, Any]:
    """Return how many clips a pretraining has seen, and what was measured along its passes: of the
    clips held out, and of its masks since the last such measurement."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    clips = json.loads((run / "run.json").read_text())["derived"]["total_batch"]
    curve, since = [], list[dict[str, Any]]()
    for line in lines:
        if not any(key.startswith("watch/") for key in line):
            since.append(line)
            continue
        point = {key: value for key, value in line.items() if key.startswith("watch/")}
        for key in OF_MASKS:
            values = [one[key] for one in since if one.get(key) is not None]
            if values:
                point[key] = statistics.mean(values)
        curve.append({"views": line["step"] * clips} | point)
        since.clear()
    return {"views": lines[-1]["step"] * clips, "batch": clips, "curve": curve}


def commit() -> str:
    """Return the commit of the code."""
    words = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    return subprocess.run(words, capture_output=True, text=True).stdout.strip()


def machine() -> dict[str, Any]:
    """Return what figures of speed depend on."""
    import torch

    return {
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def main() -> None:
    """Run, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("study", type=Path, nargs="+", help="files of studies")
    parser.add_argument("--data", type=Path, help="folder of the labelled sets")
    parser.add_argument("--out", type=Path, help="folder for stores and runs")
    parser.add_argument("--jobs", type=int, default=1, help="arms at a time")
    parser.add_argument("--arms", nargs="+", help="only these")
    parser.add_argument("--seeds", nargs="+", type=int, help="only these")
    parser.add_argument("--table", action="store_true", help="print the tables, and run nothing")
    parser.add_argument("--write", action="store_true", help="write page and figures; run nothing")
    asked = parser.parse_args()
    failures = []
    for file in asked.study:
        study, name = read_study(file), file.stem
        if not (asked.table or asked.write):
            if asked.data is None or asked.out is None:
                parser.error("--data and --out say where the videos are, and where to work")
            runner = Runner(asked.data.resolve(), asked.out.resolve())
            # Seed by seed, so that a study that is cut short has every arm.
            cells = [
                Cell(study, name, arm, seed, runner)
                for seed in asked.seeds or study.seeds
                for arm in asked.arms or study.arms
                if study.arms[arm].of is None
            ]
            missing = [one for one in cells if not one.result.exists()]
            runner.prepare(study, {one.arm for one in missing})
            failures += run_all(missing, asked.jobs)
        print(markdown(study, RESULTS / name), flush=True)
        if asked.write and begun(study, RESULTS / name):
            draw(study, RESULTS / name)
            (RESULTS / name / "README.md").write_text(page(study, RESULTS / name))
    if failures:
        sys.exit("\n".join(failures))


def run_all(cells: list[Cell], jobs: int) -> list[str]:
    """Run cells, some at a time; return what went wrong."""
    failures, printing = [], threading.Lock()

    def run(cell: Cell) -> None:
        began = time.monotonic()
        try:
            cell.run()
            problem = ""
        except Failed as error:
            problem = f"{cell.arm}, seed {cell.seed}: {error}"
            failures.append(problem)
        with printing:
            took = f"{(time.monotonic() - began) / 60:.0f} min"
            said = problem or json.dumps(cell.found["scores"])
            print(f"{cell.name}: {cell.arm}, seed {cell.seed}: {took}: {said}", file=sys.stderr)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(run, cells))
    return failures


if __name__ == "__main__":
    main()
