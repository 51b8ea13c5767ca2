"""The other side of a tokenizer's training: a discriminator, and what each side loses.

Shapes: X pictures, C colours, H and W pixels.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from tatscli.nn.convolution import PatchDiscriminator
from tatscli.recipe import schema


class Adversary(PatchDiscriminator):
    """A PatchGAN with hinge loss (Lim & Ye 2017; as in taming-transformers, modules/losses).

    Args:
        config: The recipe's `tokenizer.discriminator`.
    """

    def __init__(self, config: schema.Discriminator) -> None:
        super().__init__(config.width, config.layers)
        self.config = config

    def loss(self, pictures_XCHW: Tensor, true_XCHW: Tensor) -> Tensor:
        """Return the discriminator's own: verdicts above 1 on frames, below -1 on the others."""
        false = F.relu(1 + self(pictures_XCHW.detach())).mean()
        return (F.relu(1 - self(true_XCHW)).mean() + false) / 2

    def judge(self, pictures_XCHW: Tensor) -> Tensor:
        """Return what the tokenizer loses by being found out; teaches the discriminator nothing."""
        state: dict[str, Any] = {name: one.detach() for name, one in self.named_parameters()}
        return -functional_call(self, state, (pictures_XCHW,)).mean()
