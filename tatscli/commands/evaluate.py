"""`tats evaluate`: numbers about videos, from a fine-tuned run or from frozen features."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from tatscli.commands.options import (
    Json,
    Overrides,
    Quiet,
    StoreOption,
    Verbose,
    Which,
    reporter,
)

if TYPE_CHECKING:
    from tatscli.console import Reporter

EPILOG = """Examples:

  tats evaluate runs/ucf101-finetune

  tats evaluate runs/ucf101-finetune evaluate.segments=5 evaluate.crops=3 --json

  tats evaluate runs/ucf101 --protocol knn

  tats evaluate runs/ucf101 --protocol attentive evaluate.probe.queries=16

  tats evaluate runs/ucf101 --protocol linear evaluate.layer=4

  tats evaluate runs/ucf101 --protocol linear --untrained

  tats evaluate runs/ucf101-finetune --checkpoint best --split test

  tats evaluate runs/tokenizer-vq
"""


class Protocol(StrEnum):
    """How a run is scored."""

    FINETUNED = "finetuned"
    KNN = "knn"
    LINEAR = "linear"
    ATTENTIVE = "attentive"
    RECONSTRUCTION = "reconstruction"


def evaluate(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN", help="A run or checkpoint folder; with --untrained also a recipe."
        ),
    ],
    overrides: Overrides = None,
    protocol: Annotated[
        Protocol | None,
        typer.Option(
            "--protocol",
            help="`finetuned`: the classifier. On frozen features, `knn`: neighbours; `linear`, "
            "`attentive`: a probe, its learning rate chosen on held-out training videos. "
            "`reconstruction`: of a tokenizer.",
            show_default="finetuned, of a tokenizer reconstruction",
        ),
    ] = None,
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
    from tatscli.nn.load import is_tokenizer
    from tatscli.tasks.evaluate import evaluate as run_evaluation
    from tatscli.tasks.evaluate_tokenizer import evaluate_tokenizer
    from tatscli.tasks.recipes import shorthand

    say = reporter(json, quiet, verbose)
    given = shorthand(overrides, {"data.store": store, "evaluate.split": split})
    if is_tokenizer(run):
        _refuse_labels(run, protocol, untrained)
        protocol = Protocol.RECONSTRUCTION
    if protocol is Protocol.RECONSTRUCTION:
        result = evaluate_tokenizer(
            run, reporter=say, overrides=given, prefer=checkpoint.value, out=out
        )
        _show_reconstruction(result, say)
        return
    protocol = protocol or Protocol.FINETUNED
    result = run_evaluation(
        run,
        reporter=say,
        protocol=cast("Any", protocol.value),
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
    if "by_duration" in result:
        _show_durations(result, say)
    if result["tokens_kept"] < result["tokens"]:
        say.info(
            f"{result['tokens_kept']} of {result['tokens']} tokens, "
            f"{result['gflops_per_clip']:.3g} GFLOPs a view forwards"
        )
    say.info(f"wrote {result['results']}")
    say.result(result)


def _show_durations(result: dict[str, Any], say: Reporter) -> None:
    rows = [
        (
            f"{part['from']:g} s and longer"
            if part["to"] is None
            else f"{part['from']:g} to {part['to']:g} s",
            part["videos"],
            *("" if part[key] is None else f"{part[key]:.4f}" for key in ("top1", "top5")),
        )
        for part in result["by_duration"]
    ]
    say.table("by duration", ["length", "videos", "top-1", "top-5"], rows)
    if result["shorter_than_all"]:
        say.info(
            f"{result['shorter_than_all']} videos are shorter than "
            f"{result['by_duration'][0]['from']:g} s: they are in no row, and in the total"
        )


def _refuse_labels(run: Path, protocol: Protocol | None, untrained: bool) -> None:
    """Find out that something is asked of a tokenizer that it does not have.

    Raises:
        UsageError: If so.
    """
    from tatscli.errors import UsageError

    if protocol not in (None, Protocol.RECONSTRUCTION):
        raise UsageError(
            f"`{run}` is a tokenizer: it has no encoder for `--protocol {protocol.value}`",
            hint="leave `--protocol` out: it is scored by what it reconstructs",
        )
    if untrained:
        raise UsageError(f"`{run}` is a tokenizer, and `--untrained` is about encoders")


def _show_reconstruction(result: dict[str, Any], say: Reporter) -> None:
    say.table(
        f"reconstruction on {result['split'] or 'all videos'}: "
        f"{result['videos']} videos, {result['pictures']} pictures",
        ["video", "PSNR, dB", "SSIM", "codes used", "perplexity"],
        [
            (one["id"], f"{one['psnr']:.2f}", f"{one['ssim']:.3f}", one["codes"],
             f"{one['perplexity']:.1f}")
            for one in result["per_video"]
        ]
        + [
            ("all", f"{result['psnr']:.2f}", f"{result['ssim']:.3f}",
             f"{result['code_use']:.1%} of {result['codebook_size']}",
             f"{result['perplexity']:.1f}")
        ],
    )  # fmt: skip
    say.info(f"wrote {result['results']}")
    say.result(result)
