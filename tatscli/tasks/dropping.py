"""Token dropping in fine-tuning and evaluation: what `drop` needs, and what it costs.

Shapes: K tokens kept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tatscli.data.motion_source import MotionSource
from tatscli.data.views import EvalViews
from tatscli.engine.session import Session
from tatscli.evaluation.features import PooledFeatures
from tatscli.nn.classifier import Classifier
from tatscli.nn.vit import Encoder
from tatscli.recipe.schema import FixedMask, Recipe
from tatscli.store.reader import Store
from tatscli.system.cost import count_flops
from tatscli.system.drop import TokenDrop


def finetune_drop(recipe: Recipe, encoder: Encoder) -> TokenDrop | None:
    """Return the token dropping of training clips, if there is any.

    Raises:
        RecipeError: If the mask would keep no token, or drop none.
    """
    return _drop(recipe.finetune.drop, "finetune.drop", recipe, encoder)


def evaluate_drop(recipe: Recipe, encoder: Encoder) -> TokenDrop | None:
    """Return the token dropping of evaluated views, if there is any; raises as `finetune_drop`."""
    return _drop(recipe.evaluate.drop, "evaluate.drop", recipe, encoder)


def _drop(config: FixedMask | None, key: str, recipe: Recipe, encoder: Encoder) -> TokenDrop | None:
    return None if config is None else TokenDrop(config, key=key, recipe=recipe, encoder=encoder)


def motion_to_drop_by(
    drop: TokenDrop | None, store: Store, rows: list[int], recipe: Recipe, here: Session
) -> MotionSource | None:
    """Return the source of motion for the mask, if it follows motion; warn of videos without any.

    Raises:
        DataError: If there are such videos and the recipe allows no fallback.
    """
    if drop is None or not drop.needs_motion:
        return None
    source = MotionSource(store, recipe.data.motion)
    unknown = len(source.unknown(rows))  # on all ranks: it may refuse
    if unknown:
        here.reporter.warn(
            f"{unknown} of {len(rows)} videos have no motion: for them `{drop.key}.kind: "
            f"{drop.masker.config.kind}` falls back to `{recipe.data.motion.fallback}`"
        )
    return source


def scoring_facts(
    recipe: Recipe,
    drop: TokenDrop | None,
    views: EvalViews,
    build: Callable[[], Classifier | PooledFeatures],
) -> dict[str, Any]:
    """Return `token_facts`, and the number of evaluated videos without motion to drop tokens by."""
    source = views.motion_source
    unknown = {} if source is None else {"videos_without_motion": len(source.unknown(views.rows))}
    return token_facts(recipe, drop, build) | unknown


def token_facts(
    recipe: Recipe, drop: TokenDrop | None, build: Callable[[], Classifier | PooledFeatures]
) -> dict[str, Any]:
    """Return `tokens`, `tokens_kept` and `gflops_per_clip` of a forward pass of one view.

    For a mask that needs patch embeddings, all patches are embedded once more.

    Args:
        recipe: Says how large a view is.
        drop: The token dropping, if any.
        build: Makes the model; on the meta device, where it costs nothing.
    """
    t, h, w = recipe.grid
    tokens = t * h * w
    kept = tokens if drop is None else drop.kept
    with torch.device("meta"):
        model = build()
        video_BCTHW = torch.zeros(1, 3, recipe.data.frames, *recipe.data.view_size)
        given = () if drop is None else (torch.arange(kept)[None],)
        flops = count_flops(lambda: model(video_BCTHW, *given))
        if drop is not None and drop.masker.needs_embeddings:
            encoder = model.encoder
            flops += count_flops(lambda: encoder.embed(encoder.cubes(video_BCTHW)))
    return {"tokens": tokens, "tokens_kept": kept, "gflops_per_clip": flops / 1e9}
