"""Image ViTs, as published by MAE and saved by timm, as the initial encoder of a video model.

The patch embedding is spread evenly over the frames of a token, so that a still clip is embedded
like its image (inflation, Carreira and Zisserman 2017, arXiv 1705.07750).
"""

from __future__ import annotations

from torch import Tensor

from tatscli.weights.count import Renaming
from tatscli.weights.spec import ENCODER
from tatscli.weights.videomae import (
    fold_gammas,
    make_biases,
    make_last_norm,
    split_fused_biases,
)

LAYOUT = "image ViT"

_FOLDED = {"ls1.gamma": "attn.proj", "ls2.gamma": "mlp.fc2"}
_PATCHES = "patch_embed.proj.weight"


def from_timm(source: dict[str, Tensor], *, tubelet: int) -> Renaming:
    """Rename the encoder of an image ViT, and inflate its patch embedding for videos.

    Args:
        source: Its tensors.
        tubelet: Frames in a token.
    """
    names = Renaming(source, LAYOUT)
    fold_gammas(names, _FOLDED)
    split_fused_biases(names)
    _drop(names, "the class token, which our encoder does not have", "cls_token")
    _drop(names, "its position embeddings; ours are sine-cosine", "pos_embed")
    _drop(names, "its image decoder", "decoder_", "mask_token")
    _drop(names, "its image classifier", "head.", "fc_norm.")
    picture = names.pop(_PATCHES)
    names.tensors[ENCODER + _PATCHES] = inflated(picture, tubelet)
    names.count.notes.append(
        f"the patch embedding of images is spread over {tubelet} frames, 1/{tubelet} each"
    )
    names.take_all(_name)
    make_last_norm(names, "its last norm came after pooling, before the image classifier")
    make_biases(names)
    return names


def inflated(picture_DCHW: Tensor, tubelet: int) -> Tensor:
    """Spread a patch embedding over frames, so that a still clip is embedded like its image."""
    share = picture_DCHW[:, :, None] / tubelet
    return share.expand(-1, -1, tubelet, -1, -1).contiguous()


def picture_size(source: dict[str, Tensor]) -> int | None:
    """Return the image size that an image ViT has positions for, if it is square."""
    table, patches = source.get("pos_embed"), source.get(_PATCHES)
    if table is None or patches is None:
        return None
    tokens = table.shape[1] - ("cls_token" in source)
    side = round(tokens**0.5)
    return side * patches.shape[-1] if side * side == tokens else None


def _drop(names: Renaming, reason: str, *starts: str) -> None:
    names.drop(reason, lambda name: name.startswith(starts))


def _name(name: str) -> str | None:
    return ENCODER + name if name.startswith(("patch_embed.", "blocks.", "norm.")) else None
