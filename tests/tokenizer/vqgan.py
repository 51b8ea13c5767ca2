"""A VQGAN as taming-transformers names its tensors, written from the paper's description: the
reference that files of it are read against.

Shapes: X pictures, C channels, H and W pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)


class ResnetBlock(nn.Module):
    def __init__(self, given: int, out: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = norm(given), nn.Conv2d(given, out, 3, padding=1)
        self.norm2, self.conv2 = norm(out), nn.Conv2d(out, out, 3, padding=1)
        if given != out:
            self.nin_shortcut = nn.Conv2d(given, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class AttnBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = norm(channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (one(h).flatten(2).transpose(1, 2) for one in (self.q, self.k, self.v))
        weight = (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(-1)
        return x + self.proj_out((weight @ v).transpose(1, 2).view_as(x))


class Resample(nn.Module):
    def __init__(self, channels: int, *, up: bool) -> None:
        super().__init__()
        self.up = up
        self.conv = nn.Conv2d(channels, channels, 3, stride=1 if up else 2, padding=int(up))

    def forward(self, x: Tensor) -> Tensor:
        if self.up:
            return self.conv(F.interpolate(x, scale_factor=2.0))
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Level(nn.Module):
    def __init__(self, given: int, out: int, blocks: int, *, attends: bool) -> None:
        super().__init__()
        wide = [given] + [out] * blocks
        self.block = nn.ModuleList(ResnetBlock(a, out) for a in wide[:-1])
        self.attn = nn.ModuleList(AttnBlock(out) for _ in range(blocks) if attends)

    def forward(self, x: Tensor) -> Tensor:
        for place, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[place](x)
        return x


class Middle(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1, self.block_2 = (
            ResnetBlock(channels, channels),
            ResnetBlock(channels, channels),
        )
        self.attn_1 = AttnBlock(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Encoder(nn.Module):
    def __init__(self, widths: list[int], blocks: int, latent: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        last = len(widths) - 1
        self.down = nn.ModuleList()
        for place, (given, out) in enumerate(zip([widths[0], *widths], widths, strict=False)):
            level = Level(given, out, blocks, attends=place == last)
            if place < last:
                level.downsample = Resample(out, up=False)
            self.down.append(level)
        self.mid = Middle(widths[-1])
        self.norm_out, self.conv_out = norm(widths[-1]), nn.Conv2d(widths[-1], latent, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
            x = level.downsample(x) if hasattr(level, "downsample") else x
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    def __init__(self, widths: list[int], blocks: int, latent: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(latent, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1])
        levels = []
        for place in reversed(range(len(widths))):
            given = widths[min(place + 1, len(widths) - 1)]
            level = Level(given, widths[place], blocks + 1, attends=place == len(widths) - 1)
            if place:
                level.upsample = Resample(widths[place], up=True)
            levels.insert(0, level)
        self.up = nn.ModuleList(levels)
        self.norm_out, self.conv_out = norm(widths[0]), nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid(self.conv_in(x))
        for level in reversed(self.up):
            x = level(x)
            x = level.upsample(x) if hasattr(level, "upsample") else x
        return self.conv_out(F.silu(self.norm_out(x)))


class Vqgan(nn.Module):
    """`encode` gives indices (X, h, w), `decode` pictures in [-1, 1]."""

    def __init__(self, widths: list[int], blocks: int, codes: int, width: int) -> None:
        super().__init__()
        self.encoder = Encoder(widths, blocks, width)
        self.decoder = Decoder(widths, blocks, width)
        self.quantize = nn.Module()
        self.quantize.embedding = nn.Embedding(codes, width)
        self.quant_conv = nn.Conv2d(width, width, 1)
        self.post_quant_conv = nn.Conv2d(width, width, 1)

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        found = self.quant_conv(self.encoder(x)).permute(0, 2, 3, 1)
        distance = torch.cdist(found.flatten(0, 2), self.quantize.embedding.weight)
        return distance.argmin(-1).view(found.shape[:3])

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        vectors = self.quantize.embedding(codes).permute(0, 3, 1, 2)
        return self.decoder(self.post_quant_conv(vectors))
