"""The encoder, and what guesses hidden tokens."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from tatscli.recipe.schema.section import Count, NonNegative, Positive, Section

_SPELLED = ("width", "depth", "heads", "mlp")


class Model(Section):
    """The ViT encoder: a size by name, or its width, depth and heads."""

    size: Literal["nano", "tiny", "small", "base", "large", "huge", "giant"] | None = "base"
    """Width / depth / heads: nano 128/6/4, tiny 192/12/3, small 384/12/6, base 768/12/12, large
    1024/24/16, huge 1280/32/16, giant 1408/40/16 with an MLP of 6144 (published with patches of
    14 pixels). Null where they are spelled out."""
    width: Count | None = None
    """Width of the tokens, instead of `size`; a multiple of `heads`."""
    depth: Count | None = None
    """Blocks, instead of `size`."""
    heads: Count | None = None
    """Attention heads, instead of `size`."""
    mlp: Count | None = None
    """Inner width of the MLPs, where `size` is not given; null is four times the width."""
    tubelet: Count = 2
    """Frames in a token."""
    patch: Count = 16
    """Height and width of a token in pixels."""
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Stochastic depth of the last block in pretraining, rising linearly from 0."""
    checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""

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
                f"`size: {self.size}` and `{spelled[0]}` exclude each other; "
                "set `size: null` to spell the model out"
            )
        missing = [key for key in _SPELLED[:3] if getattr(self, key) is None]
        if self.size is None and missing:
            raise ValueError(f"without `size` the model needs `{'`, `'.join(missing)}`")
        if self.width is not None and self.heads is not None and self.width % self.heads:
            raise ValueError(f"`width: {self.width}` is not a multiple of `heads: {self.heads}`")
        return self


class DecoderHead(Section):
    """MAE decoder: visible latents and mask tokens through a narrow ViT."""

    kind: Literal["decoder"] = "decoder"
    width: Count | None = None
    """Decoder width; null is half the encoder's, as published for every size."""
    depth: Count = 4
    """Decoder blocks; published: 4 (small, base), 12 (large, huge)."""
    heads: Count | None = None
    """Decoder heads; null is half the encoder's."""
    mlp: Count | None = None
    """Inner width of the decoder's MLPs; null is four times its width. VideoMAE V2's ViT-g has 2234
    at a width of 512."""
    shared: bool = False
    """One decoder for all targets, with a linear output for each, instead of one decoder each."""


class RegressorHead(Section):
    """Hidden latents regressed from visible ones, and a decoder for each target over the hidden
    tokens alone (MAM2, arXiv 2210.05234, with the regressor of CAE, arXiv 2202.03026)."""

    kind: Literal["regressor"]
    regressor_depth: Annotated[int, Field(ge=0, le=6)] = 4
    """Cross-attention blocks, as wide as the encoder; CAE's is 4. 0 hands mask tokens straight to
    the decoders, which then know nothing of the clip."""
    width: Count | None = None
    """Width of the decoders; null is half the encoder's. Ours."""
    depth: Annotated[int, Field(ge=0, le=8)] = 4
    """Blocks of each decoder; CAE's is 4."""
    heads: Count | None = None
    """Heads of the decoders; null is half the encoder's."""
    layer_scale: Positive = 0.1
    """First factor of the regressor's branches; CAE's."""
    alignment: NonNegative = 0.0
    """Weight of the squared distance between regressed latents and those the encoder gives the
    hidden tokens; CAE's is 2. Whether MAM2 has it is not known."""
    shared: bool = False
    """One decoder for all targets, with a linear output for each, instead of MAM2's one decoder
    each."""


Head = Annotated[
    DecoderHead | RegressorHead,
    Field(discriminator="kind"),
]
