"""`MaskPlan`: which tokens the encoder sees and which the head predicts.

Shapes: B batch, N tokens, K visible, M predicted. Tokens are time-major:
index = (t * h + row) * w + column.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tatscli.data.clip import check_tokens, readable


@dataclass(frozen=True, slots=True)
class MaskPlan:
    """The visible tokens and the tokens to predict of a batch.

    Shapes and types are always checked, values at once on the CPU. On a GPU a check
    would make every training step wait: there `faulty_B` counts broken plans, which training
    reports with its next log line, and `check` looks at a plan from elsewhere.

    Attributes:
        visible_BK: int64, ascending along K, without repeats.
        predict_BM: int64, ascending along M, without repeats, disjoint from `visible_BK`.

    Raises:
        ValueError: If a type, a shape or, on the CPU, a value breaks these rules.
    """

    visible_BK: Tensor
    predict_BM: Tensor

    def __post_init__(self) -> None:
        visible, predict = self.visible_BK, self.predict_BM
        check_tokens("visible_BK", visible)
        check_tokens("predict_BM", predict)
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
        if readable(visible) and readable(predict):
            self.check()

    def check(self, tokens: int | None = None) -> None:
        """Check the values of a plan on any device; on a GPU this waits for it.

        Args:
            tokens: Tokens N of a clip; None leaves the upper end open.

        Raises:
            ValueError: If an index is out of range, out of order, repeated, or in both halves.
        """
        visible, predict = self.visible_BK.cpu(), self.predict_BM.cpu()
        halves = {"visible_BK": visible, "predict_BM": predict}
        for name, index in halves.items():
            check_tokens(name, index, tokens)
            falls = (index.diff(dim=1) <= 0).nonzero()
            if len(falls):
                clip, place = falls[0].tolist()
                before, after = index[clip, place : place + 2].tolist()
                raise ValueError(
                    f"{name} must rise along each row without repeats; in clip {clip} {after} "
                    f"follows {before}"
                )
        both = torch.cat([visible, predict], dim=1).sort(dim=1).values
        twice = both[:, 1:][both.diff(dim=1) == 0]
        if len(twice):
            raise ValueError(f"token {int(twice[0])} is both in visible_BK and in predict_BM")

    def faulty_B(self, tokens: int) -> Tensor:
        """Whether each clip breaks a rule above, or names none of `tokens`; nothing is read back.

        Training adds these up and looks at the sum when a log line is due.
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
        """Make the plan that shows `visible_BK` (any order) and predicts all other `tokens`.

        Raises:
            ValueError: As the class does; an index out of range or named twice is refused.
        """
        check_tokens("visible_BK", visible_BK, tokens)
        hidden_BN = torch.ones(
            visible_BK.shape[0], tokens, dtype=torch.bool, device=visible_BK.device
        )
        hidden_BN.scatter_(1, visible_BK, False)
        # The indices themselves and not the shown ones of the mask: a repeat must not turn into
        # another token, but be found.
        order_BN = _order(hidden_BN)
        return cls(visible_BK.sort(dim=1).values, order_BN[:, visible_BK.shape[1] :].contiguous())

    @classmethod
    def from_hidden(cls, hidden_BN: Tensor, visible: int) -> MaskPlan:
        """Make a plan from a mask (`True` = hidden) with exactly `visible` shown tokens a clip.

        Raises:
            ValueError: If the mask is not bool (B, N), or, on the CPU, shows another number.
        """
        if hidden_BN.ndim != 2 or hidden_BN.dtype != torch.bool:
            kind = str(hidden_BN.dtype).removeprefix("torch.")
            raise ValueError(
                "hidden_BN must be bool of shape (B, N), True where hidden; "
                f"got {kind} of shape {tuple(hidden_BN.shape)}"
            )
        if readable(hidden_BN):
            shown_B = (~hidden_BN).sum(dim=1)
            wrong = (shown_B != visible).nonzero()
            if len(wrong):
                clip = int(wrong[0])
                raise ValueError(
                    f"hidden_BN shows {int(shown_B[clip])} tokens in clip {clip}; every clip must "
                    f"show {visible}"
                )
        order_BN = _order(hidden_BN)
        return cls(order_BN[:, :visible].contiguous(), order_BN[:, visible:].contiguous())

    def hidden_BN(self, tokens: int) -> Tensor:
        """Return the boolean mask over all `tokens`: `True` = not seen by the encoder.

        Raises:
            ValueError: If the plan is of more tokens.
        """
        check_tokens("visible_BK", self.visible_BK, tokens)
        hidden = torch.ones(
            self.visible_BK.shape[0], tokens, dtype=torch.bool, device=self.visible_BK.device
        )
        return hidden.scatter_(1, self.visible_BK, False)


def _order(hidden_BN: Tensor) -> Tensor:
    """List the shown tokens of each clip, then the hidden ones, both ascending."""
    return hidden_BN.to(torch.uint8).argsort(dim=1, stable=True)
