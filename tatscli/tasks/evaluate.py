"""Evaluation: a fine-tuned classifier over segments x crops, or nearest neighbours on frozen
features.

Shapes: B batch, C channels, T frames, D width.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from tatscli.console import Reporter
from tatscli.data.dataset import EvalViews
from tatscli.engine.session import Session, session
from tatscli.errors import CheckpointError, DataError, UsageError
from tatscli.evaluation.knn import knn_scores, whiten
from tatscli.evaluation.scores import ViewScores, merge_views, summarise
from tatscli.evaluation.views import score_views
from tatscli.files import write_safely
from tatscli.nn.load import LoadedRun, copy_weights, load_encoder, open_checkpoint
from tatscli.nn.vit import Encoder, build_encoder
from tatscli.recipe.load import override_recipe
from tatscli.recipe.schema import Recipe, Sampling
from tatscli.store.reader import Store
from tatscli.tasks.finetune import build_classifier, labelled

Protocol = Literal["finetuned", "knn"]


class PooledFeatures(nn.Module):
    """The frozen encoder over all tokens, final norm, means of groups of tokens, joined.

    Args:
        encoder: The encoder.
        groups: Runs of tokens that are averaged: 1, slices or tokens of a clip.
    """

    def __init__(self, encoder: Encoder, groups: int = 1) -> None:
        super().__init__()
        self.encoder = encoder
        self.groups = groups

    def forward(self, video_BCTHW: Tensor) -> Tensor:
        """Return one feature per clip: (B, groups x D)."""
        tokens_BND = self.encoder(self.encoder.embed(self.encoder.cubes(video_BCTHW)))
        return tokens_BND.unflatten(1, (self.groups, -1)).mean(dim=2).flatten(1)


def evaluate(
    path: Path | str,
    *,
    reporter: Reporter,
    protocol: Protocol = "finetuned",
    overrides: Sequence[str] = (),
    prefer: Literal["last", "best"] = "last",
    out: Path | str | None = None,
) -> dict[str, Any]:
    """Score a run on a split of its recipe's store; a video that cannot be read stops the
    evaluation.

    Args:
        path: Run or checkpoint folder.
        reporter: Speaks to the user.
        protocol: `finetuned` needs a fine-tuned run; `knn` takes any.
        overrides: Recipe keys to change, such as `evaluate.segments=5`.
        prefer: Which checkpoint of a run to take.
        out: Where the result is written; by default in the run (`results_path`).

    Returns:
        The results object: protocol, split, counts of videos and views, top-1, top-5, per-class
            table,
        confusion matrix, hashes of checkpoint and store.

    Raises:
        TatsError: If run, store or labels cannot be used.
    """
    if out is not None and Path(out).is_dir():
        raise UsageError(f"`{out}` is a folder", hint="name a file, such as `result.json`")
    began = time.perf_counter()
    run = open_checkpoint(path, prefer=prefer)
    recipe = override_recipe(run.recipe, overrides, origin=run.checkpoint.path)
    store = Store.open(recipe.data.store)
    names = list(run.checkpoint.meta.get("class_names") or store.class_names)
    with session(recipe.run, reporter) as here:
        if protocol == "finetuned":
            views = _finetuned(run, recipe, store, names, here)
        else:
            views = _knn(run, recipe, store, names, here)
        videos = merge_views(views)
        result: dict[str, Any] = {
            "protocol": protocol,
            "split": recipe.evaluate.split,
            "segments": recipe.evaluate.segments,
            "crops": recipe.evaluate.crops,
            "videos": len(videos.row_V),
            "views": len(views.row_V),
            **summarise(videos, names),
            "class_names": names,
            "checkpoint": str(run.checkpoint.path),
            "checkpoint_sha256": run.checkpoint.digest(),
            "step": run.checkpoint.step,
            "store": str(store.path),
            "store_fingerprint": store.fingerprint(),
            "trained_on": run.checkpoint.meta["store_fingerprint"],
            "recipe": recipe.model_dump(mode="json"),
            "tats": run.checkpoint.meta["tats"],
            "seconds": round(time.perf_counter() - began, 3),
        }
        target = Path(out) if out is not None else results_path(result, Path(path), prefer)
        result["results"] = str(target)
        if here.world.main:
            target.parent.mkdir(parents=True, exist_ok=True)
            write_safely(target, json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    return result


def _finetuned(
    run: LoadedRun, recipe: Recipe, store: Store, names: list[str], here: Session
) -> ViewScores:
    """Class probabilities of every view by the fine-tuned classifier."""
    if run.checkpoint.kind != "finetuned":
        raise CheckpointError(
            f"`{run.checkpoint.path}` is a {run.checkpoint.kind} run: "
            "it has no classifier to evaluate",
            hint="train one with `tats finetune RUN`, or use `--protocol knn`, which needs none",
        )
    rows = labelled(store, recipe.evaluate.split)
    _refuse_other_classes(store, names)
    model = build_classifier(recipe, classes=len(names))
    copy_weights(model, run.checkpoint.tensors("model"), run.checkpoint)
    views = EvalViews(
        store,
        rows,
        recipe.data,
        sampling=view_sampling(recipe),
        segments=recipe.evaluate.segments,
        crops=recipe.evaluate.crops,
    )
    return score_views(model.to(here.device), views, recipe, here, description="evaluate")


def _knn(
    run: LoadedRun, recipe: Recipe, store: Store, names: list[str], here: Session
) -> ViewScores:
    """Votes of the nearest training videos for every view; neighbours are one centre view each."""
    settings = recipe.evaluate.knn
    encoder = build_encoder(recipe.model, recipe.grid)
    load_encoder(encoder, run.checkpoint)
    groups = {"clip": 1, "slice": encoder.grid[0], "token": encoder.tokens}[settings.pool]
    model = PooledFeatures(encoder, groups).to(here.device)
    _refuse_other_classes(store, names)

    def features(split: str, segments: int, crops: int) -> ViewScores:
        views = EvalViews(
            store,
            labelled(store, split),
            recipe.data,
            sampling=view_sampling(recipe),
            segments=segments,
            crops=crops,
        )
        return score_views(
            model, views, recipe, here, output=lambda out: out, description=f"features of {split}"
        )

    stored = features(settings.split, 1, 1)
    asked = features(recipe.evaluate.split, recipe.evaluate.segments, recipe.evaluate.crops)
    stored_QD, asked_RD = stored.score_VL, asked.score_VL
    if settings.whiten is not None:
        stored_QD, asked_RD = whiten(stored_QD, asked_RD, settings.whiten)
    votes = knn_scores(
        asked_RD,
        stored_QD,
        stored.label_V,
        query_row_R=asked.row_V,
        stored_row_Q=stored.row_V,
        classes=len(names),
        neighbours=settings.neighbours,
        temperature=settings.temperature,
    )
    return ViewScores(asked.row_V, asked.label_V, votes)


def view_sampling(recipe: Recipe) -> Sampling:
    """Return how evaluation draws its frames: its own way, else fine-tuning's, else the data's."""
    return recipe.evaluate.sampling or recipe.finetune.sampling or recipe.data.sampling


def _refuse_other_classes(store: Store, names: list[str]) -> None:
    if store.class_names != names:
        raise DataError(
            f"the classes of `{store.path}` ({len(store.class_names)}) are not those the run was "
            f"trained on ({len(names)})",
            hint="evaluate on a store prepared with the same `labels.txt` or class folders",
        )


def results_path(result: dict[str, Any], run: Path, prefer: str) -> Path:
    """Return where a result belongs: in the run, named by what was done."""
    views = f"{result['segments']}x{result['crops']}"
    best = "-best" if prefer == "best" else ""
    home = run if (run / "checkpoints").is_dir() else Path(result["checkpoint"]).parents[1]
    return home / "results" / f"{result['protocol']}-{result['split']}-{views}{best}.json"
