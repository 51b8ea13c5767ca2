"""`Tokenizer`: the contract of what turns frames into codes (`docs/architecture.md`, contracts).

Shapes: B batch, C colours, T frames, t codes along time, h and w codes along the picture, D width.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Coded(NamedTuple):
    """What a tokenizer makes of frames.

    Attributes:
        codes_Bthw: int64.
        scores_Bthw: How salient each code is, float32, never negative, comparable within a video;
            None of a tokenizer that has no scores.
    """

    codes_Bthw: Tensor
    scores_Bthw: Tensor | None = None


class Tokenizer(nn.Module):
    """Maps frames to indices into a codebook, to the vectors those stand for, and back.

    Frames are RGB in [0, 1], float32, not standardised.

    Attributes:
        codebook_size: How many codes there are.
        width: Values D of the vector a code stands for.
        stride: Pixels along the side of a code.
        frames: Frames that a code covers.
        window: Frames that are encoded together: a longer video is cut into windows of so many,
            from its first frame on. None where a code depends on its own frames alone, or all
            frames are encoded together.
        levels: Steps of each value of a vector, where the codes are the cells of a grid.
        scored: Codes have scores.
    """

    codebook_size: int
    width: int
    stride: int
    frames: int = 1
    window: int | None = None
    levels: Sequence[int] | None = None
    scored: bool = False

    def encode(self, frames_BCTHW: Tensor) -> Tensor:
        """Return the codes: int64 (B, t, h, w)."""
        raise NotImplementedError

    def code(self, frames_BCTHW: Tensor) -> Coded:
        """Return codes and scores."""
        return Coded(self.encode(frames_BCTHW))

    def stream(self, windows: Iterable[Tensor]) -> Iterator[Coded]:
        """Code a video that comes in parts of `window` frames, the last perhaps shorter.

        Never more than a part is held; joined, the answers are those of `code`.
        """
        return (self.code(frames_BCTHW) for frames_BCTHW in windows)

    def latents(self, frames_BCTHW: Tensor) -> Tensor:
        """Return the vectors of the codes: float32 (B, t, h, w, D)."""
        return self.vectors(self.encode(frames_BCTHW))

    def vectors(self, codes_Bthw: Tensor) -> Tensor:
        """Look codes up: float32 (B, t, h, w, D)."""
        raise NotImplementedError

    def decode(self, codes_Bthw: Tensor) -> Tensor:
        """Return the frames that codes stand for: (B, C, T, H, W) in [0, 1]."""
        raise NotImplementedError


class Reconstruction(NamedTuple):
    """What training makes of videos.

    Attributes:
        video_BCTHW: In about [0, 1].
        codes_Bthw: int64, of what reached the decoder.
        losses: The quantizer's terms of the loss, already weighted.
        scores_Bthw: As in `Coded`.
        kept_Bthw: 1 where a code reached the decoder as it is, 0 where zeros did; None where all
            do.
    """

    video_BCTHW: Tensor
    codes_Bthw: Tensor
    losses: Mapping[str, Tensor] = {}
    scores_Bthw: Tensor | None = None
    kept_Bthw: Tensor | None = None


class TrainedTokenizer(Tokenizer):
    """One that `tats pretrain` trains.

    Attributes:
        config: The recipe's `tokenizer`.
        whole: Its discriminator sees videos whole, not picture by picture.
    """

    config: Any
    whole: bool = False

    def forward(self, frames_BCTHW: Tensor) -> Reconstruction:
        """Encode, quantise and decode, with gradient; what training calls."""
        raise NotImplementedError

    @torch.no_grad()
    def reconstruct(self, frames_BCTHW: Tensor) -> Reconstruction:
        """Do the same with videos of any length, pixels in [0, 1]: what evaluation shows."""
        return self.restore(self.code(frames_BCTHW))

    def restore(self, coded: Coded) -> Reconstruction:
        """Decode what `code` or `stream` gave, of which low scores may be left out: whole windows,
        the last perhaps shorter. `codes_Bthw` are then those that were decoded."""
        codes_Bthw, scores_Bthw = coded
        return Reconstruction(self.decode(codes_Bthw), codes_Bthw, {}, scores_Bthw)


def pictures_of(frames_BCTHW: Tensor) -> Tensor:
    """Lay the frames of videos one after the other: (B * T, C, H, W)."""
    return frames_BCTHW.transpose(1, 2).flatten(0, 1)


def rescaled(frames_BCTHW: Tensor, scale: float) -> Tensor:
    """Resize frames (bilinear, antialiased) by a factor."""
    if scale == 1:
        return frames_BCTHW
    pictures = pictures_of(frames_BCTHW)
    height, width = (round(side * scale) for side in pictures.shape[-2:])
    pictures = F.interpolate(pictures, (height, width), mode="bilinear", antialias=True)
    return pictures.unflatten(0, (len(frames_BCTHW), -1)).transpose(1, 2)
