"""`--nproc`: exit codes, signals and who speaks, shown by processes that do nothing else."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from tatscli.engine import launch
from tatscli.engine.launch import processes
from tatscli.errors import UsageError
from tatscli.machine import usable_cores
from tests.processes import SLOW

LOST = "sys.exit(75)"

PROGRAM = """
import os, signal, sys, time
rank = int(os.environ["RANK"])
def leave_with(code):
    def hear(number, frame):
        print("heard", number, file=sys.stderr, flush=True)
        sys.exit(code)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, hear)
"""

STARTER = """
import sys
from tatscli.engine.launch import Group
sys.exit(Group([sys.executable, "program.py"], 2, grace={grace}, notice={notice}).run())
"""


def start(
    folder: Path, body: str, *, grace: float = 60, notice: float = 10
) -> subprocess.Popen[str]:
    """Start two processes of a program: what it does is its body, after `PROGRAM`."""
    (folder / "program.py").write_text(PROGRAM + textwrap.dedent(body))
    return subprocess.Popen(
        [sys.executable, "-c", STARTER.format(grace=grace, notice=notice)],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    stdout, stderr = process.communicate(timeout=SLOW)
    return process.returncode, stdout, stderr


def wait_for(*paths: Path) -> None:
    until = time.monotonic() + SLOW
    while not all(path.exists() for path in paths):
        assert time.monotonic() < until
        time.sleep(0.02)


def test_ranks_are_told_what_torchrun_would_tell_them(tmp_path: Path) -> None:
    names = "RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE MASTER_ADDR"
    body = f"""
    open(f"rank{{rank}}", "w").write(" ".join(os.environ[name] for name in "{names}".split()))
    print("result of", rank)
    print("warning: the same", file=sys.stderr)
    print("progress of", rank, file=sys.stderr)
    """
    code, stdout, stderr = end(start(tmp_path, body))
    assert (code, stdout) == (0, "result of 0\n")
    assert "progress of 0" in stderr and "progress of 1" not in stderr
    assert (tmp_path / "rank0").read_text() == "0 2 0 2 127.0.0.1"
    assert (tmp_path / "rank1").read_text() == "1 2 1 2 127.0.0.1"


@pytest.mark.parametrize("code", [1, 2, 138])
def test_an_error_of_any_rank_is_told_once(tmp_path: Path, code: int) -> None:
    both = f"""
    print("error: of both", file=sys.stderr)
    sys.exit({code})
    """
    assert end(start(tmp_path, both)) == (code, "", "error: of both\n")
    second = f"""
    if rank == 0:
        time.sleep(0.5)
        {LOST}
    print("error: of one", file=sys.stderr)
    sys.exit({code})
    """
    assert end(start(tmp_path, second, notice=SLOW)) == (code, "", "error: of one\n")


def test_a_rank_that_is_killed_is_named_and_the_others_are_told_to_stop(tmp_path: Path) -> None:
    body = """
    leave_with(143)
    if rank == 1:
        while not os.path.exists("ready"):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGKILL)
    open("ready", "w").close()
    time.sleep(600)
    """
    code, _, stderr = end(start(tmp_path, body, notice=0.3))
    assert code == 1
    assert "heard 15" in stderr
    assert "error: rank 1 (process " in stderr and "was killed by SIGKILL" in stderr
    assert "Traceback" not in stderr


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGINT, 130),
        (signal.SIGTERM, 143),
        (signal.SIGHUP, 129),
        (signal.SIGUSR1, 138),
    ],
)
def test_signals_reach_every_rank_and_its_code_comes_back(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    body = f"""
    if {int(number) % 2}:  # the others end by the signal itself
        leave_with({code})
    else:
        signal.signal({int(number)}, signal.SIG_DFL)
    open(f"ready{{rank}}", "w").close()
    time.sleep(600)
    """
    process = start(tmp_path, body)
    wait_for(tmp_path / "ready0", tmp_path / "ready1")
    process.send_signal(number)
    told, _, stderr = end(process)
    assert told == code
    assert stderr.count("heard") == int(number) % 2  # rank 1's is not repeated
    assert "error" not in stderr


def test_a_hang_up_that_nohup_ignores_reaches_nobody(tmp_path: Path) -> None:
    body = """
    open(f"ready{rank}", "w").close()
    while not os.path.exists("go"):
        time.sleep(0.02)
    sys.exit(0 if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else 3)
    """
    earlier = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        process = start(tmp_path, body)
    finally:
        signal.signal(signal.SIGHUP, earlier)
    wait_for(tmp_path / "ready0", tmp_path / "ready1")
    process.send_signal(signal.SIGHUP)
    time.sleep(0.2)
    (tmp_path / "go").touch()
    assert end(process) == (0, "", "")


def test_who_does_not_stop_is_killed_with_its_workers(tmp_path: Path) -> None:
    body = """
    import subprocess
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    if rank == 0:
        worker = subprocess.Popen(["sleep", "60"])
        open("worker", "w").write(str(worker.pid))
    open(f"ready{rank}", "w").close()
    time.sleep(600)
    """
    process = start(tmp_path, body, grace=0.5)
    wait_for(tmp_path / "ready0", tmp_path / "ready1")
    process.terminate()
    code, _, stderr = end(process)
    assert code == 1
    assert "error: rank 0 was killed, 0.5 s after it was told to stop" in stderr
    assert "memory" not in stderr
    state = Path("/proc", (tmp_path / "worker").read_text(), "stat")
    assert not state.exists() or state.read_text().split()[2] == "Z"


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_ranks_stop_when_the_launcher_is_killed(tmp_path: Path) -> None:
    body = """
    from tatscli.engine.launch import launch
    launch([], "2", device="cpu")
    signal.signal(signal.SIGTERM, lambda *_: (open(f"saved{rank}", "w").close(), os._exit(143)))
    open(f"ready{rank}", "w").close()
    time.sleep(600)
    """
    process = start(tmp_path, body)
    wait_for(tmp_path / "ready0", tmp_path / "ready1")
    process.kill()
    process.wait()
    wait_for(tmp_path / "saved0", tmp_path / "saved1")


def test_numbers_that_make_no_sense_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_visible_gpus", lambda: 2)
    assert processes("2", device="auto", environ={}) == 2
    assert processes("auto", device="cuda", environ={}) == 2
    assert processes("auto", device="cpu", environ={}) == 1
    assert processes("5", device="cpu", environ={}) == 5
    assert processes("2", device="auto", environ={"RANK": "0", "WORLD_SIZE": "1"}) == 2
    with pytest.raises(UsageError, match="needs a GPU for each process, but only 2 are visible"):
        processes("3", device="auto", environ={})
    for words in ("0", "-1", "two", "1.5", ""):
        with pytest.raises(UsageError, match="must be a whole number of at least 1, or `auto`"):
            processes(words, device="cpu", environ={})
    started = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "here"}
    with pytest.raises(UsageError, match="torchrun: RANK and WORLD_SIZE say that 2 were started"):
        processes("2", device="cpu", environ=started)
    monkeypatch.setattr(launch, "_visible_gpus", lambda: 0)
    monkeypatch.setattr(launch, "usable_cores", lambda: 16)
    assert processes("16", device="auto", environ={}) == 16
    for device in ("auto", "cpu"):
        with pytest.raises(UsageError, match=r"is too many: .* and there are 16 cores"):
            processes("1000", device=device, environ={})
    monkeypatch.setattr(launch, "usable_cores", lambda: 1)
    assert processes("8", device="cpu", environ={}) == 8  # several may share a core in a trial
    assert processes("auto", device="auto", environ={}) == 1
    assert processes("2", device="auto", environ={}) == 2


def test_processes_share_the_cores_unless_the_user_has_said_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = 'open(f"threads{rank}", "w").write(os.environ["OMP_NUM_THREADS"])'
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    end(start(tmp_path, body))
    assert (tmp_path / "threads1").read_text() == "7"
    monkeypatch.delenv("OMP_NUM_THREADS")
    end(start(tmp_path, body))
    assert (tmp_path / "threads1").read_text() == str(max(1, usable_cores() // 2))
