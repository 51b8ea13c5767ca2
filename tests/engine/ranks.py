"""Trainings of several processes: gloo ranks that start in a tenth of a second.

They are forked from a server that has loaded torch and done nothing with it: a process that has
run a backward pass on several devices can no longer be forked for another.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import cloudpickle

from tatscli.engine.distributed import World
from tatscli.engine.joining import joined
from tatscli.errors import TatsError

Work = Callable[[World], Any]

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["tatscli.engine.loop", "tests.engine.toy"])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(work: Work, size: int, folder: Path) -> list[ForkServerProcess]:
    """Start `size` ranks that do some work.

    What one of them raises is its exit code, if it is a `TatsError`, and lies in `folder`.
    """
    port, sent = str(free_port()), cloudpickle.dumps(work)
    folder.mkdir(parents=True, exist_ok=True)
    ranks = [
        _SERVER.Process(target=_rank, args=(sent, rank, size, port, folder), daemon=True)
        for rank in range(size)
    ]
    for rank in ranks:
        rank.start()
    return ranks


def _rank(sent: bytes, rank: int, size: int, port: str, folder: Path) -> None:
    code, said = 99, folder / f"rank{rank}.txt"
    try:
        os.environ.update(
            RANK=str(rank),
            WORLD_SIZE=str(size),
            LOCAL_RANK=str(rank),
            LOCAL_WORLD_SIZE=str(size),
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=port,
        )
        work = cloudpickle.loads(sent)
        with joined("cpu", patience=60, say=print) as world:
            work(world)
        code = 0
    except TatsError as error:
        said.write_text(error.message)
        code = int(error.exit_code)
    except BaseException:
        said.write_text(traceback.format_exc())
        os.write(2, said.read_bytes())
    finally:
        os._exit(code)


def finish(ranks: Sequence[ForkServerProcess]) -> list[int | None]:
    """Wait for ranks, and return their exit codes; of those that a signal ended, its negative."""
    for rank in ranks:
        rank.join()
    return [rank.exitcode for rank in ranks]
