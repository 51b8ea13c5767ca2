"""Running a model over every view of a split, in evaluation mode.

Shapes: B batch, V views, L classes or D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from tatscli.data.batch import Batch
from tatscli.data.loader import evaluation_batches, worker_count
from tatscli.data.normalize import standardized
from tatscli.data.views import EvalViews
from tatscli.engine import distributed
from tatscli.engine.device import autocast
from tatscli.engine.session import Session
from tatscli.engine.signals import heeding
from tatscli.errors import CheckpointError, DataError
from tatscli.evaluation.scores import ViewScores
from tatscli.recipe.schema import Recipe
from tatscli.system.drop import TokenDrop

Skipped = dict[int, str]
"""Rows of skipped videos, and why they cannot be read."""


def score_views(
    model: nn.Module,
    views: EvalViews,
    recipe: Recipe,
    here: Session,
    *,
    output: Callable[[Tensor], Tensor] | None = None,
    drop: TokenDrop | None = None,
    skipped: Skipped | None = None,
    finite: bool = False,
    description: str = "score",
) -> ViewScores:
    """Run `model` over all views, spread over the ranks, and return every rank's results.

    Identical views of a video are computed once and repeated in the result.

    Args:
        model: Maps standardised video to (B, L); put in evaluation mode.
        views: The views to run over.
        recipe: Gives normalisation and batch size.
        here: Device, precision and peers.
        output: Applied to the model's float32 output; softmax by default.
        drop: Drops tokens of every view; the model then also takes the tokens to keep, (B, K).
        skipped: Collects videos of all ranks that cannot be read; no view of them is in the result.
            With None the first one is an error.
        finite: Refuse outputs that are not finite.
        description: Label of the progress bar.

    Raises:
        DataError: If a video cannot be read and `skipped` is None, or none can be read.
        CheckpointError: If an output is not finite and `finite` is set.
    """
    finish = output or (lambda logits: logits.softmax(dim=-1))
    rows, labels, outputs = list[Tensor](), list[Tensor](), list[Tensor]()
    for batch, result in run_views(
        model,
        views,
        recipe,
        here,
        drop=drop,
        skipped=skipped,
        finite=finite,
        distinct=drop is None,  # tokens are left out of each view by its number
        description=description,
    ):
        times_B = torch.ones_like(batch.row_B)
        if drop is None:
            pairs = zip(batch.row_B.tolist(), batch.view_B.tolist(), strict=True)
            times_B = torch.tensor([views.alike(row).count(view) for row, view in pairs])
        rows.append(batch.row_B.repeat_interleave(times_B))
        labels.append(batch.label_B.repeat_interleave(times_B))
        outputs.append(finish(result).cpu().repeat_interleave(times_B, dim=0))
    # A rank without views has nothing to add.
    mine = [(torch.cat(rows), torch.cat(labels), torch.cat(outputs))] if rows else []
    parts = distributed.gathered(mine)
    share_skipped(skipped, views)
    row_V, label_V, score_VL = (torch.cat(column) for column in zip(*parts, strict=True))
    if skipped:  # other views of theirs may have been read before
        kept_V = ~torch.isin(row_V, torch.tensor(list(skipped)))
        row_V, label_V, score_VL = row_V[kept_V], label_V[kept_V], score_VL[kept_V]
    return ViewScores(row_V, label_V, score_VL)


def as_is(output_BD: Tensor) -> Tensor:
    """Return a model's output unchanged; for `score_views` of features."""
    return output_BD


def run_views(
    model: nn.Module,
    views: EvalViews,
    recipe: Recipe,
    here: Session,
    *,
    drop: TokenDrop | None = None,
    skipped: Skipped | None = None,
    finite: bool = False,
    distinct: bool = False,
    description: str,
) -> Iterator[tuple[Batch, Tensor]]:
    """Run `model`, in evaluation mode and without gradient, over this rank's share of the views.

    Arguments and errors are those of `score_views`; `skipped` gets only this rank's videos, and
    readable views of skipped videos may be yielded. `distinct` leaves out views that are identical
    to an earlier one of their video.

    Yields:
        Batches, on the CPU, and the model's float32 outputs, on its device.
    """
    model.eval()
    size = recipe.evaluate.batch_per_device
    items = views.items(rank=here.world.rank, world=here.world.size, distinct=distinct)
    batches = evaluation_batches(
        views,
        batch=size,
        workers=worker_count(recipe.data.workers, local_ranks=here.world.local_size),
        items=items,
        timeout=recipe.data.timeout,
        on_bad=None if skipped is None else skipped.setdefault,
    )
    steps = -(-len(items) // size)
    for batch in here.reporter.progress(
        heeding(batches), total=steps, description=description, unit="batch"
    ):
        pixels_BCTHW = batch.video_BCTHW.to(here.device, non_blocking=True)
        video_BCTHW = standardized(pixels_BCTHW, recipe.data.mean, recipe.data.std)
        # Entered for every batch: a generator must not leave its caller in inference mode.
        with torch.inference_mode(), autocast(here.device, here.dtype):
            if drop is None:
                result = model(video_BCTHW).float()
            else:
                result = model(video_BCTHW, _kept(drop, batch, pixels_BCTHW)).float()
        if finite:
            refuse_not_finite(result, batch, views)
        yield batch, result


def share_skipped(skipped: Skipped | None, views: EvalViews) -> None:
    """Exchange the skipped videos between all ranks.

    Raises:
        DataError: If no video of `views` is left.
    """
    if skipped is None:
        return
    for part in distributed.gathered([dict(skipped)]):
        skipped |= part
    bad = [row for row in views.rows if row in skipped]
    if len(bad) == len(views.rows):
        raise DataError(
            f"none of the {len(bad)} videos can be read; the first: {skipped[bad[0]]}",
            hint="`tats store verify STORE` checks the store",
        )


def refuse_not_finite(result_BL: Tensor, batch: Batch, views: EvalViews) -> None:
    """Refuse outputs that are not finite.

    Raises:
        CheckpointError: If there are some; it names the first video and view.
    """
    finite_B = result_BL.isfinite().flatten(1).all(dim=1)
    if finite_B.all():
        return
    place = int((~finite_B).nonzero()[0])
    name, number = views.name(int(batch.row_B[place])), int(batch.view_B[place])
    raise CheckpointError(
        f"the model's outputs for view {number} of `{name}` are not finite",
        hint="take an earlier checkpoint of the run (`RUN/checkpoints/step-...`); with bf16 also "
        "try `run.precision=fp32`",
    )


def _kept(drop: TokenDrop, batch: Batch, pixels_BCTHW: Tensor) -> Tensor:
    device = pixels_BCTHW.device
    motion = None if batch.motion is None else batch.motion.to(device)
    rows, views = batch.row_B.tolist(), batch.view_B.tolist()
    return drop.to(device).fixed(pixels_BCTHW, motion, rows, views)
