"""`vq`: a codebook that follows the vectors it stands for (van den Oord et al. 2017, arXiv
1711.00937, appendix A.1; Razavi et al. 2019).

Each code is the moving average of the vectors that chose it. With cosine codes, vectors and codes
are of length 1 (ViT-VQGAN, Yu et al. 2021). Several processes keep one codebook: counts and sums
are added up over all of them.

Shapes: N vectors, C values of each, K codes, ... any.
"""

from __future__ import annotations

import itertools
import math
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from tatscli.engine import distributed
from tatscli.engine.device import full_precision
from tatscli.recipe import schema
from tatscli.tokenizer.quantize import Quantized, Quantizer, straight_through

_EPS = 1e-5  # Laplace smoothing of the counts, so that an unused code divides by more than 0


class Codebook(Quantizer):
    """Nearest code; in training, a moving-average codebook.

    Args:
        size: Codes.
        width: Values of a vector.
        cosine: Whether vectors and codes have length 1.
        decay: Share of its averages that an update keeps.
        commitment: Weight of the distance from vectors to their codes.
        kmeans: Rounds of k-means over the first batch; 0 begins with what was drawn.
        restart: Codes used less than this share of an even use start again; 0 restarts none.

    Attributes:
        code_KC: The codebook.
        count_K: Moving average of how many vectors of a batch chose each code.
        sum_KC: Moving average of the sums of those vectors.
    """

    code_KC: Tensor
    count_K: Tensor
    sum_KC: Tensor
    begun: Tensor

    def __init__(
        self,
        size: int,
        width: int,
        *,
        cosine: bool = False,
        decay: float = 0.99,
        commitment: float = 0.25,
        kmeans: int = 10,
        restart: float = 0.05,
    ) -> None:
        super().__init__()
        self.size = size
        self.width = width
        self.cosine = cosine
        self.decay = decay
        self.commitment = commitment
        self.kmeans = kmeans
        self.restart = restart
        code_KC = self._scaled(torch.empty(size, width).uniform_(-1 / size, 1 / size))
        self.register_buffer("code_KC", code_KC)
        self.register_buffer("sum_KC", code_KC.clone())
        self.register_buffer("count_K", torch.ones(size))
        self.register_buffer("begun", torch.tensor(kmeans == 0))
        self._begun: bool | None = None  # `begun`, read from the device once

    @classmethod
    def of(cls, config: schema.VqTokenizer) -> Self:
        """Build what a recipe's `tokenizer` section asks for."""
        return cls(
            config.codes,
            config.code_width,
            cosine=config.cosine,
            decay=config.decay,
            commitment=config.commitment,
            kmeans=config.kmeans,
            restart=config.restart,
        )

    def forward(self, vectors_C: Tensor) -> Quantized:
        """Replace vectors (..., C) by their nearest codes, and let the codebook follow them."""
        with full_precision(vectors_C.device):
            given_C = self._scaled(vectors_C.float())
            flat_NC = given_C.detach().flatten(0, -2)
            if self.training:
                self._begin(flat_NC)
            code_N = nearest(flat_NC, self.code_KC)
            found_C = self.code_KC[code_N].view_as(given_C)
            if self.training:
                self._follow(flat_NC, code_N)
            losses = {}
            if self.commitment:
                losses["commitment"] = self.commitment * (given_C - found_C).square().mean()
            return Quantized(
                straight_through(given_C, found_C), code_N.view(given_C.shape[:-1]), losses
            )

    def vectors(self, codes: Tensor) -> Tensor:
        """Look codes up in the codebook."""
        return self.code_KC[codes]

    def _scaled(self, vectors_C: Tensor) -> Tensor:
        return F.normalize(vectors_C, dim=-1) if self.cosine else vectors_C

    @torch.no_grad()
    def _begin(self, flat_NC: Tensor) -> None:
        """Make the first codebook of the first batch: clusters of its vectors."""
        if flat_NC.is_meta:  # a step is counted, which has shapes but no numbers
            return
        if self._begun is None:
            self._begun = bool(self.begun)
        # A batch gone wrong, which no optimiser learns from, would stay in the codebook for good.
        if self._begun or distributed.total((~flat_NC.isfinite()).sum()):
            return
        code_KC = _drawn(flat_NC, self.size)
        count_K = torch.ones_like(self.count_K)
        for _ in range(self.kmeans):
            count_K, sum_KC = _gather(flat_NC, nearest(flat_NC, code_KC), self.size)
            mean_KC = self._scaled(sum_KC / count_K.clamp(min=1)[:, None])
            code_KC = torch.where(count_K[:, None] > 0, mean_KC, code_KC)
        self.code_KC.copy_(code_KC)
        self.count_K.copy_(count_K)
        self.sum_KC.copy_(code_KC * count_K[:, None])
        self.begun.fill_(True)
        self._begun = True

    @torch.no_grad()
    def _follow(self, flat_NC: Tensor, code_N: Tensor) -> None:
        """Move every code towards the mean of the vectors that chose it."""
        count_K, sum_KC = _gather(flat_NC, code_N, self.size)
        # A batch gone wrong, which no optimiser learns from, must not stay in the averages either.
        sum_KC = torch.where(sum_KC.isfinite(), sum_KC, self.sum_KC)
        self.count_K.lerp_(count_K, 1 - self.decay)
        self.sum_KC.lerp_(sum_KC, 1 - self.decay)
        total = self.count_K.sum()
        smooth_K = (self.count_K + _EPS) / (total + self.size * _EPS) * total
        self.code_KC.copy_(self._scaled(self.sum_KC / smooth_K[:, None]))
        if self.restart:
            self._restart(flat_NC, self.restart * count_K.sum() / self.size)

    def _restart(self, flat_NC: Tensor, least: Tensor) -> None:
        """Put codes that are used less than `least` at vectors of the batch."""
        drawn_KC = _drawn(flat_NC, self.size)
        dead_K = (self.count_K < least) & drawn_KC.isfinite().all(dim=1)
        dead_K1 = dead_K[:, None]
        # They begin with an even use, or the next update would find them dead again.
        even = least / self.restart
        self.count_K.copy_(torch.where(dead_K, even, self.count_K))
        self.sum_KC.copy_(torch.where(dead_K1, drawn_KC * even, self.sum_KC))
        self.code_KC.copy_(torch.where(dead_K1, drawn_KC, self.code_KC))

    def _load_from_state_dict(self, *args: object, **kwargs: object) -> None:
        super()._load_from_state_dict(*args, **kwargs)  # type: ignore[arg-type]
        self._begun = None


def nearest(vectors_NC: Tensor, code_KC: Tensor) -> Tensor:
    """Return the code at the least Euclidean distance from each vector: int64 (N)."""
    # The vector's own length is the same for all codes.
    return torch.addmm(code_KC.square().sum(dim=1), vectors_NC, code_KC.T, alpha=-2).argmin(dim=1)


def _gather(vectors_NC: Tensor, code_N: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Count and add up the vectors of each code, over all processes: (K) and (K, C)."""
    count_K = vectors_NC.new_zeros(size).scatter_add_(0, code_N, torch.ones_like(vectors_NC[:, 0]))
    sum_KC = vectors_NC.new_zeros(size, vectors_NC.shape[1]).index_add_(0, code_N, vectors_NC)
    return distributed.total(count_K), distributed.total(sum_KC)


def _drawn(vectors_NC: Tensor, number: int) -> Tensor:
    """Draw vectors of all processes, the same on each: (K, C); twice only where there are few.

    They lie evenly among all vectors, from a random one on. The first process draws which, so that
    it does not matter how many share a batch.
    """
    own, (rank, world) = len(vectors_NC), distributed.place()
    start = torch.randint(own * world, (), device=vectors_NC.device)
    start = distributed.total(start * (rank == 0))
    slot_K = torch.arange(number, device=vectors_NC.device)
    place_K = (start + _even_step(own * world) * slot_K) % (own * world)
    mine_K1 = (place_K // own == rank)[:, None]
    return distributed.total(torch.where(mine_K1, vectors_NC[place_K % own], 0.0))


def _even_step(count: int) -> int:
    """Return the step that meets each of `count` places once before any twice, and whose first few
    places are as even as any: near the golden section, and prime to `count`."""
    first = max(1, round(count * (math.sqrt(5) - 1) / 2))
    return next(step for step in itertools.count(first) if math.gcd(step, count) == 1)
