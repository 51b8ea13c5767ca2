"""A process that is ready to train or evaluate: its peers, device, precision and voice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from tatscli.console import Reporter
from tatscli.engine import distributed
from tatscli.engine.allocator import kept_memory
from tatscli.engine.device import choose_device, choose_precision
from tatscli.engine.rng import random_at
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
def session(run: Run, reporter: Reporter) -> Iterator[Session]:
    """Join the peers, choose device and precision, seed the weights."""
    device, device_reason = choose_device(run.device)
    with distributed.joined(device.type) as world, kept_memory(device):
        if device.type == "cuda":
            device = torch.device("cuda", world.local_rank)
            torch.cuda.set_device(device)
        dtype, dtype_reason = choose_precision(run.precision, device)
        name = str(dtype).removeprefix("torch.")
        reasons = {"device": f"{device}: {device_reason}", "precision": f"{name}: {dtype_reason}"}
        reporter.info("; ".join(reasons.values()))
        torch.set_float32_matmul_precision("high")
        random_at(run.seed)
        yield Session(world, device, dtype, reporter, reasons)
