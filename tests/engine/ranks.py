"""Trainings of several processes, forked from the test: gloo ranks that start in milliseconds."""

from __future__ import annotations

import os
import socket
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tatscli.engine.distributed import World
from tatscli.engine.joining import joined
from tatscli.errors import TatsError

Work = Callable[[World], Any]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(work: Work, size: int, folder: Path) -> list[int]:
    """Fork `size` ranks that do some work, and return their process ids.

    What one of them raises is its exit code, if it is a `TatsError`, and lies in `folder`.
    """
    port = str(free_port())
    folder.mkdir(parents=True, exist_ok=True)
    pids = []
    for rank in range(size):
        pid = os.fork()
        if pid:
            pids.append(pid)
            continue
        code = 99
        try:
            os.environ.update(
                RANK=str(rank),
                WORLD_SIZE=str(size),
                LOCAL_RANK=str(rank),
                LOCAL_WORLD_SIZE=str(size),
                MASTER_ADDR="127.0.0.1",
                MASTER_PORT=port,
            )
            with joined("cpu", patience=60, say=print) as world:
                work(world)
            code = 0
        except TatsError as error:
            (folder / f"rank{rank}.txt").write_text(error.message)
            code = int(error.exit_code)
        except BaseException:
            (folder / f"rank{rank}.txt").write_text(traceback.format_exc())
        finally:
            os._exit(code)
    return pids


def finish(pids: list[int]) -> list[int]:
    """Wait for ranks, and return their exit codes; of those that a signal ended, its negative."""
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
