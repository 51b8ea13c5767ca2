"""`pixels`: the cube's own, each cube standardised per colour (VideoMAE, arXiv 2203.12602).

Shapes: B batch, M tokens picked, S = tubelet * patch * patch pixels of a cube, C = 3 S values in
the order of a cube: (frame, row, column, colour).
"""

from __future__ import annotations

from torch import Tensor

from tatscli.data.clip import Clip, ClipForm
from tatscli.recipe import schema
from tatscli.targets.base import Target

EPS = 1e-6


class PixelTarget(Target):
    """The cube's pixels."""

    config: schema.PixelTarget

    def __init__(self, config: schema.PixelTarget, *, form: ClipForm) -> None:
        super().__init__(config, form=form)
        self.predicts = 3 * form.pixels

    def of(self, clip: Clip, index_BM: Tensor) -> Tensor:
        """Return each token's pixels, standardised if the recipe says so: (B, M, C), float32."""
        unit_BMC = clip.unit(index_BM)
        if not self.config.normalize:
            return unit_BMC
        pixels_BMS3 = unit_BMC.unflatten(-1, (-1, 3))
        mean_BM13, scale_BM13 = moments(pixels_BMS3)
        return ((pixels_BMS3 - mean_BM13) / scale_BM13).flatten(2)

    def error(self, prediction_BMC: Tensor, values_BMC: Tensor) -> Tensor:
        """Return the mean squared error of each token: (B, M), float32."""
        return (prediction_BMC.float() - values_BMC).square().mean(dim=-1)

    def restore(self, prediction_BMC: Tensor, clip: Clip, index_BM: Tensor) -> Tensor:
        """Put the true mean and scale of each cube back: pixels in about [0, 1], (B, M, C)."""
        pixels_BMC = prediction_BMC.float()
        if not self.config.normalize:
            return pixels_BMC
        mean_BM13, scale_BM13 = moments(clip.unit(index_BM).unflatten(-1, (-1, 3)))
        return (pixels_BMC.unflatten(-1, (-1, 3)) * scale_BM13 + mean_BM13).flatten(2)


def moments(pixels_BMS3: Tensor) -> tuple[Tensor, Tensor]:
    """Return each cube's mean and deviation (unbiased) per colour; flat cubes get `EPS`."""
    mean_BM13 = pixels_BMS3.mean(dim=2, keepdim=True)
    # On a CPU `torch.var_mean` over an inner axis takes 2.6 times as long.
    squares_BM13 = (pixels_BMS3 - mean_BM13).square().sum(dim=2, keepdim=True)
    return mean_BM13, (squares_BM13 / (pixels_BMS3.shape[2] - 1)).sqrt() + EPS
