"""Why a process failed, and which of them says so: threads stand for the processes."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch.distributed as dist

from tatscli.engine import failures
from tatscli.engine.distributed import World
from tatscli.engine.failures import Failures
from tatscli.engine.schedulers import LAUNCHED, LOST
from tatscli.errors import DataError, Exit, TatsError, Told, UsageError

CLOSED = RuntimeError("[../gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]")
FULL = OSError(28, "No space left on device")
USED = UsageError("run folder `runs/a` is not empty")


def outcomes(*raised: Callable[[], None], hosts: list[str] | None = None) -> list[Exception]:
    """Let every rank raise something; return what comes out of each."""
    store = dist.HashStore()
    found: dict[int, Exception] = {}

    def rank(number: int) -> None:
        one = Failures(World(number, len(raised), 0, 1), hosts=number == 0)
        one.store = store
        one._name = hosts[number] if hosts else "here"
        try:
            with one.heard(), one.told():
                raised[number]()
        except Exception as error:
            found[number] = error

    threads = [threading.Thread(target=rank, args=(number,)) for number in range(len(raised))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [found[number] for number in range(len(raised))]


def fails(error: Exception) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


def loses(store_has: threading.Event) -> Callable[[], None]:
    """What a rank sees once another has left its reason and closed the connection."""

    def lose() -> None:
        assert store_has.wait(60)
        raise CLOSED

    return lose


@pytest.fixture
def left(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set as soon as some rank has left its reason."""
    event, leave = threading.Event(), Failures._leave

    def noticed(self: Failures, error: Exception) -> Told | None:
        threading.Timer(0.1, event.set).start()
        return leave(self, error)

    monkeypatch.setattr(Failures, "_leave", noticed)
    return event


def test_a_refusal_of_rank_0_is_told_once(left: threading.Event) -> None:
    """torchrun into a used folder: rank 0 says it, and the others end with the same code."""
    first, *others = outcomes(fails(USED), loses(left), loses(left))
    assert first is USED
    for one in others:
        assert isinstance(one, Told) and one.exit_code == Exit.USAGE


def test_what_all_ranks_refuse_is_told_by_rank_0() -> None:
    first, *others = outcomes(*[fails(DataError("too many bad videos"))] * 3)
    assert isinstance(first, DataError)
    assert all(isinstance(one, Told) and one.exit_code == 1 for one in others)


def test_a_failure_of_another_rank_is_told_by_that_one(
    left: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failures, "_ALIKE", 1.0)  # that it waits for rank 0 to fail alike
    first, second = outcomes(loses(left), fails(DataError("worker 3 died")))
    assert isinstance(first, Told) and first.exit_code == 1
    assert isinstance(second, DataError)


def test_another_machine_says_who_failed_and_why(left: threading.Event) -> None:
    first, second = outcomes(fails(FULL), loses(left), hosts=["node1", "node2"])
    assert first is FULL
    assert isinstance(second, TatsError)
    assert second.message == ("rank 0 on `node1` has failed: [Errno 28] No space left on device")
    assert second.exit_code == Exit.FAILED


def test_who_was_killed_has_left_no_reason() -> None:
    one = Failures(World(0, 2), hosts=True)
    one.store = dist.HashStore()
    lost = "rank 0 has lost another process of this training"
    with pytest.raises(TatsError, match=lost), one.heard(), one.told():
        raise CLOSED


def test_ranks_of_nproc_leave_it_to_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LAUNCHED, "1")
    own, lost = outcomes(fails(USED), fails(CLOSED))
    assert own is USED
    assert isinstance(lost, Told) and lost.exit_code == LOST


def test_a_bug_keeps_its_traceback_in_one_process() -> None:
    first, second = outcomes(fails(ZeroDivisionError("3 / 0")), fails(ZeroDivisionError("3 / 0")))
    assert isinstance(first, ZeroDivisionError) and isinstance(second, Told)
    alone = Failures(World(), hosts=False)
    with pytest.raises(RuntimeError, match="gloo"), alone.heard(), alone.told():
        raise CLOSED
