"""A perceptual loss: distances of an image classifier's features (Johnson et al. 2016, arXiv
1603.08155; the layers of LPIPS, Zhang et al. 2018, arXiv 1801.03924, without its learned weights).

Shapes: X pictures, C channels, H and W pixels.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tatscli.engine.device import at_least_float32
from tatscli.errors import CheckpointError
from tatscli.files import sha256
from tatscli.recipe import schema
from tatscli.weights.read import read_weights

_STAGES = {
    "vgg16": (3, 8, 15, 22, 29),
    "alexnet": (1, 4, 7, 9, 11),
    "squeezenet1_1": (1, 4, 7, 9, 10, 11, 12),
}
"""Layers of torchvision's `features` after which they are compared."""
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_EPS = 1e-10


class PerceptualLoss(nn.Module):
    """Squared distance of features, each position's scaled to length 1; nothing in it is trained.

    Args:
        config: The recipe's `tokenizer.perceptual`.

    Attributes:
        digest: SHA-256 of the file of weights.

    Raises:
        CheckpointError: If the file cannot be used.
    """

    mean_C11: Tensor
    std_C11: Tensor

    def __init__(self, config: schema.Perceptual) -> None:
        super().__init__()
        from torchvision import models

        path = Path(config.weights)
        given = read_weights(path, key="tokenizer.perceptual.weights")
        self.digest = sha256(path)
        network = models.get_model(config.network, weights=None).features
        wanted = network.state_dict()
        named = {name.removeprefix("features."): one for name, one in given.items()}
        wrong = [n for n, one in wanted.items() if n not in named or named[n].shape != one.shape]
        if wrong:
            raise CheckpointError(
                f"`tokenizer.perceptual.weights: {path}` does not fit torchvision's "
                f"`{config.network}`: {len(wanted) - len(wrong)} of {len(wanted)} tensors match",
                hint=f"`tokenizer.perceptual.network` may be one of {', '.join(_STAGES)}",
            )
        network.load_state_dict({name: named[name] for name in wanted})
        self.stages = _STAGES[config.network]
        self.network = network[: self.stages[-1] + 1].requires_grad_(False).eval()
        for name, colours in (("mean_C11", _MEAN), ("std_C11", _STD)):
            self.register_buffer(name, torch.tensor(colours)[:, None, None], persistent=False)

    def forward(self, pictures_XCHW: Tensor, true_XCHW: Tensor) -> Tensor:
        """Return the distance of pictures in [0, 1] from the true ones: a scalar."""
        count = len(pictures_XCHW)
        both = torch.cat([pictures_XCHW, true_XCHW])
        maps = (both - self.mean_C11) / self.std_C11
        distance = maps.new_zeros((), dtype=torch.float32)
        for place, layer in enumerate(self.network):
            # Not in place, as torchvision's ReLUs are: what is before them is still compared.
            maps = F.relu(maps) if isinstance(layer, nn.ReLU) else layer(maps)
            if place in self.stages:
                full = at_least_float32(maps)  # squares of features overflow in fp16
                scaled = full * (full.square().sum(dim=1, keepdim=True) + _EPS).rsqrt()
                distance = distance + ((scaled[:count] - scaled[count:]).square().sum(dim=1).mean())
        return distance
