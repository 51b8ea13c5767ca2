"""The bottleneck of a training in one sentence, and the recipe key to change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Bottleneck(NamedTuple):
    """What holds a training back.

    Attributes:
        kind: `memory`, `loader`, `precision`, `threads`, `batch`, `checkpointing`, `launches` or
            `products`.
        key: What to change, as on a command line; None where nothing helps that keeps the recipe.
        sentence: Both in words.
    """

    kind: str
    key: str | None
    sentence: str


@dataclass(frozen=True, slots=True)
class Facts:
    """What a benchmark has measured.

    Attributes:
        device: Its type.
        step: Clips a second of the step alone, at `batch` videos.
        batch: Videos in a forward pass.
        largest: The most that fit and divide the total batch; None where that was not looked for.
        wanted: What the recipe asks for.
        step_at_largest: Clips a second with so many; None where not measured.
        loader: Clips a second of the loader alone; None where not measured.
        workers: Its processes.
        cores: Of this machine.
        cached: Whether decoded frames are kept in memory.
        short_side: Of the stored pictures; None where they have any size.
        view: The larger side of a view.
        dtype: Of the products, by its name in torch.
        step_in_bf16: Clips a second of the step in bf16; None where not measured: the step is in
            bf16 already, or the device would emulate it.
        threads: Of the model on a CPU.
        compiled: Whether the blocks are compiled.
        checkpointing: Whether activations are computed again.
        host_share: Of a step's time, how much the host was busy giving out work.
        of_ceiling: Share of a large product's speed that the step reaches.
        gflops: Operations of a step, in 10^9.
    """

    device: str
    step: float
    batch: int
    largest: int | None
    wanted: int
    step_at_largest: float | None
    loader: float | None
    workers: int
    cores: int
    cached: bool
    short_side: int | None
    view: int
    dtype: str
    step_in_bf16: float | None
    threads: int
    compiled: bool
    checkpointing: bool
    host_share: float
    of_ceiling: float
    gflops: float


def bottleneck(facts: Facts, optim: str = "optim") -> Bottleneck:
    """Name the first of these that holds: what does not fit, what is slower than the step, what
    makes the step slower than it need be.

    Args:
        facts: What was measured.
        optim: The section of the recipe that the batch is in.
    """
    batch_key = f"{optim}.batch_per_device"
    if facts.largest is not None and facts.largest < facts.wanted:
        return _too_large(facts, batch_key)
    if facts.loader is not None and facts.loader < facts.step:
        return _loader(facts)
    if facts.step_in_bf16 is not None and facts.step_in_bf16 > _GAIN * facts.step > 0:
        return Bottleneck(
            "precision",
            "run.precision=bf16",
            f"The step computes in {facts.dtype}, and in bf16 is "
            f"{facts.step_in_bf16 / facts.step:.2f} times as fast: set `run.precision=bf16`.",
        )
    if facts.device == "cpu" and facts.threads < facts.cores and facts.gflops > _SMALL_STEP:
        return Bottleneck(
            "threads",
            f"run.threads={facts.cores}",
            f"The step uses {facts.threads} of {facts.cores} cores: set "
            f"`run.threads={facts.cores}`.",
        )
    if facts.step_at_largest is not None and facts.step_at_largest > _GAIN * facts.step:
        assert facts.largest is not None
        return Bottleneck(
            "batch",
            f"{batch_key}={facts.largest}",
            f"The batch is small: {facts.largest} videos fit, with "
            f"{facts.step_at_largest / facts.step:.2f} times the clips/s of {facts.batch}: set "
            f"`{batch_key}={facts.largest}`.",
        )
    if facts.checkpointing and facts.largest is not None and facts.largest >= 4 * facts.wanted:
        return Bottleneck(
            "checkpointing",
            "model.checkpointing=false",
            f"Activations are recomputed to save memory, but {facts.largest} videos would fit and "
            f"the recipe uses {facts.wanted}: set `model.checkpointing=false`.",
        )
    if facts.device != "cpu" and facts.host_share > _BUSY and not facts.compiled:
        return Bottleneck(
            "launches",
            "run.compile=true",
            f"The GPU waits for the CPU, which spends {100 * facts.host_share:.0f} % of the time "
            "launching kernels: set `run.compile=true`.",
        )
    return _products(facts)


_SMALL_STEP = 20.0  # GFLOP below which a second thread gains nothing (engine/threads.py)
_GAIN = 1.05  # in speed that a key must bring to be named
_BUSY = 0.9  # share of a step in which the host is busy


def _too_large(facts: Facts, batch_key: str) -> Bottleneck:
    if not facts.checkpointing:
        return Bottleneck(
            "memory",
            "model.checkpointing=true",
            f"{facts.wanted} videos do not fit, {facts.largest} do: set `model.checkpointing=true`"
            + (f", or `{batch_key}={facts.largest}`." if facts.largest else "."),
        )
    if not facts.largest:
        return Bottleneck(
            "memory",
            "model.size",
            "Not even one video fits: choose a smaller `model.size`, fewer `data.frames` or "
            "a smaller `data.size`.",
        )
    return Bottleneck(
        "memory",
        f"{batch_key}={facts.largest}",
        f"{facts.wanted} videos do not fit: set `{batch_key}={facts.largest}`; the total batch is "
        "then accumulated.",
    )


def _loader(facts: Facts) -> Bottleneck:
    slow = (
        f"The loader delivers {facts.loader:.3g} clips/s, and the step could process "
        f"{facts.step:.3g}"
    )
    if facts.workers < facts.cores:
        key = f"data.workers={facts.cores}"
        return Bottleneck("loader", key, f"{slow}: set `{key}`, one worker for each core.")
    if facts.short_side is None or facts.short_side > 1.5 * facts.view:
        side = round(1.15 * facts.view)
        stored = facts.short_side or "full-size"
        return Bottleneck(
            "loader",
            f"--short-side {side}",
            f"{slow}, with all cores busy: the stored pictures are {stored} pixels for views of "
            f"{facts.view}; prepare the store with `--short-side {side}`.",
        )
    if not facts.cached:
        return Bottleneck(
            "loader",
            "data.cache=auto",
            f"{slow}, with all cores busy: set `data.cache=auto`, which keeps decoded frames in "
            "memory where they fit.",
        )
    return Bottleneck(
        "loader",
        "data.repeats",
        f"{slow}, with all cores busy: take more views of each decoded clip with "
        "`data.repeats`, or use a machine with more cores.",
    )


def _products(facts: Facts) -> Bottleneck:
    reached = f"{100 * facts.of_ceiling:.0f} % of the throughput of a large matrix product"
    if facts.of_ceiling < 0.5 and not facts.compiled and facts.device != "cpu":
        return Bottleneck(
            "products",
            "run.compile=true",
            f"The step reaches {reached}; much of it is not matrix products: set "
            "`run.compile=true`.",
        )
    if facts.of_ceiling < 0.5:
        return Bottleneck(
            "products",
            None,
            f"The step reaches {reached}: its matrix products are small, and no recipe key changes "
            "that without changing the model.",
        )
    return Bottleneck(
        "products",
        None,
        f"The step itself: it reaches {reached}, so only less computation makes it faster: a "
        "higher `mask.ratio`, fewer tokens to predict (`predict`) or a smaller `model.size`.",
    )
