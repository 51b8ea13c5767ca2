"""`MaskPlan`: which tokens the encoder sees and which the head predicts.

Shapes: B batch, N tokens, K visible, M predicted. Tokens are time-major:
index = (t * h + row) * w + column.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class MaskPlan:
    """The visible tokens and the tokens to predict of a batch.

    Attributes:
        visible_BK: int64, ascending along K, without repeats.
        predict_BM: int64, ascending along M, disjoint from `visible_BK`.

    Raises:
        ValueError: If types or shapes are others; values are `faulty_B`'s affair.
    """

    visible_BK: Tensor
    predict_BM: Tensor

    def __post_init__(self) -> None:
        visible, predict = self.visible_BK, self.predict_BM
        for name, index in (("visible_BK", visible), ("predict_BM", predict)):
            if index.ndim != 2 or index.dtype != torch.int64:
                raise ValueError(
                    f"{name} must be int64 of shape (B, count), "
                    f"got {index.dtype} {tuple(index.shape)}"
                )
        if visible.shape[0] != predict.shape[0]:
            raise ValueError(
                f"visible_BK has {visible.shape[0]} clips and predict_BM {predict.shape[0]}: "
                "they must match"
            )
        if not visible.shape[1] or not predict.shape[1]:
            raise ValueError(
                "a plan needs visible and predicted tokens, "
                f"got {visible.shape[1]} and {predict.shape[1]}"
            )

    def faulty_B(self, tokens: int) -> Tensor:
        """Whether each clip breaks a rule above, or names none of `tokens`; nothing is read back.

        The rules are about values, which only the device knows: training adds these up and looks
        at the sum when a log line is due.
        """
        visible, predict = self.visible_BK, self.predict_BM
        both = torch.cat([visible, predict], dim=1)
        outside = (both < 0) | (both >= tokens)
        taken = torch.zeros(both.shape[0], tokens, dtype=torch.int32, device=both.device)
        taken.scatter_add_(1, both.clamp(0, tokens - 1), torch.ones_like(both, dtype=torch.int32))
        return (
            (visible.diff(dim=1) <= 0).any(dim=1)
            | (predict.diff(dim=1) <= 0).any(dim=1)
            | (taken > 1).any(dim=1)
            | outside.any(dim=1)
        )

    @classmethod
    def from_visible(cls, visible_BK: Tensor, tokens: int) -> MaskPlan:
        """Make the plan that shows `visible_BK` (any order) and predicts all other `tokens`."""
        hidden_BN = torch.ones(
            visible_BK.shape[0], tokens, dtype=torch.bool, device=visible_BK.device
        )
        hidden_BN.scatter_(1, visible_BK, False)
        return cls.from_hidden(hidden_BN, visible_BK.shape[1])

    @classmethod
    def from_hidden(cls, hidden_BN: Tensor, visible: int) -> MaskPlan:
        """Make a plan from a mask (`True` = hidden) with exactly `visible` shown tokens a clip."""
        # A stable sort of the mask lists shown tokens first and keeps both halves ascending.
        order_BN = hidden_BN.to(torch.uint8).argsort(dim=1, stable=True)
        return cls(order_BN[:, :visible].contiguous(), order_BN[:, visible:].contiguous())

    def hidden_BN(self, tokens: int) -> Tensor:
        """Return the boolean mask over all `tokens`: `True` = not seen by the encoder."""
        hidden = torch.ones(
            self.visible_BK.shape[0], tokens, dtype=torch.bool, device=self.visible_BK.device
        )
        return hidden.scatter_(1, self.visible_BK, False)
