"""`--dry-run`: the numbers derived from a recipe, without training.

Models are built on torch's meta device, so even huge ones take no memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from tatscli.console import Reporter
from tatscli.data.cache import plan_cache
from tatscli.data.motion_source import MotionSource
from tatscli.engine.joining import world_size
from tatscli.errors import RecipeError
from tatscli.machine import GB
from tatscli.nn.classifier import build_classifier
from tatscli.recipe.derive import Schedule, derive_batch, derive_schedule
from tatscli.recipe.doubts import contradiction, doubts
from tatscli.recipe.load import LoadedRecipe
from tatscli.recipe.schema import Optim, Recipe, Tokenizer
from tatscli.store.codes import Codes
from tatscli.store.reader import Store
from tatscli.store.schema import ClassGroup
from tatscli.system.cost import count_parameters, system_cost
from tatscli.tasks.dropping import finetune_drop, token_facts
from tatscli.tasks.labels import (
    build_loss,
    divided,
    training_rows,
    untrained_classes,
    validation_rows,
)
from tatscli.tasks.lengths import refuse_short
from tatscli.tasks.memory_plan import finetuning_memory, planned_devices, pretraining_memory
from tatscli.tasks.memory_table import Devices, memory_line, show_memory
from tatscli.tasks.pretrain import refuse_nothing_to_predict
from tatscli.tasks.schedule import RATES, batch_words, schedule_rows
from tatscli.tasks.tokenizer import build_adversary, tokenizer_flops
from tatscli.tasks.watch import part_watched
from tatscli.tokenizer.build import build_tokenizer

ADAM_BYTES = 16  # float32 weight, gradient and two moments
WEIGHT_BYTES = 4  # float32 weight that is frozen


def plan_pretraining(
    loaded: LoadedRecipe, run: Path, *, gpus: int | None = None, gpu_memory: float | None = None
) -> dict[str, Any]:
    """Return tokens, parameters, cost, memory and schedule of a pretraining into the folder `run`.

    Args:
        loaded: The merged recipe.
        run: The run folder it would write.
        gpus: Devices to plan for; None: one per process that was started.
        gpu_memory: GB of each; None: those of this machine's GPU, if there is one.

    Raises:
        RecipeError: If the total batch cannot be divided.
        DataError: If the store has no such split, a video is too short, no video has the motion
            that mask, selection or targets cannot do without, or the store lacks codes that they
            read.
    """
    recipe = loaded.recipe
    devices = planned_devices(gpus, gpu_memory, world_size())
    if recipe.tokenizer is not None:
        return _plan_tokenizer(loaded, recipe.tokenizer, run, devices)
    system, flops = system_cost(recipe)
    parameters = {
        "encoder": count_parameters(system.encoder),
        "head": count_parameters(system.autoencoder.head),
        "sampler": count_parameters(system.masker),
    }
    store, rows, store_note = _open(recipe.data.store, recipe.data.split)
    if store is not None and recipe.run.watch is not None:
        rows, held = part_watched(store, rows, recipe.run.watch)
        store_note += f"; {len(held)} of them held out (`run.watch`)"
    videos = len(rows) if store else None
    without_motion = None
    if store is not None and system.follows_motion:
        source = MotionSource(store, recipe.data.motion, needed=True)
        without_motion = len(source.unknown(rows))
        refuse_nothing_to_predict(system, recipe, unknown=without_motion, videos=len(rows))
    if store is not None:
        refuse_short(store, rows, recipe.data.sampling, recipe.data.frames)
        for key in system.cached_codes:
            Codes(store, key)
    return {
        "stage": "pretrain",
        "recipe": loaded.name,
        "run": str(run),
        "grid": list(recipe.grid),
        "tokens": system.encoder.tokens,
        "visible": system.masker.visible,
        "predicted": system.predict.budget,
        "parameters": parameters,
        "gflops_per_clip": {name: value / 1e9 for name, value in flops.items()},
        "optimizer_gb": sum(parameters.values()) * ADAM_BYTES / GB,
        "videos_without_motion": without_motion,
        "frames_in_memory": str(plan_cache(store, rows, recipe.data)) if store else None,
        **_optimisation(recipe, recipe.optim, videos, recipe.data.repeats, store_note, devices),
        "memory": pretraining_memory(recipe, system, devices),
    }


def plan_finetuning(
    loaded: LoadedRecipe, run: Path, *, gpus: int | None = None, gpu_memory: float | None = None
) -> dict[str, Any]:
    """Return tokens, parameters, cost, memory and schedule of a fine-tuning into the folder `run`;
    arguments as of `plan_pretraining`.

    Raises:
        RecipeError: If the total batch cannot be divided, or head, weights or frozen blocks do not
            fit model and store.
        DataError: If the store lacks a split, labels are missing or wrong, a video is too short, or
            a class has fewer videos than `data.shots`.
    """
    recipe, settings = loaded.recipe, loaded.recipe.finetune
    devices = planned_devices(gpus, gpu_memory, world_size())
    store, rows, store_note = _open(recipe.data.store, settings.split, labelled=recipe)
    classes, groups, weights = 0, dict[str, ClassGroup](), dict[str, list[float]]()
    untrained = None
    if store is not None:
        classes, groups = len(store.class_names), store.class_groups
        rows, val_rows = training_rows(recipe, store), validation_rows(recipe, store)
        refuse_short(
            store, [*rows, *val_rows], settings.sampling or recipe.data.sampling, recipe.data.frames
        )
        weights = build_loss(recipe, store, rows)[2]
        untrained = untrained_classes(recipe, store, rows, val_rows)
        store_note = f"{len(rows)} of {store_note}" if recipe.data.shots else store_note
    elif settings.heads is not None:  # their sizes are only known from the store
        plain = settings.model_copy(update={"heads": None})
        recipe = recipe.model_copy(update={"finetune": plain})
    with torch.device("meta"):
        model = build_classifier(recipe, classes=classes or 2, groups=groups)
    frozen = model.freeze(settings.freeze)
    model.last_blocks(settings.reinit_blocks, frozen=settings.freeze)  # refuses what cannot be
    drop = finetune_drop(recipe, model.encoder)
    facts = token_facts(recipe, drop, lambda: model)
    parameters = {"encoder": count_parameters(model.encoder)}
    work = {"encoder": facts["gflops_per_clip"]}
    if settings.auxiliary is not None:
        system, masked = system_cost(recipe)
        parameters["head"] = count_parameters(system.autoencoder.head)
        parameters["sampler"] = count_parameters(system.masker)
        work["masked half"] = sum(masked.values()) / 1e9
    averaged = count_parameters(model) if settings.ema is not None else 0
    trained = sum(parameters.values()) - frozen
    return {
        "stage": "finetune",
        "recipe": loaded.name,
        "run": str(run),
        "grid": list(recipe.grid),
        "tokens": facts["tokens"],
        "tokens_kept": facts["tokens_kept"],
        "parameters": parameters,
        "heads": model.outputs if classes else None,
        "frozen_parameters": frozen,
        "gflops_per_clip": work,
        "optimizer_gb": (trained * ADAM_BYTES + frozen * WEIGHT_BYTES) / GB,
        "ema_gb": averaged * WEIGHT_BYTES / GB,
        "shots": recipe.data.shots,
        "class_weights": weights or None,
        "frames_in_memory": str(plan_cache(store, rows, recipe.data)) if store else None,
        **_optimisation(
            recipe,
            settings.optim,
            len(rows) if store else None,
            settings.repeats,
            store_note,
            devices,
            warnings=[untrained] if untrained else [],
        ),
        "memory": finetuning_memory(recipe, model, facts["tokens_kept"], devices),
    }


def _plan_tokenizer(
    loaded: LoadedRecipe, config: Tokenizer, run: Path, devices: Devices
) -> dict[str, Any]:
    recipe = loaded.recipe
    store, rows, store_note = _open(recipe.data.store, recipe.data.split)
    if store is not None:
        refuse_short(store, rows, recipe.data.sampling, recipe.data.frames)
    height, width = (side // config.stride for side in recipe.data.view_size)
    with torch.device("meta"):
        model = build_tokenizer(recipe)
        adversary = build_adversary(recipe, model)
    slices = recipe.data.frames // model.frames
    parameters = {"tokenizer": count_parameters(model)}
    if adversary is not None:
        parameters["discriminator"] = count_parameters(adversary)
    return {
        "stage": "tokenizer",
        "recipe": loaded.name,
        "run": str(run),
        "grid": [slices, height, width],
        "tokens": slices * height * width,
        "codebook_size": model.codebook_size,
        "parameters": parameters,
        "gflops_per_clip": {"tokenizer": tokenizer_flops(recipe) / 1e9},
        "optimizer_gb": sum(parameters.values()) * ADAM_BYTES / GB,
        "frames_in_memory": str(plan_cache(store, rows, recipe.data)) if store else None,
        **_optimisation(
            recipe,
            recipe.optim,
            len(rows) if store else None,
            recipe.data.repeats,
            store_note,
            devices,
        ),
    }


def show_plan(plan: dict[str, Any], reporter: Reporter) -> None:
    """Print a plan as a table, or as JSON."""
    rows = [("run folder", plan["run"])]
    grid = " x ".join(str(side) for side in plan["grid"])
    rows.append(("tokens", f"{plan['tokens']} = {grid} (time, height, width)"))
    if "codebook_size" in plan:
        rows.append(("codebook size", str(plan["codebook_size"])))
    if plan.get("tokens_kept", plan["tokens"]) < plan["tokens"]:
        rows.append(("tokens kept", str(plan["tokens_kept"])))
    if "visible" in plan:
        rows.append(("visible / predicted", f"{plan['visible']} / {plan['predicted']}"))
    rows += [
        (f"parameters, {name}", f"{value / 1e6:.2f} M")
        for name, value in plan["parameters"].items()
        if value
    ]
    if plan.get("frozen_parameters"):
        rows.append(("parameters, frozen", f"{plan['frozen_parameters'] / 1e6:.2f} M"))
    if plan.get("heads"):
        heads = ", ".join(f"{name} {size}" for name, size in plan["heads"].items())
        rows.append(("classes per head", heads))
    for name, weights in (plan.get("class_weights") or {}).items():
        rows.append((f"class weights, {name}", f"{min(weights):.3g} to {max(weights):.3g}"))
    rows += [
        (f"forward GFLOPs per clip, {name}", f"{value:.2f}")
        for name, value in plan["gflops_per_clip"].items()
    ]
    rows.append(("weights, gradients, AdamW", f"{plan['optimizer_gb']:.2f} GB per device"))
    if plan.get("ema_gb"):
        rows.append(("EMA weights", f"{plan['ema_gb']:.2f} GB per device"))
    if plan.get("memory"):
        rows.append(("memory per device", memory_line(plan["memory"])))
    rows.append(("videos", plan["store_note"]))
    if plan["frames_in_memory"]:
        rows.append(("frames in memory", plan["frames_in_memory"]))
    if plan.get("videos_without_motion"):
        rows.append(("videos without motion", str(plan["videos_without_motion"])))
    if plan["schedule"] is None:
        rows += [
            (
                "total batch",
                batch_words(plan["total_batch"], *plan["batch"], world=plan["devices"]),
            ),
            ("steps", f"{plan['epochs']} epochs x videos / {plan['total_batch']}"),
            ("peak lr", f"{plan['peak_lr']:.3g} = base lr x {plan['total_batch']} / 256"),
            ("views of each video", f"{plan['passes']:.4g}"),
        ]
    else:
        rows += schedule_rows(Schedule(**plan["schedule"]))
    if plan["max_steps"] is not None:
        rows.append(("stops after", f"step {plan['max_steps']} (`run.max_steps`)"))
    for warning in plan["warnings"]:
        reporter.warn(warning)
    reporter.table(f"{plan['stage']} {plan['recipe']}", ["quantity", "value"], rows)
    if plan.get("memory"):
        show_memory(plan["memory"], reporter)
    reporter.result(plan)


def _open(
    path: str, split: str | None, *, labelled: Recipe | None = None
) -> tuple[Store | None, list[int], str]:
    """Open a split of a store, as fine-tuning by a recipe sees it; a dry run does without a store
    that is not there yet.

    Raises:
        DataError: If there is a store and it is damaged, or has no such split.
    """
    if not Path(path).exists():
        return None, [], f"unknown: there is no store at `{path}`"
    store = Store.open(path)
    if labelled is not None:
        store = divided(labelled, store)
    rows = store.part(split)
    return store, rows, f"{len(rows)} in `{path}`" + (f", split `{split}`" if split else "")


def _optimisation(
    recipe: Recipe,
    optim: Optim,
    videos: int | None,
    repeats: int,
    store_note: str,
    devices: Devices,
    *,
    warnings: Sequence[str] = (),
) -> dict[str, Any]:
    """Return the schedule, or what is known of it without a store.

    Raises:
        RecipeError: If the total batch cannot be divided, or learning rates contradict each other.
    """
    problem = contradiction(optim)
    if problem is not None:
        raise RecipeError(problem, hint=RATES)
    schedule = (
        None
        if videos is None
        else derive_schedule(optim, videos=videos, repeats=repeats, world=devices.count)
    )
    limit, total = recipe.run.max_steps, schedule.total_steps if schedule else None
    return {
        "videos": videos,
        "store_note": store_note,
        "epochs": optim.epochs,
        "total_batch": optim.total_batch,
        "devices": devices.count,
        "batch": derive_batch(optim, world=devices.count),
        "peak_lr": optim.base_lr * optim.total_batch / 256,
        "passes": optim.epochs * repeats if schedule is None else schedule.passes,
        "schedule": None if schedule is None else asdict(schedule),
        "max_steps": limit,
        "steps": limit if total is None else min(total, limit or total),
        "warnings": [*warnings, *(doubts(recipe, optim, schedule) if schedule else [])],
    }
