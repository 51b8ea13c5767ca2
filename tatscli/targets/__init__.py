"""Targets: what hidden tokens are compared with. A new one is a file, its recipe section and a line
here."""

from __future__ import annotations

from tatscli.data.clip import ClipForm
from tatscli.recipe import schema
from tatscli.targets.base import AllTargets, Target
from tatscli.targets.codes import CodesTarget
from tatscli.targets.difference import DifferenceTarget
from tatscli.targets.ema import EmaTarget
from tatscli.targets.hog import HogTarget
from tatscli.targets.latents import LatentsTarget
from tatscli.targets.motion import MotionTarget
from tatscli.targets.pixels import PixelTarget
from tatscli.targets.teacher import TeacherTarget

TARGETS: dict[str, type[Target]] = {
    "pixels": PixelTarget,
    "difference": DifferenceTarget,
    "codes": CodesTarget,
    "latents": LatentsTarget,
    "hog": HogTarget,
    "motion": MotionTarget,
    "ema": EmaTarget,
    "teacher": TeacherTarget,
}


def build_target(config: schema.Target, *, form: ClipForm) -> Target:
    """Build the target a recipe asks for."""
    return TARGETS[config.kind](config, form=form)
