"""The discriminator of a tokenizer's training, and the losses of both sides.

Shapes: X pictures, C colours, H and W pixels; or B videos of T frames, (B, C, T, H, W).
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from tatscli.engine.device import full_precision
from tatscli.nn.convolution import PatchDiscriminator
from tatscli.recipe import schema


class Adversary(PatchDiscriminator):
    """A PatchGAN with hinge loss (Lim & Ye 2017; as in taming-transformers, modules/losses), or
    with the logistic one that does not saturate (Goodfellow et al. 2014; StyleGAN, MAGVIT).

    Args:
        config: The recipe's `tokenizer.discriminator`.
        dims: 2 judges pictures, 3 videos.
    """

    def __init__(self, config: schema.Discriminator, *, dims: Literal[2, 3] = 2) -> None:
        super().__init__(config.width, config.layers, dims=dims)
        self.config = config

    def loss(self, made: Tensor, true: Tensor) -> Tensor:
        """Return the discriminator's own loss: scores should be high on true frames and low on
        reconstructions."""
        on_made, on_true = self(made.detach()), self(true)
        if self.config.loss == "hinge":
            return (F.relu(1 - on_true).mean() + F.relu(1 + on_made).mean()) / 2
        return F.softplus(-on_true).mean() + F.softplus(on_made).mean()

    def slope(self, true: Tensor) -> Tensor:
        """Return half the squared norm of the gradient of the verdict on frames, the mean over them
        (R1, Mescheder et al. 2018, arXiv 1801.04406), not weighted.

        The verdict is the mean over its patches, as in the losses, so that larger pictures have no
        steeper ones.
        """
        with torch.enable_grad(), full_precision(true.device):
            given = true.detach().float().requires_grad_()
            verdict = self(given).flatten(1).mean(dim=1).sum()
            (gradient,) = torch.autograd.grad(verdict, given, create_graph=True)
        return gradient.square().flatten(1).sum(dim=1).mean() / 2

    def judge(self, made: Tensor) -> Tensor:
        """Return the tokenizer's adversarial loss, without gradient for the discriminator."""
        state: dict[str, Any] = {name: one.detach() for name, one in self.named_parameters()}
        verdict = functional_call(self, state, (made,))
        return -verdict.mean() if self.config.loss == "hinge" else F.softplus(-verdict).mean()
