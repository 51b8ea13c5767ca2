"""Features of a frozen encoder, computed once and kept in memory.

Shapes: B batch, C channels, T frames, H and W pixels, N tokens, K of them, D width, R videos, V
views of a video, X numbers of a feature.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tatscli.data.views import EvalViews
from tatscli.engine import distributed
from tatscli.engine.session import Session
from tatscli.errors import RecipeError
from tatscli.evaluation.views import Skipped, run_views, share_skipped
from tatscli.machine import GB
from tatscli.nn.vit import Encoder
from tatscli.recipe.schema import Recipe
from tatscli.store.reader import Store
from tatscli.system.drop import TokenDrop


class PooledFeatures(nn.Module):
    """The frozen encoder, followed by means over groups of tokens, concatenated.

    Args:
        encoder: The encoder.
        groups: Number of groups of consecutive tokens that are averaged: 1, slices or tokens of a
            clip; of the remaining tokens where some are dropped.
        layer: Blocks to run; None runs all, and the last norm.

    Raises:
        RecipeError: If the encoder has fewer blocks.
    """

    def __init__(self, encoder: Encoder, groups: int = 1, *, layer: int | None = None) -> None:
        super().__init__()
        if layer is not None and layer > encoder.depth:
            raise RecipeError(
                f"`evaluate.layer: {layer}` is more than the encoder's {encoder.depth} blocks",
                hint=f"allowed are 0 (the patch embeddings) to {encoder.depth}, and null",
            )
        self.encoder = encoder
        self.groups = groups
        self.layer = layer

    @property
    def numbers(self) -> int:
        """Length of a feature: groups x D."""
        return self.groups * self.encoder.width

    def forward(self, video_BCTHW: Tensor, visible_BK: Tensor | None = None) -> Tensor:
        """Return one feature per clip, (B, groups x D); from some tokens, if given."""
        tokens_BKD = self.tokens(video_BCTHW, visible_BK)
        return tokens_BKD.unflatten(1, (self.groups, -1)).mean(dim=2).flatten(1)

    def tokens(self, video_BCTHW: Tensor, visible_BK: Tensor | None = None) -> Tensor:
        """Return the tokens before averaging: (B, K, D)."""
        tokens_BKD = self.encoder.embed(self.encoder.cubes(video_BCTHW, visible_BK))
        if self.layer is None:
            return self.encoder(tokens_BKD, visible_BK)
        return self.encoder.features(tokens_BKD, visible_BK, depth=self.layer)


@dataclass(frozen=True, slots=True)
class Features:
    """Features of videos.

    Attributes:
        row_R: Manifest row of each video, int64, in the order of the views' rows.
        label_R: Its class, int64.
        value_RVX: The features of its views.
        source_R: Number of the file it was cut from, int64; None where each has its own.
    """

    row_R: Tensor
    label_R: Tensor
    value_RVX: Tensor
    source_R: Tensor | None = None


def collect_features(
    model: PooledFeatures,
    views: EvalViews,
    recipe: Recipe,
    here: Session,
    *,
    dtype: torch.dtype,
    drop: TokenDrop | None = None,
    skipped: Skipped | None = None,
    description: str = "features",
) -> Features:
    """Run the encoder once over all views, spread over the ranks; every rank keeps all features.

    The order of features depends only on video and view, not on ranks or batches.

    Args:
        model: Computes features.
        views: The views to run over.
        recipe: Gives normalisation, batch size and memory limit.
        here: Device, precision and peers.
        dtype: Data type in which features are kept.
        drop: Drops tokens of every view.
        skipped: Collects videos that cannot be read, which are not in the result; with None the
            first one is an error.
        description: Label of the progress bar.

    Raises:
        RecipeError: If features need more memory than the recipe allows, or overflow `dtype`.
        DataError: If a video cannot be read and `skipped` is None, or none can be read.
        CheckpointError: If features are not finite.
    """
    videos, settings = len(views.rows), recipe.evaluate.probe
    shape = (videos, views.views, model.numbers)
    refuse_too_large(shape, dtype, settings.cache_gb)
    place = {row: number for number, row in enumerate(views.rows)}
    value_RVX = torch.empty(shape, dtype=dtype)
    label_R = torch.empty(videos, dtype=torch.int64)
    arriving = run_views(
        model,
        views,
        recipe,
        here,
        drop=drop,
        skipped=skipped,
        finite=True,
        description=description,
    )
    # Ranks exchange features batch by batch, so that only one batch of each is in transit; ranks
    # with fewer videos add nothing at the end.
    mine = -(-videos // here.world.size) * views.views
    for _ in range(-(-mine // recipe.evaluate.batch_per_device)):
        found = next(arriving, None)
        sent = []
        if found is not None:
            batch, output_BX = found
            kept_BX = output_BX.to(dtype).cpu()
            if not kept_BX.isfinite().all():
                raise RecipeError(
                    f"features as large as {float(output_BX.abs().max()):.3g} overflow {dtype}",
                    hint="set `evaluate.probe.precision=float32`",
                )
            sent = [(batch.row_B, batch.view_B, batch.label_B, kept_BX)]
        for row_B, view_B, label_B, part_BX in distributed.gathered(sent):
            place_B = torch.tensor([place[row] for row in row_B.tolist()])
            value_RVX[place_B, view_B] = part_BX
            label_R[place_B] = label_B
    share_skipped(skipped, views)
    left = [at for at, row in enumerate(views.rows) if not skipped or row not in skipped]
    rows = [views.rows[at] for at in left]
    if len(left) < videos:
        label_R, value_RVX = label_R[left], value_RVX[left]
    return Features(torch.tensor(rows), label_R, value_RVX, source_numbers(views.store, rows))


def source_numbers(store: Store, rows: Sequence[int]) -> Tensor:
    """Number the files that rows were cut from, in order of appearance: int64 (R,)."""
    numbers: dict[str, int] = {}
    names = [store.rows[row].path or store.rows[row].id for row in rows]
    return torch.tensor([numbers.setdefault(name, len(numbers)) for name in names])


def refuse_too_large(shape: tuple[int, int, int], dtype: torch.dtype, limit_gb: float) -> None:
    """Refuse features that need more memory than the recipe allows.

    Raises:
        RecipeError: If so.
    """
    videos, views, numbers = shape
    need = videos * views * numbers * dtype.itemsize / GB
    if need > limit_gb:
        raise RecipeError(
            f"the features of {videos} videos x {views} views need {need:.3g} GB in each process, "
            f"more than `evaluate.probe.cache_gb: {limit_gb:g}`",
            hint="raise the limit if there is enough memory; otherwise use fewer labels "
            "(`evaluate.shots`), fewer `evaluate.probe.views`, or `--protocol linear`, which keeps "
            "one mean per clip",
        )
