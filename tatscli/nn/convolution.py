"""Residual CNNs from pictures to feature maps and back, and a PatchGAN discriminator.

Shapes: X pictures, C channels, H and W pixels, h and w positions of a feature map.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with GroupNorm and SiLU before each, added to the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            *_normed(channels),
            nn.Conv2d(channels, channels, 3, padding=1),
            *_normed(channels),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, maps_XChw: Tensor) -> Tensor:
        """Return feature maps of the same shape."""
        return maps_XChw + self.inner(maps_XChw)


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


class PatchDiscriminator(nn.Module):
    """One verdict for each patch of a picture (PatchGAN, Isola et al. 2017, arXiv 1611.07004).

    GroupNorm in place of BatchNorm: pictures of a batch, and processes, stay independent.

    Args:
        width: Channels of the first layer; they double, at most to eight times as many.
        layers: Convolutions of stride 2.
    """

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        wide = [width * min(2**layer, 8) for layer in range(layers + 1)]
        parts: list[nn.Module] = [nn.Conv2d(3, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for layer, (before, after) in enumerate(pairwise(wide), start=1):
            parts += [
                nn.Conv2d(before, after, 4, stride=2 if layer < layers else 1, padding=1),
                nn.GroupNorm(math.gcd(32, after), after),
                nn.LeakyReLU(0.2),
            ]
        self.layers = nn.Sequential(*parts, nn.Conv2d(wide[-1], 1, 4, padding=1))

    def forward(self, pictures_XCHW: Tensor) -> Tensor:
        """Return verdicts, higher for frames than for reconstructions: (X, 1, h, w)."""
        return self.layers(pictures_XCHW)


def _normed(channels: int) -> tuple[nn.Module, nn.Module]:
    return nn.GroupNorm(math.gcd(32, channels), channels), nn.SiLU()
