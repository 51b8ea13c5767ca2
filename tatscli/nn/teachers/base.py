"""`Teacher`: the contract of networks that give features, and what its sources share.

Shapes: B batch, C colours, T frames, H and W pixels, N tokens of a clip, D width of the features, X
pictures or clips, S places of a feature map.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tatscli.data.clip import ClipForm
from tatscli.errors import RecipeError

Grid = tuple[int, ...]
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and deviation of red, green and blue, for networks that do not say theirs."""


@dataclass(frozen=True, slots=True)
class Given:
    """The clips that a recipe gives to a teacher.

    Attributes:
        grid: Tokens of the recipe's clips, which the teacher's must be.
        clip: Frames, height and width of a clip, after resizing.
        tubelet: Frames of a token.
        size: Height and width to resize to, if any.
        meta: Build without weights.
    """

    grid: Grid
    clip: tuple[int, int, int]
    tubelet: int
    size: tuple[int, int] | None
    meta: bool

    @classmethod
    def of(cls, form: ClipForm, size: int | tuple[int, int] | None, *, meta: bool = False) -> Self:
        """Work it out from how clips are cut, and a recipe's `size`."""
        t, h, w = form.grid
        pair = (size, size) if isinstance(size, int) else size
        height, width = pair or (h * form.patch, w * form.patch)
        return cls(form.grid, (t * form.tubelet, height, width), form.tubelet, pair, meta)


@dataclass(frozen=True, slots=True)
class Source:
    """A teacher and where its weights come from.

    Attributes:
        teacher: The network.
        path: The folder or file they were read from.
        digest: SHA-256 of the weights; empty where they were not read.
    """

    teacher: Teacher
    path: str
    digest: str


class Teacher(nn.Module):
    """Gives features of whole clips, from pixels in [0, 1] and with a normalisation of its own.

    Args:
        name: Its name in messages.
        given: The clips it gets.
        mean: Of red, green and blue in [0, 1].
        std: Deviation of those.

    Attributes:
        grid: Its tokens along time, height and width for such a clip; subclasses set it.
        sees: Frames, height and width of its input; 0 for any. Subclasses set it.
        width: Features of a token; subclasses set it.
    """

    grid: Grid
    sees: Grid
    width: int
    mean_C1: Tensor
    std_C1: Tensor

    def __init__(
        self, name: str, given: Given, *, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__()
        self.name = name
        self.size = given.size
        for buffer, values in (("mean_C1", mean), ("std_C1", std)):
            self.register_buffer(buffer, torch.tensor([*values])[:, None], persistent=False)

    def forward(self, unit_BCTHW: Tensor) -> Tensor:
        """Return the features of all tokens: (B, N, D)."""
        if self.size is not None:
            unit_BCTHW = resized(unit_BCTHW, self.size)
        flat_BCX = unit_BCTHW.flatten(2)
        return self.features(((flat_BCX - self.mean_C1) / self.std_C1).view_as(unit_BCTHW))

    def features(self, video_BCTHW: Tensor) -> Tensor:
        """Return the features of a normalised clip: (B, N, D), tokens time-major."""
        raise NotImplementedError


class ByFrame(nn.Module):
    """Applies an image network to a clip: to every frame, or to one of each cube.

    Args:
        tubelet: Frames of a cube.
        frames: Whether features are averaged over the frames of a cube, or the first one's.
    """

    def __init__(self, tubelet: int, frames: Literal["mean", "first"]) -> None:
        super().__init__()
        self.tubelet = tubelet
        self.averages = frames == "mean"

    def pictures(self, video_BCTHW: Tensor) -> Tensor:
        """Return the frames to use as a batch of images: (X, C, H, W)."""
        step = 1 if self.averages else self.tubelet
        return video_BCTHW[:, :, ::step].transpose(1, 2).flatten(0, 1)

    def tokens(self, features_XSD: Tensor, clips: int) -> Tensor:
        """Return features of pictures as those of cubes: (B, N, D)."""
        features_BTSD = features_XSD.unflatten(0, (clips, -1))
        if self.averages:
            features_BTSD = features_BTSD.unflatten(1, (-1, self.tubelet)).mean(dim=2)
        return features_BTSD.flatten(1, 2)


def first_blocks(blocks: nn.ModuleList, layer: int, name: str) -> nn.ModuleList:
    """Return the first `layer` blocks of a network, so that those after it cost nothing.

    Raises:
        RecipeError: If it has fewer.
    """
    if layer > len(blocks):
        raise RecipeError(
            f"`targets`: the teacher `{name}` has {len(blocks)} blocks, and `layer: {layer}` asks "
            "for the output of a later one",
            hint=f"1 to {len(blocks)}; null takes the last with its final norm",
        )
    return nn.ModuleList(list(blocks)[:layer])


def resized(video_BCTHW: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize every frame, bilinearly and without aliasing."""
    pictures = video_BCTHW.transpose(1, 2).flatten(0, 1).float()  # not on every device in bf16
    pictures = F.interpolate(pictures, size, mode="bilinear", antialias=True, align_corners=False)
    return pictures.unflatten(0, (len(video_BCTHW), -1)).transpose(1, 2).to(video_BCTHW.dtype)
