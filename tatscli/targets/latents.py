"""`latents`: the vectors a tokenizer's codes stand for (LVMAE, Gundavarapu et al. 2024, arXiv
2411.13683, regresses its tokenizer's).

Shapes: B batch, M tokens picked, R codes of a cube, D values of a vector, C = R * D values or
R * (sum of their levels) logits, L levels of a value, X = B * M * R codes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tatscli.data.clip import Clip, ClipForm
from tatscli.errors import RecipeError
from tatscli.recipe import schema
from tatscli.targets.tokens import TokenizerTarget
from tatscli.tokenizer.fsq import radix


class LatentsTarget(TokenizerTarget):
    """The vectors of a cube's codes: regressed, or where they lie on a grid the level of each
    value, as logits.

    Whether LVMAE regresses them or tells levels is not published; the second is ours.

    Raises:
        RecipeError: If levels are asked for and the tokenizer has none, or as `Asked`.
    """

    config: schema.LatentsTarget
    levels_D: Tensor
    basis_D: Tensor

    def __init__(self, config: schema.LatentsTarget, *, form: ClipForm) -> None:
        super().__init__(config, form=form)
        self.by_level = config.loss == "cross_entropy"
        if self.asked.levels is not None:
            self.chosen = "the likeliest levels" if self.by_level else "the nearest levels"
        if not self.by_level:
            self.predicts = self.asked.per_cube * self.asked.width
            return
        if self.asked.levels is None:
            raise RecipeError(
                f"{self.asked.name} with `loss: cross_entropy`: its codes do not lie on a grid of "
                "levels",
                hint="`loss: mse`, or a target of `kind: codes`",
            )
        self.levels = list(self.asked.levels)
        self.predicts = self.asked.per_cube * sum(self.levels)
        self.register_buffer("levels_D", torch.tensor(self.levels), persistent=False)
        self.register_buffer("basis_D", torch.tensor(radix(self.levels)), persistent=False)

    def of(self, clip: Clip, index_BM: Tensor) -> Tensor:
        """Return the vectors, float32 (B, M, C), or the levels of their values, int64 (B, M, R, D),
        counted from 0."""
        if not self.by_level:
            return self.asked.vectors(clip, index_BM).flatten(2)
        return self.asked.codes(clip, index_BM)[..., None] // self.basis_D % self.levels_D

    def codes_of(self, prediction_BMC: Tensor) -> Tensor | None:
        """Return the codes of the nearest or likeliest levels: int64 (B, M, R); None for a
        tokenizer whose codes do not lie on a grid of levels."""
        parts_BMRX = prediction_BMC.float().unflatten(2, (self.asked.per_cube, -1))
        if self.by_level:
            logits = parts_BMRX.split(self.levels, dim=-1)
            levels_BMRD = torch.stack([one.argmax(dim=-1) for one in logits], dim=-1)
            return (levels_BMRD * self.basis_D).sum(dim=-1)
        return None if self.asked.levels is None else self.asked.nearest(parts_BMRX)

    def error(self, prediction_BMC: Tensor, values: Tensor) -> Tensor:
        """Return the error of each token: (B, M), float32.

        Of vectors it is the mean squared one; of levels the cross-entropy in nats, mean over the
        values of all codes.
        """
        if not self.by_level:
            return (prediction_BMC.float() - values).square().mean(dim=-1)
        level_XD = values.flatten(0, 2)
        logits = prediction_BMC.float().reshape(len(level_XD), -1).split(self.levels, dim=1)
        error_X = torch.zeros_like(logits[0][:, 0])
        for logits_XL, level_X in zip(logits, level_XD.unbind(dim=1), strict=True):
            error_X = error_X + F.cross_entropy(logits_XL, level_X, reduction="none")
        return error_X.view(values.shape[:3]).mean(dim=2) / len(self.levels)
