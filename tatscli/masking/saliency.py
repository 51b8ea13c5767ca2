"""Which tokens matter: by how much their patch embedding changes, or by how far they move.

Shapes: B batch, N tokens (time-major), M of them, X any, D width, T slices, S sites of a slice.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tatscli.data.clip import Clip
from tatscli.data.motion import MotionField
from tatscli.errors import DataError


def embedding_change_BN(tokens_BND: Tensor, slices: int) -> Tensor:
    """Return the L2 distance of each token from the one a slice earlier: (B, N), float32.

    The first slice borrows the second's distances (EVEREST, Hwang et al. 2024, arXiv 2211.10636;
    sunilhoho/EVEREST, modeling_pretrain.py). A single slice has none: all are 0.

    Args:
        tokens_BND: Patch embeddings of whole clips, without positions.
        slices: Slices T of a clip.
    """
    # Differences of nearly equal embeddings would not survive bf16.
    tokens_BTSD = tokens_BND.detach().float().unflatten(1, (slices, -1))
    if slices == 1:
        return torch.zeros_like(tokens_BTSD[:, 0, :, 0])
    change_BTS = torch.linalg.vector_norm(tokens_BTSD[:, 1:] - tokens_BTSD[:, :-1], dim=3)
    return torch.cat([change_BTS[:, :1], change_BTS], dim=1).flatten(1)


def known_motion(clip: Clip, what: str) -> MotionField:
    """Return the clips' motion, which `what`, a key of the recipe and its value, cannot do without.

    Raises:
        DataError: If there is none.
    """
    if clip.motion is None:
        raise DataError(
            f"`{what}` needs motion, but these clips have none",
            hint="clips of a store that `tats prepare` wrote have motion",
        )
    return clip.motion


def descending(score_XM: Tensor, noise_XM: Tensor) -> Tensor:
    """Return the places of the scores from high to low, (..., M); noise decides between equals."""
    # Stable sorts, the minor key first, give one order on every device.
    by_noise_XM = noise_XM.argsort(dim=-1, descending=True, stable=True)
    by_score_XM = score_XM.gather(-1, by_noise_XM).argsort(dim=-1, descending=True, stable=True)
    return by_noise_XM.gather(-1, by_score_XM)
