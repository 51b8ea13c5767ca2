"""What torchvision does for us: JPEG decoding and RandAugment. The only module that imports it.

Shapes: T frames, C channels, H and W pixels.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Sequence
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from tatscli.errors import TatsError


def decode_jpegs(pictures: Sequence[np.ndarray]) -> Tensor:
    """Decode JPEG files of one size to RGB.

    Args:
        pictures: The bytes of each file, writable uint8 (n,).

    Returns:
        uint8 (T, C, H, W), stored channels last as libjpeg wrote it: resizing is then more than
        twice as fast.

    Raises:
        RuntimeError: If a file is broken or the sizes differ.
        TatsError: If torchvision is missing or does not fit torch.
    """
    io, _ = import_torchvision()
    files = [torch.from_numpy(picture) for picture in pictures]
    with warnings.catch_warnings():
        # torchvision 0.29 announces that its codecs will move to TorchCodec; this is the one place
        # to change then.
        warnings.simplefilter("ignore", DeprecationWarning)
        decoded = io.decode_jpeg(files, mode=io.ImageReadMode.RGB)
    return torch.stack([picture.permute(1, 2, 0) for picture in decoded]).permute(0, 3, 1, 2)


def rand_augment(
    video_TCHW: Tensor, *, magnitude: int, operations: int, rng: random.Random
) -> Tensor:
    """Apply RandAugment to all frames alike: timm's `rand-m{magnitude}-n{operations}-mstd0.5-inc1`.

    As in timm, each of the operations is drawn with replacement, happens with probability one half,
    and has its own magnitude from a normal distribution of deviation 0.5 around the stated one,
    clipped to 0..10. Not as in timm, whose own form is in `randaugment.py`: the pool is
    torchvision's (no Invert and no SolarizeAdd, but Identity), Posterize keeps 8 - 0.4 x magnitude
    bits (timm: 4 - 0.4 x magnitude), translations reach 45.3 % instead of 45 %, and geometry is
    interpolated bilinearly (timm, as VideoMAE sets it: bicubic). What leaves the picture is grey
    128 in both.

    Args:
        video_TCHW: uint8.
        magnitude: Strength from 0 to 10.
        operations: Draws.
        rng: Where every choice comes from; torch's global random state is left as it was.

    Returns:
        uint8 of the same shape.
    """
    _, v2 = import_torchvision()
    for _ in range(operations):
        strength = min(10.0, max(0.0, rng.gauss(magnitude, 0.5)))
        seed = rng.getrandbits(63)
        if rng.random() < 0.5:
            continue
        operation = v2.RandAugment(
            num_ops=1,
            magnitude=round(10 * strength),
            num_magnitude_bins=101,
            interpolation=v2.InterpolationMode.BILINEAR,
            fill=128,
        )
        # torchvision draws the operation and its sign from the global generator only.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            video_TCHW = operation(video_TCHW)
    return video_TCHW


def import_torchvision() -> tuple[ModuleType, ModuleType]:
    """Import torchvision's `io` and `transforms.v2`, or say which release belongs to torch."""
    try:
        from torchvision import io
        from torchvision.transforms import v2
    except (ImportError, RuntimeError) as error:
        # Built for another torch, it fails with RuntimeError when it registers its operators.
        raise TatsError(
            f"torchvision cannot be used with torch `{torch.__version__}`: {error}",
            hint="install a pair that belongs together, for example"
            " `pip install torch==2.15.0 torchvision==0.29.2`",
        ) from error
    return io, v2
