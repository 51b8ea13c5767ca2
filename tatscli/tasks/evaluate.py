"""Evaluation: a fine-tuned classifier over segments x crops, or neighbours and probes on frozen
features."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from tatscli import __version__
from tatscli.console import Reporter
from tatscli.engine.checkpoint import Checkpoint
from tatscli.engine.session import Session, session
from tatscli.errors import CheckpointError, DataError, RecipeError, UsageError
from tatscli.evaluation.scores import (
    ViewScores,
    by_duration,
    group_accuracy,
    merge_views,
    summarise,
)
from tatscli.evaluation.views import score_views
from tatscli.files import write_safely
from tatscli.nn.classifier import build_classifier, groups_of
from tatscli.nn.load import copy_weights, open_checkpoint, positions_moved
from tatscli.recipe.load import load_recipe, override_recipe, with_protocol
from tatscli.recipe.schema import FixedMask, Recipe
from tatscli.store.reader import Store
from tatscli.tasks.dropping import evaluate_drop, scoring_facts
from tatscli.tasks.frozen import (
    frozen_encoder,
    score_neighbours,
    score_probe,
    scored_views,
)
from tatscli.tasks.labels import labelled
from tatscli.tasks.pretrain import pretrain_folder
from tatscli.weights.paths import is_foreign

Protocol = Literal["finetuned", "knn", "linear", "attentive"]


@dataclass(frozen=True, slots=True)
class Subject:
    """What is evaluated.

    Attributes:
        recipe: Overrides included.
        checkpoint: Whose weights; None for those that a training begins with.
        home: The run folder, where results go.
    """

    recipe: Recipe
    checkpoint: Checkpoint | None
    home: Path


def evaluate(
    path: Path | str,
    *,
    reporter: Reporter,
    protocol: Protocol = "finetuned",
    overrides: Sequence[str] = (),
    prefer: Literal["last", "best"] = "last",
    untrained: bool = False,
    protocol_of: str | None = None,
    out: Path | str | None = None,
) -> dict[str, Any]:
    """Score a run on a split of its recipe's store; a video that cannot be read stops the
    evaluation.

    Args:
        path: Run or checkpoint folder; with `untrained` also a recipe.
        reporter: Speaks to the user.
        protocol: `finetuned` needs a fine-tuned run; the others take any, and freeze its encoder.
        overrides: Recipe keys to change, such as `evaluate.segments=5`.
        prefer: Which checkpoint of a run to take.
        untrained: Evaluate the encoder as a training by this recipe begins: what training must
            beat.
        protocol_of: A recipe to take store, sampling and views from, for weights that come without.
        out: Where the result is written; by default in the run (`results_path`).

    Returns:
        The results object: protocol, split, counts of videos, views and tokens, top-1, top-5,
            per-class table, confusion matrix, accuracy by duration, hashes of checkpoint and store;
            of a probe, how it was chosen.

    Raises:
        TatsError: If run, store or labels cannot be used.
    """
    if out is not None and Path(out).is_dir():
        raise UsageError(f"`{out}` is a folder", hint="name a file, such as `result.json`")
    began = time.perf_counter()
    subject = open_subject(
        path, overrides, prefer=prefer, untrained=untrained, protocol_of=protocol_of
    )
    recipe, checkpoint, drop = subject.recipe, subject.checkpoint, subject.recipe.evaluate.drop
    if protocol == "finetuned":
        _refuse_frozen_settings(recipe, untrained=untrained)
    store = Store.open(recipe.data.store)
    meta = checkpoint.meta if checkpoint else {}
    names = store.class_names
    with session(recipe.run, reporter) as here:
        extra: dict[str, Any] = {}
        for remark in checkpoint.remarks if checkpoint else ():
            here.reporter.info(f"weights: {remark}")
        if protocol == "finetuned":
            assert checkpoint is not None
            names = list(meta.get("class_names") or names)
            views, extra = _finetuned(checkpoint, recipe, store, names, here)
        else:
            encoder = frozen_encoder(recipe, checkpoint)
            if checkpoint is not None and (moved := positions_moved(checkpoint, recipe)):
                here.reporter.info(f"`{checkpoint.path}`: {moved}")
            if protocol == "knn":
                views, extra = score_neighbours(encoder, recipe, store, here)
            else:
                views, extra = score_probe(encoder, recipe, store, protocol, here)
        videos = merge_views(views)
        result: dict[str, Any] = {
            "protocol": protocol,
            "split": recipe.evaluate.split,
            "segments": recipe.evaluate.segments,
            "crops": recipe.evaluate.crops,
            "layer": recipe.evaluate.layer,
            "shots": recipe.evaluate.shots,
            "drop": drop.model_dump(mode="json") if drop is not None else None,
            "untrained": untrained,
            "videos": len(videos.row_V),
            "views": len(views.row_V),
            **extra,
            **summarise(videos, names),
            **_by_group(videos, meta, store),
            **_by_duration(videos, recipe, store),
            "class_names": names,
            "checkpoint": str(checkpoint.path) if checkpoint else None,
            "checkpoint_sha256": checkpoint.digest() if checkpoint else None,
            "step": checkpoint.step if checkpoint else 0,
            "store": str(store.path),
            "store_fingerprint": store.fingerprint(),
            "trained_on": meta.get("store_fingerprint"),
            "recipe": recipe.model_dump(mode="json"),
            "tats": meta.get("tats", __version__),
            "seconds": round(time.perf_counter() - began, 3),
        }
        trained = meta["recipe"]["data"]["frames"] if "recipe" in meta else None
        target = (
            Path(out)
            if out is not None
            else results_path(result, subject.home, prefer, trained_frames=trained)
        )
        result["results"] = str(target)
        if here.world.main:
            target.parent.mkdir(parents=True, exist_ok=True)
            write_safely(target, json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    return result


def open_subject(
    path: Path | str,
    overrides: Sequence[str],
    *,
    prefer: str,
    untrained: bool,
    protocol_of: str | None = None,
) -> Subject:
    """Find what a path means: a run or checkpoint, or without its weights also a recipe.

    The results of a recipe's untrained encoder go to `runs/<recipe>-untrained`, so that its run
    folder stays free.

    Raises:
        TatsError: If there is neither, or the overrides are wrong.
    """
    path = Path(path)
    if untrained and prefer == "best":
        raise UsageError("`--checkpoint` chooses weights, and `--untrained` takes none")
    ours = (path / "checkpoints").is_dir() or (path / "meta.json").is_file()
    if untrained and not (ours or is_foreign(path)):
        loaded = load_recipe(str(path), overrides)
        folder = pretrain_folder(loaded)
        return Subject(loaded.recipe, None, folder.with_name(f"{folder.name}-untrained"))
    run = open_checkpoint(path, prefer=prefer)
    recipe = run.recipe if protocol_of is None else with_protocol(run.recipe, protocol_of)
    recipe = override_recipe(recipe, overrides, origin=run.checkpoint.path)
    if (path / "checkpoints").is_dir():
        home = path
    elif run.checkpoint.path.parent.name == "checkpoints":
        home = run.checkpoint.path.parents[1]
    else:
        home = Path("runs") / path.resolve().name
    return Subject(recipe, None if untrained else run.checkpoint, home)


def _finetuned(
    checkpoint: Checkpoint, recipe: Recipe, store: Store, names: list[str], here: Session
) -> tuple[ViewScores, dict[str, Any]]:
    """Class probabilities of every view by the fine-tuned classifier, and what it costs."""
    if checkpoint.kind != "finetuned":
        raise CheckpointError(
            f"`{checkpoint.path}` is a {checkpoint.kind} run: it has no classifier to evaluate",
            hint="train one with `tats finetune RUN`, or use `--protocol knn`, `linear` or "
            "`attentive`, which need none",
        )
    labelled(store, recipe.evaluate.split)
    _refuse_other_classes(store, names)
    groups = groups_of(checkpoint.meta)
    build = partial(build_classifier, recipe, classes=len(names), groups=groups)
    model = build()
    copied = copy_weights(model, checkpoint.tensors("model"), checkpoint)
    if copied.moved:
        here.reporter.info(f"`{checkpoint.path}`: {copied.moved}")
    drop = evaluate_drop(recipe, model.encoder)
    views = scored_views(recipe, store, drop, here)
    scored = score_views(
        model.to(here.device), views, recipe, here, drop=drop, description="evaluate"
    )
    return scored, scoring_facts(recipe, drop, views, build)


def _by_group(videos: ViewScores, meta: Mapping[str, Any], store: Store) -> dict[str, Any]:
    """Top-1 of what classes are combinations of, as the checkpoint knows or else the store."""
    groups = groups_of(meta) or store.class_groups
    members = {name: group.of for name, group in groups.items()}
    return {"group_top1": group_accuracy(videos, members)} if members else {}


def _by_duration(videos: ViewScores, recipe: Recipe, store: Store) -> dict[str, Any]:
    """Accuracy of videos, or segments, of different lengths, where the recipe divides them."""
    edges = recipe.evaluate.durations
    if edges is None:
        return {}
    seconds_R = [store.rows[row].duration for row in videos.row_V.tolist()]
    return by_duration(videos, seconds_R, edges)


def _refuse_other_classes(store: Store, names: list[str]) -> None:
    """A classifier knows the classes it was trained on, frozen features know none."""
    if store.class_names != names:
        raise DataError(
            f"the classes of `{store.path}` ({len(store.class_names)}) are not those the run was "
            f"trained on ({len(names)})",
            hint="these weights do not name their classes: `tats convert --class-names FILE` does"
            if names[:1] == ["LABEL_0"]
            else "evaluate on a store prepared with the same `labels.txt` or class folders, or its "
            "frozen features with `--protocol knn`, `linear` or `attentive`",
        )


def _refuse_frozen_settings(recipe: Recipe, *, untrained: bool) -> None:
    """Refuse what makes no sense for a classifier that is there already."""
    others = "`--protocol knn`, `linear` and `attentive`"
    if untrained:
        raise UsageError(
            "an untrained encoder has no classifier for `--protocol finetuned`",
            hint=f"`--untrained` goes with {others}",
        )
    for key in ("layer", "shots"):
        value = getattr(recipe.evaluate, key)
        if value is not None:
            raise RecipeError(
                f"`evaluate.{key}: {value}` is for frozen features, and `--protocol finetuned` "
                "scores the classifier of the run as it is",
                hint=f"it goes with {others}; `evaluate.{key}=null` takes it back",
            )


def results_path(
    result: dict[str, Any], home: Path, prefer: str, *, trained_frames: int | None = None
) -> Path:
    """Return where a result belongs: in the run, named by what was done.

    `linear-val-1x1.json`, `attentive-efficient8-val-2x3-layer4-shots5-seed1.json`,
    `finetuned-val-1x1-frames32-drop-still0.5.json`, `untrained-knn-val-1x1-seed0.json`: the seed is
    named where it decides on labels or weights, frames where they are not those of the training.
    """
    probe = result.get("probe", {})
    words = ["untrained"] if result["untrained"] else []
    words.append(result["protocol"])
    if "form" in probe:
        words.append(f"{probe['form']}{probe['queries']}")
    words += [result["split"], f"{result['segments']}x{result['crops']}"]
    frames = result["recipe"]["data"]["frames"]
    if trained_frames not in (None, frames):
        words.append(f"frames{frames}")
    if result["layer"] is not None:
        words.append(f"layer{result['layer']}")
    if result["shots"] is not None:
        words.append(f"shots{result['shots']}")
    if result["drop"] is not None:
        words.append(f"drop-{drop_words(result['drop'])}")
    if result["shots"] is not None or result["untrained"]:
        words.append(f"seed{result['recipe']['run']['seed']}")
    words += ["best"] if prefer == "best" else []
    return home / "results" / ("-".join(words) + ".json")


def drop_words(drop: dict[str, Any]) -> str:
    """Name a mask that leaves tokens out: kind, ratio, and what else is not its default."""
    masks: TypeAdapter[Any] = TypeAdapter(FixedMask)
    usual = {key: drop[key] for key in ("kind", "ratio")}
    with suppress(ValidationError):  # some masks are none without their other keys
        usual = masks.validate_python(usual).model_dump(mode="json")
    other = [f"-{key}{value}" for key, value in drop.items() if value != usual.get(key)]
    return f"{drop['kind']}{drop['ratio']:g}" + "".join(other)
