"""The encoder, and the heads that predict hidden tokens."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from tatscli.recipe.schema.section import (
    Count,
    Depth,
    NonNegative,
    Positive,
    Section,
    Width,
)

_SPELLED = ("width", "depth", "heads", "mlp")


class Model(Section):
    """The ViT encoder: a named size, or width, depth and heads."""

    size: Literal["nano", "tiny", "small", "base", "large", "huge", "giant"] | None = "base"
    """Width / depth / heads: nano 128/6/4, tiny 192/12/3, small 384/12/6, base 768/12/12, large
    1024/24/16, huge 1280/32/16, giant 1408/40/16 with an MLP width of 6144 (published with patch
    size 14). Null if width, depth and heads are given."""
    width: Width | None = None
    """Embedding width, instead of `size`; a multiple of `heads`."""
    depth: Depth | None = None
    """Number of blocks, instead of `size`."""
    heads: Count | None = None
    """Number of attention heads, instead of `size`."""
    mlp: Width | None = None
    """MLP hidden width, if `size` is not given; null: four times the width."""
    tubelet: Count = 2
    """Frames per token (tubelet size)."""
    patch: Count = 16
    """Patch size in pixels."""
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Stochastic depth in pretraining: rate of the last block, increasing linearly from 0."""
    checkpointing: bool = False
    """Activation checkpointing: recompute activations in the backward pass; saves memory, costs
    about a third more time."""

    @model_validator(mode="before")
    @classmethod
    def _spelled_out_has_no_name(cls, given: Any) -> Any:
        if not isinstance(given, dict) or "size" in given:
            return given
        spelled = any(given.get(key) is not None for key in _SPELLED)
        return given | {"size": None} if spelled else given

    @model_validator(mode="after")
    def _named_or_spelled_out(self) -> Self:
        spelled = [key for key in _SPELLED if getattr(self, key) is not None]
        if self.size is not None and spelled:
            raise ValueError(
                f"`size: {self.size}` and `{spelled[0]}` cannot be combined; "
                "set `size: null` to give width, depth and heads"
            )
        missing = [key for key in _SPELLED[:3] if getattr(self, key) is None]
        if self.size is None and missing:
            raise ValueError(f"without `size` the model needs `{'`, `'.join(missing)}`")
        if self.width is not None and self.heads is not None and self.width % self.heads:
            raise ValueError(f"`width: {self.width}` is not a multiple of `heads: {self.heads}`")
        return self


class DecoderHead(Section):
    """MAE decoder: a narrow ViT over visible latents and mask tokens."""

    kind: Literal["decoder"] = "decoder"
    width: Width | None = None
    """Decoder width; null: half the encoder's, as published for all sizes."""
    depth: Depth = 4
    """Decoder blocks; published: 4 (small, base), 12 (large, huge)."""
    heads: Count | None = None
    """Decoder attention heads; null: half the encoder's."""
    mlp: Width | None = None
    """MLP hidden width of the decoder; null: four times its width. VideoMAE V2's ViT-g has 2234 at
    width 512."""
    shared: bool = False
    """Share one decoder among all targets, with a linear output layer per target, instead of one
    decoder per target."""


class RegressorHead(Section):
    """Predicts hidden latents from visible ones by cross-attention, and decodes only the hidden
    tokens, with a decoder per target (MAM2, arXiv 2210.05234, with CAE's regressor, arXiv
    2202.03026)."""

    kind: Literal["regressor"]
    regressor_depth: Annotated[int, Field(ge=0, le=6)] = 4
    """Cross-attention blocks, as wide as the encoder; CAE has 4. With 0 the decoders get bare mask
    tokens and see nothing of the clip."""
    width: Width | None = None
    """Decoder width; null: half the encoder's. Our choice."""
    depth: Annotated[int, Field(ge=0, le=8)] = 4
    """Blocks per decoder; CAE has 4."""
    heads: Count | None = None
    """Decoder attention heads; null: half the encoder's."""
    layer_scale: Positive = 0.1
    """Initial layer scale of the regressor's residual branches; CAE's value."""
    alignment: NonNegative = 0.0
    """Weight of the alignment loss: squared distance between predicted latents and the encoder's
    latents of the hidden tokens. CAE uses 2; MAM2's paper does not say."""
    shared: bool = False
    """Share one decoder among all targets, with a linear output layer per target, instead of MAM2's
    one decoder per target."""


Head = Annotated[
    DecoderHead | RegressorHead,
    Field(discriminator="kind"),
]
