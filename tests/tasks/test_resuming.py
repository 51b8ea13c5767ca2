"""Runs that stop, are killed, queued again, or wanted twice: as the command line has them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tatscli.console import Reporter
from tatscli.engine.checkpoint import find_checkpoint
from tatscli.engine.distributed import World
from tatscli.errors import Stopped
from tatscli.lock import LOCK, locked
from tatscli.recipe.load import LoadedRecipe
from tatscli.tasks import pretrain as pretraining
from tatscli.tasks.pretrain import pretrain
from tatscli.tasks.runs import list_runs
from tatscli.tasks.watch import Watcher
from tests.processes import SLOW
from tests.tasks.runs import assert_equal, metrics

Load = Callable[..., LoadedRecipe]
SHORT = ("mask.kind=tube", "optim.epochs=2")


def test_a_second_training_on_a_run_folder_is_refused(
    load: Load, reporter: Reporter, cli: Callable[..., Any], recipe_file: Path
) -> None:
    pretrain(load(*SHORT, "run.max_steps=1"), reporter=reporter)
    run = Path("runs/tiny")
    assert not (run / LOCK).exists()
    before = (run / "run.json").read_bytes(), (run / "metrics.jsonl").read_bytes()
    with locked(run / LOCK, run, reporter):
        assert [one.state for one in list_runs(Path("runs"))] == ["running"]
        for how in ("--resume", "--overwrite", "--resume=auto"):
            outcome = cli("pretrain", recipe_file, *SHORT, how)
            assert outcome.code == 1
            assert f"`runs/tiny` is in use by process {os.getpid()} on `" in outcome.stderr
            assert "since 20" in outcome.stderr
    assert before == ((run / "run.json").read_bytes(), (run / "metrics.jsonl").read_bytes())
    assert [one.state for one in list_runs(Path("runs"))] == ["stopped"]
    (run / LOCK).write_text("{}")  # left by a kill
    assert pretrain(load(*SHORT), reporter=reporter, resume=True)["steps"] == 4
    assert [one.state for one in list_runs(Path("runs"))] == ["finished"]


def test_resuming_a_complete_run_changes_nothing(
    recipe_file: Path, cli: Callable[..., Any]
) -> None:
    """And a run keeps the name of its recipe, whatever it is resumed by."""
    run = Path("runs/elsewhere")
    words = ("optim.epochs=1", "mask.kind=tube", "--json")
    assert cli("pretrain", recipe_file, "--out", run, "--max-steps", 1, *words).code == 0
    copied = shutil.copy(recipe_file, recipe_file.with_name("copy.yaml"))
    for source in (run, copied):
        limit = 2 if source == run else 1
        more = ("--out", run, "--resume", f"run.max_steps={limit}")
        outcome = cli("pretrain", source, *more, *words)
        assert outcome.code == 0, outcome.stderr
        about = json.loads((run / "run.json").read_text())
        assert (about["recipe"], find_checkpoint(run).meta["name"]) == ("tiny", "tiny")
    before = {one: one.read_bytes() for one in run.rglob("*") if one.is_file()}
    assert len(json.loads(before[run / "run.json"])["earlier"]) == 1
    outcome = cli("pretrain", run, "--resume", "--json")
    assert outcome.code == 0, outcome.stderr
    found = outcome.json()
    assert (found["steps"], found["total_steps"], found["stopped_by"]) == (2, 2, None)
    assert "the run is complete: all 2 steps are done" in outcome.stderr
    assert "resuming" not in outcome.stderr and "training on" not in outcome.stderr
    assert before == {one: one.read_bytes() for one in run.rglob("*") if one.is_file()}


def test_resume_auto_starts_goes_on_and_is_done(recipe_file: Path, cli: Callable[..., Any]) -> None:
    """The same line every time, with overrides behind it, as a job that is queued again has it."""

    def again(*more: str) -> Any:
        outcome = cli("pretrain", recipe_file, "--resume", "auto", *SHORT, "--json", *more)
        assert outcome.code == 0, outcome.stderr
        return outcome

    assert again("run.max_steps=1").json()["steps"] == 1
    outcome = again("run.max_steps=3")
    assert outcome.json()["steps"] == 3 and "resuming after step 1 of 4" in outcome.stderr
    shutil.rmtree("runs/tiny/checkpoints")  # died before its first checkpoint
    outcome = again()
    assert outcome.json()["steps"] == 4 and "resuming" not in outcome.stderr
    assert [line["step"] for line in metrics("runs/tiny")] == [1, 2, 3, 4]
    outcome = again()
    assert outcome.json()["steps"] == 4 and "the run is complete" in outcome.stderr
    (Path("runs/tiny/checkpoints/last") / "meta.json").write_text("{")
    for path in Path("runs/tiny/checkpoints").glob("step-*"):
        (path / "model.safetensors").write_bytes(b"")
    outcome = cli("pretrain", recipe_file, "--resume", "auto", *SHORT)
    assert outcome.code == 1 and "are damaged: " in outcome.stderr  # nothing is thrown away
    refused = cli("pretrain", recipe_file, "--resume", "auto", "--overwrite")
    assert refused.code == 2 and "cannot be combined" in refused.stderr


def test_a_plain_resume_takes_no_override_for_a_value(
    recipe_file: Path, cli: Callable[..., Any]
) -> None:
    assert cli("pretrain", recipe_file, *SHORT, "run.max_steps=1").code == 0
    outcome = cli("pretrain", recipe_file, "--resume", *SHORT, "run.max_steps=2", "--json")
    assert outcome.code == 0 and outcome.json()["steps"] == 2
    outcome = cli("pretrain", recipe_file, "--resume", "optim.epochs=9", *SHORT[:1])
    assert outcome.code == 2 and "`optim.epochs: 9` (the run has `2`)" in outcome.stderr


def test_resume_auto_of_a_fine_tuning(
    recipe_file: Path, cli: Callable[..., Any], load: Load, reporter: Reporter
) -> None:
    pretrain(load(*SHORT, "run.max_steps=1"), reporter=reporter)
    words = ("finetune", "runs/tiny", "--resume", "auto", "--json", "-v")
    first = cli(*words, "run.max_steps=1")
    assert first.code == 0, first.stderr
    assert first.json() | {"run": "runs/tiny-finetune", "steps": 1} == first.json()
    init = find_checkpoint(Path("runs/tiny-finetune")).meta["init"]
    assert init is not None
    second = cli(*words)
    assert second.code == 0 and "resuming after step 1" in second.stderr
    assert find_checkpoint(Path("runs/tiny-finetune")).meta["init"] == init


def test_a_damaged_last_checkpoint_is_resumed_from_the_one_before(
    load: Load, reporter: Reporter
) -> None:
    pretrain(load(*SHORT), reporter=reporter, out="runs/straight")
    shutil.copytree("runs/straight", "runs/damaged", symlinks=True)
    last = Path("runs/damaged/checkpoints/step-0000004")
    (last / "optimizer.safetensors").write_bytes(b"half")
    pretrain(load(*SHORT), reporter=reporter, out="runs/damaged", resume=True)
    said = reporter.stderr.getvalue()  # type: ignore[attr-defined]
    assert (
        "step-0000004` is damaged: `optimizer.safetensors` cannot be read: it is cut short" in said
    )
    assert "using that of step 2 instead" in said
    assert "resuming after step 2 of 4" in said
    assert_equal("runs/straight", "runs/damaged", "model", "optimizer")
    assert [line["step"] for line in metrics("runs/damaged")] == [1, 2, 3, 4]


def test_another_number_of_processes_is_said_once(
    load: Load, reporter: Reporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretrain(load(*SHORT, "run.max_steps=1"), reporter=reporter)
    path = find_checkpoint(Path("runs/tiny")).path / "meta.json"
    meta = json.loads(path.read_text())
    assert meta["processes"] == World().size == 1
    path.write_text(json.dumps(meta | {"processes": 2}))
    pretrain(load(*SHORT, "run.max_steps=2"), reporter=reporter, resume=True)
    pretrain(load(*SHORT, "run.max_steps=3"), reporter=reporter, resume=True)
    said = reporter.stderr.getvalue()  # type: ignore[attr-defined]
    assert said.count("the run was trained with 2 processes and continues with 1") == 1


def test_a_damaged_run_json_stops_no_resume(load: Load, reporter: Reporter) -> None:
    pretrain(load(*SHORT, "run.max_steps=1"), reporter=reporter)
    Path("runs/tiny/run.json").write_text('{"started": "2')
    assert pretrain(load(*SHORT), reporter=reporter, resume=True)["steps"] == 4
    assert json.loads(Path("runs/tiny/run.json").read_text())["resumed_at"] == 1


def children(pid: int) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True)
    return [int(one) for one in found.stdout.split()]


def alive(pids: list[int]) -> list[int]:
    states = {pid: Path(f"/proc/{pid}/stat") for pid in pids}
    return [pid for pid, stat in states.items() if stat.exists() and ") Z" not in stat.read_text()]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks at other processes")
@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGUSR1, marks=pytest.mark.slow)]
)
def test_a_signal_to_every_process_of_a_job_ends_it_in_order(
    recipe_file: Path, number: signal.Signals
) -> None:
    """As a scheduler sends it: loader workers live on until the step is done, and no longer."""
    words = ["pretrain", str(recipe_file), *SHORT, "data.workers=2", "optim.epochs=400"]
    words += ["optim.batch_per_device=1", "run.save_every=1000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "tatscli", *words],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    log = Path("runs/tiny/metrics.jsonl")
    while not (log.exists() and log.read_text().count("\n") > 2):
        assert process.poll() is None, process.stderr
        time.sleep(0.02)
    workers = children(process.pid)
    assert len(workers) == 2
    for pid in (*workers, process.pid):
        os.kill(pid, number)
    _, said = process.communicate(timeout=SLOW)
    assert process.returncode == 128 + number, said
    assert "Traceback" not in said and "loader worker" not in said
    assert "stopped after step" in said
    assert not alive(workers)
    step = find_checkpoint(Path("runs/tiny")).step
    assert [line["step"] for line in metrics("runs/tiny")] == list(range(1, step + 1))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks at other processes")
def test_workers_end_with_a_killed_training_and_hold_no_lock(recipe_file: Path) -> None:
    words = ["pretrain", str(recipe_file), *SHORT, "data.workers=2", "optim.epochs=400"]
    process = subprocess.Popen(
        [sys.executable, "-m", "tatscli", *words],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL,
    )
    last = Path("runs/tiny/checkpoints/last/meta.json")
    while not last.exists():
        assert process.poll() is None
        time.sleep(0.02)
    workers = children(process.pid)
    for pid in workers:
        os.kill(pid, signal.SIGTERM)  # they serve on
    time.sleep(0.3)
    assert alive(workers) == workers
    for pid in workers:
        os.kill(pid, signal.SIGSTOP)  # as one that a disk holds
    process.kill()
    process.wait()
    with locked(Path("runs/tiny") / LOCK, Path("runs/tiny"), Reporter(quiet=True)):
        pass
    for pid in workers:
        os.kill(pid, signal.SIGCONT)  # they find out that they are alone
    until = time.monotonic() + SLOW
    while alive(workers):
        assert time.monotonic() < until
        time.sleep(0.05)


def test_scoring_hears_of_a_signal_between_two_batches(
    load: Load, reporter: Reporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real looks at held-out videos, in a pretraining."""
    plain, looks = Watcher.look, list[int]()

    def look(self: Watcher, *given: Any) -> dict[str, float]:
        looks.append(1)
        if len(looks) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(self, *given)

    watched = ("run.watch={share: 0.3, every: 1}",)
    pretrain(load(*SHORT, *watched), reporter=reporter, out="runs/straight")
    monkeypatch.setattr(Watcher, "look", look)
    with pytest.raises(Stopped):
        pretrain(load(*SHORT, *watched), reporter=reporter, out="runs/cut")
    assert find_checkpoint(Path("runs/cut")).meta["unscored"] is True
    pretrain(load(*SHORT, *watched), reporter=reporter, out="runs/cut", resume=True)
    one, two = (
        [line for line in metrics(run) if "watch/loss" in line]
        for run in ("runs/straight", "runs/cut")
    )
    assert one == two and len(one) > 1


def test_the_disk_is_the_machines_trouble_whoever_writes(
    cli: Callable[..., Any], recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(pretraining, "run_training", full)
    outcome = cli("pretrain", recipe_file)
    assert outcome.code == 1
    said, hint = outcome.stderr.strip().split("\n\n")
    assert said == "error: cannot write: No space left on device"
    assert hint == "hint: free up disk space, then run the same command again"

    def written(*_: object, **__: object) -> None:
        error = type("SafetensorError", (Exception,), {})
        raise error("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(pretraining, "run_training", written)
    assert "error: cannot write: No space left on device\n" in cli("pretrain", recipe_file).stderr

    def bug(*_: object, **__: object) -> None:
        raise OSError("a bug")

    monkeypatch.setattr(pretraining, "run_training", bug)
    with pytest.raises(OSError, match="a bug"):
        cli("pretrain", recipe_file)
