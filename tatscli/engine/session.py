"""A process that is ready to train or evaluate: its peers, device, precision and voice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch

from tatscli.console import Reporter
from tatscli.engine import distributed
from tatscli.engine.device import choose_device, choose_precision
from tatscli.engine.rng import seed_torch
from tatscli.recipe.schema import Run


@dataclass(frozen=True, slots=True)
class Session:
    """A process that is ready to train or evaluate.

    Attributes:
        world: This process among its peers.
        device: Where the model goes.
        dtype: Autocast precision.
        reporter: Speaks to the user.
        reasons: Why device and precision are what they are.
    """

    world: distributed.World
    device: torch.device
    dtype: torch.dtype
    reporter: Reporter
    reasons: dict[str, str]


@contextmanager
def session(run: Run, reporter: Reporter, *, joins: bool = True) -> Iterator[Session]:
    """Join the peers, unless `joins` is false; choose device and precision, seed the weights."""
    device, device_reason = choose_device(run.device)
    peers = (
        distributed.joined(device.type, patience=run.peers_timeout, say=reporter.info)
        if joins
        else nullcontext(distributed.World())
    )
    with peers as world:
        if device.type == "cuda":
            device = torch.device("cuda", world.gpu)
            torch.cuda.set_device(device)
        dtype, dtype_reason = choose_precision(run.precision, device)
        name = str(dtype).removeprefix("torch.")
        reasons = {"device": f"{device}: {device_reason}", "precision": f"{name}: {dtype_reason}"}
        reporter.info("; ".join(reasons.values()))
        torch.set_float32_matmul_precision("high")
        seed_torch(run.seed)
        yield Session(world, device, dtype, reporter, reasons)
