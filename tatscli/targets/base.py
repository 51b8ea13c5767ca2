"""`Target`: what predictions are compared with (`docs/architecture.md`, contracts).

Shapes: B batch, M predicted, C values predicted for a token.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from tatscli.data.clip import Clip, ClipForm


class Target(nn.Module):
    """What hidden tokens should be predicted to be, and the error of a prediction.

    Args:
        config: The section of the recipe's `targets`.
        form: How clips are cut.

    Attributes:
        predicts: Values per token that a head must predict; what is compared may have another
            shape, as an index has that is predicted by logits.
        weight: Weight of this target in the loss.
    """

    predicts: int

    def __init__(self, config: Any, *, form: ClipForm) -> None:
        super().__init__()
        self.config = config
        self.weight: float = config.weight

    def of(self, clip: Clip, index_BM: Tensor) -> Any:
        """Return what the tokens of `index_BM` should be, in whatever form `error` takes."""
        raise NotImplementedError

    def error(self, prediction_BMC: Tensor, values: Any) -> Tensor:
        """Return the error of each predicted token: (B, M), float32."""
        raise NotImplementedError
