"""`teacher`: what a frozen, trained network makes of the whole clip.

One of our own runs (SALT, Li et al. 2025, arXiv 2509.24317: a frozen pixel-trained encoder teaches
another), or a network from elsewhere (as UMT, arXiv 2303.16058, and CAE v2, arXiv 2211.09799, take
CLIP's). Each token's features are brought to mean 0 and deviation 1, and compared in smooth L1.

Shapes: B batch, M tokens picked, D width of the teacher.
"""

from __future__ import annotations

from torch import Tensor

from tatscli.data.clip import Clip, ClipForm, pick
from tatscli.nn.teachers import build_teacher
from tatscli.recipe import schema
from tatscli.targets.base import Target
from tatscli.targets.features import smooth_l1_BM, standardised


class TeacherTarget(Target):
    """Features of a frozen network that sees the full clip in its own normalisation.

    Raises:
        RecipeError: As `build_teacher`.
    """

    config: schema.TeacherTarget

    def __init__(self, config: schema.TeacherTarget, *, form: ClipForm) -> None:
        super().__init__(config, form=form)
        self.teacher, self.predicts = build_teacher(config, form=form)

    def of(self, clip: Clip, index_BM: Tensor) -> Tensor:
        """Return the features of the tokens: (B, M, D), float32."""
        return standardised(pick(self.teacher(clip.unit_BCTHW), index_BM))

    def error(self, prediction_BMD: Tensor, values_BMD: Tensor) -> Tensor:
        """Return the smooth L1 distance of each token, the mean over its features: (B, M)."""
        return smooth_l1_BM(prediction_BMD, values_BMD, self.config.beta)
