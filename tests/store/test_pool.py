"""Worker processes that may die: order, back-pressure, and whose fault it was."""

import os
import signal
import time

import pytest

from tatscli.store.pool import Crash, run_in_order


def work(job):
    kind, value = job
    if kind == "sleep":
        time.sleep(value)
    elif kind == "kill":
        os.kill(os.getpid(), value)
    elif kind == "exit":
        os._exit(value)
    return value


def results(jobs, workers=2, ahead=8):
    return [result for _, result in run_in_order(work, jobs, workers=workers, ahead=ahead)]


def test_results_come_in_the_order_of_the_jobs():
    jobs = [("sleep", 0.3), ("echo", 1), ("sleep", 0.1), ("echo", 2), ("echo", 3)]
    found = list(run_in_order(work, jobs, workers=2, ahead=8))
    assert found == [(job, job[1]) for job in jobs]


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
    assert "lack of memory" in str(found[4])


def test_jobs_are_not_started_far_ahead():
    taken = []

    def jobs():
        for index in range(20):
            taken.append(index)
            yield ("echo", index)

    running = run_in_order(work, jobs(), workers=2, ahead=3)
    for index, (_, result) in enumerate(running):
        assert result == index
        assert len(taken) <= index + 1 + 3


def test_leaving_ends_the_workers():
    running = run_in_order(_pid, range(100), workers=2, ahead=4)
    _, pid = next(running)
    running.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def _pid(_):
    return os.getpid()


def test_workers_that_never_start_are_an_error():
    with pytest.raises(RuntimeError, match="does not start"):
        list(run_in_order(_Unpicklable(), [1, 2], workers=1, ahead=2))


class _Unpicklable:
    """Fails where a worker process receives it."""

    def __reduce__(self):
        return _fail, ()

    def __call__(self, job):
        return job


def _fail():
    raise SystemExit(3)


def test_control_c_reaches_only_the_parent():
    assert results([("kill", signal.SIGINT), ("echo", 1)], workers=1) == [signal.SIGINT, 1]
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
