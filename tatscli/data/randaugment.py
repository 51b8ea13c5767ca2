"""RandAugment as VideoMAE's fine-tuning has it: timm's `rand-m7-n4-mstd0.5-inc1` on whole pictures.

Fifteen operations of Pillow (Cubuk et al. 2019, arXiv 1909.13719; the ranges are timm's increasing
ones), bicubic, each frame on its own with the same arguments. Pixels equal timm's.
Shapes: T frames, C channels, H and W pixels.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial

import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

Operation = Callable[[Image.Image, float], Image.Image]
"""From a picture and a signed strength, from -1 to 1."""

_GREY = (128, 128, 128)  # fills what leaves the picture


def rand_augment_pictures(
    video_TCHW: Tensor, *, magnitude: int, operations: int, rng: random.Random
) -> Tensor:
    """Apply RandAugment to all frames alike.

    Each operation is drawn with replacement, happens with probability one half, and has its own
    magnitude, normal around the stated one with deviation 0.5 and clipped to 0..10.

    Args:
        video_TCHW: uint8.
        magnitude: Strength from 0 to 10.
        operations: Draws.
        rng: Where every choice comes from.

    Returns:
        uint8 of the same shape, stored channels last; the input itself when nothing happens.
    """
    chosen: list[tuple[Operation, float]] = []
    for _ in range(operations):
        operation = rng.choice(list(OPERATIONS.values()))
        strength = min(10.0, max(0.0, rng.gauss(magnitude, 0.5))) / 10
        signed = strength if rng.random() < 0.5 else -strength
        if rng.random() < 0.5:
            chosen.append((operation, signed))
    if not chosen:
        return video_TCHW
    made_THWC = video_TCHW.permute(0, 2, 3, 1).clone(memory_format=torch.contiguous_format).numpy()
    for frame_HWC in made_THWC:
        picture = Image.fromarray(frame_HWC)
        for operation, strength in chosen:
            picture = operation(picture, strength)
        frame_HWC[:] = picture
    return torch.from_numpy(made_THWC).permute(0, 3, 1, 2)


def _rotate(picture: Image.Image, strength: float) -> Image.Image:
    return picture.rotate(30 * strength, Image.Resampling.BICUBIC, fillcolor=_GREY)


def _affine(picture: Image.Image, *row: float) -> Image.Image:
    """Take each pixel from where the matrix says, two rows of three numbers."""
    return picture.transform(
        picture.size, Image.Transform.AFFINE, row, Image.Resampling.BICUBIC, fillcolor=_GREY
    )


def _shear_x(picture: Image.Image, strength: float) -> Image.Image:
    return _affine(picture, 1, 0.3 * strength, 0, 0, 1, 0)


def _shear_y(picture: Image.Image, strength: float) -> Image.Image:
    return _affine(picture, 1, 0, 0, 0.3 * strength, 1, 0)


def _translate_x(picture: Image.Image, strength: float) -> Image.Image:
    return _affine(picture, 1, 0, 0.45 * strength * picture.width, 0, 1, 0)


def _translate_y(picture: Image.Image, strength: float) -> Image.Image:
    return _affine(picture, 1, 0, 0, 0, 1, 0.45 * strength * picture.height)


def _posterize(picture: Image.Image, strength: float) -> Image.Image:
    dropped = 4 + int(4 * abs(strength))  # all 8 bits at full strength, which ImageOps refuses
    return picture.point([value >> dropped << dropped for value in range(256)] * 3)


def _solarize(picture: Image.Image, strength: float) -> Image.Image:
    return ImageOps.solarize(picture, 256 - int(256 * abs(strength)))


def _solarize_add(picture: Image.Image, strength: float) -> Image.Image:
    add = int(110 * abs(strength))
    table = [min(255, value + add) if value < 128 else value for value in range(256)]
    return picture.point(table * 3)


def _enhance(
    picture: Image.Image, strength: float, *, what: Callable[[Image.Image], ImageEnhance._Enhance]
) -> Image.Image:
    return what(picture).enhance(1 + 0.9 * strength)


def _without_strength(
    picture: Image.Image, strength: float, *, change: Callable[[Image.Image], Image.Image]
) -> Image.Image:
    return change(picture)


OPERATIONS: dict[str, Operation] = {
    "AutoContrast": partial(_without_strength, change=ImageOps.autocontrast),
    "Equalize": partial(_without_strength, change=ImageOps.equalize),
    "Invert": partial(_without_strength, change=ImageOps.invert),
    "Rotate": _rotate,
    "Posterize": _posterize,
    "Solarize": _solarize,
    "SolarizeAdd": _solarize_add,
    "Color": partial(_enhance, what=ImageEnhance.Color),
    "Contrast": partial(_enhance, what=ImageEnhance.Contrast),
    "Brightness": partial(_enhance, what=ImageEnhance.Brightness),
    "Sharpness": partial(_enhance, what=ImageEnhance.Sharpness),
    "ShearX": _shear_x,
    "ShearY": _shear_y,
    "TranslateX": _translate_x,
    "TranslateY": _translate_y,
}
