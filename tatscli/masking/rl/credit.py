"""Who gets the credit for a clip's errors, and the log-probabilities that carry it.

`masked`: the error of a hidden token raises its own probability to be shown next time (AdaMAE's
reading). `visible`: the tokens shown share one reward, minus the mean error they left. Plus signs
on the visible side would learn the opposite: to show what is easy.

Shapes: B batch, N tokens, K visible in the order they were drawn, M predicted, A credited.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from tatscli.masking.rl.plackett_luce import drawn_log_prob, next_log_prob


def credited_log_prob(
    log_p_BN: Tensor,
    order_BK: Tensor,
    predict_BM: Tensor,
    *,
    credit: Literal["masked", "visible"],
    exact: bool,
    groups: int = 1,
) -> Tensor:
    """Return the log-probabilities that credit is given to: (B, A).

    Args:
        log_p_BN: Log-probabilities of the first draw; rows add up to 1.
        order_BK: What was drawn, in order; group by group, equally many of each.
        predict_BM: Tokens whose error is known.
        credit: The predicted tokens, or the visible ones.
        exact: Condition each draw on those before it, and hidden tokens on all draws; otherwise
            every token counts as drawn first.
        groups: Equal parts of the tokens that are drawn from apart.
    """
    if not exact:
        return log_p_BN.gather(1, predict_BM if credit == "masked" else order_BK)
    size = log_p_BN.shape[1] // groups
    log_p_BGS = log_p_BN.unflatten(1, (groups, size))
    order_BGK = order_BK.unflatten(1, (groups, -1)) % size
    if credit == "visible":
        return drawn_log_prob(log_p_BGS, order_BGK).flatten(1)
    return next_log_prob(log_p_BGS, order_BGK).flatten(1).gather(1, predict_BM)
