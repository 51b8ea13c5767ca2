"""The form of a model that weights belong to: its sizes, the shapes of its tensors, its recipe.

Names of tensors are those of our checkpoints: `encoder.*` as VideoMAE calls them, beside them
either `head.branches.0.*`, a pretraining's decoder, or `fc_norm.*` and `head.*`, a classifier.
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
"""How positions that were taken over from another grid end; VideoMAE's own are in no file."""

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
class Form:
    """Everything that shapes of tensors, and what is written beside them, depend on.

    Attributes:
        encoder: The ViT.
        tubelet: Frames in a token.
        patch: Height and width of a token in pixels.
        decoder: A pretraining's, of one branch that predicts pixels; None without one.
        classes: Labels of a classifier; None without one.
        frames: Frames in a clip.
        size: Height and width of a clip in pixels: one number, or both.
        mean: Of red, green and blue in [0, 1].
        std: Their deviation.
        normalize: Whether a pretraining's pixels are standardised by cube.
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
    def bare(self) -> Form:
        """The encoder alone."""
        return replace(self, decoder=None, classes=None)


def shapes_of(form: Form) -> Shapes:
    """Return the shapes of all tensors by their names in a checkpoint."""
    width, (tubelet, patch) = form.encoder.width, (form.tubelet, form.patch)
    shapes: Shapes = {
        f"{ENCODER}patch_embed.proj.weight": (width, 3, tubelet, patch, patch),
        f"{ENCODER}patch_embed.proj.bias": (width,),
        **_stack(ENCODER, form.encoder),
    }
    if form.decoder is not None:
        inner = form.decoder.width
        pixels = 3 * tubelet * patch * patch
        shapes |= dict(zip(DECODER, [(inner, width), (1, 1, inner)], strict=True))
        shapes |= _stack(f"{BRANCH}decoder.", form.decoder)
        shapes |= {f"{BRANCH}decoder.head.weight": (pixels, inner)}
        shapes |= {f"{BRANCH}decoder.head.bias": (pixels,)}
    if form.classes is not None:
        sides = [(width,), (width,), (form.classes, width), (form.classes,)]
        shapes |= dict(zip(CLASSIFIER, sides, strict=True))
    return shapes


def _stack(prefix: str, vit: Vit) -> Shapes:
    """Shapes of blocks and the norm after them."""
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
) -> Form:
    """Read a form off tensors by our names; heads, which no tensor shows, come from a table.

    Args:
        tensors: The weights.
        called: What messages call them.
        heads: Attention heads of the encoder, where they are known.
        decoder_heads: Those of the decoder.

    Raises:
        CheckpointError: If heads are not known, or there is no patch embedding.
    """
    patches = tensors.get(f"{ENCODER}patch_embed.proj.weight")
    if patches is None or patches.ndim != 5:
        raise CheckpointError(f"`{called}` has no patch embedding of videos")
    width, channels, tubelet, patch, across = patches.shape
    if channels != 3 or patch != across:
        raise CheckpointError(
            f"`{called}` embeds patches of {patch} x {across} pixels of {channels} colours; "
            "square ones of 3 are known here"
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
    # What no tensor shows is as published, or the next less that tokens fill.
    frames, size = max(16 // tubelet, 1) * tubelet, max(224 // patch, 1) * patch
    return Form(encoder, tubelet, patch, decoder, classes, frames, size)


def _vit(
    prefix: str,
    tensors: Mapping[str, Tensor],
    width: int,
    heads: int | None,
    called: str,
    option: str,
) -> Vit:
    """Measure a stack of blocks.

    Raises:
        CheckpointError: If its heads are not known, or do not divide its width.
    """
    pattern = re.compile(re.escape(prefix) + r"blocks\.(\d+)\.")
    depth = max((int(found[1]) for name in tensors if (found := pattern.match(name))), default=-1)
    inner = tensors.get(f"{prefix}blocks.0.mlp.fc1.weight")
    part = "decoder" if "decoder" in option else "encoder"
    if heads is None:
        raise CheckpointError(
            f"`{called}` does not say how many heads its {part} of width {width} has",
            hint=f"`tats convert` takes it as `{option} N`; what it writes is read everywhere",
        )
    if width % heads:
        raise CheckpointError(
            f"`{called}`: {heads} heads do not divide the width {width} of the {part}",
            hint=f"`tats convert` takes the true number as `{option} N`",
        )
    return Vit(width, depth + 1, heads, 4 * width if inner is None else inner.shape[0])


def form_of(recipe: Recipe, *, classes: int | None = None) -> Form:
    """Return the form that a recipe describes; with classes its classifier's, else its decoder's.

    A head or targets that the form has no words for leave the decoder out.
    """
    encoder, data = Vit(*model_size(recipe.model)), recipe.data
    decoder, normalize = None, True
    if classes is None and expressible(recipe):
        head, target = recipe.head, recipe.targets[0]
        assert isinstance(head, schema.DecoderHead) and isinstance(target, schema.PixelTarget)
        width, heads = head_size(head, width=encoder.width, heads=encoder.heads)
        decoder = Vit(width, head.depth, heads, head.mlp or 4 * width)
        normalize = target.normalize
    return Form(
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
    """Whether a recipe's head is VideoMAE's: one decoder, of pixels."""
    return (
        isinstance(recipe.head, schema.DecoderHead)
        and len(recipe.targets) == 1
        and isinstance(recipe.targets[0], schema.PixelTarget)
    )


def recipe_of(form: Form, name: str, *, mask: dict[str, Any] | None = None) -> Recipe:
    """Return a whole recipe for weights: their form, and defaults for what they do not say.

    Args:
        form: What they are.
        name: What they are called; the store, which they do not name, is called so too.
        mask: The mask section; None is VideoMAE's tube mask.
    """
    encoder, decoder = form.encoder, form.decoder
    size = next((one for one, sides in SIZES.items() if sides == encoder), None)
    spelled = encoder._asdict() if size is None else {}
    head = {} if decoder is None else {"kind": "decoder", **decoder._asdict()}
    return Recipe.model_validate(
        {
            "data": {
                "store": f"prepared/{name}",
                "frames": form.frames,
                "size": form.size,
                "mean": form.mean,
                "std": form.std,
            },
            "model": {"size": size, **spelled, "tubelet": form.tubelet, "patch": form.patch},
            "mask": mask or {"kind": "tube", "ratio": 0.9},
            "targets": [{"kind": "pixels", "normalize": form.normalize}],
            **({"head": head} if head else {}),
        }
    )
