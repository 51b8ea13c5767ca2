"""What a training takes on each device, alone, with DDP and with FSDP: sums, tables and advice.

Weights, gradients and moments follow from the number of parameters; activations are counted
(`memory_plan.py`). What CUDA, NCCL and fragmentation take besides is not: room is kept for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tatscli.console import Reporter
from tatscli.machine import GB
from tatscli.system.memory import StepMemory

CONTEXT = 1.5 * GB
"""Kept free for CUDA's context and the buffers of its libraries and of NCCL: an estimate."""
SLACK = 0.05
"""Share of the device kept free, as memory is given in pieces: an estimate."""

PARALLEL = ("none", "ddp", "fsdp")


@dataclass(frozen=True, slots=True)
class Devices:
    """What a dry run plans for.

    Attributes:
        count: Devices that train together.
        memory: GB of each, where known.
        asked: Whether options name them: then activations are counted kept and recomputed.
    """

    count: int
    memory: float | None = None
    asked: bool = False


@dataclass(frozen=True, slots=True)
class Weights:
    """Numbers of parameters, by what becomes of them.

    Attributes:
        sharded: Of the model, which FSDP divides among the devices.
        still: Those of them that are not trained.
        own: Of modules with an optimiser of their own, which every device keeps whole.
        frozen: Of networks that are only asked.
        block: Of the largest block, which FSDP collects whole while it computes.
        rest: Of the model, outside of its blocks: collected once a pass.
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
        """All of it."""
        return sum(value for value in asdict(self).values() if isinstance(value, float))

    @property
    def fixed(self) -> float:
        """What does not depend on the batch."""
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
    """Work out what lies on each device, and what fits.

    Args:
        weights: Numbers of parameters.
        counted: What a step keeps, by whether blocks are recomputed: the recipe's way first.
        devices: How many there are, and how large.
        views: Clips of a forward pass.
        repeats: Those of them that are of one video.
        half: Whether a step computes in 16 bits.
    """
    chosen = next(iter(counted))
    shares = {
        (kind, again): _share(kind, weights, memory, devices.count, half=half)
        for kind in PARALLEL
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
    """Work out what lies on one device.

    Under FSDP a device keeps its part of weights, gradients and moments. It collects the weights of
    one block while it fetches the next one's, in 16 bits; their gradients come out whole in 16 bits
    and are added up over the devices in float32. What lies outside of the blocks stays collected.
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
    """Return how many videos fit into a forward pass; activations grow with them."""
    if room <= share.fixed:
        return 0
    return int((room - share.fixed) / share.activations * batch)


def _advice(plans: Sequence[dict[str, Any]], batch: int, devices: Devices, chosen: bool) -> str:
    """Say what fits, or what to change."""
    kinds = {
        again: [one["parallel"] for one in plans if one["checkpointing"] == again and one["fits"]]
        for again in (chosen, True)
    }
    if kinds[chosen]:
        return f"fits with `run.parallel` {', '.join(kinds[chosen])}"
    if kinds[True]:
        return f"fits with `model.checkpointing=true` and `run.parallel` {', '.join(kinds[True])}"
    best = max(plans, key=lambda one: (one["largest_batch"], not one["checkpointing"]))
    divisors = [n for n in range(1, best["largest_batch"] + 1) if batch % n == 0]
    if divisors:
        also = " and `model.checkpointing=true`" if best["checkpointing"] and not chosen else ""
        return (
            f"does not fit; `batch_per_device={divisors[-1]}`{also} with `run.parallel`"
            f" {best['parallel']} does"
        )
    return "does not fit at any batch: " + (
        "take more or larger devices, or a smaller model"
        if devices.count > 1
        else "FSDP divides weights and moments among several devices (`--gpus`)"
    )


def memory_line(memory: dict[str, Any]) -> str:
    """Say a memory plan in a line."""
    if "problem" in memory:
        return str(memory["problem"])
    words = []
    for one in memory["plans"]:
        shown = one["parallel"] != "none" if memory["devices"] > 1 else one["parallel"] == "none"
        if shown and one["checkpointing"] == memory["checkpointing"]:
            words.append(f"{one['total_gb']:.2f} GB ({one['parallel']})")
    advice = "" if memory["advice"] is None else f": {memory['advice']}"
    return f"{', '.join(words)} for {memory['views']} clips at once{advice}"


def show_memory(memory: dict[str, Any], reporter: Reporter) -> None:
    """Print a memory plan as a table; JSON has it inside the plan."""
    if "problem" in memory:
        return
    kinds = PARALLEL if memory["devices"] > 1 else PARALLEL[:1]
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
        rows.append(row(f"16-bit and collected weights, {how}", "copies_gb", again))
        rows.append(row(f"activations, {how}", "activations_gb", again))
        rows.append(row(f"total, {how}", "total_gb", again))
        if memory["usable_gb"] is not None:
            fits = ("yes" if by[kind, again]["fits"] else "no" for kind in kinds)
            rows.append((f"fits into {memory['usable_gb']:.1f} GB", *fits))
            rows.append(row("largest batch_per_device", "largest_batch", again, "{}"))
    size = "" if memory["device_gb"] is None else f" of {memory['device_gb']:g} GB"
    devices = f"{memory['devices']} devices" if memory["devices"] > 1 else "1 device"
    reporter.table(
        f"GB on each of {devices}{size}, {memory['precision']}, {memory['views']} clips at once",
        ["what", *kinds],
        rows,
    )
