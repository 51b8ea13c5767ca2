"""Where output goes: results to stdout, talk and progress to stderr (`Reporter`)."""

from __future__ import annotations

import io
import json
import math
import sys
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

from tqdm import tqdm


def without_nan(value: Any) -> Any:
    """Return a JSON value with null for numbers that are not finite, which JSON does not know."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


_warned: set[str] = set()


def warn_once(message: str) -> None:
    """Warn on stderr where no `Reporter` is at hand; the same text once in a process."""
    if message not in _warned:
        _warned.add(message)
        tqdm.write(f"warning: {message}", file=sys.stderr)


class Reporter:
    """Speaks for a command: messages, tables, progress bars and the JSON result.

    Commands make one and pass it down, so that tasks never touch the streams and tests can
    replace them.

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
        """Return one that says nothing but warnings, on the same streams."""
        return Reporter(quiet=True, stdout=self.stdout, stderr=self.stderr)

    def muted(self) -> Reporter:
        """Return one that says nothing at all."""
        return Reporter(quiet=True, stdout=io.StringIO(), stderr=io.StringIO())

    def info(self, message: str) -> None:
        """Say what happens, on stderr."""
        if not self.quiet:
            self._write(message)

    def detail(self, message: str) -> None:
        """Say something only `--verbose` asks for."""
        if self.verbose and not self.quiet:
            self._write(message)

    def warn(self, message: str, *, once: bool = False) -> None:
        """Warn on stderr, even when quiet; `once` drops repeats of the same text."""
        if once and message in self._said:
            return
        self._said.add(message)
        self._write(f"warning: {message}")

    def table(self, title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """Print a result table on stdout, unless the result is asked for as JSON.

        In a file or pipe each row is one line, however long. On a terminal a table that is too wide
        does without lines between its columns, before words are broken.
        """
        if self.json_output:
            return
        from rich.box import SIMPLE_HEAD
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        console = Console(file=self.stdout)
        table = Table(title=title, title_justify="left")
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(*(Text(str(cell)) for cell in row))
        width = console.measure(table, options=console.options.update_width(10_000)).maximum
        if width > console.width:
            if console.is_terminal:
                table.box, table.padding, table.pad_edge = SIMPLE_HEAD, (0, 0), False
                table.show_edge = False
            else:
                console.width = width
        console.print(table)

    def result(self, payload: dict[str, Any]) -> None:
        """Print the command's result as one JSON object, if JSON was asked for."""
        if self.json_output:
            text = json.dumps(without_nan(payload), ensure_ascii=False, allow_nan=False)
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
        """Return a tqdm bar with ETA on stderr; silent when quiet or when stderr is no terminal."""
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
