"""Worker processes that may die: order, back-pressure, and whose fault it was."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tatscli.store.pool import Crash, Timeout, run_in_order

time.sleep(float(os.environ.get("TESTS_START_SLOWLY", "0")))  # workers import this file


def work(jobs):
    for job in jobs:
        yield do(job)


def do(job):
    kind, value = job
    if kind == "sleep":
        time.sleep(value)
    elif kind == "kill":
        os.kill(os.getpid(), value)
    elif kind == "trace":
        with open(value, "a") as trace:
            trace.write("x")
    elif kind == "exit":
        os._exit(value)
    elif kind == "deaf":  # hangs where no polite signal reaches it
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        Path(value).write_text(str(os.getpid()))
        time.sleep(600)
    return value


def results(jobs, workers=2, ahead=8, timeout=None):
    groups = singly(jobs)
    running = run_in_order(work, groups, workers=workers, ahead=ahead, timeout=timeout)
    return [result for _, result in running]


def singly(jobs):
    """Groups of one job each."""
    return ([job] for job in jobs)


def gone(pid: int) -> bool:
    """Whether a process has ended and has been waited for: no zombie is left."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_results_come_in_the_order_of_the_jobs():
    jobs = [("sleep", 0.3), ("echo", 1), ("sleep", 0.1), ("echo", 2), ("echo", 3)]
    found = list(run_in_order(work, singly(jobs), workers=2, ahead=8))
    assert found == [(job, job[1]) for job in jobs]


def test_a_job_may_return_nothing():
    assert results([("echo", None), ("echo", 1), ("echo", None)]) == [None, 1, None]


def test_no_jobs():
    assert results([]) == []


def test_a_dying_worker_costs_only_its_own_job():
    jobs = [
        ("echo", 0),
        ("kill", signal.SIGSEGV),
        ("echo", 2),
        ("exit", 7),
        ("kill", signal.SIGKILL),
    ]
    found = results([*jobs, ("echo", 5)])
    assert found == [0, Crash(-signal.SIGSEGV), 2, Crash(7), Crash(-signal.SIGKILL), 5]
    assert str(found[1]) == "crashed: its worker was killed by SIGSEGV"
    assert str(found[3]) == "crashed: its worker ended with exit code 7"
    assert "out of memory" in str(found[4])


def test_a_job_over_its_time_costs_only_itself(tmp_path):
    jobs = [("echo", 0), ("deaf", str(tmp_path / "pid")), *[("sleep", 0.4)] * 3, ("echo", 5)]
    begin = time.monotonic()
    assert results(jobs, timeout=4) == [0, Timeout(4), 0.4, 0.4, 0.4, 5]
    assert time.monotonic() - begin < 300
    assert gone(int((tmp_path / "pid").read_text()))
    assert str(Timeout(60)) == "timeout: not finished after 60 s"


def test_a_dying_worker_costs_its_group_nothing(tmp_path):
    """What it had finished counts; the others are run one at a time, and keep their place."""
    trace = tmp_path / "trace"
    groups = [
        [("trace", str(trace)), ("kill", signal.SIGSEGV), ("echo", 2), ("exit", 7)],
        [("echo", 4), ("sleep", 600), ("echo", 6)],
        [("echo", 7)],
    ]
    found = list(run_in_order(work, groups, workers=2, ahead=8, timeout=4))
    assert [job for job, _ in found] == [job for group in groups for job in group]
    results = [result for _, result in found]
    assert results[1:] == [Crash(-signal.SIGSEGV), 2, Crash(7), 4, Timeout(4), 6, 7]
    assert trace.read_text() == "x"  # was not run again


@pytest.mark.slow
def test_each_job_of_a_group_has_its_time():
    groups = [[("sleep", 1.1)] * 4]
    assert [result for _, result in run_in_order(work, groups, workers=1, timeout=4)] == [1.1] * 4


def test_results_of_a_group_come_as_they_are_ready(tmp_path):
    running = run_in_order(work, [[("echo", 1), ("deaf", str(tmp_path / "pid"))]], workers=1)
    assert next(running) == (("echo", 1), 1)
    running.close()


@pytest.mark.slow
def test_every_worker_may_be_late_at_once(tmp_path):
    jobs = [("deaf", str(tmp_path / str(number))) for number in range(4)]
    begin = time.monotonic()
    assert results([*jobs, ("echo", 1)], timeout=2) == [Timeout(2)] * 4 + [1]
    assert time.monotonic() - begin < 300
    assert all(gone(int(path.read_text())) for path in tmp_path.iterdir())


def test_the_nearest_deadline_is_the_one_that_counts():
    """A long job that is allowed to be long must not delay the end of a hanging one."""
    jobs = singly([("sleep", 600), ("sleep", 0.1)])
    running = run_in_order(work, jobs, workers=2, ahead=2, timeout=3.0)
    begin = time.monotonic()
    assert next(running)[1] == Timeout(3.0)
    assert time.monotonic() - begin < 300
    assert next(running)[1] == 0.1
    running.close()


@pytest.mark.slow
def test_a_slow_caller_does_not_make_jobs_late():
    jobs = singly(("echo", n) for n in range(3))
    running = run_in_order(work, jobs, workers=2, ahead=3, timeout=1.5)
    found = []
    for _, result in running:
        time.sleep(1.6)
        found.append(result)
    assert found == [0, 1, 2]


def test_what_a_worker_takes_to_start_is_not_the_job_s(monkeypatch):
    monkeypatch.setenv("TESTS_START_SLOWLY", "2")
    jobs = [("echo", 0), ("echo", 1)]
    assert results(jobs, timeout=1.5) == [0, 1]


def test_jobs_are_not_started_far_ahead():
    taken = []

    def jobs():
        for index in range(20):
            taken.append(index)
            yield ("echo", index)

    running = run_in_order(work, singly(jobs()), workers=2, ahead=3)
    for index, (_, result) in enumerate(running):
        assert result == index
        assert len(taken) <= index + 1 + 3


def test_leaving_ends_the_workers():
    running = run_in_order(_pid, singly(range(100)), workers=2, ahead=4)
    _, pid = next(running)
    running.close()
    assert gone(pid)


def _pid(_):
    return [os.getpid()]


ORPHANS = """
import os, sys, time
from tatscli.store.pool import run_in_order

def work(jobs):
    print(os.getpid(), flush=True)
    time.sleep(600)

if __name__ == "__main__":
    list(run_in_order(work, [[1], [2]], workers=2, ahead=2))
"""


def test_workers_do_not_outlive_a_killed_parent(tmp_path):
    script = tmp_path / "orphans.py"
    script.write_text(ORPHANS)
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen([sys.executable, script], env=env, stdout=subprocess.PIPE) as parent:
        pids = [int(parent.stdout.readline()) for _ in range(2)]
        parent.kill()
    deadline = time.monotonic() + 30
    while any(_runs(pid) for pid in pids):
        assert time.monotonic() < deadline, pids
        time.sleep(0.02)


def _runs(pid: int) -> bool:
    """Whether a process is alive; who inherits orphans may be slow to bury them."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_workers_that_never_start_are_an_error():
    with pytest.raises(RuntimeError, match="do not start"):
        list(run_in_order(_Unpicklable(), [[1], [2]], workers=1, ahead=2))


class _Unpicklable:
    """Fails where a worker process receives it."""

    def __reduce__(self):
        return _fail, ()

    def __call__(self, jobs):
        return jobs


def _fail():
    raise SystemExit(3)


def test_control_c_reaches_only_the_parent():
    assert results([("kill", signal.SIGINT), ("echo", 1)], workers=1) == [signal.SIGINT, 1]
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
