"""Evaluation: a fine-tuned classifier over segments x crops views, or nearest neighbours and
probes on frozen features."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from tatscli.console import Reporter
from tatscli.engine.checkpoint import Checkpoint
from tatscli.engine.run import describe_run
from tatscli.engine.session import Session, session
from tatscli.engine.threads import use_threads
from tatscli.errors import CheckpointError, DataError, RecipeError, UsageError
from tatscli.evaluation.scores import ViewScores
from tatscli.evaluation.views import Skipped, score_views
from tatscli.nn.classifier import build_classifier, groups_of
from tatscli.nn.load import LoadedRun, open_checkpoint, positions_moved
from tatscli.nn.trained import load_classifier
from tatscli.nn.vit import model_size
from tatscli.recipe.load import load_recipe, override_recipe, with_protocol
from tatscli.recipe.schema import Recipe
from tatscli.store.reader import Store
from tatscli.tasks.dropping import evaluate_drop, scoring_facts
from tatscli.tasks.failed_rows import take_failed
from tatscli.tasks.frozen import (
    frozen_encoder,
    score_neighbours,
    score_probe,
    scored_views,
)
from tatscli.tasks.labels import divided, labelled
from tatscli.tasks.measures import measures
from tatscli.tasks.pretrain import pretrain_folder
from tatscli.tasks.result_files import checked_out, find_place, save_result
from tatscli.tasks.results import results_home, unreadable_videos
from tatscli.weights.paths import is_foreign

Protocol = Literal["finetuned", "knn", "linear", "attentive"]


@dataclass(frozen=True, slots=True)
class Subject:
    """What is evaluated.

    Attributes:
        recipe: Overrides included.
        checkpoint: The weights; None for initial weights.
        home: The run folder, where results go.
    """

    recipe: Recipe
    checkpoint: Checkpoint | None
    home: Path

    @property
    def trained_frames(self) -> int | None:
        """Frames of the clips that the weights were trained on."""
        return self.checkpoint.recipe.data.frames if self.checkpoint else None


def evaluate(
    path: Path | str,
    *,
    reporter: Reporter,
    protocol: Protocol = "finetuned",
    overrides: Sequence[str] = (),
    prefer: Literal["last", "best"] = "last",
    untrained: bool = False,
    protocol_of: str | None = None,
    skip_bad: bool = False,
    out: Path | str | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Score a run on a split of its recipe's store.

    Args:
        path: Run or checkpoint folder; with `untrained` also a recipe.
        reporter: Speaks to the user.
        protocol: `finetuned` needs a fine-tuned run; the others take any, and freeze its encoder.
        overrides: Recipe keys to change, such as `evaluate.segments=5`.
        prefer: Which checkpoint of a run to take.
        untrained: Evaluate the encoder with its initial weights: the baseline for training.
        protocol_of: A recipe to take store, sampling and views from, for weights that come without
            one.
        skip_bad: Skip videos that cannot be read or prepared, and list them in the result;
            otherwise the first one stops the evaluation.
        out: Where the result is written; by default in the run (`results_path`).
        overwrite: Replace what is at `out`.

    Returns:
        The result: protocol, split, counts of videos, views and tokens, top-1, top-5 and mean-class
            accuracy with intervals, calibration, per-class table, confusion matrix, accuracy by
            duration, and what is needed to repeat the evaluation: command, versions, hashes of
            checkpoint and store; for a probe, how it was chosen.

    Raises:
        TatsError: If run, store or labels cannot be used, a video cannot be read, or scores are not
            finite.
    """
    target = checked_out(out, overwrite=overwrite)
    began = time.perf_counter()
    subject = open_subject(
        path, overrides, prefer=prefer, untrained=untrained, protocol_of=protocol_of
    )
    place = find_place(
        target, subject.home, prefer, reporter, trained_frames=subject.trained_frames
    )
    recipe, checkpoint, drop = subject.recipe, subject.checkpoint, subject.recipe.evaluate.drop
    if protocol == "finetuned":
        _refuse_frozen_settings(recipe, untrained=untrained)
        assert checkpoint is not None
        _refuse_no_classifier(checkpoint)
    store = divided(recipe, Store.open(recipe.data.store))
    meta = checkpoint.meta if checkpoint else {}
    names, groups = store.class_names, store.class_groups
    skipped: Skipped | None = {} if skip_bad else None
    store.check_split(recipe.evaluate.split)
    for split in _splits_read(recipe, protocol):
        take_failed(store, split, skipped)
    with (
        session(recipe.run, reporter) as here,
        use_threads(recipe.run.threads, _work(recipe), here.device) as reason,
    ):
        here.reporter.detail(f"threads: {reason}")
        facts = describe_evaluation(here, overrides)
        extra: dict[str, Any] = {}
        for remark in checkpoint.remarks if checkpoint else ():
            here.reporter.info(f"weights: {remark}")
        if protocol == "finetuned":
            assert checkpoint is not None
            names = list(meta.get("class_names") or names)
            groups = groups_of(meta) or groups
            views, extra = _finetuned(checkpoint, recipe, store, names, here, skipped)
        else:
            encoder = frozen_encoder(recipe, checkpoint)
            if checkpoint is not None and (moved := positions_moved(checkpoint, recipe)):
                here.reporter.info(f"`{checkpoint.path}`: {moved}")
            if protocol == "knn":
                views, extra = score_neighbours(encoder, recipe, store, here, skipped)
            else:
                views, extra = score_probe(encoder, recipe, store, protocol, here, skipped)
        scores, measured = measures(views, recipe, store, names, groups=groups)
        result: dict[str, Any] = {
            "protocol": protocol,
            "split": recipe.evaluate.split,
            "segments": recipe.evaluate.segments,
            "crops": recipe.evaluate.crops,
            "layer": recipe.evaluate.layer,
            "shots": recipe.evaluate.shots,
            "drop": drop.model_dump(mode="json") if drop is not None else None,
            "untrained": untrained,
            "videos": len(scores.videos),
            "views": len(views.row_V),
            "skipped": unreadable_videos(skipped, store, recipe.evaluate.split),
            **extra,
            **measured,
            "class_names": names,
            "checkpoint": str(checkpoint.path) if checkpoint else None,
            "checkpoint_sha256": checkpoint.digest() if checkpoint else None,
            "step": checkpoint.step if checkpoint else 0,
            "init": meta.get("init"),
            "trained_with": meta.get("tats"),
            "store": str(store.path),
            "store_fingerprint": store.fingerprint(),
            "trained_on": meta.get("store_fingerprint"),
            "seed": recipe.run.seed,
            "recipe": recipe.model_dump(mode="json"),
            **facts,
            "seconds": round(time.perf_counter() - began, 3),
        }
        save_result(result, place, here, scores)
    return result


def _splits_read(recipe: Recipe, protocol: Protocol) -> list[str]:
    """Return the splits that a protocol reads: the one it scores, and that of its neighbours or
    probe."""
    settings = recipe.evaluate
    others = {"finetuned": [], "knn": [settings.knn.split]}
    return [settings.split, *others.get(protocol, [settings.probe.split])]


def _work(recipe: Recipe) -> float:
    """Estimate the floating-point operations of a batch: those of the blocks' weights."""
    width, depth, _, mlp = model_size(recipe.model)
    t, h, w = recipe.grid
    weights = depth * (4 * width**2 + 2 * width * mlp)
    return 2.0 * weights * t * h * w * recipe.evaluate.batch_per_device


def describe_evaluation(here: Session, overrides: Sequence[str]) -> dict[str, Any]:
    """Return command, versions and device of an evaluation."""
    return describe_run(
        overrides=list(overrides),
        device=here.reasons["device"],
        precision=here.reasons["precision"],
        processes=here.world.size,
    )


def open_subject(
    path: Path | str,
    overrides: Sequence[str],
    *,
    prefer: str,
    untrained: bool,
    protocol_of: str | None = None,
) -> Subject:
    """Open what a path means: a run, a checkpoint, or with `untrained` also a recipe.

    Results of a recipe's untrained encoder go to `runs/<recipe>-untrained`, so that its run folder
    stays free.

    Raises:
        TatsError: If there is neither, or the overrides are wrong.
    """
    path = Path(path)
    if untrained and prefer == "best":
        raise UsageError("`--checkpoint best` and `--untrained` exclude each other")
    ours = (path / "checkpoints").is_dir() or (path / "meta.json").is_file()
    if untrained and not (ours or is_foreign(path)):
        loaded = load_recipe(str(path), overrides)
        folder = pretrain_folder(loaded)
        return Subject(loaded.recipe, None, folder.with_name(f"{folder.name}-untrained"))
    run = open_checkpoint(path, prefer=prefer)
    recipe = run.recipe if protocol_of is None else with_protocol(run.recipe, protocol_of)
    recipe = override_recipe(recipe, overrides, origin=run.checkpoint.path)
    home = results_home(path, run.checkpoint.path)
    return Subject(recipe, None if untrained else run.checkpoint, home)


def _finetuned(
    checkpoint: Checkpoint,
    recipe: Recipe,
    store: Store,
    names: list[str],
    here: Session,
    skipped: Skipped | None,
) -> tuple[ViewScores, dict[str, Any]]:
    """Return class probabilities of every view from the fine-tuned classifier, and their cost."""
    labelled(store, recipe.evaluate.split)
    _refuse_other_classes(store, names)
    model = load_classifier(LoadedRun(recipe, checkpoint))
    if moved := positions_moved(checkpoint, recipe):
        here.reporter.info(f"`{checkpoint.path}`: {moved}")
    drop = evaluate_drop(recipe, model.encoder)
    views = scored_views(recipe, store, drop, here)
    scored = score_views(
        model.to(here.device),
        views,
        recipe,
        here,
        drop=drop,
        skipped=skipped,
        finite=True,
        description="evaluate",
    )
    groups = groups_of(checkpoint.meta)
    build = partial(build_classifier, recipe, classes=len(names), groups=groups)
    return scored, scoring_facts(recipe, drop, views, build)


def _refuse_no_classifier(checkpoint: Checkpoint) -> None:
    if checkpoint.kind != "finetuned":
        raise CheckpointError(
            f"`{checkpoint.path}` is a {checkpoint.kind} run: it has no classifier to evaluate",
            hint="train one with `tats finetune RUN`, or use `--protocol knn`, `linear` or "
            "`attentive`, which do not need one",
        )


def _refuse_other_classes(store: Store, names: list[str]) -> None:
    """Refuse a store with other classes than those the classifier was trained on."""
    if store.class_names != names:
        raise DataError(
            f"the classes of `{store.path}` ({len(store.class_names)}) are not those that the run "
            f"was trained on ({len(names)})",
            hint="these weights have no class names: `tats convert --class-names FILE` adds them"
            if names[:1] == ["LABEL_0"]
            else "evaluate on a store prepared with the same `labels.txt` or class folders, or "
            "evaluate frozen features with `--protocol knn`, `linear` or `attentive`",
        )


def _refuse_frozen_settings(recipe: Recipe, *, untrained: bool) -> None:
    """Refuse settings that are only for frozen features."""
    others = "`--protocol knn`, `linear` and `attentive`"
    if untrained:
        raise UsageError(
            "an untrained encoder has no classifier for `--protocol finetuned`",
            hint=f"use `--untrained` with {others}",
        )
    for key in ("layer", "shots"):
        value = getattr(recipe.evaluate, key)
        if value is not None:
            raise RecipeError(
                f"`evaluate.{key}: {value}` is for frozen features; `--protocol finetuned` scores "
                "the run's classifier",
                hint=f"use it with {others}, or set `evaluate.{key}=null`",
            )
