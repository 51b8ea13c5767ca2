"""What a mask, and a model if there is one, make of a window.

Shapes: B = 1, C channels, T frames, N tokens, M predicted, P values of a cube.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from tatscli.data.clip import Clip
from tatscli.masking.plan import MaskPlan
from tatscli.system.system import Errors, System
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
    """A system to look at.

    Attributes:
        system: Its mask and selection make the plans.
        trained: Whether the model in it has learned something: only then are reconstruction and
            error shown.
    """

    system: System
    trained: bool = False

    @property
    def pixel_target(self) -> str | None:
        """Which target, if any, can be looked at."""
        names = (n for n, one in self.system.targets.items() if isinstance(one, PixelTarget))
        return next(names, None) if self.trained else None

    @torch.no_grad()
    def look(self, window: Window, generator: Generator) -> Sight:
        """Mask a window, and reconstruct it where there is a model."""
        system, device = self.system, self.system.device
        clip = system.clip(
            window.video_TCHW.transpose(0, 1)[None].to(device), motion=window.motion.to(device)
        )
        if not self.trained:
            plan = system.plan(clip, generator)
            return Sight(plan, self._score_N(clip))
        found = system.errors(clip, generator)
        return Sight(
            found.plan,
            self._score_N(clip),
            self._reconstruct(clip, found),
            found.error_BM[0].cpu(),
        )

    def _score_N(self, clip: Clip) -> Tensor | None:
        score_BN = self.system.masker.scores_BN(clip)
        return None if score_BN is None else score_BN[0].float().cpu()

    def _reconstruct(self, clip: Clip, found: Errors) -> Tensor | None:
        """Lay the predicted pixels over the input: (C, T, H, W)."""
        name = self.pixel_target
        if name is None:
            return None
        target = self.system.targets[name]
        assert isinstance(target, PixelTarget)
        place = list(self.system.targets).index(name)
        index_BM = found.plan.predict_BM
        restored_BMP = target.restore(found.predictions[place], clip, index_BM)
        unit_BNP = clip.unit()
        # Hidden tokens that are not predicted either stay grey.
        hidden_BN1 = found.plan.hidden_BN(unit_BNP.shape[1])[..., None]
        painted_BNP = torch.where(hidden_BN1, 0.5, unit_BNP)
        index_BMP = index_BM[..., None].expand_as(restored_BMP)
        return clip.form.join(painted_BNP.scatter(1, index_BMP, restored_BMP))[0].cpu()
