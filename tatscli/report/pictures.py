"""Images of a report as data URIs, so that the page needs no other files.

Shapes: T frames, C channels, H and W pixels.
"""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

_GAP = 2  # white pixels between the frames of a strip


def strip(video_TCHW: Tensor, *, frames: int = 4, height: int = 96) -> str:
    """Show evenly spread frames of a clip side by side, as a JPEG.

    Args:
        video_TCHW: uint8.
        frames: Number of frames, from the first to the last.
        height: Height of the image, in pixels.
    """
    chosen = np.linspace(0, len(video_TCHW) - 1, min(frames, len(video_TCHW))).round().astype(int)
    tall, wide = video_TCHW.shape[-2:]
    width = max(1, round(wide * height / tall))
    page = Image.new("RGB", (len(chosen) * (width + _GAP) - _GAP, height), "white")
    for place, frame in enumerate(chosen):
        picture = Image.fromarray(video_TCHW[frame].permute(1, 2, 0).numpy())
        page.paste(picture.resize((width, height)), (place * (width + _GAP), 0))
    return _encoded(page, "JPEG", quality=80)


def animation(panels_TYX3: np.ndarray, *, fps: float) -> str:
    """Encode frames as a looping WebP animation; printed, it shows its first frame."""
    first, *rest = (Image.fromarray(one) for one in panels_TYX3)
    return _encoded(
        first,
        "WEBP",
        save_all=True,
        append_images=rest,
        duration=round(1000 / fps),
        loop=0,
        quality=60,
        method=2,
    )


def picture_file(path: Path) -> str:
    """Return a PNG file unchanged."""
    return _uri("png", path.read_bytes())


def _encoded(picture: Image.Image, form: str, **options: object) -> str:
    file = io.BytesIO()
    picture.save(file, form, **options)
    return _uri(form.lower(), file.getvalue())


def _uri(form: str, content: bytes) -> str:
    return f"data:image/{form};base64,{base64.b64encode(content).decode()}"
