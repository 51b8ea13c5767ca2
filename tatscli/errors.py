"""The one error tree and the exit codes.

Only `cli.py` catches `TatsError`; bugs keep their traceback.
"""

from enum import IntEnum


class Exit(IntEnum):
    """Exit codes of every command, documented in `docs/cli.md`."""

    OK = 0  # done
    FAILED = 1  # ran, and found problems or could not finish
    USAGE = 2  # the command line, the recipe or an input could not be used
    HUNG_UP = 129  # SIGHUP; training saved a checkpoint first
    INTERRUPTED = 130  # Ctrl-C; what was finished is kept
    WARNED = 138  # SIGUSR1, a scheduler's warning; training saved a checkpoint first
    TERMINATED = 143  # SIGTERM; training saved a checkpoint first


class TatsError(Exception):
    """A problem the user can act on: shown as one message and a hint, never as a traceback.

    Args:
        message: What is wrong, with the value in backticks, and what is allowed; no full stop.
        hint: What to try next.
    """

    exit_code: int = Exit.FAILED

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(TatsError):
    """The command line asks for something impossible."""

    exit_code = Exit.USAGE


class RecipeError(TatsError):
    """A recipe or an override is wrong; the message lists every problem."""

    exit_code = Exit.USAGE


class DataError(TatsError):
    """A store, an annotation file or a clip cannot be used."""


class DecodeError(DataError):
    """A video file cannot be decoded; the message is the reason kept in the manifest."""


class CheckpointError(TatsError):
    """A run folder or checkpoint is missing, of the wrong kind, or does not fit the model."""


class Stopped(TatsError):
    """A signal stopped the work after finished work was saved."""

    def __init__(self, message: str, hint: str | None = None, *, exit_code: Exit) -> None:
        super().__init__(message, hint)
        self.exit_code = exit_code


class Told(TatsError):
    """An end whose cause another process reports: nothing more is printed."""

    def __init__(self, *, exit_code: int) -> None:
        super().__init__("")
        self.exit_code = exit_code
