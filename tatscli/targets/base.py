"""`Target`: what predictions are compared with (`docs/architecture.md`, contracts).

Shapes: B batch, N tokens of a clip, M predicted, C values per token.
"""

from __future__ import annotations

from torch import Tensor, nn


class Target(nn.Module):
    """Values every token should be predicted to have, and the error of a prediction.

    Attributes:
        width: Values per token.
        weight: Weight of this target in the loss.
    """

    width: int
    weight: float

    def of(self, video_BCTHW: Tensor) -> Tensor:
        """Return the target of each token of a video in [0, 1]: (B, N, C), float32."""
        raise NotImplementedError

    def error(self, prediction_BMC: Tensor, target_BMC: Tensor) -> Tensor:
        """Return the error of each predicted token: (B, M), float32."""
        raise NotImplementedError
