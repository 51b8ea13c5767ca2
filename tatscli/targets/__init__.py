"""Targets: what hidden tokens are compared with. A new one is a file and a line here."""

from __future__ import annotations

from tatscli.recipe import schema
from tatscli.targets.base import Target
from tatscli.targets.pixels import PixelTarget

TARGETS: dict[str, type[PixelTarget]] = {"pixels": PixelTarget}


def build_target(
    config: schema.Target, *, grid: tuple[int, int, int], tubelet: int, patch: int
) -> Target:
    """Build the target a recipe asks for."""
    return TARGETS[config.kind](config, grid=grid, tubelet=tubelet, patch=patch)
