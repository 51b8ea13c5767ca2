"""One run at a time: the lock of a store or a run folder."""

import errno
import fcntl
import io
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tatscli.console import Reporter
from tatscli.errors import DataError, Exit
from tatscli.lock import LOCK, locked
from tests.store.stores import QUIET

HOLDER = """
import sys, time
from pathlib import Path
from tatscli.console import Reporter
from tatscli.lock import locked

with locked(Path(sys.argv[1]) / ".lock", Path(sys.argv[1]), Reporter(quiet=True)):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock of `tmp_path`."""
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


def test_a_second_run_is_told_who_is_at_work(tmp_path, holder):
    with pytest.raises(DataError) as raised, locked(tmp_path / LOCK, tmp_path, QUIET):
        pass
    assert raised.value.exit_code == Exit.FAILED
    assert raised.value.message.startswith(f"`{tmp_path}` is in use by process {holder.pid} on `")
    assert "since 20" in raised.value.message
    assert "wait until that run has ended" in raised.value.hint


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="a folder that takes no files")
def test_a_lock_that_cannot_be_made_is_an_error(tmp_path):
    with pytest.raises(OSError, match="lock"), locked(Path("/proc/lock"), tmp_path, QUIET):
        pass


def test_a_killed_run_leaves_no_lock(tmp_path, holder):
    holder.kill()
    holder.wait()
    assert (tmp_path / LOCK).exists()
    with locked(tmp_path / LOCK, tmp_path, QUIET):
        assert f'"pid": {os.getpid()}' in (tmp_path / LOCK).read_text()
    assert not list(tmp_path.iterdir())


def test_it_is_given_back_whatever_happens(tmp_path):
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), locked(tmp_path / LOCK, tmp_path, QUIET):
            raise ZeroDivisionError
        assert not list(tmp_path.iterdir())


def test_a_lock_that_has_lost_its_name_is_not_held(tmp_path, monkeypatch):
    """Whoever opened the file before its holder removed it must not lock a file nobody sees."""
    opened = []
    flock = fcntl.flock

    def slow(descriptor, operation):
        if not opened:  # the other run ends in between
            os.unlink(tmp_path / LOCK)
        opened.append(descriptor)
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", slow)
    with locked(tmp_path / LOCK, tmp_path, QUIET):
        assert len(opened) == 2
        assert (tmp_path / LOCK).exists()


def test_an_interrupt_on_the_way_to_the_lock_leaves_no_file(tmp_path, monkeypatch):
    flock, calls = fcntl.flock, []

    def interrupted(descriptor, operation):
        calls.append(operation)
        if len(calls) == 1:
            assert (tmp_path / LOCK).exists()
            raise KeyboardInterrupt
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", interrupted)
    with pytest.raises(KeyboardInterrupt), locked(tmp_path / LOCK, tmp_path, QUIET):
        pass
    assert not list(tmp_path.iterdir())


def test_a_refused_run_leaves_the_lock_to_its_holder(tmp_path, holder):
    signed = (tmp_path / LOCK).read_bytes()
    with pytest.raises(DataError), locked(tmp_path / LOCK, tmp_path, QUIET):
        pass
    assert (tmp_path / LOCK).read_bytes() == signed


def test_never_two_at_once(tmp_path):
    """Threads stand for processes: each `open` has a lock of its own."""
    inside, most, taken, guard = 0, 0, 0, threading.Lock()

    def compete():
        nonlocal inside, most, taken
        for _ in range(200):
            try:
                with locked(tmp_path / LOCK, tmp_path, QUIET):
                    with guard:
                        inside += 1
                        most, taken = max(most, inside), taken + 1
                    os.stat(tmp_path / LOCK)
                    with guard:
                        inside -= 1
            except DataError:
                pass

    threads = [threading.Thread(target=compete) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1 and taken >= 4


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP])
def test_a_file_system_without_locks_is_used_with_a_warning(tmp_path, monkeypatch, number):
    def refuse(descriptor, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    stderr = io.StringIO()
    with locked(tmp_path / LOCK, tmp_path, Reporter(stderr=stderr)):
        assert "does not support file locks" in stderr.getvalue()
    assert not list(tmp_path.iterdir())
