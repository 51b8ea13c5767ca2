"""For tests that interrupt real processes."""

import signal


def hear_interrupts() -> None:
    """Undo an ignored SIGINT, which a test run in the background hands down to its children.

    For `preexec_fn` of `subprocess.Popen`.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
