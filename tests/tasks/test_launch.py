"""Trainings of several processes, by `--nproc`, torchrun's and SLURM's variables: real ones."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.processes import SLOW

Tats = Callable[..., subprocess.CompletedProcess[str]]

TINY = (
    "model={width: 32, depth: 1, heads: 2, patch: 8}",
    "mask={kind: tube, ratio: 0.75}",
    "optim.batch_per_device=3",
    "run.save_every=0.5",
)
PLAIN = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}


def start(*words: object, **environ: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tatscli", *map(str, words)],
        env=PLAIN | {"OMP_NUM_THREADS": "1"} | environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def last_step(run: str) -> int:
    meta = Path(run) / "checkpoints/last/meta.json"
    try:
        return int(json.loads(meta.read_text())["step"])
    except (FileNotFoundError, json.JSONDecodeError):
        return 0


def test_nproc_trains_and_saves_at_a_signal(recipe_file: Path) -> None:
    words = ("pretrain", recipe_file, *TINY, "--json", "--nproc", "2")
    process = start(*words, "optim.epochs=2000", "--out", "runs/two")
    while last_step("runs/two") < 2:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    stdout, stderr = process.communicate(timeout=SLOW)
    assert (process.returncode, stdout) == (143, "")
    assert stderr.count("stopped after step") == 1
    assert "Traceback" not in stderr
    stopped = last_step("runs/two")
    assert json.loads(Path("runs/two/run.json").read_text())["processes"] == 2
    assert stopped >= 2


@pytest.mark.slow
def test_steps_of_slurm_join_and_a_killed_rank_is_told(recipe_file: Path) -> None:
    """Two processes that only srun's variables connect; one of them is killed in its midst."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    step = {
        "SLURM_JOB_ID": "1", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "2",
        "SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_STEP_NUM_NODES": "1", "MASTER_PORT": str(port),
    }  # fmt: skip
    words = ("pretrain", recipe_file, *TINY, "optim.epochs=2000", "--out", "runs/slurm")

    def started() -> list[subprocess.Popen[str]]:
        return [
            start(*words, **step, SLURM_PROCID=str(rank), SLURM_LOCALID=str(rank))
            for rank in range(2)
        ]

    ranks = started()
    while last_step("runs/slurm") < 2:
        assert all(rank.poll() is None for rank in ranks), [one.communicate() for one in ranks]
        time.sleep(0.02)
    ranks[1].kill()
    stderr = ranks[0].communicate(timeout=SLOW)[1]
    ranks[1].communicate()
    assert ranks[0].returncode == 1
    assert "error: rank 0 has lost another process of this training" in stderr
    assert "Traceback" not in stderr
    # The folder is in use now: one message, whoever notices.
    said = [rank.communicate(timeout=SLOW)[1] for rank in started()]
    assert said[0].count("error: ") == 1 and "run folder `runs/slurm` is not empty" in said[0]
    assert said[1] == ""


def test_peers_that_never_come_end_the_wait(
    recipe_file: Path, cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    for rank, words in (
        ("0", "rank 0 waited 0.3 s for its peers: only 1 of 2 processes joined"),
        ("1", f"rank 1 waited 0.3 s for its peers: rank 0 cannot be reached at 127.0.0.1:{port}"),
    ):
        for name, value in (group | {"RANK": rank}).items():
            monkeypatch.setenv(name, value)
        outcome = cli("pretrain", recipe_file, "run.peers_timeout=0.3")
        assert outcome.code == 1
        assert f"error: {words}" in outcome.stderr
        assert {name: os.environ[name] for name in group} == group
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"RANK": "0"}, "`RANK=0` is set without `WORLD_SIZE`"),
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "9"}, "`SLURM_PROCID=9` must be less than"),
    ],
)
def test_only_what_trains_or_evaluates_minds_the_environment(
    environ: dict[str, str],
    words: str,
    recipe_file: Path,
    cli: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    for line in (("pretrain", recipe_file), ("finetune", recipe_file, "--scratch")):
        outcome = cli(*line)
        assert (outcome.code, outcome.stdout) == (2, "")
        assert outcome.stderr.startswith(f"error: {words}")
    assert cli("pretrain", recipe_file, "--dry-run", "--json").json()["tokens"] == 64
    assert cli("recipes", "list", "--json").json()["recipes"]
    assert words in cli("env", "--json").json()["scheduler"]["problem"]


def test_other_commands_speak_whatever_their_rank(
    cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    group = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "one", "MASTER_PORT": "77"}
    assert cli("env", "--json").json()["scheduler"] is None
    for name, value in group.items():
        monkeypatch.setenv(name, value)
    told = cli("env", "--json").json()["scheduler"]
    assert (told["rank"], told["size"], told["address"], told["port"]) == (1, 2, "one", 77)
    assert "rank 1 of 2, meeting at one:77 (torchrun: RANK and WORLD_SIZE)" in cli("env").stdout


def test_nproc_that_makes_no_sense_is_one_line(
    recipe_file: Path, cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = cli("pretrain", recipe_file, "--nproc", "0")
    assert outcome.code == 2
    assert outcome.stderr.startswith("error: `--nproc 0` must be a whole number of at least 1")
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "one"}.items():
        monkeypatch.setenv(name, value)
    outcome = cli("pretrain", recipe_file, "--nproc", "2")
    assert outcome.code == 2
    assert "say that 2 were started already" in outcome.stderr
