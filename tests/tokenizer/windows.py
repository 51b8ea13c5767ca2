"""A tokenizer of windows with scores that nothing needs to train, and where it is opened.

Shapes: B batch, C colours, T frames, t, h and w codes, D values of a code's vector.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tatscli.tokenizer.base import Coded, Tokenizer

DIGEST = "0123456789abcdef" * 4


class WindowTokenizer(Tokenizer):
    """A code is a mean colour, of four levels each, beside that of its window; a score is how far
    the colours are from those of the slice before, in the window before where that is the last.

    Attributes:
        parts: Frames of every part that it has coded.
    """

    codebook_size, width, levels, scored = 64, 3, (4, 4, 4), True

    def __init__(self, stride: int = 8, frames: int = 2, window: int | None = 4) -> None:
        super().__init__()
        self.stride, self.frames, self.window = stride, frames, window
        self.parts: list[int] = []

    def encode(self, frames_BCTHW: Tensor) -> Tensor:
        return self.code(frames_BCTHW).codes_Bthw

    def code(self, frames_BCTHW: Tensor) -> Coded:
        windows = frames_BCTHW.split(self.window or frames_BCTHW.shape[2], dim=2)
        codes, scores = zip(*self.stream(windows), strict=True)
        return Coded(torch.cat(codes, dim=1), torch.cat(scores, dim=1))

    def stream(self, windows: Iterable[Tensor]) -> Iterator[Coded]:
        before = None
        for frames_BCTHW in windows:
            self.parts.append(frames_BCTHW.shape[2])
            means_BCthw = self._means(frames_BCTHW)
            yield Coded(_codes(means_BCthw), _scores(means_BCthw, before))
            before = means_BCthw[:, :, -1:]

    def vectors(self, codes_Bthw: Tensor) -> Tensor:
        digits = torch.stack([codes_Bthw // 4**axis % 4 for axis in range(3)], dim=-1)
        return (digits - 2) / 2

    def decode(self, codes_Bthw: Tensor) -> Tensor:
        """Paint each code in its colour."""
        colours_BCthw = self.vectors(codes_Bthw).add(1).div(1.5).movedim(-1, 1)
        for dim, length in ((2, self.frames), (3, self.stride), (4, self.stride)):
            colours_BCthw = colours_BCthw.repeat_interleave(length, dim=dim)
        return colours_BCthw

    def _means(self, frames_BCTHW: Tensor) -> Tensor:
        missing = -frames_BCTHW.shape[2] % self.frames
        last = frames_BCTHW[:, :, -1:].expand(-1, -1, missing, -1, -1)
        size = (self.frames, self.stride, self.stride)
        return F.avg_pool3d(torch.cat([frames_BCTHW, last], dim=2), size, size)


def _codes(means_BCthw: Tensor) -> Tensor:
    window = means_BCthw.mean(dim=(2, 3, 4), keepdim=True)
    mixed_BCthw = 0.75 * means_BCthw + 0.25 * (1 - window)
    red, green, blue = (4 * mixed_BCthw).long().clamp(max=3).unbind(dim=1)
    return red + 4 * green + 16 * blue


def _scores(means_BCthw: Tensor, before: Tensor | None) -> Tensor:
    first = means_BCthw[:, :, 1:2] if before is None else before
    first = means_BCthw[:, :, :1] if first.shape[2] == 0 else first
    earlier = torch.cat([first, means_BCthw[:, :, :-1]], dim=2)
    return (means_BCthw - earlier).square().sum(dim=1).sqrt()


def give(monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer, digest: str = DIGEST) -> None:
    """Let whoever opens a tokenizer get this one, wherever it should lie."""
    for place in ("tatscli.tokenizer.asked", "tatscli.tasks.encode"):
        monkeypatch.setattr(f"{place}.open_tokenizer", lambda source: (tokenizer, digest))
