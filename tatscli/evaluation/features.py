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
    """The frozen encoder over all tokens or some, means of groups of them, joined.

    Args:
        encoder: The encoder.
        groups: Runs of tokens that are averaged: 1, slices or tokens of a clip; of what is left,
            where tokens are left out.
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
        """Numbers of a feature: groups x D."""
        return self.groups * self.encoder.width

    def forward(self, video_BCTHW: Tensor, visible_BK: Tensor | None = None) -> Tensor:
        """Return one feature per clip, (B, groups x D); of some tokens, where they are named."""
        tokens_BKD = self.tokens(video_BCTHW, visible_BK)
        return tokens_BKD.unflatten(1, (self.groups, -1)).mean(dim=2).flatten(1)

    def tokens(self, video_BCTHW: Tensor, visible_BK: Tensor | None = None) -> Tensor:
        """Return the tokens that features are means of: (B, K, D)."""
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
        value_RVX: Its views' features.
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

    Where a feature is kept depends on its video and view alone, not on ranks or batches.

    Args:
        model: What makes features.
        views: What to run over.
        recipe: Says how pixels are standardised, the batch, and how much memory may be taken.
        here: Device, precision and peers.
        dtype: What features wait as.
        drop: Leaves tokens out of every view.
        skipped: Where videos that cannot be read are entered; the result is without them. None lets
            the first one stop the evaluation.
        description: Label of the progress bar.

    Raises:
        RecipeError: If they take more memory than the recipe allows, or numbers than `dtype` holds.
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
    # Ranks go batch by batch together, so that no more than a batch of each is on its way; those
    # with fewer videos have nothing to add at the end.
    mine = -(-videos // here.world.size) * views.views
    for _ in range(-(-mine // recipe.evaluate.batch_per_device)):
        found = next(arriving, None)
        sent = []
        if found is not None:
            batch, output_BX = found
            kept_BX = output_BX.to(dtype).cpu()
            if not kept_BX.isfinite().all():
                raise RecipeError(
                    f"features as large as {float(output_BX.abs().max()):.3g} do not fit into "
                    f"{dtype}",
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
    """Number the files that rows were cut from, in the order they come: int64 (R,)."""
    numbers: dict[str, int] = {}
    names = [store.rows[row].path or store.rows[row].id for row in rows]
    return torch.tensor([numbers.setdefault(name, len(numbers)) for name in names])


def refuse_too_large(shape: tuple[int, int, int], dtype: torch.dtype, limit_gb: float) -> None:
    """Refuse features that take more memory than the recipe allows.

    Raises:
        RecipeError: If so.
    """
    videos, views, numbers = shape
    need = videos * views * numbers * dtype.itemsize / GB
    if need > limit_gb:
        raise RecipeError(
            f"the features of {videos} videos x {views} views take {need:.3g} GB in each process, "
            f"more than `evaluate.probe.cache_gb: {limit_gb:g}`",
            hint="if the memory is there, raise it; else fewer labels (`evaluate.shots`), fewer "
            "`evaluate.probe.views`, or `--protocol linear`, which keeps one mean of a clip",
        )
