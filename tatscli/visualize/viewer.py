"""What a mask, and a model if there is one, make of a window.

Shapes: B = 1, C channels, T frames, H and W pixels, N tokens, M predicted, P values of a cube, R
codes of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tatscli.data.clip import Clip
from tatscli.draws import Draws
from tatscli.masking.plan import MaskPlan
from tatscli.masking.predict.tokenizer import TokenizerRule
from tatscli.system.system import Errors, System
from tatscli.targets.base import Target
from tatscli.targets.difference import DifferenceTarget
from tatscli.targets.pixels import PixelTarget
from tatscli.targets.tokens import TokenizerTarget
from tatscli.tokenizer.asked import Asked
from tatscli.visualize.windows import Window


@dataclass(frozen=True, slots=True)
class MaskedWindow:
    """What a mask hides of a window, and what a model predicts.

    Attributes:
        plan: Of this clip alone (B = 1), after the `predict` rule.
        score_N: Probability of each token to be shown, if the mask is learned.
        reconstruction_CTHW: float32 in about [0, 1], predicted tokens over the input; None without
            a model that predicts pixels.
        error_M: float32 error of each predicted token, as the training's loss counts it; None
            without a model.
        saliency_N: float32, how salient the `predict` rule finds each token; None where it measures
            nothing.
        coded_CTHW: float32 in [0, 1], what the codes of the tokenizer that targets or the
            `predict` rule ask hold of the window; None where they ask none.
        guessed_CTHW: The same of the codes that the model predicts, and where it predicts none of
            the true ones.
        change_CTHW: float32 in [-1, 1], how the window changes from frame to frame; None without a
            model that predicts differences.
        guessed_change_CTHW: The same with predicted tokens over it.
    """

    plan: MaskPlan
    score_N: Tensor | None
    reconstruction_CTHW: Tensor | None = None
    error_M: Tensor | None = None
    saliency_N: Tensor | None = None
    coded_CTHW: Tensor | None = None
    guessed_CTHW: Tensor | None = None
    change_CTHW: Tensor | None = None
    guessed_change_CTHW: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Viewer:
    """A system whose masks and predictions are shown.

    Attributes:
        system: Its mask and `predict` rule make the plans.
        trained: Whether the model is trained: only then are reconstruction and error shown.
        brief: Show only the mask.
    """

    system: System
    trained: bool = False
    brief: bool = False

    @property
    def pixel_target(self) -> str | None:
        """The first target of pixels, if the model is trained."""
        return self._first(PixelTarget)

    @property
    def borrows_statistics(self) -> bool:
        """Whether reconstructions take each patch's mean and deviation from the original."""
        name = self.pixel_target
        return name is not None and self.system.targets[name].config.normalize

    @property
    def difference_target(self) -> str | None:
        """The first target of frame differences, if the model is trained."""
        return self._first(DifferenceTarget)

    def _first(self, kind: type[Target]) -> str | None:
        names = (name for name, one in self.system.targets.items() if isinstance(one, kind))
        return next(names, None) if self.trained else None

    @property
    def asked(self) -> Asked | None:
        """The tokenizer used by the targets, or else by the `predict` rule."""
        target, rule = self.code_target, self.system.predict
        if target is not None:
            return target.asked
        return rule.asked if isinstance(rule, TokenizerRule) else None

    @property
    def code_target(self) -> TokenizerTarget | None:
        """The first target that asks a tokenizer, if any."""
        targets = self.system.targets.values()
        return next((one for one in targets if isinstance(one, TokenizerTarget)), None)

    @torch.no_grad()
    def mask(self, window: Window, draws: Draws) -> MaskedWindow:
        """Mask a window, and reconstruct it if the model is trained."""
        system, device = self.system, self.system.device
        clip = system.clip(
            window.video_TCHW.transpose(0, 1)[None].to(device), motion=window.motion.to(device)
        )
        if self.brief:
            return MaskedWindow(system.plan(clip, draws), self._score_N(clip))
        saliency_BN = system.predict.saliency_BN(clip)
        others = {
            "saliency_N": None if saliency_BN is None else saliency_BN[0].float().cpu(),
            "coded_CTHW": None if self.asked is None else self.asked.decoded(clip)[0].cpu(),
        }
        if not self.trained:
            return MaskedWindow(system.plan(clip, draws), self._score_N(clip), **others)
        found = system.errors(clip, draws)
        if self.difference_target is not None:
            change_CTHW, guessed_CTHW = self._differ(clip, found, self.difference_target)
            others |= {"change_CTHW": change_CTHW, "guessed_change_CTHW": guessed_CTHW}
        return MaskedWindow(
            found.plan,
            self._score_N(clip),
            self._reconstruct(clip, found),
            found.error_BM[0].cpu(),
            guessed_CTHW=self._guess(clip, found),
            **others,
        )

    def _score_N(self, clip: Clip) -> Tensor | None:
        score_BN = self.system.masker.scores_BN(clip)
        return None if score_BN is None else score_BN[0].float().cpu()

    def _guess(self, clip: Clip, found: Errors) -> Tensor | None:
        """Decode the codes predicted among the true ones: (C, T, H, W)."""
        target = self.code_target
        if target is None or target.asked.shared:
            return None
        place = list(self.system.targets.values()).index(target)
        codes_BMR = target.codes_of(found.predictions[place])
        if codes_BMR is None:
            return None
        codes_BNR = target.asked.codes(clip)
        index_BMR = found.plan.predict_BM[..., None].expand_as(codes_BMR)
        return target.asked.decoded(clip, codes_BNR.scatter(1, index_BMR, codes_BMR))[0].cpu()

    def _reconstruct(self, clip: Clip, found: Errors) -> Tensor | None:
        """Paste the predicted pixels into the input: (C, T, H, W)."""
        name = self.pixel_target
        if name is None:
            return None
        target = self.system.targets[name]
        assert isinstance(target, PixelTarget)
        index_BM = found.plan.predict_BM
        restored_BMP = target.restore(self._predicted(name, found), clip, index_BM)
        return _pasted(clip, found.plan, clip.unit(), restored_BMP, unseen=0.5)

    def _differ(self, clip: Clip, found: Errors, name: str) -> tuple[Tensor, Tensor]:
        """Return the true differences, and the predicted ones pasted into them: (C, T, H, W)."""
        target = self.system.targets[name]
        assert isinstance(target, DifferenceTarget)
        index_BM, plan = found.plan.predict_BM, found.plan
        tokens_BN = torch.arange(math.prod(clip.form.grid), device=index_BM.device)[None]
        change_BNP = target.changes(clip, tokens_BN)
        restored_BMP = target.restore(self._predicted(name, found), clip, index_BM)
        guessed_CTHW = _pasted(clip, plan, change_BNP, restored_BMP, unseen=0.0)
        return clip.form.join(change_BNP)[0].cpu(), guessed_CTHW

    def _predicted(self, name: str, found: Errors) -> Tensor:
        return found.predictions[list(self.system.targets).index(name)]


def _pasted(
    clip: Clip, plan: MaskPlan, whole_BNP: Tensor, guess_BMP: Tensor, *, unseen: float
) -> Tensor:
    """Paste what is predicted over the rest: (C, T, H, W). Hidden tokens that are not predicted
    get the value `unseen`."""
    hidden_BN1 = plan.hidden_BN(whole_BNP.shape[1])[..., None]
    painted_BNP = torch.where(hidden_BN1, unseen, whole_BNP)
    index_BMP = plan.predict_BM[..., None].expand_as(guess_BMP)
    return clip.form.join(painted_BNP.scatter(1, index_BMP, guess_BMP))[0].cpu()
