"""`Quantizer`: the contract of what turns vectors into codes.

Shapes: ... any, C values of a vector, K codes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

from torch import Tensor, nn


class Quantized(NamedTuple):
    """Vectors after quantisation.

    Attributes:
        vectors_C: (..., C), those of the codes, with the gradient passed straight through.
        codes: (...), int64.
        losses: Terms of the loss by name, already weighted; scalars in float32.
    """

    vectors_C: Tensor
    codes: Tensor
    losses: Mapping[str, Tensor]


class Quantizer(nn.Module):
    """Replaces vectors by those of a finite set.

    Attributes:
        size: Number of codes K.
        width: Values C of a vector.
        levels: Steps of each value, where the codes are the cells of a grid.
    """

    size: int
    width: int
    levels: Sequence[int] | None = None

    @classmethod
    def of(cls, config: Any) -> Self:
        """Build what a recipe's `tokenizer` section asks for."""
        raise NotImplementedError

    def forward(self, vectors_C: Tensor) -> Quantized:
        """Quantise vectors (..., C); in training, what there is to learn is learned here."""
        raise NotImplementedError

    def vectors(self, codes: Tensor) -> Tensor:
        """Look codes (...) up: (..., C), float32."""
        raise NotImplementedError


def straight_through(vectors_C: Tensor, replaced_C: Tensor) -> Tensor:
    """Return `replaced_C` with the gradient of `vectors_C` (Bengio et al. 2013)."""
    return vectors_C + (replaced_C - vectors_C).detach()
