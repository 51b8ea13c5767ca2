"""`Head`: the contract of what predicts hidden tokens (`docs/architecture.md`, contracts).

Shapes: B batch, K visible, M predicted, D encoder width, C values predicted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from tatscli.data.clip import Clip
from tatscli.masking.plan import MaskPlan
from tatscli.nn.vit import Encoder

Encode = Callable[[Tensor], Tensor]
"""The encoder on any tokens of the clip, without gradient: indices (B, M) to latents (B, M, D)."""


class Auxiliary(NamedTuple):
    """An error of the head's own, beside those of the targets.

    Attributes:
        error: Scalar, float32.
        weight: Its weight in the loss.
    """

    error: Tensor
    weight: float


class HeadOutput(NamedTuple):
    """What a head returns.

    Attributes:
        predictions: One (B, M, C) per target, in the recipe's order.
        auxiliary: Further errors by name.
    """

    predictions: list[Tensor]
    auxiliary: Mapping[str, Auxiliary] = {}


class Head(nn.Module):
    """Predicts the hidden tokens from the latents of the visible ones.

    Args:
        config: The recipe's `head` section.
        encoder: Gives the latents' width and the token grid.
        predicts: Values per token that each target needs.

    Attributes:
        ignores_latents: It does not depend on the latents, so the encoder learns nothing.
    """

    ignores_latents: bool = False

    def __init__(self, config: Any, *, encoder: Encoder, predicts: Sequence[int]) -> None:
        super().__init__()
        self.config = config
        self.predicts = list(predicts)

    def forward(
        self, clip: Clip, latents_BKD: Tensor, plan: MaskPlan, encode: Encode
    ) -> HeadOutput:
        """Predict the tokens of `plan.predict_BM`.

        Args:
            clip: The clips.
            latents_BKD: Latents of `plan.visible_BK`.
            plan: Which tokens are visible, and which to predict.
            encode: For errors on the latents of hidden tokens.
        """
        raise NotImplementedError
