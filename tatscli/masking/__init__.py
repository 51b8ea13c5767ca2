"""Masks: which tokens are shown. A new one is a file, its recipe section and a line here."""

from __future__ import annotations

from tatscli.masking.adamae import AdamaeMasker
from tatscli.masking.base import Masker
from tatscli.masking.block import BlockMasker
from tatscli.masking.everest import EverestMasker
from tatscli.masking.frame import FrameMasker
from tatscli.masking.future import FutureMasker
from tatscli.masking.mgm import MgmMasker
from tatscli.masking.mgm_advect import MgmAdvectMasker
from tatscli.masking.mgm_topk import MgmTopkMasker
from tatscli.masking.motion_bins import MotionBinsMasker
from tatscli.masking.random import RandomMasker
from tatscli.masking.schedule import ScheduleMasker
from tatscli.masking.simulated import SimulatedMasker
from tatscli.masking.still import StillMasker
from tatscli.masking.tats import TatsMasker
from tatscli.masking.tube import TubeMasker
from tatscli.recipe import schema

MASKERS: dict[str, type[Masker]] = {
    "random": RandomMasker,
    "tube": TubeMasker,
    "frame": FrameMasker,
    "block": BlockMasker,
    "simulated": SimulatedMasker,
    "mgm": MgmMasker,
    "mgm_topk": MgmTopkMasker,
    "mgm_advect": MgmAdvectMasker,
    "motion_bins": MotionBinsMasker,
    "everest": EverestMasker,
    "future": FutureMasker,
    "still": StillMasker,
    "adamae": AdamaeMasker,
    "tats": TatsMasker,
    "schedule": ScheduleMasker,
}


def build_masker(config: schema.Mask, *, grid: tuple[int, int, int], width: int) -> Masker:
    """Build the mask a recipe asks for; `width` is that of the patch embeddings."""
    return MASKERS[config.kind](config, grid=grid, width=width)
