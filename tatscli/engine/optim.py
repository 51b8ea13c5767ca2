"""AdamW over named parameters: groups for weight decay and layer decay, and a state that is plain
tensors."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

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

    Biases, norms, other one-dimensional parameters and mask tokens are not decayed. With layer
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
        plain = parameter.ndim > 1 and not name.endswith(("bias", "mask_token"))
        scale = layer_decay ** (layers - layer_of(name))
        groups.setdefault((optim.weight_decay if plain else 0.0, scale), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": parameters, "weight_decay": decay, "lr_scale": scale}
            for (decay, scale), parameters in groups.items()
        ],
        lr=optim.base_lr,
        betas=optim.betas,
        eps=optim.eps,
    )


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every group, times the group's own factor."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)


def optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """Return the moments as `<parameter name>/<moment>`: plain tensors for safetensors."""
    return {
        f"{name}/{moment}": value.detach()
        for name, parameter in model.named_parameters()
        for moment, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer, model: nn.Module, tensors: dict[str, Tensor]
) -> None:
    """Put back what `optimizer_tensors` returned."""
    parameters = dict(model.named_parameters())
    for key, value in tensors.items():
        name, moment = key.rsplit("/", 1)
        parameter = parameters[name]
        # AdamW keeps its step count on the CPU whatever the parameters' device.
        place = value if moment == "step" else value.to(parameter.device)
        optimizer.state[parameter][moment] = place.clone()
