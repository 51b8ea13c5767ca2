"""What changes from frame to frame inside a cube: the RGB difference, a target that shows motion.

MAM2 (Song et al. 2022, arXiv 2210.05234, abstract) tried several motion targets and names this one
as simple and effective. Which frames are compared and how the result is scaled are choices made
here. Two forms: `within_cube` compares only frames of the same cube, `across_cubes` gives every
frame a difference to a later one, in a later cube where need be. Both are later less earlier:
a picture that brightens is positive.

Values of a cube are in the order (frame, row, column, colour), those of a difference in the order
(gap, earlier frame, row, column, colour). Pixels are float in [0, 1], or uint8, which counts in
255ths. All results are float32.

Shapes: B batch, N tokens of a clip (time-major), M tokens picked, P values of a cube, Q = patch *
patch * 3 values of a cube's frame, U tubelet, G gaps, F differenced frames of a cube over all gaps,
C = F * Q values of a difference, S = patch * patch pixels of a frame of a cube.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def within_cube(cubes_BMP: Tensor, tubelet: int, gaps: int | Sequence[int]) -> Tensor:
    """Return x[i + gap] - x[i] for all pairs of frames inside each cube: (B, M, C), float32.

    A gap has `tubelet` - gap pairs; several gaps follow one another as they are given.

    Args:
        cubes_BMP: Pixels of the cubes asked for.
        tubelet: Frames in a cube.
        gaps: Frames from the earlier to the later one.

    Raises:
        ValueError: If no gap is given, or one leaves a cube without a pair.
    """
    gaps = _checked(gaps, tubelet, of="a cube")
    frames_BMUQ = _pixels(cubes_BMP).unflatten(-1, (tubelet, -1))
    parts = [frames_BMUQ[..., gap:, :] - frames_BMUQ[..., :-gap, :] for gap in gaps]
    return torch.cat(parts, dim=-2).flatten(-2)


def across_cubes(
    cubes_BNP: Tensor,
    index_BM: Tensor,
    grid: tuple[int, int, int],
    tubelet: int,
    gaps: int | Sequence[int],
) -> tuple[Tensor, Tensor]:
    """Return the difference of every frame of the cubes asked for to the one `gap` later.

    Frames that have no later one, at the clip's end, are 0 and not valid: a 0 that counted would
    say that they stand still. Where the smallest gap is below the tubelet, every token has a valid
    frame; else those of the last slices have none.

    Args:
        cubes_BNP: Pixels of all cubes of the clips. Only the frames needed are read.
        index_BM: Which cubes to compute.
        grid: Tokens along time, height and width.
        tubelet: Frames in a cube.
        gaps: Frames from the earlier to the later one.

    Returns:
        The differences (B, M, C), float32, with F = G * tubelet, and which of those frames are
        valid, bool (B, M, F).

    Raises:
        ValueError: If the cubes do not fill the grid, no gap is given, or one leaves the clip
            without a pair.
    """
    (slices, height, width), (B, N, _) = grid, cubes_BNP.shape
    sites = height * width
    if slices * sites != N:
        raise ValueError(f"{N} cubes do not fill a grid of {slices} x {height} x {width}")
    gaps = _checked(gaps, slices * tubelet, of="a clip")
    device = index_BM.device
    within_U = torch.arange(tubelet, device=device)
    earlier_BM1U = (index_BM // sites * tubelet)[:, :, None, None] + within_U
    later_BMGU = torch.cat([earlier_BM1U + gap for gap in gaps], dim=2)
    valid_BMGU = later_BMGU < slices * tubelet
    # A frame without a later one is compared with itself.
    later_BMGU = torch.where(valid_BMGU, later_BMGU, earlier_BM1U)

    first_BM11 = torch.arange(B, device=device)[:, None, None, None] * N
    first_BM11 = first_BM11 + (index_BM % sites)[:, :, None, None]
    frames_XQ = cubes_BNP.unflatten(-1, (tubelet, -1)).flatten(0, 2)  # X = B * N * U

    def read(frame: Tensor) -> Tensor:
        """Return the pixels of the cubes' sites in these frames of the clip."""
        cube = first_BM11 + frame // tubelet * sites
        row = cube * tubelet + frame % tubelet
        return _pixels(frames_XQ.index_select(0, row.flatten())).unflatten(0, row.shape)

    difference_BMGUQ = read(later_BMGU) - read(earlier_BM1U)
    return difference_BMGUQ.flatten(2), valid_BMGU.flatten(2)


def normalised(
    difference_BMC: Tensor,
    floor: float | None,
    *,
    valid_BMF: Tensor | None = None,
    per_colour: bool = False,
) -> Tensor:
    """Subtract each cube's mean and divide by its deviation, at least `floor`: (B, M, C), float32.

    One mean and one (unbiased) deviation over all values of a cube keep what the colours and gaps
    have to do with one another. Taken per colour, as VideoMAE's pixel target does, a colour that
    hardly changes is blown up to the size of one that does, and its noise with it.

    Args:
        difference_BMC: Differences from either function here.
        floor: Smallest divisor, in pixels of [0, 1]: what a still cube's noise is divided by. None
            returns the differences as they are.
        valid_BMF: Frames to count, as `across_cubes` returns; None means all. The others stay 0.
        per_colour: Whether each colour has its own mean and deviation.

    Raises:
        ValueError: If the floor is not positive: still cubes would be divided by 0.
    """
    if floor is None:
        return difference_BMC.float()
    centred_BMFS3, _, scale = _standard(difference_BMC, floor, valid_BMF, per_colour)
    return (centred_BMFS3 / scale).flatten(-3)


def restored(
    normalised_BMC: Tensor,
    difference_BMC: Tensor,
    floor: float,
    *,
    valid_BMF: Tensor | None = None,
) -> Tensor:
    """Undo `normalised`, with the mean and deviation of true differences: (B, M, C), float32.

    Args:
        normalised_BMC: What was predicted.
        difference_BMC: The true differences, as they are.
        floor: Of `normalised`.
        valid_BMF: Of `normalised`.
    """
    _, mean, scale = _standard(difference_BMC, floor, valid_BMF, per_colour=False)
    return normalised_BMC.float() * scale.flatten(2) + mean.flatten(2)


def mean_over_valid(values_BMC: Tensor, valid_BMF: Tensor) -> Tensor:
    """Return each token's mean over its valid frames: (B, M), float32.

    Of squared errors, that is the error of a prediction of `across_cubes`. A token without a valid
    frame has 0; `valid_BMF.any(-1)` tells it from a perfect guess.
    """
    per_frame_BMF = values_BMC.float().unflatten(-1, (valid_BMF.shape[-1], -1)).mean(-1)
    kept_BMF = per_frame_BMF.where(valid_BMF, 0.0)
    return kept_BMF.sum(-1) / valid_BMF.sum(-1).clamp(min=1)


def _standard(
    difference_BMC: Tensor, floor: float, valid_BMF: Tensor | None, per_colour: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the differences less their mean, 0 where not valid: (B, M, F, S, 3), float32; the
    mean; and what to divide by: (B, M, 1, 1, 1), or (B, M, 1, 1, 3) per colour."""
    if floor <= 0:
        raise ValueError(f"a floor of {floor} does not hold still cubes; give more than 0")
    difference_BMC = difference_BMC.float()
    if valid_BMF is None:
        valid_BMF = torch.ones_like(difference_BMC[..., :1], dtype=torch.bool)
    counted_BMF11 = valid_BMF[..., None, None].float()
    value_BMFS3 = difference_BMC.unflatten(-1, (valid_BMF.shape[-1], -1, 3))
    over = (-3, -2) if per_colour else (-3, -2, -1)
    per_frame = value_BMFS3.shape[-2] * (1 if per_colour else 3)
    number_BM111 = counted_BMF11.sum(-3, keepdim=True) * per_frame
    mean = (value_BMFS3 * counted_BMF11).sum(over, keepdim=True) / number_BM111.clamp(min=1)
    centred_BMFS3 = (value_BMFS3 - mean) * counted_BMF11
    square = centred_BMFS3.square().sum(over, keepdim=True)
    deviation = (square / (number_BM111 - 1).clamp(min=1)).sqrt()
    return centred_BMFS3, mean, deviation.clamp(min=floor)


def _checked(gaps: int | Sequence[int], frames: int, *, of: str) -> list[int]:
    """Return the gaps as a list.

    Raises:
        ValueError: If there is none, or one is not from 1 to `frames` - 1.
    """
    listed = [gaps] if isinstance(gaps, int) else list(gaps)
    if not listed:
        raise ValueError("no gap is given; give at least one")
    for gap in listed:
        if not 1 <= gap < frames:
            raise ValueError(f"{of} of {frames} frames has no two that are {gap} apart")
    return listed


def _pixels(values: Tensor) -> Tensor:
    """Return pixels in [0, 1], float32."""
    return values.float() / 255 if values.dtype == torch.uint8 else values.float()
