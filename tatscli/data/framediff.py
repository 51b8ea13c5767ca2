"""How much the picture changes, for clips without vectors: saliency, but no direction.

Shapes: T frames, C channels, H and W pixels of the view; h and w tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tatscli.data.tracks import gaps, nearest


def frame_difference(
    video_TCHW: Tensor, frames: Sequence[int], grid: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Return the mean of |x_t - x_t-1| over the pixels and channels of each token.

    A frame that starts afresh, as the first, has the difference of the next; one that is held, 0.

    Args:
        video_TCHW: uint8 frames of the view.
        frames: Their numbers in the video.
        grid: Tokens along height and width.

    Returns:
        The change in grey levels, float32 (T, h, w), and whether it is known of that very frame,
        bool (T).
    """
    T, C, H, W = video_TCHW.shape
    h, w = grid
    gap_T = np.array(gaps(frames))
    follows_T = np.diff(np.asarray(frames), prepend=frames[0]) > 0
    change_Thw = torch.zeros(T, h, w)
    if not follows_T.any():
        return change_Thw, torch.from_numpy(follows_T)
    before, after = video_TCHW[:-1], video_TCHW[1:]
    # In bytes, the larger less the smaller; numpy adds them up several times as fast as torch.
    apart = (torch.maximum(before, after) - torch.minimum(before, after)).numpy()
    rows = np.add.reduce(apart.reshape(T - 1, C, h, H // h, W), axis=3, dtype=np.uint32)
    total = rows.reshape(T - 1, C, h, w, W // w).sum((1, 4), dtype=np.float32)
    change_Thw[1:] = torch.from_numpy(total) / (C * (H // h) * (W // w))
    change_Thw = change_Thw[torch.from_numpy(nearest(follows_T))]
    change_Thw[torch.from_numpy(gap_T == 0)] = 0
    return change_Thw, torch.from_numpy(follows_T)
