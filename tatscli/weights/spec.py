"""Sizes of a model, the shapes of its tensors, and its recipe.

Tensor names are those of our checkpoints: `encoder.*` as in VideoMAE, and either
`head.branches.0.*`, the decoder of a pretraining, or `fc_norm.*` and `head.*`, a classifier.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from torch import Tensor

from tatscli.errors import CheckpointError
from tatscli.nn.vit import SIZES, head_size, model_size
from tatscli.recipe import schema
from tatscli.recipe.schema import Recipe

ENCODER, BRANCH = "encoder.", "head.branches.0."
CLASSIFIER = ("fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias")
DECODER = (f"{BRANCH}encoder_to_decoder.weight", f"{BRANCH}mask_token")
POSITIONS = "positions.table_ND"
"""Suffix of positions interpolated from another grid; VideoMAE's own are in no file."""

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
PUBLISHED = ("small", "base", "large", "huge", "giant")
DECODER_HEADS = {192: 3, 384: 6, 512: 8, 640: 8}
"""Heads of published decoders by their width (VideoMAE and VideoMAE V2)."""

Shapes = dict[str, tuple[int, ...]]


class Vit(NamedTuple):
    """A stack of blocks."""

    width: int
    depth: int
    heads: int
    mlp: int


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Everything that tensor shapes, and the files beside them, depend on.

    Attributes:
        encoder: The ViT.
        tubelet: Frames in a token.
        patch: Height and width of a token in pixels.
        decoder: The decoder of a pretraining, with one branch that predicts pixels; None without.
        classes: Number of classes of a classifier; None without one.
        frames: Frames in a clip.
        size: Height and width of a clip in pixels: one number, or both.
        mean: Of red, green and blue in [0, 1].
        std: Their standard deviations.
        normalize: Whether target pixels are normalised per cube.
    """

    encoder: Vit
    tubelet: int
    patch: int
    decoder: Vit | None = None
    classes: int | None = None
    frames: int = 16
    size: int | tuple[int, int] = 224
    mean: tuple[float, ...] = IMAGENET[0]
    std: tuple[float, ...] = IMAGENET[1]
    normalize: bool = True

    @property
    def tokens(self) -> int:
        """Tokens of a clip."""
        height, width = (self.size, self.size) if isinstance(self.size, int) else self.size
        places = (height // self.patch) * (width // self.patch)
        return self.frames // self.tubelet * places

    @property
    def bare(self) -> ModelSpec:
        """The encoder alone."""
        return replace(self, decoder=None, classes=None)


def shapes_of(spec: ModelSpec) -> Shapes:
    """Return the shapes of all tensors by name."""
    width, (tubelet, patch) = spec.encoder.width, (spec.tubelet, spec.patch)
    shapes: Shapes = {
        f"{ENCODER}patch_embed.proj.weight": (width, 3, tubelet, patch, patch),
        f"{ENCODER}patch_embed.proj.bias": (width,),
        **_stack(ENCODER, spec.encoder),
    }
    if spec.decoder is not None:
        inner = spec.decoder.width
        pixels = 3 * tubelet * patch * patch
        shapes |= dict(zip(DECODER, [(inner, width), (1, 1, inner)], strict=True))
        shapes |= _stack(f"{BRANCH}decoder.", spec.decoder)
        shapes |= {f"{BRANCH}decoder.head.weight": (pixels, inner)}
        shapes |= {f"{BRANCH}decoder.head.bias": (pixels,)}
    if spec.classes is not None:
        sides = [(width,), (width,), (spec.classes, width), (spec.classes,)]
        shapes |= dict(zip(CLASSIFIER, sides, strict=True))
    return shapes


def _stack(prefix: str, vit: Vit) -> Shapes:
    """Return the shapes of blocks and the norm after them."""
    width, mlp = vit.width, vit.mlp
    block: Shapes = {
        "norm1.weight": (width,),
        "norm1.bias": (width,),
        "attn.qkv.weight": (3 * width, width),
        "attn.q_bias": (width,),
        "attn.v_bias": (width,),
        "attn.proj.weight": (width, width),
        "attn.proj.bias": (width,),
        "norm2.weight": (width,),
        "norm2.bias": (width,),
        "mlp.fc1.weight": (mlp, width),
        "mlp.fc1.bias": (mlp,),
        "mlp.fc2.weight": (width, mlp),
        "mlp.fc2.bias": (width,),
    }
    blocks = {
        f"{prefix}blocks.{i}.{name}": one for i in range(vit.depth) for name, one in block.items()
    }
    return blocks | {f"{prefix}norm.weight": (width,), f"{prefix}norm.bias": (width,)}


def measured(
    tensors: Mapping[str, Tensor],
    *,
    called: str,
    heads: int | None = None,
    decoder_heads: int | None = None,
) -> ModelSpec:
    """Derive the sizes of a model from its tensors; heads, which no tensor shows, are looked up.

    Args:
        tensors: The weights, by our names.
        called: Name of the source in messages.
        heads: Attention heads of the encoder, if known.
        decoder_heads: Those of the decoder, if known.

    Raises:
        CheckpointError: If the heads are unknown, or there is no patch embedding.
    """
    patches = tensors.get(f"{ENCODER}patch_embed.proj.weight")
    if patches is None or patches.ndim != 5:
        raise CheckpointError(f"`{called}` has no patch embedding for videos")
    width, channels, tubelet, patch, across = patches.shape
    if channels != 3 or patch != across:
        raise CheckpointError(
            f"`{called}` embeds patches of {patch} x {across} pixels with {channels} channels; "
            "only square patches with 3 channels are supported"
        )
    if heads is None:
        heads = next((SIZES[one][2] for one in PUBLISHED if SIZES[one][0] == width), None)
    encoder = _vit(ENCODER, tensors, width, heads, called, "--heads")
    decoder = None
    narrow = tensors.get(f"{BRANCH}encoder_to_decoder.weight")
    if narrow is not None and narrow.ndim == 2:
        inner = narrow.shape[0]
        decoder_heads = decoder_heads or DECODER_HEADS.get(inner)
        if decoder_heads is None and 2 * inner == width:
            decoder_heads = max(1, encoder.heads // 2)
        prefix = f"{BRANCH}decoder."
        decoder = _vit(prefix, tensors, inner, decoder_heads, called, "--decoder-heads")
    head = tensors.get("head.weight")
    classes = None if head is None else head.shape[0]
    # What no tensor shows is as published, rounded down to a multiple of the token size.
    frames, size = max(16 // tubelet, 1) * tubelet, max(224 // patch, 1) * patch
    return ModelSpec(encoder, tubelet, patch, decoder, classes, frames, size)


def _vit(
    prefix: str,
    tensors: Mapping[str, Tensor],
    width: int,
    heads: int | None,
    called: str,
    option: str,
) -> Vit:
    """Derive the sizes of a stack of blocks.

    Raises:
        CheckpointError: If its heads are unknown, or do not divide its width.
    """
    pattern = re.compile(re.escape(prefix) + r"blocks\.(\d+)\.")
    depth = max((int(found[1]) for name in tensors if (found := pattern.match(name))), default=-1)
    inner = tensors.get(f"{prefix}blocks.0.mlp.fc1.weight")
    part = "decoder" if "decoder" in option else "encoder"
    if heads is None:
        raise CheckpointError(
            f"the number of heads of the {part} of `{called}`, of width {width}, is unknown",
            hint=f"`tats convert {option} N` sets it; its output is read everywhere",
        )
    if width % heads:
        raise CheckpointError(
            f"`{called}`: {heads} heads do not divide the width {width} of the {part}",
            hint=f"`tats convert {option} N` sets the right number",
        )
    return Vit(width, depth + 1, heads, 4 * width if inner is None else inner.shape[0])


def spec_of(recipe: Recipe, *, classes: int | None = None) -> ModelSpec:
    """Return the sizes that a recipe describes: with classes those of its classifier, else with its
    decoder.

    The decoder is left out if head or targets are not VideoMAE's.
    """
    encoder, data = Vit(*model_size(recipe.model)), recipe.data
    decoder, normalize = None, True
    if classes is None and expressible(recipe):
        head, target = recipe.head, recipe.targets[0]
        assert isinstance(head, schema.DecoderHead) and isinstance(target, schema.PixelTarget)
        width, heads = head_size(head, width=encoder.width, heads=encoder.heads)
        decoder = Vit(width, head.depth, heads, head.mlp or 4 * width)
        normalize = target.normalize
    return ModelSpec(
        encoder,
        recipe.model.tubelet,
        recipe.model.patch,
        decoder,
        classes,
        frames=data.frames,
        size=data.size,
        mean=data.mean,
        std=data.std,
        normalize=normalize,
    )


def expressible(recipe: Recipe) -> bool:
    """Whether a recipe's head is VideoMAE's: one decoder that predicts pixels."""
    return (
        isinstance(recipe.head, schema.DecoderHead)
        and len(recipe.targets) == 1
        and isinstance(recipe.targets[0], schema.PixelTarget)
    )


def recipe_of(spec: ModelSpec, name: str, *, mask: dict[str, Any] | None = None) -> Recipe:
    """Return a complete recipe for weights: their sizes, and defaults for everything else.

    Args:
        spec: Their sizes.
        name: Their name; it is also used for the store, which is unknown.
        mask: The mask section; None is VideoMAE's tube mask.
    """
    encoder, decoder = spec.encoder, spec.decoder
    size = next((one for one, sides in SIZES.items() if sides == encoder), None)
    spelled = encoder._asdict() if size is None else {}
    head = {} if decoder is None else {"kind": "decoder", **decoder._asdict()}
    return Recipe.model_validate(
        {
            "data": {
                "store": f"prepared/{name}",
                "frames": spec.frames,
                "size": spec.size,
                "mean": spec.mean,
                "std": spec.std,
            },
            "model": {"size": size, **spelled, "tubelet": spec.tubelet, "patch": spec.patch},
            "mask": mask or {"kind": "tube", "ratio": 0.9},
            "targets": [{"kind": "pixels", "normalize": spec.normalize}],
            **({"head": head} if head else {}),
        }
    )
