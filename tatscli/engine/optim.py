"""AdamW over named parameters, with groups for weight decay and layer decay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from tatscli.recipe.schema import Optim


def build_optimizer(
    model: nn.Module,
    optim: Optim,
    *,
    layer_of: Callable[[str], int] = lambda name: 0,
    layers: int = 0,
    layer_decay: float = 1.0,
) -> torch.optim.AdamW:
    """Make AdamW with one group per (weight decay, layer).

    Biases, norms, other one-dimensional parameters and learned tokens are not decayed. With layer
    decay, layer i of `layers` learns at decay ** (layers - i); the model itself says which
    layer a parameter belongs to.

    Args:
        model: Its trainable parameters are optimised.
        optim: The recipe's section.
        layer_of: Layer of a parameter name, 0 for the patch embedding to `layers` for the head.
        layers: The last layer.
        layer_decay: Learning-rate factor per layer from the head down.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        scale = layer_decay ** (layers - layer_of(name))
        decay = optim.weight_decay if decays(name, parameter) else 0.0
        groups.setdefault((decay, scale), []).append(parameter)
    return fused_adamw(
        [
            {"params": parameters, "weight_decay": decay, "lr_scale": scale}
            for (decay, scale), parameters in groups.items()
        ],
        lr=optim.base_lr,
        betas=optim.betas,
        eps=optim.eps,
    )


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether a parameter takes weight decay: matrices do; biases, norms and learned tokens not."""
    return parameter.ndim > 1 and not name.endswith(("bias", "mask_token", "queries_MD"))


def fused_adamw(groups: list[dict[str, Any]], **options: Any) -> torch.optim.AdamW:
    """Make AdamW in torch's fused form, one pass over memory, where the device has it."""
    device = groups[0]["params"][0].device
    return torch.optim.AdamW(groups, fused=device.type in ("cpu", "cuda"), **options)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every group, times the group's own factor."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
