"""Recomputation, compilation and data parallelism of a model.

The order is torchtitan's: activation checkpointing of each block, then torch.compile, then DDP or
FSDP2. None of it changes the names of weights, so checkpoints do not depend on it.

Blocks are the modules in lists called `blocks`. Other modules are sharded with the whole model,
unless they set one of two attributes: `asked_alone`, of one that is called before the model is, or
`keeps_float32`, of one whose weights must not be rounded.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from tatscli.engine import distributed
from tatscli.engine.session import Session
from tatscli.errors import UsageError
from tatscli.recipe.schema import Recipe, Run

if TYPE_CHECKING:  # importing it takes a second
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import FSDPModule

Copies = Sequence[tuple[nn.Module, nn.Module]]
"""Moving averages, each with the module whose weights it follows."""

SHAPES = 64
"""Input shapes of a block that may be compiled; torch's default, 8, is too few for a CNN."""


def choose_parallel(run: Run, world: distributed.World) -> Literal["none", "ddp", "fsdp"]:
    """Return how the processes of a training share its model.

    Raises:
        UsageError: If `run.parallel` is `none` with several processes.
    """
    if world.size == 1:
        return "none"
    if run.parallel == "none":
        raise UsageError(
            f"`run.parallel: none` with {world.size} processes: each would train a model of its "
            "own, and all but the first would be lost",
            hint="set `run.parallel` to `ddp`, `fsdp` or `auto`, or start one process",
        )
    return "ddp" if run.parallel == "auto" else run.parallel


def parallelize(
    model: nn.Module, recipe: Recipe, here: Session, copies: Copies = ()
) -> nn.Module | None:
    """Set up recomputation, compilation and data parallelism of a model, in place.

    A model with parameters that get no gradient says so in `leaves_parameters_out`.

    Args:
        model: On its device.
        recipe: `model.checkpointing`, `run.compile` and `run.parallel` say how.
        here: Device, precision and peers.
        copies: Averages of it or of its parts; they are sharded as it is.

    Returns:
        What a step must call so that gradients are averaged: a wrapper of the model, or the model
        itself. None in one process.

    Raises:
        UsageError: As `choose_parallel`.
    """
    run, kind = recipe.run, choose_parallel(recipe.run, here.world)
    train_blocks(model, checkpointing=recipe.model.checkpointing, compiled=run.compile)
    for copy, followed in copies:
        train_blocks(copy, compiled=run.compile, as_in=followed)
    if kind == "fsdp":
        from torch.distributed.device_mesh import init_device_mesh

        mesh = init_device_mesh(here.device.type, (here.world.size,))
        shard(model, mesh, here.dtype)
        for copy, _ in copies:
            shard(copy, mesh, here.dtype, averaged=True)
        return model
    if kind == "ddp":
        return DistributedDataParallel(
            model,
            device_ids=[here.device.index] if here.device.type == "cuda" else None,
            gradient_as_bucket_view=True,
            broadcast_buffers=False,  # all processes update them alike (`nn/batch_norm.py`)
            find_unused_parameters=getattr(model, "leaves_parameters_out", False),
        )
    if run.parallel == "fsdp":
        here.reporter.info("`run.parallel: fsdp`: one process keeps the whole model")
    return None


def train_blocks(
    model: nn.Module,
    *,
    checkpointing: bool = False,
    compiled: bool = False,
    as_in: nn.Module | None = None,
) -> None:
    """Recompute and compile the blocks of a model in training mode.

    In evaluation they run unchanged: clips there have other lengths and batches other sizes, and
    each shape would be compiled again.

    Args:
        model: Its blocks are changed in place.
        checkpointing: Recompute what is inside of them in the backward pass.
        compiled: Compile them, the same code for all.
        as_in: Whose mode says whether it trains, block by block; by default its own.
    """
    if not (checkpointing or compiled):
        return
    if compiled:
        logging.getLogger("torch.utils.cpp_extension").addFilter(_without_gpu_remark)
        config: Any = torch._dynamo.config
        config.recompile_limit = max(config.recompile_limit, SHAPES)
    for block, leader in zip(blocks_of(model), blocks_of(as_in or model), strict=True):
        trained = plain = block.forward
        if checkpointing:
            trained = _recomputed(trained)
        if compiled:
            trained = torch.compile(trained, fullgraph=True, dynamic=False)
        block.forward = _by_mode(leader, trained, plain)


def _without_gpu_remark(record: logging.LogRecord) -> bool:
    """Leave out torch's remark, on a machine without a GPU, that it has found none."""
    return "No CUDA runtime is found" not in record.getMessage()


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """Return the blocks of all stacks of a model, without the bare layers of torch among them."""
    return [
        block
        for name, stack in model.named_modules()
        if isinstance(stack, nn.ModuleList) and name.rsplit(".", 1)[-1] == "blocks"
        for block in stack
        if not type(block).__module__.startswith("torch.")
    ]


def _recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    def recomputed(*inputs: Any) -> Any:
        if torch.is_grad_enabled():
            return checkpoint(forward, *inputs, use_reentrant=False)
        return forward(*inputs)

    return recomputed


def _by_mode(
    leader: nn.Module, trained: Callable[..., Any], plain: Callable[..., Any]
) -> Callable[..., Any]:
    def by_mode(*inputs: Any) -> Any:
        return (trained if leader.training else plain)(*inputs)

    return by_mode


def shard(
    model: nn.Module, mesh: DeviceMesh, dtype: torch.dtype, *, averaged: bool = False
) -> None:
    """Shard every weight of a model, its gradient and moments over the processes of a mesh (FSDP2).

    Weights are gathered and used in `dtype`; gradients are averaged in float32. Autocast should be
    on as well: it keeps reductions in float32, which is why inputs are not cast.

    Args:
        model: Changed in place; its parameters are `DTensor`s from now on.
        mesh: The processes, along one dimension.
        dtype: Precision of the training.
        averaged: It has no backward pass, before which the outermost weights would be kept.
    """
    from torch.distributed.fsdp import (
        MixedPrecisionPolicy,
        fully_shard,
        register_fsdp_forward_method,
    )

    exact = rounded = MixedPrecisionPolicy()
    if dtype != torch.float32:
        rounded = MixedPrecisionPolicy(dtype, torch.float32, cast_forward_inputs=False)
        for module in model.modules():
            if isinstance(module, (nn.LayerNorm, nn.GroupNorm)):
                module.forward = partial(_normalized, module)  # type: ignore[method-assign]
    blocks, parts = set(blocks_of(model)), list[Any]()
    for module in list(model.modules())[1:]:
        keeps = getattr(module, "keeps_float32", False)
        if module in blocks or keeps or getattr(module, "asked_alone", False):
            policy = exact if keeps else rounded
            parts += [fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=True)]
    parts += [fully_shard(model, mesh=mesh, mp_policy=rounded, reshard_after_forward=averaged)]
    # Backward, each fetches the one before it. FSDP's own guess goes by all forward passes, of
    # which an evaluation makes more in one process than in another.
    for before, part in pairwise([parts[0], *parts]):
        part.set_modules_to_backward_prefetch([before])
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view")
    # What is called first becomes the root, which must be the model, and not a part asked alone.
    root: Any = model
    root.settle = lambda: None
    register_fsdp_forward_method(root, "settle")
    root.settle()
    root.reshard()
    del root.settle


def _normalized(norm: nn.LayerNorm | nn.GroupNorm, values: Tensor) -> Tensor:
    """Normalise in float32, as autocast does, with weights that need not be."""
    weight = None if norm.weight is None else norm.weight.float()
    bias = None if norm.bias is None else norm.bias.float()
    if isinstance(norm, nn.GroupNorm):
        return F.group_norm(values.float(), norm.num_groups, weight, bias, norm.eps)
    return F.layer_norm(values.float(), norm.normalized_shape, weight, bias, norm.eps)


def shards_of(module: nn.Module) -> list[FSDPModule]:
    """Return the sharded modules inside of a module, the outermost first."""
    found: list[Any] = [one for one in module.modules() if hasattr(one, "unshard")]
    return found


def without_averaging(network: nn.Module | None) -> AbstractContextManager[None]:
    """Return a context of backward passes that only add up gradients, in each process its own.

    Args:
        network: What `parallelize` returned.
    """
    if isinstance(network, DistributedDataParallel):
        held: AbstractContextManager[None] = network.no_sync()
        return held
    return nullcontext() if network is None else _held(network)


@contextmanager
def _held(network: Any) -> Iterator[None]:
    network.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        network.set_requires_gradient_sync(True)


@contextmanager
def whole_weights(model: nn.Module, copies: Copies = ()) -> Iterator[None]:
    """Gather all weights of a sharded model, and of its EMA copies, in every process.

    Within the block each process may run the model independently. All processes enter together,
    outside of `torch.inference_mode`.
    """
    # The outermost weights of what trains stay where they are after a forward pass anyway.
    outermost = shards_of(model)[:1]
    others = shards_of(model)[1:] + [one for copy, _ in copies for one in shards_of(copy)]
    try:
        for one in others:
            one.set_reshard_after_forward(False, recurse=False)
        for one in (*outermost, *others):
            one.unshard()
        yield
    finally:
        for one in (*outermost, *others):
            one.reshard()
        for one in others:
            one.set_reshard_after_forward(True, recurse=False)


def full_tensors(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Give the tensors of a part one by one, each whole in every process.

    All processes go through it together, to the end; whoever keeps no tensor holds only one at a
    time. A tensor that is not sharded is given as it is, on its device.
    """
    for name, tensor in tensors.items():
        yield name, distributed.full(tensor)
