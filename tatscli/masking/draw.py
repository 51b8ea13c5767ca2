"""Random draws behind the masks, and how many tokens a ratio shows.

Shapes: B batch, N tokens, S sites of a slice, K drawn.
"""

from __future__ import annotations

from fractions import Fraction

from torch import Tensor

from tatscli.draws import Draws
from tatscli.errors import RecipeError


def share_count(total: int, ratio: float) -> int:
    """Return int(ratio x total), with the ratio taken as the decimal number it is written as.

    Binary floating point would lose a token where the product is whole: 100 * 0.29 is 28.999... .
    """
    return int(total * Fraction(str(ratio)))


def shown_count(total: int, ratio: float) -> int:
    """Return int(total x (1 - ratio)), exact as above: 156 of 1,568 at 0.9."""
    return int(total * (1 - Fraction(str(ratio))))


def visible_count(total: int, ratio: float) -> int:
    """Return `shown_count`, where something must be seen.

    Raises:
        RecipeError: If no token would be visible.
    """
    count = shown_count(total, ratio)
    if not count:
        raise RecipeError(
            f"`mask.ratio: {ratio}` leaves none of {total} tokens visible",
            hint=f"use a ratio of at most {1 - 1 / total:.4g}, or larger clips",
        )
    return count


def in_tubes_BN(sites_BS: Tensor, noise_BN: Tensor) -> Tensor:
    """Return scores that order tokens site by site, sites at random: (B, N).

    The first N of them are whole tubes, plus random slices of one more site.

    Args:
        sites_BS: Uniform in [0, 1), for each site of a slice.
        noise_BN: Uniform in [0, 1), for each token, time-major.
    """
    slices = noise_BN.shape[1] // sites_BS.shape[1]
    return sites_BS.argsort(dim=1).argsort(dim=1).repeat(1, slices) + noise_BN


def gumbel_top_k(log_p_BN: Tensor, count: int, draws: Draws) -> Tensor:
    """Draw `count` tokens per clip, or of each of its groups, (B, ..., N), without replacement:
    int64 (B, ..., K), in the order drawn.

    The largest of log-probabilities plus Gumbel noise are such a draw (Kool et al. 2019, arXiv
    1903.06059). Unlike a draw from probabilities it cannot run out of non-zero ones.
    """
    gumbel_BN = draws.gumbel(tuple(log_p_BN.shape), log_p_BN.device)
    return (log_p_BN.float() + gumbel_BN).topk(count, dim=-1).indices
