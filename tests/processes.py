"""For tests that interrupt real processes."""

import os
import signal
import subprocess
import sys

SLOW = 600
"""Seconds: more than anything here takes on a machine with other work, and no hang."""

_KILLED = """
import os, signal, sys, time
from tatscli.cli import main
from tatscli.engine import loop

plain = loop.optimise

def optimise(training, *given):
    if training.done >= int(sys.argv[1]):
        while not (training.folder / "checkpoints" / "last" / "meta.json").exists():
            time.sleep(0.01)  # it is written in the background
        os.kill(os.getpid(), signal.SIGKILL)
    return plain(training, *given)

loop.optimise = optimise
sys.exit(main(sys.argv[2:]))
"""


def hear_interrupts() -> None:
    """Undo an ignored SIGINT, which a test run in the background hands down to its children.

    For `preexec_fn` of `subprocess.Popen`.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def train_and_kill(step: int, *words: object) -> None:
    """Run a training command whose process is killed after a step, once a checkpoint is there."""
    done = subprocess.run(
        [sys.executable, "-c", _KILLED, str(step), *map(str, words)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
