"""How a model is compiled, and shared by the processes of a training."""

from __future__ import annotations

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from tatscli.engine.session import Session
from tatscli.recipe.schema import Run


def parallelize(model: nn.Module, run: Run, here: Session) -> DistributedDataParallel | None:
    """Compile the blocks of a model in place where the recipe says so, and return the wrapper
    that averages its gradients over processes, if there are several.

    A model with parameters that get no gradient says so in `leaves_parameters_out`.
    """
    if run.compile:
        compile_blocks(model)
    if here.world.size == 1:
        return None
    devices = [here.device.index] if here.device.type == "cuda" else None
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
