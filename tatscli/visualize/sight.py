"""What a mask, and a model if there is one, make of a window.

Shapes: B = 1, C channels, T frames, N tokens, K visible, M predicted, P raw pixels of a token.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from tatscli.data.normalize import standardize, to_unit
from tatscli.masking.base import Masker
from tatscli.masking.plan import MaskPlan
from tatscli.nn.autoencoder import MaskedAutoencoder
from tatscli.nn.vit import Encoder
from tatscli.targets.base import Target
from tatscli.targets.pixels import PixelTarget
from tatscli.visualize.windows import Window


@dataclass(frozen=True, slots=True)
class Sight:
    """What is seen of a window, and what is guessed.

    Attributes:
        plan: Of this clip alone (B = 1).
        score_N: Probability of each token to be shown, if the mask is learned.
        reconstruction_CTHW: float32 in about [0, 1], predicted tokens over the input; None without
            a model that predicts pixels.
    """

    plan: MaskPlan
    score_N: Tensor | None
    reconstruction_CTHW: Tensor | None


@dataclass(frozen=True, slots=True)
class Viewer:
    """A mask to look at, with whatever it needs.

    Attributes:
        masker: Chooses the plans.
        encoder: Cuts videos into tokens; its embeddings are used where the masker reads them.
        mean: Of the colours the encoder was trained on.
        std: Deviation of those.
        autoencoder: Trained; draws the reconstruction.
        targets: What it predicts, in its order.
    """

    masker: Masker
    encoder: Encoder
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    autoencoder: MaskedAutoencoder | None = None
    targets: tuple[Target, ...] = ()

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
        tokens_BND = self.encoder.embed(cubes_BNP) if self.masker.needs_embeddings else cubes_BNP
        motion = window.motion.to(device) if self.masker.needs_motion else None
        plan = self.masker.plan(tokens_BND, motion=motion, generator=generator)
        score_BN = self.masker.scores_BN(tokens_BND)
        return Sight(
            plan,
            None if score_BN is None else score_BN[0].float().cpu(),
            self._reconstruct(unit_BCTHW, cubes_BNP, plan),
        )

    def _reconstruct(self, unit_BCTHW: Tensor, cubes_BNP: Tensor, plan: MaskPlan) -> Tensor | None:
        """Lay the predicted pixels over the input: (C, T, H, W)."""
        place = self.pixel_target
        if place is None or self.autoencoder is None:
            return None
        target = self.targets[place]
        assert isinstance(target, PixelTarget)
        predicted = self.autoencoder(cubes_BNP, plan.visible_BK, plan.predict_BM)[place]
        restored_BMC = target.restore(predicted, unit_BCTHW, plan.predict_BM)
        # Hidden tokens that are not predicted either stay grey.
        painted_BNC = restored_BMC.new_full((1, cubes_BNP.shape[1], target.width), 0.5)
        index_BMC = plan.predict_BM[..., None].expand(-1, -1, target.width)
        painted = target.to_video(painted_BNC.scatter(1, index_BMC, restored_BMC))[0]
        visible_BN = ~plan.hidden_BN(cubes_BNP.shape[1])
        shown_BNC = visible_BN[..., None].expand(-1, -1, target.width)
        return torch.where(target.to_video(shown_BNC)[0], unit_BCTHW[0], painted).cpu()
