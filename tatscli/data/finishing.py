"""Which work on training clips is done on the device, and why: resizing views, decoding JPEGs.

Shapes: T frames, C channels, H and W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tatscli.data.files import gpu_decoder
from tatscli.data.view import View
from tatscli.errors import RecipeError
from tatscli.recipe.schema import Data

_MOST = 4  # times the pixels of the view: larger crops cost more to copy than to resize here


@dataclass(frozen=True, slots=True)
class Finishing:
    """The work that a device does on a clip.

    Attributes:
        resize: It resizes and mirrors the crops.
        decode: It decodes the files, and resizes.
        reason: Says so, and why not where the recipe asks for more.
        refused: The recipe asks for more by name.
    """

    resize: bool = False
    decode: bool = False
    reason: str = "decoded and resized by the loader"
    refused: bool = False

    def look(self, view: View, video_TCHW: Tensor) -> tuple[Tensor, View | None]:
        """Look at frames through a view; what it leaves to the device is returned beside them."""
        pixels, (height, width) = view.crop_height * view.crop_width, view.size
        if self.resize and pixels <= _MOST * height * width:
            return view.cut(video_TCHW), view
        return view.frames(video_TCHW), None


def plan_finishing(
    data: Data, device: torch.device, *, after_crop: str | None, after_decode: str | None
) -> Finishing:
    """Work out what a device does of the clips of a training.

    Args:
        data: The recipe's `data`.
        device: Where the model is.
        after_crop: What the loader does with views that are already resized, or None.
        after_decode: What it does with pictures before they are cut, or None.

    Raises:
        RecipeError: If the recipe wants a GPU to decode, and there is none.
        TatsError: If the decoder's package is missing.
    """
    on_gpu = device.type == "cuda"
    if data.decode == "gpu":
        if not on_gpu:
            raise RecipeError(
                f"`data.decode: gpu` needs a CUDA device, and this training runs on `{device}`",
                "set `data.decode=cpu`, or `run.device=cuda` where there is one",
            )
        gpu_decoder()  # fail now and not at the first batch
        obstacle = after_decode or after_crop
        if obstacle is None:
            return Finishing(decode=True, reason="decoded and resized on the GPU")
        return Finishing(
            reason=f"`data.decode: gpu` has no effect, the loader decodes: {obstacle}",
            refused=True,
        )
    if data.resize_on == "host" or (data.resize_on == "auto" and not on_gpu):
        return Finishing()
    if after_crop is None:
        return Finishing(resize=True, reason="decoded by the loader, resized on the device")
    by_name = data.resize_on == "device"
    asked = "`data.resize_on: device` has no effect, the loader resizes"
    return Finishing(
        reason=f"{asked if by_name else 'decoded and resized by the loader'}: {after_crop}",
        refused=by_name,
    )
