"""Probes: small classifiers on frozen features.

Shapes: B batch, N tokens, D width, L classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tatscli.nn.pool import EfficientPool, JepaPool
from tatscli.recipe import schema

QUERIES = "evaluate.probe.queries"


class LinearProbe(nn.Module):
    """BatchNorm without weights and a linear layer that begins at a deviation of 0.01: the probe of
    MAE (He et al. 2022, arXiv 2111.06377, appendix A.1; facebookresearch/mae, main_linprobe.py)."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        # A probe is trained whole on one process, so torch's own is right on several as well.
        self.norm = nn.BatchNorm1d(width, affine=False, eps=1e-6)
        self.head = nn.Linear(width, classes)
        nn.init.trunc_normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def forward(self, features_BD: Tensor) -> Tensor:
        """Score the classes: (B, L)."""
        return self.head(self.norm(features_BD))


class AttentiveProbe(nn.Module):
    """Pooling that learns, and a classifier behind it.

    With `efficient` that is `LinearProbe`, as in efficient probing; with `vjepa` a bare linear
    layer, as in V-JEPA.

    Args:
        settings: The recipe's `evaluate.probe`.
        width: Token width D.
        heads: Attention heads of the blocks of `vjepa`: the encoder's.
        classes: Number of labels.

    Raises:
        RecipeError: If the queries cannot share the width.
    """

    def __init__(self, settings: schema.Probe, *, width: int, heads: int, classes: int) -> None:
        super().__init__()
        self.width = width
        self.pool: nn.Module
        self.classify: nn.Module
        if settings.form == "efficient":
            self.pool = EfficientPool(width, settings.queries, key=QUERIES)
            self.classify = LinearProbe(width, classes)
        else:
            self.pool = JepaPool(width, heads)
            self.classify = nn.Linear(width, classes)
            nn.init.trunc_normal_(self.classify.weight, std=0.02)
            nn.init.zeros_(self.classify.bias)

    def forward(self, tokens_BX: Tensor) -> Tensor:
        """Score the classes given all tokens of each clip, joined (B, N x D): (B, L)."""
        return self.classify(self.pool(tokens_BX.unflatten(1, (-1, self.width))))


def build_probe(
    protocol: str, settings: schema.Probe, *, width: int, heads: int, classes: int, seed: int
) -> nn.Module:
    """Build a fresh probe; the same seed gives the same weights.

    Raises:
        RecipeError: If the queries cannot share the width.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if protocol == "linear":
            return LinearProbe(width, classes)
        return AttentiveProbe(settings, width=width, heads=heads, classes=classes)
