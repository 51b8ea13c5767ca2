"""What a mask, and a model if there is one, make of a window.

Shapes: B = 1, C channels, T frames, N tokens, K visible, M predicted, P raw pixels of a token.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from tatscli.data.normalize import standardize, to_unit
from tatscli.masking.base import Masker
from tatscli.masking.plan import MaskPlan, gather_tokens
from tatscli.masking.selection.base import Selection
from tatscli.nn.autoencoder import MaskedAutoencoder
from tatscli.nn.vit import Encoder
from tatscli.targets.base import Target
from tatscli.targets.pixels import PixelTarget
from tatscli.visualize.windows import Window


@dataclass(frozen=True, slots=True)
class Sight:
    """What is seen of a window, and what is guessed.

    Attributes:
        plan: Of this clip alone (B = 1), after the selection.
        score_N: Probability of each token to be shown, if the mask is learned.
        reconstruction_CTHW: float32 in about [0, 1], predicted tokens over the input; None without
            a model that predicts pixels.
        error_M: float32 error of each predicted token, as the training's loss counts it; None
            without a model.
    """

    plan: MaskPlan
    score_N: Tensor | None
    reconstruction_CTHW: Tensor | None = None
    error_M: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Viewer:
    """A mask to look at, with whatever it needs.

    Attributes:
        masker: Chooses the plans.
        encoder: Cuts videos into tokens; its embeddings are used where the masker reads them.
        mean: Of the colours the encoder was trained on.
        std: Deviation of those.
        autoencoder: Trained; gives reconstruction and error.
        targets: What it predicts, in its order.
        selection: Leaves some of the hidden tokens unpredicted, if the recipe says so.
    """

    masker: Masker
    encoder: Encoder
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    autoencoder: MaskedAutoencoder | None = None
    targets: tuple[Target, ...] = ()
    selection: Selection | None = None

    @property
    def needs_embeddings(self) -> bool:
        """Whether mask or selection reads the patch embeddings."""
        return any(one.needs_embeddings for one in (self.masker, self.selection) if one is not None)

    @property
    def needs_motion(self) -> bool:
        """Whether mask or selection reads the motion."""
        return any(one.needs_motion for one in (self.masker, self.selection) if one is not None)

    @property
    def pixel_target(self) -> int | None:
        """Which target, if any, can be looked at."""
        places = (i for i, target in enumerate(self.targets) if isinstance(target, PixelTarget))
        return next(places, None) if self.autoencoder is not None else None

    @torch.no_grad()
    def look(self, window: Window, generator: Generator) -> Sight:
        """Mask a window, and reconstruct it where there is a model."""
        device = self.encoder.patch_embed.proj.weight.device
        unit_BCTHW = to_unit(window.video_TCHW.transpose(0, 1)[None].to(device))
        cubes_BNP = self.encoder.cubes(standardize(unit_BCTHW, self.mean, self.std))
        tokens_BND = self.encoder.embed(cubes_BNP) if self.needs_embeddings else cubes_BNP
        motion = window.motion.to(device) if self.needs_motion else None
        plan = self.masker.plan(tokens_BND, motion=motion, generator=generator)
        if self.selection is not None:
            plan = self.selection.select(plan, tokens_BND, motion=motion, generator=generator)
        score_BN = self.masker.scores_BN(tokens_BND)
        score_N = None if score_BN is None else score_BN[0].float().cpu()
        if self.autoencoder is None:
            return Sight(plan, score_N)
        predictions = self.autoencoder(cubes_BNP, plan.visible_BK, plan.predict_BM)
        return Sight(
            plan,
            score_N,
            self._reconstruct(predictions, unit_BCTHW, plan),
            self._error_BM(predictions, unit_BCTHW, plan)[0].cpu(),
        )

    def _error_BM(self, predictions: list[Tensor], unit_BCTHW: Tensor, plan: MaskPlan) -> Tensor:
        """Weigh and add the targets' errors of each predicted token, as `pretrain` does."""
        error_BM = torch.zeros_like(plan.predict_BM, dtype=torch.float32)
        for prediction_BMC, target in zip(predictions, self.targets, strict=True):
            target_BMC = gather_tokens(target.of(unit_BCTHW), plan.predict_BM)
            error_BM = error_BM + target.weight * target.error(prediction_BMC, target_BMC)
        return error_BM

    def _reconstruct(
        self, predictions: list[Tensor], unit_BCTHW: Tensor, plan: MaskPlan
    ) -> Tensor | None:
        """Lay the predicted pixels over the input: (C, T, H, W)."""
        place = self.pixel_target
        if place is None:
            return None
        target = self.targets[place]
        assert isinstance(target, PixelTarget)
        restored_BMC = target.restore(predictions[place], unit_BCTHW, plan.predict_BM)
        tokens = math.prod(self.encoder.grid)
        # Hidden tokens that are not predicted either stay grey.
        painted_BNC = restored_BMC.new_full((1, tokens, target.width), 0.5)
        index_BMC = plan.predict_BM[..., None].expand(-1, -1, target.width)
        painted = target.to_video(painted_BNC.scatter(1, index_BMC, restored_BMC))[0]
        visible_BN = ~plan.hidden_BN(tokens)
        shown_BNC = visible_BN[..., None].expand(-1, -1, target.width)
        return torch.where(target.to_video(shown_BNC)[0], unit_BCTHW[0], painted).cpu()
