"""Residual CNNs from pictures or videos to feature maps and back, and a PatchGAN discriminator.

Shapes: X pictures, B videos, C channels, T frames, H and W pixels; t, h and w positions of a map.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

from torch import Tensor, nn

from tatscli.engine.device import at_least_float32

_CONVOLUTIONS: dict[int, Any] = {2: nn.Conv2d, 3: nn.Conv3d}
"""By the dimensions of what they go over: pictures, or videos."""


class ResidualBlock(nn.Module):
    """Two convolutions of side 3 with GroupNorm and SiLU before each, added to the input."""

    def __init__(self, channels: int, dims: Literal[2, 3] = 2) -> None:
        super().__init__()
        conv = _CONVOLUTIONS[dims]
        self.inner = nn.Sequential(
            *_normed(channels),
            conv(channels, channels, 3, padding=1),
            *_normed(channels),
            conv(channels, channels, 3, padding=1),
        )

    def forward(self, maps: Tensor) -> Tensor:
        """Return feature maps of the same shape: (X, C, h, w) or (B, C, t, h, w)."""
        return maps + self.inner(maps)


class PictureEncoder(nn.Module):
    """Pictures to vectors on a grid `patch` x 2^(levels - 1) times as coarse.

    Args:
        widths: Channels at each resolution, from fine to coarse.
        blocks: Residual blocks at each.
        patch: Stride of the first convolution.
        out: Channels of the result.
    """

    def __init__(self, widths: Sequence[int], blocks: int, *, patch: int, out: int) -> None:
        super().__init__()
        # Patches that do not overlap cost least; single pixels need their neighbours.
        self.stem = nn.Conv2d(3, widths[0], max(3, patch), stride=patch, padding=int(patch < 3))
        layers: list[nn.Module] = []
        for before, width in zip([None, *widths], widths, strict=False):
            if before is not None:
                layers.append(nn.Conv2d(before, width, 3, stride=2, padding=1))
            layers += [ResidualBlock(width) for _ in range(blocks)]
        self.blocks = nn.ModuleList(layers)
        self.out = nn.Sequential(*_normed(widths[-1]), nn.Conv2d(widths[-1], out, 1))

    def forward(self, pictures_XCHW: Tensor) -> Tensor:
        """Return feature maps (X, out, h, w)."""
        maps_XChw = self.stem(pictures_XCHW)
        for block in self.blocks:
            maps_XChw = block(maps_XChw)
        return self.out(maps_XChw)


class PictureDecoder(nn.Module):
    """The way back: arguments as of `PictureEncoder`, `given` channels of the grid's vectors."""

    def __init__(self, widths: Sequence[int], blocks: int, *, patch: int, given: int) -> None:
        super().__init__()
        coarse = list(reversed(widths))
        self.stem = nn.Conv2d(given, coarse[0], 3, padding=1)
        layers: list[nn.Module] = []
        for before, width in zip([None, *coarse], coarse, strict=False):
            if before is not None:
                layers += [nn.Upsample(scale_factor=2), nn.Conv2d(before, width, 3, padding=1)]
            layers += [ResidualBlock(width) for _ in range(blocks)]
        self.blocks = nn.ModuleList(layers)
        self.out = nn.Sequential(
            *_normed(coarse[-1]),
            nn.Conv2d(coarse[-1], 3 * patch**2, 3, padding=1),
            nn.PixelShuffle(patch),
        )

    def forward(self, maps_XChw: Tensor) -> Tensor:
        """Return pictures (X, 3, H, W)."""
        maps_XChw = self.stem(maps_XChw)
        for block in self.blocks:
            maps_XChw = block(maps_XChw)
        return self.out(maps_XChw)


class VideoEncoder(nn.Module):
    """Videos to vectors on a grid `patch` x 2^(levels - 1) times as coarse, and `tubelet` in time.

    MAGVIT's shape (Yu et al. 2023, arXiv 2212.05199; google-research/magvit, enc_dec_3dcnn.py):
    averages halve the maps, and the coarsest level has as many blocks again.

    Args:
        widths: Channels at each resolution, from fine to coarse.
        blocks: Residual blocks at each.
        patch: Pixels along the side of what the first layer reads at once; with 1 it reads single
            frames, and time is halved with the picture; above, it reads `tubelet` frames at once.
        tubelet: Frames of a vector, a power of two.
        out: Channels of the result.
    """

    def __init__(
        self, widths: Sequence[int], blocks: int, *, patch: int, tubelet: int, out: int
    ) -> None:
        super().__init__()
        self.stem: nn.Module = (
            nn.Conv3d(3, widths[0], 3, padding=1)
            if patch == 1
            else nn.Conv3d(3, widths[0], (tubelet, patch, patch), stride=(tubelet, patch, patch))
        )
        layers: list[nn.Module] = [ResidualBlock(widths[0], 3) for _ in range(blocks)]
        for halved, (before, width) in zip(
            _in_time(patch, tubelet), pairwise(widths), strict=False
        ):
            layers += [nn.AvgPool3d((halved, 2, 2)), nn.Conv3d(before, width, 3, padding=1)]
            layers += [ResidualBlock(width, 3) for _ in range(blocks)]
        layers += [ResidualBlock(widths[-1], 3) for _ in range(blocks)]
        self.blocks = nn.ModuleList(layers)
        self.out = nn.Sequential(*_normed(widths[-1]), nn.Conv3d(widths[-1], out, 1))

    def forward(self, videos_BCTHW: Tensor) -> Tensor:
        """Return feature maps (B, out, t, h, w)."""
        maps_BCthw = self.stem(videos_BCTHW)
        for block in self.blocks:
            maps_BCthw = block(maps_BCthw)
        return self.out(maps_BCthw)


class VideoDecoder(nn.Module):
    """The way back: arguments as of `VideoEncoder`, `given` channels of the grid's vectors."""

    def __init__(
        self, widths: Sequence[int], blocks: int, *, patch: int, tubelet: int, given: int
    ) -> None:
        super().__init__()
        self.cube = (1 if patch == 1 else tubelet, patch)
        self.stem = nn.Conv3d(given, widths[-1], 3, padding=1)
        layers: list[nn.Module] = [ResidualBlock(widths[-1], 3) for _ in range(2 * blocks)]
        steps = list(zip(_in_time(patch, tubelet), pairwise(widths), strict=False))
        for doubled, (width, before) in reversed(steps):
            layers += [
                nn.Upsample(scale_factor=(doubled, 2, 2)),
                nn.Conv3d(before, width, 3, padding=1),
            ]
            layers += [ResidualBlock(width, 3) for _ in range(blocks)]
        self.blocks = nn.ModuleList(layers)
        pixels = self.cube[0] * patch**2
        self.out = nn.Sequential(
            *_normed(widths[0]), nn.Conv3d(widths[0], 3 * pixels, 3, padding=1)
        )

    def forward(self, maps_BCthw: Tensor) -> Tensor:
        """Return videos (B, 3, T, H, W)."""
        maps_BCthw = self.stem(maps_BCthw)
        for block in self.blocks:
            maps_BCthw = block(maps_BCthw)
        frames, side = self.cube
        cubes = self.out(maps_BCthw).unflatten(1, (3, frames, side, side))
        # (B, 3, frames, y, x, t, h, w) to (B, 3, t, frames, h, y, w, x)
        cubes = cubes.permute(0, 1, 5, 2, 6, 3, 7, 4)
        return cubes.flatten(6, 7).flatten(4, 5).flatten(2, 3)


def _in_time(patch: int, tubelet: int) -> list[int]:
    """Return by what each step to a coarser level divides the time."""
    halvings = tubelet.bit_length() - 1 if patch == 1 else 0
    return [2] * halvings + [1] * 8


class PatchDiscriminator(nn.Module):
    """One verdict for each patch of a picture, or of a video (PatchGAN, Isola et al. 2017, arXiv
    1611.07004).

    GroupNorm in place of BatchNorm: pictures of a batch, and processes, stay independent.

    Args:
        width: Channels of the first layer; they double, at most to eight times as many.
        layers: Convolutions of stride 2.
        dims: 2 for pictures, 3 for videos.
    """

    def __init__(self, width: int, layers: int, *, dims: Literal[2, 3] = 2) -> None:
        super().__init__()
        conv = _CONVOLUTIONS[dims]
        # Videos are short: along time a side of 3 leaves at least one position.
        side = (3,) * (dims - 2) + (4, 4)
        wide = [width * min(2**layer, 8) for layer in range(layers + 1)]
        parts: list[nn.Module] = [conv(3, width, side, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for layer, (before, after) in enumerate(pairwise(wide), start=1):
            parts += [
                conv(before, after, side, stride=2 if layer < layers else 1, padding=1),
                Norm(math.gcd(32, after), after),
                nn.LeakyReLU(0.2),
            ]
        self.layers = nn.Sequential(*parts, conv(wide[-1], 1, side, padding=1))

    def forward(self, shown: Tensor) -> Tensor:
        """Return verdicts, higher for frames than for reconstructions, in float32: (X, 1, h, w) of
        pictures (X, 3, H, W), or (B, 1, t, h, w) of videos (B, 3, T, H, W)."""
        return at_least_float32(self.layers(shown))


class Norm(nn.GroupNorm):
    """GroupNorm in float32 where autocast computes in half precision, on a CPU too."""

    def forward(self, maps: Tensor) -> Tensor:
        """Return the normalised maps."""
        return super().forward(at_least_float32(maps))


def _normed(channels: int) -> tuple[nn.Module, nn.Module]:
    return Norm(math.gcd(32, channels), channels), nn.SiLU()
