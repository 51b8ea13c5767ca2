"""`--nproc N`: runs a command in N processes on this machine.

They get torchrun's variables. Torchrun's own agent is not used: it exits with 1 whatever its
processes exit with, so that a job that saved and stopped looks like one that failed, it does not
forward SIGUSR1 unless told to, and it reports a failed process with a traceback of its own.

Rank 0 prints. The stderr of the others, except for warnings, is kept and printed if they fail
first.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from tatscli.engine.schedulers import LAUNCHED, LOCALHOST, LOST, Place, find_place
from tatscli.errors import Told, UsageError
from tatscli.machine import outlived_by, usable_cores

FORWARDED = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
    if hasattr(signal, name)  # Windows has the first two
)
GRACE = 300.0  # seconds: a checkpoint of many gigabytes on a slow disk must not be lost
NOTICE = 10.0
FEW = 8  # processes that may share the cores of a smaller machine, as in a trial of several

_HEARD = {-number: 128 + number for number in (int(one) for one in FORWARDED)}
"""Exit codes of processes that a signal ended before they could handle it."""


def launch(words: Sequence[str], nproc: str, *, device: str) -> None:
    """Run `tats WORDS` in several processes, unless this is one of them.

    Args:
        words: The command line, `--nproc` included.
        nproc: Number of processes; `auto` is one for each GPU, or one without any.
        device: `run.device` of the recipe.

    Raises:
        UsageError: If the machine cannot run so many, or another launcher started several already.
        Told: When all have ended, unless they succeeded.
    """
    if LAUNCHED in os.environ:
        _end_with(int(os.environ[LAUNCHED]))
        return
    count = processes(nproc, device=device, environ=os.environ)
    if count == 1:
        return
    raise Told(exit_code=Group([sys.executable, "-m", "tatscli", *words], count).run())


def processes(nproc: str, *, device: str, environ: Mapping[str, str]) -> int:
    """Return how many processes `--nproc` starts.

    Raises:
        UsageError: If it is no number, a launcher has started this one, or there are fewer GPUs, or
            without GPUs far fewer cores.
    """
    if nproc != "auto" and not (nproc.isdecimal() and int(nproc) > 0):
        raise UsageError(f"`--nproc {nproc}` must be a whole number of at least 1, or `auto`")
    place, source = find_place(environ)
    if place is not None and place.size > 1:
        raise UsageError(
            f"`--nproc` starts processes, but {source} say that {place.size} were started already",
            hint="leave `--nproc` out, or start a single process",
        )
    gpus = _visible_gpus() if nproc == "auto" or device in ("auto", "cuda") else 0
    if nproc == "auto":
        return max(1, gpus) if device in ("auto", "cuda") else 1
    if gpus and int(nproc) > gpus:
        raise UsageError(
            f"`--nproc {nproc}` needs a GPU for each process, but only {gpus} "
            + ("is visible" if gpus == 1 else "are visible"),
            hint="`--nproc auto` uses all of them; `run.device=cpu` trains without GPUs",
        )
    cores = usable_cores()
    if not gpus and int(nproc) > max(cores, FEW):
        raise UsageError(
            f"`--nproc {nproc}` is too many: "
            + ("`run.device` is `cpu`" if device == "cpu" else "no GPU is visible")
            + f", and there {'are' if cores > 1 else 'is'} {cores} core{'s' * (cores > 1)}",
            hint=f"`--nproc {cores}` gives each process a core of its own",
        )
    return int(nproc)


def _visible_gpus() -> int:
    import torch

    return torch.cuda.device_count()


@dataclass(slots=True)
class _Rank:
    """A process that was started, and the last lines it said where it is not rank 0."""

    number: int
    process: subprocess.Popen[str]
    said: deque[str] = field(default_factory=lambda: deque(maxlen=200))
    reader: threading.Thread | None = None


class Group:
    """Processes of one command on this machine.

    Args:
        command: The program and its arguments.
        count: How many.
        grace: Seconds that processes which were told to stop get before they are killed.
        notice: Seconds that the others get to notice that one has failed.
    """

    def __init__(
        self, command: Sequence[str], count: int, *, grace: float = GRACE, notice: float = NOTICE
    ) -> None:
        self.command = list(command)
        self.count = count
        self.grace, self.notice = grace, notice
        self.ranks: list[_Rank] = []
        self.asked: signal.Signals | None = None
        self.deadline: float | None = None
        self.warned: set[str] = set()
        self.killed: set[int] = set()

    def run(self) -> int:
        """Start them, pass signals on, wait for all, and return the exit code of the first failure;
        0 if there is none."""
        with self._signals_passed_on():
            self._start()
            code = self._wait()
        for rank in self.ranks:
            if rank.reader is not None:
                rank.reader.join(timeout=5)
        return code

    def _start(self) -> None:
        place = Place(0, self.count, 0, self.count, LOCALHOST, _free_port(), "")
        threads = {"OMP_NUM_THREADS": str(max(1, usable_cores() // self.count))}
        for number in range(self.count):
            mine = place.environment | {"RANK": str(number), "LOCAL_RANK": str(number)}
            process = subprocess.Popen(
                self.command,
                env=threads | os.environ | mine | {LAUNCHED: str(os.getpid())},
                stdin=subprocess.DEVNULL,
                stdout=None if number == 0 else subprocess.DEVNULL,
                stderr=None if number == 0 else subprocess.PIPE,
                text=True,
                errors="replace",
                start_new_session=True,  # a terminal's Ctrl-C comes from here alone, and once
            )
            rank = _Rank(number, process)
            self.ranks.append(rank)
            if number:
                rank.reader = threading.Thread(target=self._listen, args=(rank,), daemon=True)
                rank.reader.start()
            if self.asked is not None:  # while they were being started
                self._send(rank, self.asked)

    def _listen(self, rank: _Rank) -> None:
        """Pass on warnings, each once whoever says it, and keep the rest."""
        assert rank.process.stderr is not None
        for line in rank.process.stderr:
            if not line.startswith("warning: "):
                rank.said.append(line)
            elif line not in self.warned:
                self.warned.add(line)
                sys.stderr.write(line)
                sys.stderr.flush()

    def _wait(self) -> int:
        """Wait for all; where one fails, the others are told to stop."""
        first: _Rank | None = None
        left = list(self.ranks)
        while left:
            for rank in [rank for rank in left if rank.process.poll() is not None]:
                left.remove(rank)
                if rank.process.returncode not in (0, LOST) and first is None:
                    first = rank
                if rank.process.returncode and self.deadline is None:
                    self.deadline = time.monotonic() + self.notice
            if left and self.deadline is not None and time.monotonic() > self.deadline:
                self._press(left)
            time.sleep(0.05)
        return self._tell(first)

    def _press(self, left: Sequence[_Rank]) -> None:
        """Tell those that are left to stop; kill them, and their workers, if they were told."""
        if self.asked is None:
            self._ask(signal.SIGTERM)
            return
        for rank in left:
            self.killed.add(rank.number)
            _say(
                f"error: rank {rank.number} was killed, {self.grace:g} s after it was told to stop"
            )
            os.killpg(rank.process.pid, signal.SIGKILL)
        self.deadline = time.monotonic() + self.grace

    def _tell(self, first: _Rank | None) -> int:
        """Say what the first failure was, and return its exit code.

        Rank 0 has said it where it ended alike, as all ranks do that refuse the same thing.
        """
        if first is None:
            lost = any(rank.process.returncode for rank in self.ranks)
            if lost:
                _say("error: the processes of this training lost each other")
            return 1 if lost else 0
        code = first.process.returncode
        if first.reader is not None:
            first.reader.join(timeout=5)
        stopped = self.asked is not None and code == 128 + self.asked
        if first.number and not stopped and self.ranks[0].process.returncode != code:
            sys.stderr.write("".join(first.said))
            sys.stderr.flush()
        if code >= 0 or code in _HEARD:
            return _HEARD.get(code, code)
        if first.number in self.killed:
            return 1
        name = signal.Signals(-code).name
        _say(
            f"error: rank {first.number} (process {first.process.pid}) was killed by {name}"
            + ("; it may have run out of memory" if -code == signal.SIGKILL else "")
            + "\n\nhint: `--resume auto` continues from the last checkpoint, or starts again if "
            "there is none"
        )
        return 1

    def _ask(self, number: signal.Signals) -> None:
        self.asked, self.deadline = number, time.monotonic() + self.grace
        for rank in self.ranks:
            self._send(rank, number)

    @staticmethod
    def _send(rank: _Rank, number: signal.Signals) -> None:
        """Send a signal to a rank, and to none of its loader's workers."""
        if rank.process.poll() is None:
            rank.process.send_signal(number)

    @contextmanager
    def _signals_passed_on(self) -> Iterator[None]:
        def hear(number: int, frame: object) -> None:
            self._ask(signal.Signals(number))

        # A hang-up that is ignored, as under `nohup`, stays so; the ranks inherit that.
        heard = [
            number
            for number in FORWARDED
            if number.name != "SIGHUP" or signal.getsignal(number) is not signal.SIG_IGN
        ]
        earlier = {number: signal.signal(number, hear) for number in heard}
        try:
            yield
        finally:
            for number, handler in earlier.items():
                signal.signal(number, handler)


def _end_with(launcher: int) -> None:
    """Let the kernel tell this process to stop, and save, should the launcher be killed."""
    if not outlived_by(launcher, signal.SIGTERM):
        raise Told(exit_code=LOST)


def _free_port() -> int:
    with socket.socket() as server:
        server.bind((LOCALHOST, 0))
        port: int = server.getsockname()[1]
        return port


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
