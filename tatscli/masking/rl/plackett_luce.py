"""Exact log-probabilities of ordered draws without replacement (Plackett-Luce).

The probability of drawing a_1, a_2, ... is the product of p(a_k) / (1 - sum_{j < k} p(a_j)). Taking
the draws as independent leaves the denominators out, which is close only while little of the mass
has been drawn.

Shapes: B batch, G groups drawn from apart, S tokens of a group, K drawn of it.
"""

from __future__ import annotations

import torch
from torch import Tensor


def drawn_log_prob(log_p_BGS: Tensor, order_BGK: Tensor) -> Tensor:
    """Return the log-probability of each draw given those before it: (B, G, K).

    Args:
        log_p_BGS: Log-probabilities, or logits, of the first draw.
        order_BGK: What was drawn, in order.
    """
    drawn_BGK = log_p_BGS.gather(2, order_BGK)
    # Mass that is left before draw k: what is drawn from k on, and what is never drawn.
    later_BGK = drawn_BGK.flip(2).logcumsumexp(2).flip(2)
    return drawn_BGK - torch.logaddexp(later_BGK, _rest(log_p_BGS, order_BGK))


def next_log_prob(log_p_BGS: Tensor, order_BGK: Tensor) -> Tensor:
    """Return the log-probability of each token to be drawn next: (B, G, S); -inf if it is drawn."""
    left_BGS = _undrawn(log_p_BGS, order_BGK)
    return left_BGS - left_BGS.logsumexp(dim=2, keepdim=True)


def _rest(log_p_BGS: Tensor, order_BGK: Tensor) -> Tensor:
    return _undrawn(log_p_BGS, order_BGK).logsumexp(dim=2, keepdim=True)


def _undrawn(log_p_BGS: Tensor, order_BGK: Tensor) -> Tensor:
    return log_p_BGS.scatter(2, order_BGK, -torch.inf)
