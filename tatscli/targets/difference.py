"""`difference`: how pixels change over time (MAM2, Song et al. 2022, arXiv 2210.05234).

The abstract names the RGB difference as its simple and effective motion target; which frames are
compared, and the scale, are choices made here (`targets/differences.py`).

Shapes: B batch, M tokens picked, C differences of a cube, F frames that are subtracted from, P
pixel values of a cube, U tubelet, Q values of a cube's frame.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tatscli.data.clip import Clip, ClipForm
from tatscli.errors import RecipeError
from tatscli.recipe import schema
from tatscli.targets.base import Target
from tatscli.targets.differences import (
    across_cubes,
    mean_over_valid,
    normalised,
    restored,
    within_cube,
)


class Differences(NamedTuple):
    """What predictions are compared with.

    Attributes:
        value_BMC: Later less earlier, perhaps normalised.
        valid_BMF: Which frames have a later one; None where all have.
    """

    value_BMC: Tensor
    valid_BMF: Tensor | None


class DifferenceTarget(Target):
    """Differences between the frames of a cube, or to later frames of the clip.

    Raises:
        RecipeError: If a gap is longer than the cube or clip.
    """

    config: schema.DifferenceTarget

    def __init__(self, config: schema.DifferenceTarget, *, form: ClipForm) -> None:
        super().__init__(config, form=form)
        self.form = form
        frames = form.tubelet if config.span == "cube" else form.grid[0] * form.tubelet
        wide = [gap for gap in config.gaps if gap >= frames]
        if wide:
            raise RecipeError(
                f"`targets`: a `difference` with `gaps: {config.gaps}` needs frames "
                f"{wide[0]} apart, and a {config.span} has {frames}",
                hint="use smaller gaps, a larger `model.tubelet`, or `span: clip`",
            )
        pairs = [frames - gap if config.span == "cube" else form.tubelet for gap in config.gaps]
        self.predicts = sum(pairs) * 3 * form.patch**2

    def of(self, clip: Clip, index_BM: Tensor) -> Differences:
        """Return the differences of the tokens, in pixels of [0, 1] or normalised."""
        value_BMC, valid_BMF = self._raw(clip, index_BM)
        floor = self.config.floor if self.config.normalize else None
        return Differences(normalised(value_BMC, floor, valid_BMF=valid_BMF), valid_BMF)

    def _raw(self, clip: Clip, index_BM: Tensor) -> tuple[Tensor, Tensor | None]:
        form, gaps = clip.form, self.config.gaps
        if self.config.span == "cube":
            return within_cube(clip.unit(index_BM), form.tubelet, gaps), None
        return across_cubes(clip.pixels_BNP, index_BM, form.grid, form.tubelet, gaps)

    def error(self, prediction_BMC: Tensor, values: Differences) -> Tensor:
        """Return the mean squared error of each token over its frames: (B, M), float32.

        A token none of whose frames has a later one counts as without error.
        """
        square_BMC = (prediction_BMC.float() - values.value_BMC).square()
        if values.valid_BMF is None:
            return square_BMC.mean(dim=-1)
        return mean_over_valid(square_BMC, values.valid_BMF)

    def restore(self, prediction_BMC: Tensor, clip: Clip, index_BM: Tensor) -> Tensor:
        """Return the change that is predicted for every frame of the tokens' cubes, over the first
        gap, with the true mean and scale of each token put back: about [-1, 1], (B, M, P).

        Inside a cube the last frames, which have no later one, repeat the one before them; at the
        end of the clip they are 0.
        """
        raw_BMC, valid_BMF = self._raw(clip, index_BM)
        change_BMC = prediction_BMC.float()
        if self.config.normalize:
            change_BMC = restored(change_BMC, raw_BMC, self.config.floor, valid_BMF=valid_BMF)
        if valid_BMF is not None:
            frames_BMFQ = change_BMC.unflatten(-1, (valid_BMF.shape[-1], -1))
            change_BMC = (frames_BMFQ * valid_BMF[..., None]).flatten(2)
        return self._frames(change_BMC)

    def changes(self, clip: Clip, index_BM: Tensor) -> Tensor:
        """Return what `restore` would of a perfect prediction."""
        return self._frames(self._raw(clip, index_BM)[0])

    def _frames(self, change_BMC: Tensor) -> Tensor:
        """Give every frame of a cube its difference over the first gap: (B, M, P)."""
        frames_BMFQ = change_BMC.unflatten(-1, (-1, self.form.patch**2 * 3))
        pairs = self.form.tubelet
        pairs -= self.config.gaps[0] if self.config.span == "cube" else 0
        place_U = torch.arange(self.form.tubelet, device=change_BMC.device).clamp(max=pairs - 1)
        return frames_BMFQ[:, :, place_U].flatten(2)
