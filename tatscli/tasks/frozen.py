"""Nearest neighbours and probes on frozen features, of any encoder.

Shapes: Q stored features, R queries, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tatscli.data.drawn import DrawnViews
from tatscli.data.views import EvalViews
from tatscli.engine.checkpoint import Checkpoint
from tatscli.engine.device import full_precision
from tatscli.engine.rng import seed_torch
from tatscli.engine.session import Session
from tatscli.errors import DataError, RecipeError
from tatscli.evaluation.features import PooledFeatures, collect_features
from tatscli.evaluation.knn import knn_scores, whiten
from tatscli.evaluation.probe import choose_probe
from tatscli.evaluation.scores import ViewScores
from tatscli.evaluation.shots import draw_shots
from tatscli.evaluation.views import Skipped, as_is, score_views
from tatscli.nn.load import load_encoder
from tatscli.nn.probe import build_probe
from tatscli.nn.vit import Encoder, build_encoder
from tatscli.recipe.schema import Recipe
from tatscli.seeding import seed_of
from tatscli.store.reader import Store
from tatscli.system.drop import TokenDrop
from tatscli.tasks.dropping import evaluate_drop, motion_to_drop_by, scoring_facts
from tatscli.tasks.labels import labelled, labels_of
from tatscli.tasks.results import unreadable_videos


def frozen_encoder(recipe: Recipe, checkpoint: Checkpoint | None) -> Encoder:
    """Build the encoder with a checkpoint's weights, or with initial weights for None.

    Every training builds its encoder first, so that its initial weights depend only on the seed.

    Raises:
        RecipeError: If the recipe trains a tokenizer.
        CheckpointError: If the weights do not fit.
    """
    if recipe.tokenizer is not None:
        raise RecipeError(
            "this recipe trains a tokenizer: it has no encoder to evaluate",
            hint="`tats evaluate RUN` scores the reconstructions of a trained tokenizer",
        )
    seed_torch(recipe.run.seed)
    encoder = build_encoder(recipe.model, recipe.grid)
    if checkpoint is not None:
        load_encoder(encoder, checkpoint)
    return encoder.requires_grad_(False)


def score_neighbours(
    encoder: Encoder,
    recipe: Recipe,
    store: Store,
    here: Session,
    skipped: Skipped | None = None,
) -> tuple[ViewScores, dict[str, Any]]:
    """Classify every view by the vote of its nearest training videos, one centre view of each.

    Args:
        encoder: The frozen encoder.
        recipe: Gives the settings.
        store: Labelled videos.
        here: Device, precision and peers.
        skipped: Collects videos that cannot be read; with None the first one is an error.

    Returns:
        Shares of the vote, and further entries for the result.

    Raises:
        TatsError: If the recipe's layer or labels are missing.
    """
    settings = recipe.evaluate.knn
    drop = evaluate_drop(recipe, encoder)
    if drop is not None and settings.pool != "clip":
        raise RecipeError(
            f"`evaluate.knn.pool: {settings.pool}` needs all tokens, and `evaluate.drop` drops "
            "different ones in every clip",
            hint="`evaluate.knn.pool=clip` takes the mean of the tokens that are left",
        )
    groups = {"clip": 1, "slice": encoder.grid[0], "token": encoder.tokens}[settings.pool]
    model = PooledFeatures(encoder, groups, layer=recipe.evaluate.layer).to(here.device)
    rows = reference_rows(recipe, store, settings.split)
    views = EvalViews(
        store,
        rows,
        recipe.data,
        sampling=recipe.view_sampling,
        motion=motion_to_drop_by(drop, store, rows, recipe, here),
        patch=recipe.model.patch,
    )
    scored = scored_views(recipe, store, drop, here)
    stored, asked = (
        score_views(
            model,
            some,
            recipe,
            here,
            output=as_is,
            drop=drop,
            skipped=skipped,
            finite=True,
            description=f"features of {split}",
        )
        for some, split in ((views, settings.split), (scored, recipe.evaluate.split))
    )
    _refuse_no_neighbour(store, stored, asked, settings.split)
    stored_QD, asked_RD = stored.score_VL, asked.score_VL
    if settings.whiten is not None:
        stored_QD, asked_RD = whiten(stored_QD, asked_RD, settings.whiten)
    votes = knn_scores(
        asked_RD,
        stored_QD,
        stored.label_V,
        query_row_R=asked.row_V,
        stored_row_Q=stored.row_V,
        classes=len(store.class_names),
        neighbours=settings.neighbours,
        temperature=settings.temperature,
    )
    facts = scoring_facts(recipe, drop, scored, lambda: _features_of(recipe))
    used = _training_facts(rows, store, settings.split, skipped)
    return ViewScores(asked.row_V, asked.label_V, votes), {**used, **facts}


def _refuse_no_neighbour(store: Store, stored: ViewScores, asked: ViewScores, split: str) -> None:
    """Refuse a video whose only stored neighbour would be itself: nobody can vote on it.

    Raises:
        DataError: If there is one.
    """
    alone, *others = stored.row_V.unique().tolist()
    if not others and alone in asked.row_V.tolist():
        raise DataError(
            f"`{store.rows[alone].id}` has no neighbours: it is the only video of "
            f"`evaluate.knn.split: {split}`, and a video does not vote on itself",
            hint="`evaluate.knn.split` names the split whose videos vote, such as `train`",
        )


class Probed(nn.Module):
    """Frozen features and the probe on them, as one classifier of videos."""

    def __init__(self, features: PooledFeatures, probe: nn.Module) -> None:
        super().__init__()
        self.features = features
        self.probe = probe

    def forward(self, video_BCTHW: Tensor, visible_BK: Tensor | None = None) -> Tensor:
        """Score a standardised video: (B, classes); from some of its tokens, if given."""
        features_BX = self.features(video_BCTHW, visible_BK)
        with full_precision(features_BX.device):  # as it was trained
            return self.probe(features_BX.float())


def score_probe(
    encoder: Encoder,
    recipe: Recipe,
    store: Store,
    protocol: str,
    here: Session,
    skipped: Skipped | None = None,
) -> tuple[ViewScores, dict[str, Any]]:
    """Train a probe on features of the training videos, and score every view with it.

    The videos to score are not read before the probe is chosen and trained.

    Args:
        encoder: The frozen encoder.
        recipe: Gives the settings.
        store: Labelled videos.
        protocol: `linear` or `attentive`.
        here: Device, precision and peers.
        skipped: Collects videos that cannot be read; with None the first one is an error.

    Returns:
        Class probabilities, and further entries for the result.

    Raises:
        TatsError: If the recipe's layer, labels or queries do not fit, or features are too large.
    """
    settings, seed = recipe.evaluate.probe, recipe.run.seed
    attentive = protocol == "attentive"
    drop = evaluate_drop(recipe, encoder)
    left = encoder.tokens if drop is None else drop.kept
    model = PooledFeatures(encoder, left if attentive else 1, layer=recipe.evaluate.layer).to(
        here.device
    )
    start = build_probe(
        protocol,
        settings,
        width=encoder.width,
        heads=encoder.heads,
        classes=len(store.class_names),
        seed=seed_of("probe", seed),
    )
    rows = reference_rows(recipe, store, settings.split)
    views = DrawnViews(
        store,
        rows,
        recipe.data,
        sampling=recipe.view_sampling,
        augment=recipe.finetune.augment,
        views=settings.views,
        seed=seed,
        motion=motion_to_drop_by(drop, store, rows, recipe, here),
        patch=recipe.model.patch,
    )
    data = collect_features(
        model,
        views,
        recipe,
        here,
        dtype=torch.float16 if attentive and settings.precision == "float16" else torch.float32,
        drop=drop,
        skipped=skipped,
        description=f"features of {settings.split}",
    )
    chosen = choose_probe(start, data, settings, seed=seed, here=here)
    best = chosen.choice
    if best.top1 is not None:
        here.reporter.info(
            f"chose learning rate {best.rate:g} and weight decay {best.decay:g} of "
            f"{len(chosen.choices)}: top-1 {best.top1:.4f} on {chosen.held_out} videos held out of "
            f"`{settings.split}`"
        )
    asked = scored_views(recipe, store, drop, here)
    scored = score_views(
        Probed(model, chosen.probe),
        asked,
        recipe,
        here,
        drop=drop,
        skipped=skipped,
        finite=True,
        description=recipe.evaluate.split,
    )
    facts = {
        "rate": best.rate,
        "decay": best.decay,
        "held_out": chosen.held_out,
        "choices": [
            {"rate": one.rate, "decay": one.decay, "top1": one.top1, "loss": one.loss}
            for one in chosen.choices
        ],
        "views": settings.views,
        "parameters": sum(parameter.numel() for parameter in start.parameters()),
    }
    if attentive:
        facts["form"] = settings.form
        facts["queries"] = settings.queries if settings.form == "efficient" else 1
    tokens = scoring_facts(recipe, drop, asked, lambda: _features_of(recipe))
    return scored, {
        **_training_facts(rows, store, settings.split, skipped),
        "probe": facts,
        **tokens,
    }


def reference_rows(recipe: Recipe, store: Store, split: str) -> list[int]:
    """Return the rows of a split whose labels may be used: all, or `evaluate.shots` of each class.

    Raises:
        DataError: If labels are missing, or a class has fewer videos.
    """
    rows = labelled(store, split)
    shots = recipe.evaluate.shots
    if shots is None:
        return rows
    labels = labels_of(store, rows)
    return draw_shots(rows, labels, shots, seed=recipe.run.seed, names=store.class_names)


def scored_views(recipe: Recipe, store: Store, drop: TokenDrop | None, here: Session) -> EvalViews:
    """Return the views of the split that is scored, with motion if tokens are dropped by it.

    Raises:
        DataError: If labels are missing, or motion is missing and the recipe allows no fallback.
    """
    rows = labelled(store, recipe.evaluate.split)
    return EvalViews(
        store,
        rows,
        recipe.data,
        sampling=recipe.view_sampling,
        segments=recipe.evaluate.segments,
        crops=recipe.evaluate.crops,
        motion=motion_to_drop_by(drop, store, rows, recipe, here),
        patch=recipe.model.patch,
    )


def _training_facts(
    rows: list[int], store: Store, split: str, skipped: Skipped | None
) -> dict[str, Any]:
    """Return how many labelled videos were used, and which were skipped."""
    left_out = unreadable_videos(skipped, store, split, rows)
    read = [row for row in rows if not skipped or row not in skipped]
    return {"train_videos": len(read), "train_skipped": left_out}


def _features_of(recipe: Recipe) -> PooledFeatures:
    """Build the network of one clip feature, to count its operations."""
    return PooledFeatures(build_encoder(recipe.model, recipe.grid), layer=recipe.evaluate.layer)
