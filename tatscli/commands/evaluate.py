"""`tats evaluate`: numbers about videos, from a fine-tuned run or from frozen features."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from tatscli.commands.options import (
    Json,
    Nproc,
    Overrides,
    Quiet,
    StoreOption,
    Verbose,
    Which,
    WhichCheckpoint,
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

  tats evaluate runs/ucf101-finetune --skip-bad --out best.json --overwrite

  tats evaluate runs/k400-finetune --nproc 8

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
    context: typer.Context,
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN",
            help="A run, a checkpoint folder or weights of others; with --untrained also a recipe.",
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
    checkpoint: WhichCheckpoint = Which.LAST,
    untrained: Annotated[
        bool,
        typer.Option("--untrained", help="The encoder as training begins, not the run's weights."),
    ] = False,
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe",
            metavar="RECIPE",
            help="Take store, sampling and views from this recipe, for weights that come without.",
        ),
    ] = None,
    skip_bad: Annotated[
        bool,
        typer.Option(
            "--skip-bad",
            help="Leave out videos that cannot be read, and name them in the result. Without it "
            "the first one is an error.",
        ),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Result file.", show_default="in RUN/results"),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the file that --out names.")
    ] = False,
    nproc: Nproc = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Score a run: segments x crops per video, merged by video; no video is ever replaced."""
    from tatscli.nn.load import is_tokenizer
    from tatscli.tasks.evaluate import evaluate as run_evaluation
    from tatscli.tasks.evaluate_tokenizer import evaluate_tokenizer
    from tatscli.tasks.recipes import shorthand

    say = reporter(json, quiet, verbose, joins=True)
    given = shorthand(overrides, {"data.store": store, "evaluate.split": split})
    if nproc is not None:
        from tatscli.engine.launch import launch

        named = [one.partition("=")[2] for one in given if one.startswith("run.device=")]
        launch(context.obj, nproc, device=named[-1] if named else "auto")
    if is_tokenizer(run):
        _refuse_labels(run, protocol, untrained)
        protocol = Protocol.RECONSTRUCTION
    if protocol is Protocol.RECONSTRUCTION:
        result = evaluate_tokenizer(
            run,
            reporter=say,
            overrides=given,
            prefer=checkpoint.value,
            skip_bad=skip_bad,
            out=out,
            overwrite=overwrite,
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
        protocol_of=recipe,
        skip_bad=skip_bad,
        out=out,
        overwrite=overwrite,
    )
    say.table(
        f"{protocol.value} on {result['split']}: "
        f"{result['videos']} videos, {result['views']} views, {len(result['skipped'])} skipped",
        ["class", "videos", "top-1", "95 % interval"],
        [*_classes(result), *_totals(result)],
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


def _classes(result: dict[str, Any]) -> list[tuple[object, ...]]:
    return [
        (row["class"], row["videos"], "" if row["top1"] is None else f"{row['top1']:.3f}", "")
        for row in result["per_class"]
    ]


def _totals(result: dict[str, Any]) -> list[tuple[object, ...]]:
    """Return the rows about all videos together."""

    def row(name: str, key: str) -> tuple[object, ...]:
        ends = result.get(f"{key}_interval")
        between = "" if ends is None else "{:.4f} to {:.4f}".format(*ends)
        return f"all: {name}", result["videos"], f"{result[key]:.4f}", between

    empty = result["classes_without_videos"]
    return [
        row("top-1", "top1"),
        row("top-5", "top5"),
        row("mean class" + (f", {empty} without videos" if empty else ""), "mean_class"),
        row("calibration error", "ece"),
        row("negative log-likelihood", "nll"),
        *(
            (f"all: {name} top-1", result["videos"], f"{top1:.4f}", "")
            for name, top1 in result.get("group_top1", {}).items()
        ),
    ]


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
