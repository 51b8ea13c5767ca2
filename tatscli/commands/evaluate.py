"""`tats evaluate`: numbers about videos, from a fine-tuned run or from frozen features."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from tatscli.commands.options import (
    Json,
    Overrides,
    Quiet,
    StoreOption,
    Verbose,
    reporter,
)

EPILOG = """Examples:

  tats evaluate runs/ucf101-finetune

  tats evaluate runs/ucf101-finetune evaluate.segments=5 evaluate.crops=3 --json

  tats evaluate runs/ucf101 --protocol knn

  tats evaluate runs/ucf101 --protocol attentive evaluate.probe.queries=16

  tats evaluate runs/ucf101 --protocol linear evaluate.layer=4

  tats evaluate runs/ucf101 --protocol linear --untrained

  tats evaluate runs/ucf101-finetune --checkpoint best --split test
"""


class Protocol(StrEnum):
    """How a run is scored."""

    FINETUNED = "finetuned"
    KNN = "knn"
    LINEAR = "linear"
    ATTENTIVE = "attentive"


class Which(StrEnum):
    """Which checkpoint of a run is scored."""

    LAST = "last"
    BEST = "best"


def evaluate(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN", help="A run or checkpoint folder; with --untrained also a recipe."
        ),
    ],
    overrides: Overrides = None,
    protocol: Annotated[
        Protocol,
        typer.Option(
            "--protocol",
            help="`finetuned`: the classifier. On frozen features, `knn`: neighbours; `linear`, "
            "`attentive`: a probe, its learning rate chosen on held-out training videos.",
        ),
    ] = Protocol.FINETUNED,
    store: StoreOption = None,
    split: Annotated[
        str | None, typer.Option("--split", help="Part to score.", show_default="evaluate.split")
    ] = None,
    checkpoint: Annotated[
        Which, typer.Option("--checkpoint", help="`best` was chosen on `finetune.val_split`.")
    ] = Which.LAST,
    untrained: Annotated[
        bool,
        typer.Option("--untrained", help="The encoder as training begins, not the run's weights."),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Result file.", show_default="in RUN/results"),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Score a run: segments x crops per video, merged by video; no video is ever replaced."""
    from tatscli.tasks.evaluate import evaluate as run_evaluation
    from tatscli.tasks.recipes import shorthand

    say = reporter(json, quiet, verbose)
    given = shorthand(overrides, {"data.store": store, "evaluate.split": split})
    result = run_evaluation(
        run,
        reporter=say,
        protocol=protocol.value,
        overrides=given,
        prefer=checkpoint.value,
        untrained=untrained,
        out=out,
    )
    say.table(
        f"{protocol.value} on {result['split']}: "
        f"{result['videos']} videos, {result['views']} views",
        ["class", "videos", "top-1"],
        [
            (row["class"], row["videos"], "" if row["top1"] is None else f"{row['top1']:.3f}")
            for row in result["per_class"]
        ]
        + [
            ("all: top-1", result["videos"], f"{result['top1']:.4f}"),
            ("all: top-5", result["videos"], f"{result['top5']:.4f}"),
        ],
    )
    say.info(f"wrote {result['results']}")
    say.result(result)
