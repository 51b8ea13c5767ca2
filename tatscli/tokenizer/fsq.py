"""`fsq`: finite scalar quantization (Mentzer et al. 2023, arXiv 2309.15505).

Every value is bounded and rounded to one of its levels; a code is the mixed-radix number of the
steps, first value fastest. Bound and scale are those of the paper's appendix A.1, as
vector-quantize-pytorch has them.

Shapes: ... any, C values of a vector.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from tatscli.engine import distributed
from tatscli.engine.device import full_precision
from tatscli.recipe import schema
from tatscli.tokenizer.quantize import Quantized, Quantizer, straight_through

_EPS = 1e-3  # room above the outermost level, so that tanh reaches it
_SHARPNESS = 4.0  # of the soft choice between levels one apart, of which entropies are taken


class FiniteScalar(Quantizer):
    """A fixed grid of codes; nothing in it is learned.

    Args:
        levels: Steps along each axis.
        entropy: Weight of the entropy term.
        commitment: Weight of the distance between bounded values and their steps.

    Attributes:
        zero: The code of the zero vector, which zeros are rounded to: int64 scalar.
    """

    levels: list[int]
    levels_C: Tensor
    half_C: Tensor
    offset_C: Tensor
    shift_C: Tensor
    width_C: Tensor
    basis_C: Tensor
    zero: Tensor

    def __init__(
        self, levels: Sequence[int], *, entropy: float = 0.0, commitment: float = 0.0
    ) -> None:
        super().__init__()
        self.levels = list(levels)
        self.width = len(self.levels)
        self.entropy = entropy
        self.commitment = commitment
        levels_C = torch.tensor(self.levels)
        basis_C = torch.tensor(radix(self.levels))
        self.size = math.prod(self.levels)
        half_C = (levels_C - 1) * (1 + _EPS) / 2
        # An even number of levels lies half a step beside 0.
        offset_C = torch.where(levels_C % 2 == 0, 0.5, 0.0)
        for name, value in (
            ("levels_C", levels_C),
            ("half_C", half_C),
            ("offset_C", offset_C),
            ("shift_C", (offset_C / half_C).atanh()),
            ("width_C", levels_C // 2),
            ("basis_C", basis_C),
            ("zero", (levels_C // 2 * basis_C).sum()),
        ):
            self.register_buffer(name, value, persistent=False)

    @classmethod
    def of(cls, config: schema.FsqTokenizer | schema.AdaptiveTokenizer) -> Self:
        """Build what a recipe's `tokenizer` section asks for."""
        return cls(config.levels, entropy=config.entropy, commitment=config.commitment)

    def bound(self, vectors_C: Tensor) -> Tensor:
        """Squash values to where rounding gives their levels, steps being 1 apart."""
        return (vectors_C + self.shift_C).tanh() * self.half_C - self.offset_C

    def forward(self, vectors_C: Tensor) -> Quantized:
        """Round every value to its nearest level."""
        with full_precision(vectors_C.device):
            bounded_C = self.bound(vectors_C.float())
            step_C = bounded_C.round()
            place_C = step_C.nan_to_num().long() + self.width_C  # as an integer, NaN is any number
            codes = (place_C * self.basis_C).sum(dim=-1)
            losses = {}
            if self.commitment:
                distance = (bounded_C - step_C.detach()).square().mean()
                losses["commitment"] = self.commitment * distance
            if self.entropy:
                losses["entropy"] = self.entropy * self._entropy(bounded_C)
            return Quantized(straight_through(bounded_C, step_C) / self.width_C, codes, losses)

    def vectors(self, codes: Tensor) -> Tensor:
        """Look codes up: values in [-1, 1]."""
        step_C = codes[..., None] // self.basis_C % self.levels_C - self.width_C
        return step_C.float() / self.width_C

    def _entropy(self, bounded_C: Tensor) -> Tensor:
        """Mean entropy of a soft choice less the entropy of the mean choice, summed over the axes.

        VidTok takes both over all codes at once; with independent axes they are sums, and millions
        of codes cost no more than their axes.
        """
        total = bounded_C.new_zeros(())
        for axis, levels in enumerate(self.levels):
            step_L = torch.arange(levels, device=bounded_C.device) - levels // 2
            away_NL = bounded_C[..., axis].flatten()[:, None] - step_L
            choice_NL = (-_SHARPNESS * away_NL.square()).softmax(dim=-1)
            mean_L = choice_NL.mean(dim=0)
            if self.training:  # of all processes, as if one had the whole batch
                mean_L = distributed.mean_with_gradient(mean_L)
            total = total + _entropy_of(choice_NL).mean() - _entropy_of(mean_L)
        return total


def radix(levels: Sequence[int]) -> list[int]:
    """Return what a step of each value adds to a code, the first value being the fastest."""
    return list(itertools.accumulate(levels[:-1], operator.mul, initial=1))


def _entropy_of(share_L: Tensor) -> Tensor:
    """Return entropies along the last axis, in nats."""
    # Shares of far levels are rounded to 0, where the logarithm has no gradient.
    return -(share_L * share_L.clamp(min=torch.finfo(share_L.dtype).tiny).log()).sum(dim=-1)
