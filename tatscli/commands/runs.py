"""`tats runs`: list run folders, find the best, compare two."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from tatscli.commands.compare import interval, number
from tatscli.commands.options import Json, Quiet, Verbose, reporter

EPILOG = """
Examples:
  tats runs
  tats runs list runs --json
  tats runs best runs --metric top1
  tats runs compare runs/small runs/small-finetune
"""

LIST_EPILOG = """\b
Examples:
  tats runs list
  tats runs list runs --json

States: `finished`: all steps are done; `running`: being trained now; `active`: perhaps being
trained, on a file system without file locks; `stopped`: unfinished; `converted`: written by
`tats convert`; `results`: results only; `damaged`: see the last column.
"""

BEST_EPILOG = """\b
Examples:
  tats runs best
  tats runs best runs --metric mean_class --split val --protocol finetuned
  tats runs best runs --metric val
"""

COMPARE_EPILOG = """\b
Examples:
  tats runs compare runs/small runs/small-finetune
"""


class Metric(StrEnum):
    """What runs are ranked by."""

    TOP1 = "top1"
    TOP5 = "top5"
    MEAN_CLASS = "mean_class"
    ECE = "ece"
    NLL = "nll"
    VAL = "val"


class _ListByDefault(TyperGroup):
    """`tats runs DIR` is `tats runs list DIR`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Insert `list` where no command is given."""
        if not args or (args[0] not in self.commands and args[0] not in ("--help", "-h")):
            args = ["list", *args]
        return super().parse_args(ctx, args)


runs = typer.Typer(
    rich_markup_mode=None,
    cls=_ListByDefault,
    help="List run folders (`tats runs DIR`), find the best, compare two",
)

Folder = Annotated[Path, typer.Argument(metavar="[DIR]", help="Folder with the runs.")]


@runs.command("list", epilog=LIST_EPILOG)
def list_runs(
    folder: Folder = Path("runs"),
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """List runs: how far they got, their last loss, best score and speed, their size."""
    from dataclasses import asdict

    from tatscli.tasks.runs import list_runs as listed

    say = reporter(json, quiet, verbose)
    found = listed(folder)
    rates = any(one.clips_per_second is not None for one in found)
    shares = any(one.mfu is not None for one in found)
    problems = any(one.problem for one in found)
    columns = ["run", "kind", "recipe", "state", "step", "loss", "best"]
    columns += ["clips/s"] * rates + ["MFU"] * shares + ["age", "size"] + ["problem"] * problems
    say.table(
        f"runs in {folder}",
        columns,
        [
            (
                one.name,
                one.kind or "",
                one.recipe or "",
                one.state,
                "" if one.step is None else f"{one.step}/{one.total or '?'}",
                _written(one.loss, ".4g"),
                number(one.best),
                *([_written(one.clips_per_second, ".3g")] if rates else []),
                *([_written(one.mfu, ".1%")] if shares else []),
                _age(one.age),
                _size(one.bytes),
                *([one.problem or ""] if problems else []),
            )
            for one in found
        ],
    )
    say.result({"runs": [asdict(one) for one in found]})


@runs.command("best", epilog=BEST_EPILOG)
def best(
    folder: Folder = Path("runs"),
    metric: Annotated[
        Metric,
        typer.Option(
            "--metric",
            help="`val`: best validation score; the others are from results.",
        ),
    ] = Metric.TOP1,
    split: Annotated[
        str | None, typer.Option("--split", help="Use only results of this split.")
    ] = None,
    protocol: Annotated[
        str | None, typer.Option("--protocol", help="Use only results of this protocol.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Lines of the table.")] = 10,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Rank runs by their results, or by their best validation score."""
    from tatscli.tasks.runs import best_runs

    say = reporter(json, quiet, verbose)
    answer = best_runs(folder, metric.value, reporter=say, split=split, protocol=protocol)
    say.table(
        f"best by {metric.value}: {answer['best']['run']}",
        ["run", metric.value, "result"],
        [
            (
                one["run"],
                f"{number(one['value'])} {interval(one.get('interval'))}".strip(),
                "" if one["result"] is None else Path(one["result"]).stem,
            )
            for one in answer["ranked"][:limit]
        ],
    )
    say.result(answer)


@runs.command("compare", epilog=COMPARE_EPILOG)
def compare(
    first: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    second: Annotated[Path, typer.Argument(metavar="RUN", help="Another.")],
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Show the recipe keys in which two runs differ, and their numbers side by side."""
    from tatscli.recipe.text import dump_value
    from tatscli.tasks.runs import compare_runs

    say = reporter(json, quiet, verbose)
    answer = compare_runs(first, second)
    say.table(
        "recipe keys that differ",
        ["key", str(first), str(second)],
        [(one["key"], *map(dump_value, one["values"])) for one in answer["recipe"]],
    )
    say.table(
        "numbers",
        ["", str(first), str(second)],
        [
            (one["name"], *("" if value is None else f"{value:.6g}" for value in one["values"]))
            for one in answer["metrics"]
        ],
    )
    say.result(answer)


def _written(value: float | None, form: str) -> str:
    """Write a number; nothing where there is none."""
    return "" if value is None else format(value, form)


def _age(seconds: float | None) -> str:
    """Write a time span in its largest unit."""
    if seconds is None:
        return ""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def _size(count: int) -> str:
    """Write a number of bytes with three digits."""
    size, units = float(count), ["B", "kB", "MB", "GB", "TB"]
    while size >= 1000 and len(units) > 1:
        size /= 1000
        units.pop(0)
    return f"{size:.3g} {units[0]}"
