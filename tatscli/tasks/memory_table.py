"""Memory per device, for one device, DDP and FSDP: sums, tables and advice.

Weights, gradients and moments follow from the number of parameters; activations are counted
(`memory_plan.py`). CUDA, NCCL and fragmentation are not counted, but room is reserved for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tatscli.console import Reporter
from tatscli.machine import GB
from tatscli.system.memory import StepMemory

CONTEXT = 1.5 * GB
"""Reserved for the CUDA context and buffers of its libraries and NCCL; an estimate."""
SLACK = 0.05
"""Fraction reserved for fragmentation; an estimate."""


@dataclass(frozen=True, slots=True)
class Devices:
    """What a dry run plans for.

    Attributes:
        count: Number of devices that train together.
        memory: GB per device, if known.
        asked: Whether given by options; then both settings of checkpointing are planned.
    """

    count: int
    memory: float | None = None
    asked: bool = False

    @property
    def kinds(self) -> tuple[str, ...]:
        """The values of `run.parallel` that work with this many devices."""
        return ("ddp", "fsdp") if self.count > 1 else ("none",)


@dataclass(frozen=True, slots=True)
class Weights:
    """Numbers of parameters, by how they are stored.

    Attributes:
        sharded: Of the model, which FSDP shards.
        still: Those of them that are frozen.
        own: Of modules with their own optimiser, which are replicated.
        frozen: Of networks used for inference only.
        block: Of the largest block, which FSDP gathers while it computes.
        rest: Of the model outside its blocks, gathered once per pass.
    """

    sharded: int
    still: int
    own: int
    frozen: int
    block: int
    rest: int


@dataclass(frozen=True, slots=True)
class Share:
    """GB on one device."""

    parallel: str
    parameters: float
    gradients: float
    moments: float
    copies: float
    activations: float

    @property
    def total(self) -> float:
        """The total."""
        return sum(value for value in asdict(self).values() if isinstance(value, float))

    @property
    def fixed(self) -> float:
        """The part that does not depend on the batch."""
        return self.total - self.activations


def plan_memory(
    weights: Weights,
    counted: dict[bool, StepMemory],
    devices: Devices,
    *,
    views: int,
    repeats: int,
    half: bool,
) -> dict[str, Any]:
    """Compute the memory per device, and what fits.

    Args:
        weights: Numbers of parameters.
        counted: Memory of a step by `model.checkpointing`, the recipe's setting first.
        devices: Number and memory of the devices.
        views: Clips per forward pass.
        repeats: Clips per video.
        half: Whether a step uses 16-bit autocast.
    """
    chosen = next(iter(counted))
    shares = {
        (kind, again): _share(kind, weights, memory, devices.count, half=half)
        for kind in devices.kinds
        for again, memory in counted.items()
    }
    room = None if devices.memory is None else _room(devices.memory)
    plans = [
        {
            "parallel": kind,
            "checkpointing": again,
            "parameters_gb": share.parameters,
            "gradients_gb": share.gradients,
            "optimizer_gb": share.moments,
            "copies_gb": share.copies,
            "activations_gb": share.activations,
            "total_gb": share.total,
            "fits": None if room is None else share.total <= room,
            "largest_batch": None if room is None else _largest(share, room, views / repeats),
        }
        for (kind, again), share in shares.items()
    ]
    return {
        "devices": devices.count,
        "device_gb": devices.memory,
        "usable_gb": room,
        "batch_per_device": views // repeats,
        "views": views,
        "precision": "16 bits" if half else "fp32",
        "checkpointing": chosen,
        "plans": plans,
        "advice": None if room is None else _advice(plans, views // repeats, devices, chosen),
    }


def _share(kind: str, weights: Weights, memory: StepMemory, devices: int, *, half: bool) -> Share:
    """Compute the memory of one device.

    With FSDP a device holds a shard of weights, gradients and moments. It gathers the weights of
    one block while it prefetches the next, in 16 bits; gradients are unsharded in 16 bits and
    reduced in float32. Parameters outside the blocks stay gathered.
    """
    parts = devices if kind == "fsdp" else 1
    held = weights.sharded / parts + weights.own
    trained = held - weights.still / parts
    copies = float(memory.copies)
    if kind == "fsdp" and devices > 1:
        width = 2 if half else 4
        copies = weights.block * (3 * width + 4) + weights.rest * (2 * width + 4)
    return Share(
        kind,
        parameters=4 * (held + weights.frozen) / GB,
        gradients=4 * trained / GB,
        moments=8 * trained / GB,
        copies=copies / GB,
        activations=memory.activations / GB,
    )


def _room(memory: float) -> float:
    return memory * (1 - SLACK) - CONTEXT / GB


def _largest(share: Share, room: float, batch: float) -> int:
    """Return the largest batch that fits; activations grow linearly with it."""
    if room <= share.fixed:
        return 0
    return int((room - share.fixed) / share.activations * batch)


def _advice(plans: Sequence[dict[str, Any]], batch: int, devices: Devices, chosen: bool) -> str:
    """Say what fits, or what to change."""
    kinds = {
        again: [one["parallel"] for one in plans if one["checkpointing"] == again and one["fits"]]
        for again in (chosen, True)
    }
    recompute = ["`model.checkpointing=true`"]
    for again in (chosen, True):
        if kinds[again]:
            changes = [] if again == chosen else recompute
            return "fits" + _with([*changes, *_parallel(kinds[again])])
    best = max(plans, key=lambda one: (one["largest_batch"], not one["checkpointing"]))
    divisors = [n for n in range(1, best["largest_batch"] + 1) if batch % n == 0]
    if divisors:
        changes = recompute if best["checkpointing"] and not chosen else []
        changes = [f"`batch_per_device={divisors[-1]}`", *changes, *_parallel([best["parallel"]])]
        return f"does not fit, but would{_with(changes)}"
    return "does not fit at any batch: " + (
        "use more or larger devices, or a smaller model"
        if devices.count > 1
        else "FSDP shards weights and moments over several devices (`--gpus`)"
    )


def _parallel(kinds: Sequence[str]) -> list[str]:
    """Name the values of `run.parallel`, where there is a choice."""
    named = [f"`{kind}`" if place else f"`run.parallel={kind}`" for place, kind in enumerate(kinds)]
    return [] if kinds[0] == "none" else [" or ".join(named)]


def _with(changes: Sequence[str]) -> str:
    *most, last = changes or [""]
    return f" with {', '.join(most)} and {last}" if most else f" with {last}" if last else ""


def memory_line(memory: dict[str, Any]) -> str:
    """Summarise a memory plan in one line."""
    if "problem" in memory:
        return str(memory["problem"])
    words = []
    for one in memory["plans"]:
        if one["checkpointing"] == memory["checkpointing"]:
            kind = "" if one["parallel"] == "none" else f" with {one['parallel']}"
            words.append(f"{one['total_gb']:.2f} GB{kind}")
    advice = "" if memory["advice"] is None else f": {memory['advice']}"
    return f"{', '.join(words)} for {memory['views']} clips per pass{advice}"


def show_memory(memory: dict[str, Any], reporter: Reporter) -> None:
    """Print a memory plan as a table; with JSON it is part of the plan."""
    if "problem" in memory:
        return
    kinds = list(dict.fromkeys(one["parallel"] for one in memory["plans"]))
    by = {(one["parallel"], one["checkpointing"]): one for one in memory["plans"]}
    chosen = memory["checkpointing"]

    def row(name: str, key: str, again: bool, form: str = "{:.2f}") -> tuple[str, ...]:
        return (name, *(form.format(by[kind, again][key]) for kind in kinds))

    rows = [
        row("weights", "parameters_gb", chosen),
        row("gradients", "gradients_gb", chosen),
        row("AdamW's moments", "optimizer_gb", chosen),
    ]
    for again in dict.fromkeys(again for _, again in by):
        how = f"checkpointing {'on' if again else 'off'}"
        rows.append(row(f"16-bit and gathered weights, {how}", "copies_gb", again))
        rows.append(row(f"activations, {how}", "activations_gb", again))
        rows.append(row(f"total, {how}", "total_gb", again))
        if memory["usable_gb"] is not None:
            fits = ("yes" if by[kind, again]["fits"] else "no" for kind in kinds)
            rows.append((f"fits into {memory['usable_gb']:.1f} GB", *fits))
            rows.append(row("largest batch_per_device", "largest_batch", again, "{}"))
    size = "" if memory["device_gb"] is None else f" of {memory['device_gb']:g} GB"
    devices = f"{memory['devices']} devices" if memory["devices"] > 1 else "1 device"
    reporter.table(
        f"GB per device: {devices}{size}, {memory['precision']}, {memory['views']} clips per pass",
        ["memory", *("GB" if kind == "none" else kind for kind in kinds)],
        rows,
    )
