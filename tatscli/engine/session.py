"""A process that is ready to train or evaluate: its peers, device, precision and voice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

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

    def wrap(self, model: nn.Module, run: Run) -> DistributedDataParallel | None:
        """Compile the blocks of a model in place where the recipe says so, and return the wrapper
        that averages its gradients over processes, if there are several.

        A model with parameters that get no gradient says so in `leaves_parameters_out`.
        """
        if run.compile:
            compile_blocks(model)
        if self.world.size == 1:
            return None
        devices = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(
            model,
            device_ids=devices,
            gradient_as_bucket_view=True,
            find_unused_parameters=getattr(model, "leaves_parameters_out", False),
        )


def compile_blocks(model: nn.Module) -> None:
    """Compile every block of a model's stacks: the same code for all, so it is compiled once."""
    for name, stack in model.named_modules():
        if isinstance(stack, nn.ModuleList) and name.rsplit(".", 1)[-1] == "blocks":
            for block in stack:
                block.compile()


@contextmanager
def session(run: Run, reporter: Reporter) -> Iterator[Session]:
    """Join the peers, choose device and precision, seed the weights."""
    device, device_reason = choose_device(run.device)
    with distributed.joined(device.type) as world:
        if device.type == "cuda":
            device = torch.device("cuda", world.local_rank)
            torch.cuda.set_device(device)
        dtype, dtype_reason = choose_precision(run.precision, device)
        name = str(dtype).removeprefix("torch.")
        reasons = {"device": f"{device}: {device_reason}", "precision": f"{name}: {dtype_reason}"}
        reporter.info("; ".join(reasons.values()))
        torch.set_float32_matmul_precision("high")
        seed_torch(run.seed)
        yield Session(world, device, dtype, reporter, reasons)
