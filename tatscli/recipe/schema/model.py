"""The encoder, what guesses hidden tokens, and what the guesses are compared with."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tatscli.recipe.schema.section import Count, Positive, Section


class Model(Section):
    """The ViT encoder."""

    size: Literal["nano", "tiny", "small", "base", "large", "huge"] = "base"
    """Width / depth / heads: nano 128/6/4, tiny 192/12/3, small 384/12/6, base 768/12/12, large
    1024/24/16, huge 1280/32/16."""
    tubelet: Count = 2
    """Frames in a token."""
    patch: Count = 16
    """Height and width of a token in pixels."""
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Stochastic depth of the last block in pretraining, rising linearly from 0."""
    checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""


class DecoderHead(Section):
    """MAE decoder: visible latents and mask tokens through a narrow ViT."""

    kind: Literal["decoder"] = "decoder"
    width: Count | None = None
    """Decoder width; null is half the encoder's, as published for every size."""
    depth: Count = 4
    """Decoder blocks; published: 4 (small, base), 12 (large, huge)."""
    heads: Count | None = None
    """Decoder heads; null is half the encoder's."""


Head = Annotated[DecoderHead, Field(discriminator="kind")]


class PixelTarget(Section):
    """Pixels of the hidden tokens."""

    kind: Literal["pixels"]
    normalize: bool = True
    """Standardise each cube per channel by its own mean and deviation."""
    weight: Positive = 1.0
    """Weight of this target in the loss."""


Target = Annotated[PixelTarget, Field(discriminator="kind")]
