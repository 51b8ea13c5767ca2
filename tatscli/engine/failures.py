"""Reporting the failure of one process of a training once, instead of once in every process.

The others only see that its connection was closed. They read the reason in the store through which
all of them met. If all fail alike, as on a run folder that is in use, rank 0 reports it. On other
machines than that of the failed process one process says which rank failed and why.
"""

from __future__ import annotations

import gc
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta

import torch.distributed as dist

from tatscli.engine.distributed import World
from tatscli.engine.schedulers import LAUNCHED, LOST
from tatscli.errors import Exit, TatsError, Told

_ALIKE = 5.0
"""Seconds that a failed process waits for rank 0 to fail alike."""

_LINGER = 30.0
"""Seconds that the process with the store waits until its peers have read why it failed: they look
once its connections are closed and they next need it."""

_LOOK = 0.02  # seconds between two looks


class Failures:
    """Tells the peers of a process why it fails, and hears why one of them did.

    Args:
        world: This process among its peers.
        hosts: Whether the store lies in this process, and goes with it.
        reachable: Whether the store's process still answers.

    Attributes:
        store: Where the reason is left; None until the processes have met.
    """

    def __init__(
        self, world: World, *, hosts: bool, reachable: Callable[[], bool] = lambda: True
    ) -> None:
        self.world = world
        self.store: dist.Store | None = None
        self._hosts, self._reachable = hosts, reachable
        self._name = socket.gethostname()

    @contextmanager
    def told(self) -> Iterator[None]:
        """Leave the reason of a failure in the block, before connections close at its end.

        Raises:
            Told: If rank 0 fails with the same words, which it says.
        """
        try:
            yield
        except Exception as error:
            # `--nproc` keeps what every rank says, and shows what matters.
            if self.world.size == 1 or LAUNCHED in os.environ or is_lost_peer(error):
                raise
            told = self._leave(error)
            if told is not None:
                raise told from error
            raise

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Turn torch's error over a closed connection into the reason of the process that failed.

        Raises:
            Told: If the reason was told on this machine already.
            TatsError: If it was told elsewhere, or nobody knows it.
        """
        try:
            yield
        except Exception as error:
            if self.world.size == 1 or LAUNCHED in os.environ:
                if self.world.size > 1 and is_lost_peer(error):
                    raise Told(exit_code=LOST) from error
                raise
            if is_lost_peer(error):
                raise self._lost() from error
            raise

    def _leave(self, error: Exception) -> Told | None:
        """Leave word of this process's failure; return what to raise where rank 0 says the same."""
        message = str(error) or type(error).__name__
        code = error.exit_code if isinstance(error, TatsError) else Exit.FAILED
        word = {"rank": self.world.rank, "host": self._name, "message": message, "code": int(code)}
        with suppress(RuntimeError):  # the store may be gone, with the process that kept it
            store = self._ready()
            if store is None:
                return None
            store.compare_set("failed", "", json.dumps(word))
            store.set(f"failed/{self.world.rank}", message)
            store.add("heard", 1)
            if self._hosts:
                # The end of the program waits for it, the message does not.
                threading.Thread(target=self._linger, args=(store,), name="linger").start()
            if self.world.main:
                return None
            until = time.monotonic() + _ALIKE
            while time.monotonic() < until:
                if store.check(["failed/0"]):
                    same = store.get("failed/0").decode() == message
                    return Told(exit_code=int(code)) if same else None
                time.sleep(_LOOK)
        return None

    def _lost(self) -> TatsError:
        """Return what to raise in a process that has lost a peer."""
        word = None
        with suppress(RuntimeError):
            store = self._ready()
            if store is not None and store.check(["failed"]):
                word = json.loads(store.get("failed"))
                store.add("heard", 1)
        if word is None:
            return TatsError(
                f"rank {self.world.rank} has lost another process of this training",
                hint="its last message says why; `--resume auto` continues from the last "
                "checkpoint, or starts again if there is none",
            )
        if word["host"] == self._name or self.world.local_rank:
            return Told(exit_code=word["code"])
        error = TatsError(f"rank {word['rank']} on `{word['host']}` has failed: {word['message']}")
        error.exit_code = word["code"]
        return error

    def _linger(self, store: dist.Store) -> None:
        """Keep the store until all peers have read why the training fails."""
        until = time.monotonic() + _LINGER
        with suppress(RuntimeError):
            while store.add("heard", 0) < self.world.size and time.monotonic() < until:
                gc.collect()  # a connection is open as long as anything holds the group
                time.sleep(10 * _LOOK)

    def _ready(self) -> dist.Store | None:
        """Return the store if it is still there; torch reports one that is not at length."""
        if self.store is None or not (self._hosts or self._reachable()):
            return None
        self.store.set_timeout(timedelta(seconds=_ALIKE))
        return self.store


def is_lost_peer(error: Exception) -> bool:
    """Whether an error of torch's says that another process is gone."""
    if isinstance(error, dist.DistError):
        return True
    if not isinstance(error, RuntimeError):
        return False
    return any(sign in str(error) for sign in ("gloo", "Connection closed by peer"))
