"""Regularisation of fine-tuning: random erasing, mixup, CutMix and label smoothing.

RandAugment is torchvision's (`vision.py`) or timm's (`randaugment.py`); crops and flips are views
(`view.py`).
Shapes: B batch, C colours (or classes, for labels), T frames, H and W pixels.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from tatscli.draws import Draws
from tatscli.recipe.schema import Augment


def erase(
    video_TCHW: Tensor,
    *,
    probability: float,
    mean: Sequence[float],
    std: Sequence[float],
    rng: random.Random,
) -> Tensor:
    """Fill a random box with noise (Zhong et al. 2017): one box in all frames, ever new noise.

    This is VideoMAE's `pixel` mode on a cube: 2 % to a third of the picture, aspect log-uniform in
    0.3..1/0.3. Its noise is normal after standardisation; on bytes the same is noise of the
    colours' mean and deviation, clipped (about 3 % of the values). 100 boxes are tried, as there.

    Args:
        video_TCHW: uint8.
        probability: Of erasing at all.
        mean: Colour means in [0, 1].
        std: Colour deviations in [0, 1].
        rng: Where box and noise are drawn from.

    Returns:
        uint8; the input itself when nothing is erased.
    """
    if rng.random() >= probability:
        return video_TCHW
    frames, colours, height, width = video_TCHW.shape
    for _ in range(100):
        area = height * width * rng.uniform(0.02, 1 / 3)
        aspect = math.exp(rng.uniform(math.log(0.3), -math.log(0.3)))
        tall, wide = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < tall < height and 0 < wide < width:
            break
    else:
        return video_TCHW
    top, left = rng.randint(0, height - tall), rng.randint(0, width - wide)
    source = torch.Generator().manual_seed(rng.getrandbits(63))
    noise = torch.randn(frames, colours, tall, wide, generator=source)
    noise = noise * torch.tensor(std).view(-1, 1, 1) + torch.tensor(mean).view(-1, 1, 1)
    erased = video_TCHW.clone()
    erased[..., top : top + tall, left : left + wide] = (
        noise.mul_(255).round_().clamp_(0, 255).to(torch.uint8)
    )
    return erased


class Mix:
    """Mixup (Zhang et al. 2017), CutMix (Yun et al. 2019) and label smoothing, on the device.

    One draw for the whole batch, as VideoMAE's `mode="batch"`: every clip is mixed with its mirror
    image in the order of the batch, so that repeated views of one video do not meet. CutMix pastes
    one box of height and width through all frames, as VideoMAE's. torchvision's classes are not
    used: they draw from the global generator and pair neighbours, which repeated views are.

    Args:
        augment: The recipe's `finetune.augment`.
        classes: Number of classes.
    """

    def __init__(self, augment: Augment, classes: int) -> None:
        self.augment = augment
        self.classes = classes

    def __call__(
        self, video_BCTHW: Tensor, label_B: Tensor, *, draws: Draws
    ) -> tuple[Tensor, Tensor]:
        """Mix a batch.

        Args:
            video_BCTHW: Floating point.
            label_B: int64 classes.
            draws: Of the clips; the first one's decide everything.

        Returns:
            The mixed video and the soft labels (B, C), float32, rows summing to 1.
        """
        rng = random.Random(draws.seed())
        soft_BC = self.smooth(label_B)
        mixup, cutmix = self.augment.mixup, self.augment.cutmix
        if not (mixup or cutmix) or rng.random() >= self.augment.mix_probability:
            return video_BCTHW, soft_BC
        if cutmix and (not mixup or rng.random() < self.augment.mix_switch):
            video_BCTHW, share = _cut(video_BCTHW, rng.betavariate(cutmix, cutmix), rng)
        else:
            share = rng.betavariate(mixup, mixup)
            video_BCTHW = video_BCTHW * share + video_BCTHW.flip(0) * (1 - share)
        return video_BCTHW, soft_BC * share + soft_BC.flip(0) * (1 - share)

    def smooth(self, label_B: Tensor) -> Tensor:
        """Return one-hot labels with their `label_smoothing`: (B, C) float32."""
        smoothing = self.augment.label_smoothing
        one_hot_BC = functional.one_hot(label_B, self.classes).float()
        return one_hot_BC * (1 - smoothing) + smoothing / self.classes


def _cut(video_BCTHW: Tensor, share: float, rng: random.Random) -> tuple[Tensor, float]:
    """Paste a box of the partner's pixels; return the video and its own remaining share."""
    height, width = video_BCTHW.shape[-2:]
    side = math.sqrt(1 - share)
    tall, wide = int(height * side), int(width * side)
    row, column = rng.randrange(height), rng.randrange(width)
    top, bottom = max(0, row - tall // 2), min(height, row + tall // 2)
    left, right = max(0, column - wide // 2), min(width, column + wide // 2)
    mixed = video_BCTHW.clone()
    mixed[..., top:bottom, left:right] = video_BCTHW.flip(0)[..., top:bottom, left:right]
    return mixed, 1 - (bottom - top) * (right - left) / (height * width)
