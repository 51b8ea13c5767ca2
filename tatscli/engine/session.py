"""A process that is ready to train or evaluate: its peers, device, precision and reporter."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch

from tatscli.console import Reporter
from tatscli.engine import distributed, joining
from tatscli.engine.allocator import kept_memory
from tatscli.engine.device import choose_device, choose_precision, set_tf32, slow_precision
from tatscli.engine.rng import seed_torch
from tatscli.errors import UsageError
from tatscli.recipe.schema import Run


@dataclass(frozen=True, slots=True)
class Session:
    """A process that is ready to train or evaluate.

    Attributes:
        world: This process among its peers.
        device: Where the model goes.
        dtype: Autocast precision.
        reporter: For messages that are the same in all processes; silent except on rank 0.
        reasons: Why device and precision are what they are.
        rank_reporter: For messages of this process alone, such as a video that it cannot read;
            None uses `reporter`.
    """

    world: distributed.World
    device: torch.device
    dtype: torch.dtype
    reporter: Reporter
    reasons: dict[str, str]
    rank_reporter: Reporter | None = None

    @property
    def own(self) -> Reporter:
        """The reporter for messages of this process alone."""
        return self.rank_reporter or self.reporter


@contextmanager
def session(run: Run, reporter: Reporter, *, joins: bool = True) -> Iterator[Session]:
    """Join the peers, unless `joins` is false; choose device and precision, seed the weights.

    Raises:
        UsageError: If a named device does not exist, or is one GPU for several processes.
    """
    device, device_reason = choose_device(run.device)
    peers = (
        joining.joined(device.type, patience=run.peers_timeout, say=reporter.info)
        if joins
        else nullcontext(distributed.World())
    )
    with peers as world, kept_memory(device):
        if device.index is not None and world.size > 1:
            raise UsageError(
                f"`run.device: {run.device}` names one GPU for {world.size} processes",
                hint="`run.device=cuda` gives each process its own",
            )
        if device.type == "cuda":
            number = world.gpu if device.index is None else device.index
            device = torch.device("cuda", number)
            torch.cuda.set_device(device)
        dtype, dtype_reason = choose_precision(run.precision, device)
        name = str(dtype).removeprefix("torch.")
        reasons = {"device": f"{device}: {device_reason}", "precision": f"{name}: {dtype_reason}"}
        reporter.info("; ".join(reasons.values()))
        slow = slow_precision(dtype, device)
        shared = reporter if world.main else reporter.muted()
        if slow is not None:
            shared.warn(slow, once=True)
        set_tf32(run.tf32)
        seed_torch(run.seed)
        yield Session(world, device, dtype, shared, reasons, reporter)
