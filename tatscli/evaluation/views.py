"""Running a frozen model over every view of a split.

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
from tatscli.evaluation.scores import ViewScores
from tatscli.recipe.schema import Recipe
from tatscli.system.drop import TokenDrop


def score_views(
    model: nn.Module,
    views: EvalViews,
    recipe: Recipe,
    here: Session,
    *,
    output: Callable[[Tensor], Tensor] | None = None,
    drop: TokenDrop | None = None,
    description: str = "score",
) -> ViewScores:
    """Run `model` over all views, spread over the ranks, and return every rank's results.

    Args:
        model: Maps standardised video to (B, L); put in evaluation mode.
        views: What to run over; a clip that cannot be read stops the evaluation.
        recipe: Says how pixels are standardised, and the batch.
        here: Device, precision and peers.
        output: Applied to the model's float32 output; softmax by default.
        drop: Leaves tokens out of every view; the model then takes those that are kept, (B, K),
            as well.
        description: Label of the progress bar.
    """
    finish = output or (lambda logits: logits.softmax(dim=-1))
    rows, labels, outputs = list[Tensor](), list[Tensor](), list[Tensor]()
    for batch, result in run_views(model, views, recipe, here, drop=drop, description=description):
        rows.append(batch.row_B)
        labels.append(batch.label_B)
        outputs.append(finish(result).cpu())
    # A rank beyond the last view has nothing to add.
    mine = [(torch.cat(rows), torch.cat(labels), torch.cat(outputs))] if rows else []
    parts = distributed.gathered(mine)
    row_V, label_V, score_VL = (torch.cat(column) for column in zip(*parts, strict=True))
    return ViewScores(row_V, label_V, score_VL)


def run_views(
    model: nn.Module,
    views: EvalViews,
    recipe: Recipe,
    here: Session,
    *,
    drop: TokenDrop | None = None,
    description: str,
) -> Iterator[tuple[Batch, Tensor]]:
    """Run `model`, in evaluation mode and without gradient, over this rank's share of the views.

    Arguments are those of `score_views`.

    Yields:
        Batches, on the CPU, and the model's float32 outputs, where the model is.
    """
    model.eval()
    batches = evaluation_batches(
        views,
        batch=recipe.evaluate.batch_per_device,
        workers=worker_count(recipe.data.workers, local_ranks=here.world.local_size),
        rank=here.world.rank,
        world=here.world.size,
    )
    steps = -(-len(views) // (recipe.evaluate.batch_per_device * here.world.size))
    for batch in here.reporter.progress(
        batches, total=steps, description=description, unit="batch"
    ):
        pixels_BCTHW = batch.video_BCTHW.to(here.device, non_blocking=True)
        video_BCTHW = standardized(pixels_BCTHW, recipe.data.mean, recipe.data.std)
        # Entered anew for every batch: a generator must not leave its caller without gradients.
        with torch.inference_mode(), autocast(here.device, here.dtype):
            if drop is None:
                result = model(video_BCTHW).float()
            else:
                result = model(video_BCTHW, _kept(drop, batch, pixels_BCTHW)).float()
        yield batch, result


def _kept(drop: TokenDrop, batch: Batch, pixels_BCTHW: Tensor) -> Tensor:
    device = pixels_BCTHW.device
    motion = None if batch.motion is None else batch.motion.to(device)
    rows, views = batch.row_B.tolist(), batch.view_B.tolist()
    return drop.to(device).fixed(pixels_BCTHW, motion, rows, views)
