"""`tats bench`: throughput of a recipe's training step and loader on this machine, and which of
them is the bottleneck."""

from __future__ import annotations

import itertools
import time
from contextlib import closing
from dataclasses import replace
from typing import Any

import torch
from tqdm import tqdm

from tatscli.console import Reporter
from tatscli.data.loader import training_batches, worker_count
from tatscli.engine.ceiling import (
    device_name,
    known_peak,
    peak_memory,
    product_speed,
)
from tatscli.engine.device import computes_bf16
from tatscli.engine.session import Session, session
from tatscli.engine.threads import use_threads
from tatscli.errors import TatsError, UsageError
from tatscli.machine import GB, free_memory, usable_cores
from tatscli.recipe.derive import derive_batch, derive_schedule
from tatscli.recipe.load import LoadedRecipe
from tatscli.tasks.bottleneck import Facts, bottleneck
from tatscli.tasks.flops import step_flops
from tatscli.tasks.largest_batch import Probe, largest_batch, probe_cpu, probe_device
from tatscli.tasks.rehearsal import (
    Rehearsal,
    StageName,
    Timing,
    open_store,
    quiet_recipe,
    rehearsed,
)
from tatscli.tasks.training import Stage


def bench(
    loaded: LoadedRecipe,
    *,
    reporter: Reporter,
    stage: StageName = "pretrain",
    batch: int | None = None,
    memory_gb: float | None = None,
    seconds: float = 20.0,
    workers: int | None = None,
) -> dict[str, Any]:
    """Measure a recipe on this machine. Nothing is written.

    Args:
        loaded: The merged recipe.
        reporter: Speaks to the user.
        stage: Training to measure; a recipe with a `tokenizer` always trains that.
        batch: Videos in a forward pass; None searches for the largest that fits.
        memory_gb: Memory limit of a process on a CPU; None is the free memory.
        seconds: How long to measure loader and step, each; at least one step.
        workers: Loader processes; None uses the recipe's.

    Returns:
        What `--json` prints; docs/bench.md explains every number.

    Raises:
        TatsError: If the recipe cannot be trained here.
    """
    loaded = quiet_recipe(loaded)
    if stage == "finetune" and loaded.recipe.tokenizer is not None:
        raise UsageError("`--stage finetune` has no meaning for a recipe that trains a tokenizer")
    store, no_store = open_store(loaded)
    bar = reporter.progress(total=5, description="setting up", unit="part")
    with session(loaded.recipe.run, reporter, joins=False) as here, closing(bar):
        built = rehearsed(loaded, stage, here, store)
        flops = _flops(built, here)
        wanted = derive_batch(built.optim, world=1)[0]
        with use_threads(loaded.recipe.run.threads, wanted * flops, here.device):
            bar.set_description("matrix product")
            ceiling = product_speed(here.device, here.dtype)
            _next(bar, "loader")
            loader = _loader(built, no_store, seconds, wanted=batch or wanted, workers=workers)
            _next(bar, "largest batch")
            rehearsal = Rehearsal(built, here)
            limit = None
            if here.device.type == "cpu":
                limit = memory_gb * GB if memory_gb is not None else _free_memory()
            search = (
                None
                if batch is not None
                else _search(loaded, stage, rehearsal, limit, bar, most=built.optim.total_batch)
            )
            usable = search["usable"] if search is not None else None
            used = batch or min(wanted, usable or wanted)
            if usable == 0:
                timing, peak, at_largest, in_bf16 = None, None, None, None
            else:
                _next(bar, f"step of {used}")
                timing, peak = _time(rehearsal, used, seconds)
                _next(bar, f"step of {usable or used}")
                at_largest = _at_largest(rehearsal, used, usable, timing, seconds)
                in_bf16 = _in_bf16(rehearsal, used, seconds)
            _next(bar, "done")
            found = {
                "recipe": loaded.name,
                "stage": "tokenizer" if loaded.recipe.tokenizer is not None else stage,
                "device": str(here.device),
                "device_name": device_name(here.device),
                "precision": str(here.dtype).removeprefix("torch."),
                "threads": torch.get_num_threads(),
                "batch": {"wanted": wanted, "used": used, "search": search},
                "loader": loader,
                "step": _step(timing, flops, here, ceiling, peak, at_largest, in_bf16),
            }
            facts = _facts(built, here, found, flops)
    said = bottleneck(facts, "finetune.optim" if stage == "finetune" else "optim")
    found["bottleneck"] = said._asdict()
    return found


def _next(bar: tqdm, description: str) -> None:
    bar.update()
    bar.set_description(description)


def _flops(stage: Stage, here: Session) -> float:
    """Count the operations of a step for a clip; where a part of the user's own looks at numbers,
    which are not there when counting, estimate them and say so."""
    try:
        return step_flops(stage)
    except Exception as error:
        reason = (str(error) or type(error).__name__).strip().splitlines()[0]
        here.reporter.warn(
            f"the step's operations cannot be counted ({reason}); estimated as 6 per weight and "
            "token"
        )
        return stage.work()


def _free_memory() -> float:
    """Return the memory left for a process.

    Raises:
        UsageError: If the system does not say.
    """
    free = free_memory()
    if free is None:
        raise UsageError(
            "cannot determine the free memory on this system", hint="set it with `--memory GB`"
        )
    return float(free)


def _search(
    loaded: LoadedRecipe,
    name: StageName,
    rehearsal: Rehearsal,
    limit: float | None,
    bar: tqdm,
    *,
    most: int,
) -> dict[str, Any]:
    """Look for the largest batch."""
    settings, stage = loaded.recipe.finetune, rehearsal.stage
    lonely = name == "finetune" and settings.head.norm == "batch" and stage.repeats == 1
    probe = probe_device(rehearsal) if limit is None else probe_cpu(loaded, name, limit)
    largest, tried = largest_batch(_told(probe, bar), most, first=2 if lonely else 1, limit=limit)
    return {
        "largest": largest,
        "usable": max((one for one in range(1, largest + 1) if most % one == 0), default=0),
        "most": most,
        "limit_gb": None if limit is None else limit / GB,
        "tried": [
            {"batch": one, "peak_memory_gb": None if peak is None else peak / GB}
            for one, peak in tried.items()
        ],
    }


def _told(probe: Probe, bar: tqdm) -> Probe:
    def told(batch: int) -> float | None:
        bar.set_description(f"largest batch: trying {batch}")
        return probe(batch)

    return told


def _loader(
    stage: Stage, no_store: str | None, seconds: float, *, wanted: int, workers: int | None
) -> dict[str, Any]:
    """Take batches from the recipe's store, and do nothing with them."""
    count = worker_count(stage.recipe.data.workers) if workers is None else workers
    found: dict[str, Any] = {"workers": count, "clips_per_second": None, "skipped": no_store}
    if no_store is not None:
        return found
    batch = min(wanted, len(stage.rows))
    optim = stage.optim.model_copy(update={"total_batch": batch, "batch_per_device": batch})
    schedule = derive_schedule(optim, videos=len(stage.rows), repeats=stage.repeats, world=1)
    batches = training_batches(
        stage.clips,
        schedule,
        seed=stage.recipe.run.seed,
        workers=count,
        max_bad_share=stage.recipe.data.max_bad_share,
    )
    with closing(batches) as arriving:  # type: ignore[type-var]
        # What workers have read ahead while the first batch was waited for does not count.
        for _ in itertools.islice(arriving, 1 + 2 * count):
            pass
        clips, started = 0, time.perf_counter()
        while not clips or time.perf_counter() - started < seconds:
            clips += len(next(arriving).row_B)
        found["clips_per_second"] = clips / (time.perf_counter() - started)
    return found


def _time(rehearsal: Rehearsal, videos: int, seconds: float) -> tuple[Timing, float]:
    """Time steps after one that warms up; also return the peak of memory.

    Raises:
        TatsError: If a GPU has not enough memory.
    """
    try:
        rehearsal.run(videos)
        timing = rehearsal.run(videos, seconds=seconds)
    except RuntimeError as error:
        if "out of memory" not in str(error):
            raise
        raise TatsError(
            f"{videos} videos do not fit into the memory of {rehearsal.here.device}",
            hint="without `--batch` the largest batch that fits is searched for",
        ) from None
    return timing, peak_memory(rehearsal.here.device)


def _at_largest(
    rehearsal: Rehearsal, used: int, usable: int | None, timing: Timing, seconds: float
) -> float | None:
    """Time the largest batch that divides the total batch as well, where that is another and takes
    no longer than asked for."""
    if usable is None or usable <= used:
        return None
    expected = 2 * usable * rehearsal.stage.repeats / timing.clips_per_second
    return _time(rehearsal, usable, 0.0)[0].clips_per_second if expected <= seconds else None


def _in_bf16(rehearsal: Rehearsal, used: int, seconds: float) -> float | None:
    """Time the step in bf16, where it is in float32 and the device computes bf16: a narrow model on
    a CPU is slower in it."""
    here = rehearsal.here
    if here.dtype != torch.float32 or not computes_bf16(here.device):
        return None
    rehearsal.here = replace(here, dtype=torch.bfloat16)
    try:
        return _time(rehearsal, used, seconds)[0].clips_per_second
    finally:
        rehearsal.here = here


def _step(
    timing: Timing | None,
    flops: float,
    here: Session,
    ceiling: float,
    peak: float | None,
    at_largest: float | None,
    in_bf16: float | None,
) -> dict[str, Any]:
    """Describe the step's speed; without a timing what is known of it."""
    known = known_peak(here.device, here.dtype)
    rate = timing.clips_per_second if timing is not None else None
    speed = None if rate is None else rate * flops
    return {
        "clips_per_second": rate,
        "clips_per_second_at_largest": at_largest,
        "clips_per_second_in_bf16": in_bf16,
        "steps": 0 if timing is None else timing.steps,
        "seconds": None if timing is None else timing.seconds / timing.steps,
        "host_share": None if timing is None else timing.host_share,
        "peak_memory_gb": None if peak is None else peak / GB,
        "gflops_per_clip": flops / 1e9,
        "tflops": None if speed is None else speed / 1e12,
        "ceiling_tflops": ceiling / 1e12,
        "of_ceiling": None if speed is None else speed / ceiling,
        "peak_tflops": None if known is None else known / 1e12,
        "mfu": None if speed is None or known is None else speed / known,
    }


def _facts(stage: Stage, here: Session, found: dict[str, Any], flops: float) -> Facts:
    recipe, step, batch = stage.recipe, found["step"], found["batch"]
    return Facts(
        device=here.device.type,
        step=step["clips_per_second"] or 0.0,
        batch=batch["used"],
        largest=None if batch["search"] is None else batch["search"]["usable"],
        wanted=batch["wanted"],
        step_at_largest=step["clips_per_second_at_largest"],
        loader=found["loader"]["clips_per_second"],
        workers=found["loader"]["workers"],
        cores=usable_cores(),
        cached=stage.clips.cache is not None,
        short_side=stage.store.settings.short_side,
        view=max(recipe.data.view_size),
        dtype=found["precision"],
        step_in_bf16=step["clips_per_second_in_bf16"],
        threads=found["threads"],
        compiled=recipe.run.compile,
        checkpointing=recipe.model.checkpointing,
        host_share=step["host_share"] or 0.0,
        of_ceiling=step["of_ceiling"] or 0.0,
        gflops=batch["used"] * stage.repeats * flops / 1e9,
    )
