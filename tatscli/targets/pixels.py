"""Pixels as targets, each cube standardised per colour (VideoMAE, arXiv 2203.12602).

Shapes: B batch, N tokens of a clip, M tokens picked, P = tubelet * patch * patch pixels of a cube,
C = 3 P values in the order (frame, row, column, colour).
"""

from __future__ import annotations

import torch
from torch import Tensor

from tatscli.recipe import schema
from tatscli.targets.base import Target

EPS = 1e-6


class PixelTarget(Target):
    """The cube's own pixels.

    Args:
        config: Whether to standardise, and the weight in the loss.
        grid: Tokens along time, height and width.
        tubelet: Frames in a token.
        patch: Height and width of a token in pixels.
    """

    def __init__(
        self,
        config: schema.PixelTarget,
        *,
        grid: tuple[int, int, int],
        tubelet: int,
        patch: int,
    ) -> None:
        super().__init__()
        self.normalize = config.normalize
        self.weight = config.weight
        self.grid = grid
        self.tubelet = tubelet
        self.patch = patch
        self.width = 3 * tubelet * patch * patch

    def of(self, video_BCTHW: Tensor) -> Tensor:
        """Return each token's pixels, standardised if the recipe says so: (B, N, C), float32."""
        pixels_BNP3 = self._pixels(video_BCTHW)
        if self.normalize:
            mean_BN13, scale_BN13 = self._moments(pixels_BNP3)
            pixels_BNP3 = (pixels_BNP3 - mean_BN13) / scale_BN13
        return pixels_BNP3.flatten(2)

    def error(self, prediction_BMC: Tensor, target_BMC: Tensor) -> Tensor:
        """Return the mean squared error of each token: (B, M), float32."""
        return (prediction_BMC.float() - target_BMC.float()).square().mean(dim=-1)

    def statistics(self, video_BCTHW: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean and scale per token and colour, each (B, N, 1, 3), that `of` took out."""
        return self._moments(self._pixels(video_BCTHW))

    def restore(
        self, prediction_BMC: Tensor, video_BCTHW: Tensor, index_BM: Tensor | None = None
    ) -> Tensor:
        """Put the true mean and scale of each cube back: pixels in about [0, 1], (B, M, C).

        Args:
            prediction_BMC: Predicted values of the tokens `index_BM`.
            video_BCTHW: The video in [0, 1] that gives the statistics.
            index_BM: Which tokens these are; None means all, in order.
        """
        pixels_BMP3 = prediction_BMC.float().unflatten(-1, (-1, 3))
        if not self.normalize:
            return pixels_BMP3.flatten(2)
        mean, scale = self.statistics(video_BCTHW)
        if index_BM is not None:
            picked = index_BM[:, :, None, None].expand(-1, -1, 1, 3)
            mean, scale = mean.gather(1, picked), scale.gather(1, picked)
        return (pixels_BMP3 * scale + mean).flatten(2)

    def to_video(self, cubes_BNC: Tensor) -> Tensor:
        """Lay all cubes out as a video, undoing the target's order: (B, 3, T, H, W)."""
        (t, h, w), tubelet, patch = self.grid, self.tubelet, self.patch
        parts = cubes_BNC.reshape(-1, t, h, w, tubelet, patch, patch, 3)
        video = parts.permute(0, 7, 1, 4, 2, 5, 3, 6)
        return video.reshape(-1, 3, t * tubelet, h * patch, w * patch)

    def _pixels(self, video_BCTHW: Tensor) -> Tensor:
        """Cut a video into cubes: (B, N, P, 3), float32."""
        (t, h, w), tubelet, patch = self.grid, self.tubelet, self.patch
        parts = video_BCTHW.float().reshape(-1, 3, t, tubelet, h, patch, w, patch)
        return parts.permute(0, 2, 4, 6, 3, 5, 7, 1).reshape(-1, t * h * w, self.width // 3, 3)

    @staticmethod
    def _moments(pixels_BNP3: Tensor) -> tuple[Tensor, Tensor]:
        """Return each cube's mean and deviation (unbiased) per colour; flat cubes get `EPS`."""
        var, mean = torch.var_mean(pixels_BNP3, dim=2, correction=1, keepdim=True)
        return mean, var.sqrt() + EPS
