"""Output: results to stdout, messages and progress to stderr (`Reporter`)."""

from __future__ import annotations

import io
import json
import math
import sys
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

from tqdm import tqdm


def without_nan(value: Any) -> Any:
    """Return a JSON value with null for numbers that are not finite, which JSON cannot hold."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def duration(seconds: float) -> str:
    """Write a time as people say it: `0.4 s`, `45 s`, `12 min`, `3 h 5 min`, `2 days 4 h`."""
    if seconds < 90:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(round(seconds / 3600), 24)
    return f"{days} days {hours} h" if hours else f"{days} days"


def escape_what_streams_cannot_hold() -> None:
    """Make stdout and stderr write escapes, such as `\\u65e5`, for characters their encoding lacks.

    Class and file names may be in any language, and no result should be lost to an encoding.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def writable(text: str, stream: TextIO) -> str:
    """Return a text with escapes for characters that the encoding of a stream lacks."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


_warned: set[str] = set()


def warn_once(message: str) -> None:
    """Warn on stderr without a `Reporter`; the same text only once per process."""
    if message not in _warned:
        _warned.add(message)
        tqdm.write(f"warning: {message}", file=sys.stderr)


class Reporter:
    """The output of a command: messages, tables, progress bars and the JSON result.

    Commands create one and pass it on, so that tasks never touch the streams and tests can replace
    them.

    Args:
        json_output: Print exactly one JSON object on stdout and no tables.
        quiet: Only warnings on stderr, no progress.
        verbose: Also details.
        stdout: Where results go.
        stderr: Where everything else goes.
    """

    def __init__(
        self,
        *,
        json_output: bool = False,
        quiet: bool = False,
        verbose: bool = False,
        stdout: TextIO | None = None,
        stderr: TextIO | None = None,
    ) -> None:
        self.json_output = json_output
        self.quiet = quiet
        self.verbose = verbose
        self.stdout = stdout or sys.stdout
        self.stderr = stderr or sys.stderr
        self._said: set[str] = set()

    def silenced(self) -> Reporter:
        """Return a reporter that prints only warnings, on the same streams."""
        return Reporter(quiet=True, stdout=self.stdout, stderr=self.stderr)

    def muted(self) -> Reporter:
        """Return one that says nothing at all."""
        return Reporter(quiet=True, stdout=io.StringIO(), stderr=io.StringIO())

    def info(self, message: str) -> None:
        """Print a message on stderr."""
        if not self.quiet:
            self._write(message)

    def detail(self, message: str) -> None:
        """Print a detail on stderr, with `--verbose` only."""
        if self.verbose and not self.quiet:
            self._write(message)

    def warn(self, message: str, *, once: bool = False) -> None:
        """Warn on stderr, even when quiet; `once` drops repeats of the same text."""
        if once and message in self._said:
            return
        self._said.add(message)
        self._write(f"warning: {message}")

    def table(self, title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """Print a table on stdout, unless JSON output was requested.

        In a file or pipe each row is one line, however long. On a terminal, a table that is too
        wide loses the lines between its columns before its cells are wrapped.
        """
        if self.json_output:
            return
        from rich.box import SIMPLE_HEAD
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        console = Console(file=self.stdout)
        table = Table()
        for column in columns:
            table.add_column(writable(column, self.stdout), overflow="fold")
        for row in rows:
            table.add_row(*(Text(writable(str(cell), self.stdout)) for cell in row))
        width = console.measure(table, options=console.options.update_width(10_000)).maximum
        if width > console.width:
            if console.is_terminal:
                table.box, table.padding, table.pad_edge = SIMPLE_HEAD, (0, 0), False
                table.show_edge = False
            else:
                console.width = width
        # Not as the table's own title, which would be wrapped to its width.
        console.print(Text(writable(title, self.stdout), style="italic"), soft_wrap=True)
        console.print(table)

    def result(self, payload: dict[str, Any]) -> None:
        """Print the command's result as one JSON object, if JSON output was requested."""
        if self.json_output:
            text = json.dumps(without_nan(payload), ensure_ascii=False, allow_nan=False)
            if text != writable(text, self.stdout):  # other escapes are not JSON's
                text = json.dumps(without_nan(payload), allow_nan=False)
            self.stdout.write(text + "\n")
            self.stdout.flush()

    def progress(
        self,
        iterable: Iterable[Any] | None = None,
        *,
        total: int | None = None,
        initial: int = 0,
        description: str = "",
        unit: str = "it",
    ) -> tqdm:
        """Return a tqdm bar on stderr; silent when quiet or if stderr is not a terminal."""
        return tqdm(
            iterable,
            total=total,
            initial=initial,
            desc=description,
            unit=unit,
            file=self.stderr,
            dynamic_ncols=True,
            disable=self.quiet or not self.stderr.isatty(),
        )

    def _write(self, message: str) -> None:
        tqdm.write(message, file=self.stderr)
