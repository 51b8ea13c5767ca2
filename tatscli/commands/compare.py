"""`tats compare`: results side by side, averaged over seeds, and video by video."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tatscli.commands.options import Json, Quiet, Verbose, reporter

if TYPE_CHECKING:
    from tatscli.console import Reporter

EPILOG = """Examples:

  tats compare runs/small-finetune runs/mgm-small-finetune

  tats compare runs/small-finetune runs/mgm-small-finetune --paired

  tats compare runs/seed0-finetune runs/seed1-finetune runs/seed2-finetune --group
"""


def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...", help="Run folders, each for its newest result, or result files."
        ),
    ],
    paired: Annotated[
        bool,
        typer.Option("--paired", help="Compare each with the first, on the same videos."),
    ] = False,
    common: Annotated[
        bool,
        typer.Option("--common", help="With --paired: use the videos that both results have."),
    ] = False,
    group: Annotated[
        bool,
        typer.Option(
            "--group", help="Mean and standard deviation of results that differ only in seed."
        ),
    ] = False,
    name: Annotated[
        str | None,
        typer.Option("--name", help="Result to use of each run, such as finetuned-val-2x3."),
    ] = None,
    split: Annotated[
        str | None, typer.Option("--split", help="Use only results of this split.")
    ] = None,
    protocol: Annotated[
        str | None, typer.Option("--protocol", help="Use only results of this protocol.")
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Compare results: a table, means over seeds, and tests on the same videos."""
    from tatscli.tasks.compare import compare as run_comparison

    say = reporter(json, quiet, verbose)
    answer = run_comparison(
        runs,
        reporter=say,
        name=name,
        split=split,
        protocol=protocol,
        group=group,
        paired=paired,
        common=common,
    )
    _show_results(answer["results"], say)
    if "groups" in answer:
        _show_groups(answer["groups"], say)
    if "paired" in answer:
        _show_pairs(answer["paired"], say)
    say.result(answer)


def _show_results(results: Sequence[dict[str, Any]], say: Reporter) -> None:
    say.table(
        "results, with 95 % intervals",
        ["run", "result", "videos", "top-1", "top-5", "mean class", "ECE", "seed"],
        [
            (
                one["run"],
                f"{'untrained ' * bool(one['untrained'])}{one['protocol']} {one['split']} "
                f"{one['segments']}x{one['crops']}",
                one["videos"],
                f"{number(one['top1'])} {interval(one['top1_interval'])}".strip(),
                number(one["top5"]),
                number(one["mean_class"]),
                number(one["ece"]),
                one["seed"],
            )
            for one in results
        ],
    )


def _show_groups(groups: Sequence[dict[str, Any]], say: Reporter) -> None:
    def cell(one: dict[str, Any] | None) -> str:
        if one is None:
            return ""
        return number(one["mean"]) + (f" +- {number(one['std'])}" if one["std"] is not None else "")

    say.table(
        "over seeds: mean +- standard deviation; top-1 with Student's 95 % interval of the mean",
        ["runs", "result", "seeds", "top-1", "top-5", "mean class", "ECE"],
        [
            (
                ", ".join(one["runs"]),
                f"{one['protocol']} {one['split']} {one['segments']}x{one['crops']}",
                ", ".join(map(str, one["seeds"])),
                f"{cell(one['top1'])} {interval(one['top1']['interval'])}".strip(),
                *(cell(one.get(key)) for key in ("top5", "mean_class", "ece")),
            )
            for one in groups
        ],
    )


def _show_pairs(pairs: Sequence[dict[str, Any]], say: Reporter) -> None:
    corrected = "p_holm" in pairs[0]
    columns = ["run", "videos", "first only", "this only", "difference", "p", "mid-p"]
    columns += ["p, Holm"] * corrected
    say.table(
        f"against {pairs[0]['against']}: videos that only one gets right, difference in top-1 with "
        "its 95 % interval, McNemar's test",
        columns,
        [
            (
                one["run"],
                one["videos"],
                one["only_first"],
                one["only_second"],
                f"{one['difference']:+.4f} {interval(one['difference_interval'], sign='+')}",
                f"{one['p']:.3g}",
                f"{one['mid_p']:.3g}",
                *([f"{one['p_holm']:.3g}"] if corrected else []),
            )
            for one in pairs
        ],
    )


def number(value: float | None) -> str:
    """Write a score; nothing where there is none."""
    return "" if value is None else f"{value:.4f}"


def interval(ends: Sequence[float] | None, *, sign: Literal["", "+"] = "") -> str:
    """Write the ends of an interval; nothing where there is none."""
    return "" if ends is None else f"({ends[0]:{sign}.4f} to {ends[1]:{sign}.4f})"
