"""A window of random pixels and a viewer whose model is known."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tatscli.data.clip import Clip
from tatscli.heads.base import HeadOutput
from tatscli.masking.plan import MaskPlan
from tatscli.recipe.schema import Data, Mask, Model, PixelTarget, Recipe, Sampling, Target
from tatscli.system.system import System, build_system
from tatscli.targets.difference import Differences
from tatscli.visualize.render import Layout
from tatscli.visualize.viewer import Viewer
from tatscli.visualize.windows import Window, WindowReader
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
    frames = [min(place, 3 - held) for place in range(4)]
    return Window(
        0,
        [4 * frame for frame in frames],
        [0.5 * frame for frame in frames],
        video,
        motion_of(field, valid_BT=valid, patch=PATCH),
    )


def layout(title: str, stride: int, *, frames: int = 4, size: int = SIZE, **more: Any) -> Layout:
    """Lay out windows of so many frames, `stride` source frames apart."""
    data = Data(store="", frames=frames, size=size, sampling=Sampling(stride=stride))
    return Layout(title, WindowReader(data), **more)


class Oracle(nn.Module):
    """Predicts the very target, or the same number everywhere."""

    def __init__(self, system: System, constant: float | None) -> None:
        super().__init__()
        self.targets = list(system.targets.values())
        self.constant = constant

    def forward(self, clip: Clip, plan: MaskPlan) -> HeadOutput:
        truths = [target.of(clip, plan.predict_BM) for target in self.targets]
        truths = [one.value_BMC if isinstance(one, Differences) else one for one in truths]
        if self.constant is not None:
            truths = [torch.full_like(truth_BMC, self.constant) for truth_BMC in truths]
        return HeadOutput(truths)


def viewer(
    mask: Mask,
    *,
    oracle: bool = False,
    normalize: bool = True,
    constant: float | None = None,
    targets: list[Target] | None = None,
    frames: int = 4,
) -> Viewer:
    """Build a viewer of an untrained system, or one in which an oracle predicts."""
    recipe = Recipe(
        data=Data(store="", frames=frames, size=SIZE, mean=MEAN, std=STD),
        model=Model(width=16, depth=1, heads=2, tubelet=TUBELET, patch=PATCH),
        mask=mask,
        targets=targets or [PixelTarget(kind="pixels", normalize=normalize)],
    )
    system = build_system(recipe).eval()
    if not oracle:
        return Viewer(system)
    return Viewer(system.called(Oracle(system, constant)), trained=True)
