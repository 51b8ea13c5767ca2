"""A window of random pixels and a viewer whose model is known."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tatscli.masking import build_masker
from tatscli.nn.vit import Encoder
from tatscli.recipe import schema
from tatscli.targets import build_target
from tatscli.visualize.sight import Viewer
from tatscli.visualize.windows import Window
from tests.fields import motion_of

GRID = (2, 4, 4)
TUBELET, PATCH = 2, 8
SIZE = GRID[1] * PATCH
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


def window(*, held: int = 0, seed: int = 0, grid: tuple[int, int, int] = GRID) -> Window:
    """Four frames of noise; vectors point right; those of the first are borrowed."""
    generator = torch.Generator().manual_seed(seed)
    shape = (4, 3, grid[1] * PATCH, grid[2] * PATCH)
    video = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    field = torch.zeros(1, 4, *grid[1:], 2)
    field[:, :, 1, 1, 0] = 2.0
    valid = torch.tensor([[False, True, True, not held]])
    return Window(
        0,
        [0, 4, 8, 12],
        [0.0, 0.5, 1.0, 1.5],
        held,
        video,
        motion_of(field, valid_BT=valid, patch=PATCH),
    )


class Oracle(nn.Module):
    """Predicts the very target, or the same number everywhere."""

    def __init__(self, video_TCHW: Tensor, target: nn.Module, constant: float | None) -> None:
        super().__init__()
        self.truth_BNC = target.of(video_TCHW.transpose(0, 1)[None].float() / 255)
        self.constant = constant
        self.given_BNP: Tensor | None = None

    def forward(self, cubes_BNP: Tensor, visible_BK: Tensor, predict_BM: Tensor) -> list[Tensor]:
        self.given_BNP = cubes_BNP
        index = predict_BM[..., None].expand(-1, -1, self.truth_BNC.shape[-1])
        truth_BMC = self.truth_BNC.gather(1, index)
        return [truth_BMC if self.constant is None else torch.full_like(truth_BMC, self.constant)]


def viewer(
    mask: schema.Mask,
    *,
    seen: Window | None = None,
    normalize: bool = True,
    constant: float | None = None,
) -> Viewer:
    """Build a viewer; with `seen` it has an oracle for that window."""
    encoder = Encoder(width=16, depth=1, heads=2, grid=GRID, tubelet=TUBELET, patch=PATCH)
    masker = build_masker(mask, grid=GRID, width=16)
    if seen is None:
        return Viewer(masker, encoder, MEAN, STD)
    config = schema.PixelTarget(kind="pixels", normalize=normalize)
    target = build_target(config, grid=GRID, tubelet=TUBELET, patch=PATCH)
    oracle = Oracle(seen.video_TCHW, target, constant)
    return Viewer(masker, encoder, MEAN, STD, oracle, (target,))
