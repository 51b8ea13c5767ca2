"""Heads: how hidden tokens are predicted. A new one is a file, a recipe section and a line here."""

from __future__ import annotations

from collections.abc import Sequence

from tatscli.heads.base import Head
from tatscli.heads.decoder import DecoderHead
from tatscli.heads.regressor import RegressorHead
from tatscli.nn.vit import Encoder
from tatscli.recipe import schema

HEADS: dict[str, type[Head]] = {
    "decoder": DecoderHead,
    "regressor": RegressorHead,
}


def build_head(config: schema.Head, *, encoder: Encoder, predicts: Sequence[int]) -> Head:
    """Build the head a recipe asks for; `predicts` counts values per token for each target."""
    return HEADS[config.kind](config, encoder=encoder, predicts=predicts)
