"""`motion`: the motion of a cube's content, from the codec.

The motion field of the clip (`data.motion`) is itself what is predicted: the displacement into each
frame of the cube, along x and y, at the token. Ours; MAM2 (arXiv 2210.05234) names other motion
targets than the RGB difference without saying which.

Shapes: B batch, T frames, N tokens of a clip, M picked, S sites of a slice, U tubelet, C = 2 U.
"""

from __future__ import annotations

from torch import Tensor

from tatscli.data.clip import Clip, ClipForm, pick
from tatscli.masking.saliency import known_motion
from tatscli.recipe import schema
from tatscli.targets.base import Target
from tatscli.targets.differences import mean_over_valid


class MotionTarget(Target):
    """Displacements of the content, x and y for each frame of the cube."""

    config: schema.MotionTarget
    needs_motion = True

    def __init__(self, config: schema.MotionTarget, *, form: ClipForm) -> None:
        super().__init__(config, form=form)
        self.predicts = 2 * form.tubelet

    def of(self, clip: Clip, index_BM: Tensor) -> tuple[Tensor, Tensor]:
        """Return the displacements (B, M, C), scaled, and which frames are known (B, M, U).

        Frames of which the source knew nothing carry a neighbour's motion or none at all, and do
        not count; nor do clips in which a fallback stands in.

        Raises:
            DataError: If the clips come without any motion.
        """
        motion = known_motion(clip, "targets: motion")
        slices, sites = clip.form.grid[0], clip.form.grid[1] * clip.form.grid[2]
        unknown_B1 = (motion.missing_B | motion.fallback_B)[:, None]
        valid_BT = motion.valid_BT & ~unknown_B1
        field_BTS2 = self._scaled(motion.field_BThw2.flatten(2, 3), valid_BT, clip.form.patch)
        field_BtSU2 = field_BTS2.unflatten(1, (slices, -1)).transpose(2, 3)
        valid_BtSU = valid_BT.unflatten(1, (slices, 1, -1)).expand(-1, -1, sites, -1)
        return (
            pick(field_BtSU2.flatten(3).flatten(1, 2), index_BM),
            pick(valid_BtSU.flatten(1, 2), index_BM),
        )

    def _scaled(self, field_BTS2: Tensor, valid_BT: Tensor, patch: int) -> Tensor:
        """Scale pixels of the view as the recipe says."""
        if self.config.scale == "none":
            return field_BTS2
        if self.config.scale == "patch":
            return field_BTS2 / patch
        # One scale for the whole clip keeps relative speed and direction.
        square_BT = field_BTS2.square().sum(dim=-1).mean(dim=-1) * valid_BT
        mean_B = square_BT.sum(dim=1) / valid_BT.sum(dim=1).clamp(min=1)
        length_B = mean_B.sqrt().clamp(min=self.config.floor)
        return field_BTS2 / length_B[:, None, None, None]

    def error(self, prediction_BMC: Tensor, values: tuple[Tensor, Tensor]) -> Tensor:
        """Return the mean squared error of each token over its known frames: (B, M), float32.

        A token none of whose frames is known counts as without error.
        """
        field_BMC, valid_BMU = values
        return mean_over_valid((prediction_BMC.float() - field_BMC).square(), valid_BMU)
