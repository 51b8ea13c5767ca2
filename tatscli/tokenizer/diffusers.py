"""Tokenizers of diffusers: `VQModel` (frames, VQGAN) and `AutoencoderVidTok` (video, FSQ).

Shapes: B batch, C colours, T frames, t codes along time, h and w along the picture, X = B * T
pictures, D values of a code's vector.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tatscli.errors import CheckpointError
from tatscli.files import sha256
from tatscli.tokenizer.base import Tokenizer

_CLASSES = ("VQModel", "AutoencoderVidTok")
_WEIGHTS = "diffusion_pytorch_model.safetensors"


def import_diffusers() -> Any:
    """Import diffusers.

    Raises:
        CheckpointError: If it is not installed.
    """
    try:
        import diffusers
    except ImportError as error:
        raise CheckpointError(
            "this tokenizer needs diffusers, which is not installed",
            hint="`pip install 'tats[tokenizers]'`",
        ) from error
    return diffusers


def open_diffusers(folder: Path) -> tuple[Tokenizer, str]:
    """Open a folder that diffusers wrote; its adapter, and the SHA-256 of its weights.

    Raises:
        CheckpointError: If it is no such folder, or holds another kind of model.
    """
    config, weights = folder / "config.json", folder / _WEIGHTS
    if not (config.is_file() and weights.is_file()):
        raise CheckpointError(
            f"`tokenizer.path: {folder}` is not a diffusers folder: "
            f"it needs `config.json` and `{_WEIGHTS}`",
            hint="for a whole pipeline, give the subfolder of its tokenizer, such as `vqvae`",
        )
    try:
        name = json.loads(config.read_text(encoding="utf-8")).get("_class_name")
    except (ValueError, AttributeError) as error:
        raise CheckpointError(f"`{config}` is not the JSON of a model: {error}") from error
    if name not in _CLASSES:
        raise CheckpointError(
            f"`tokenizer.path: {folder}` holds a `{name}`; supported are {' and '.join(_CLASSES)}"
        )
    diffusers = import_diffusers()
    try:
        model = getattr(diffusers, name).from_pretrained(
            folder, local_files_only=True, use_safetensors=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"`tokenizer.path: {folder}` cannot be read: {error}") from error
    if name == "VQModel":
        return VqModel(model), sha256(weights)
    if model.regularizer != "fsq":
        raise CheckpointError(
            f"`tokenizer.path: {folder}` is a VidTok with continuous latents: it has no codes",
            hint="use one with `regularizer: fsq`",
        )
    return VidTok(model), sha256(weights)


class VqModel(Tokenizer):
    """A `VQModel`: frames one by one.

    Args:
        model: Of diffusers.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.codebook_size, self.width = model.quantize.embedding.weight.shape
        self.stride = 2 ** (len(model.config.block_out_channels) - 1)

    @torch.no_grad()
    def encode(self, frames_BCTHW: Tensor) -> Tensor:
        """Return the codes: int64 (B, T, h, w)."""
        pictures_XCHW = frames_BCTHW.transpose(1, 2).flatten(0, 1)
        maps_XDhw = self.model.encode(2 * pictures_XCHW - 1).latents
        codes = self.model.quantize(maps_XDhw)[2][2]
        return codes.view(*frames_BCTHW.shape[::2][:2], *maps_XDhw.shape[2:])

    def vectors(self, codes_BThw: Tensor) -> Tensor:
        """Look codes up: float32 (B, T, h, w, D)."""
        return self.model.quantize.embedding(codes_BThw)

    @torch.no_grad()
    def decode(self, codes_BThw: Tensor) -> Tensor:
        """Return the frames that codes stand for: (B, C, T, H, W) in [0, 1]."""
        maps_XDhw = self.vectors(codes_BThw).flatten(0, 1).permute(0, 3, 1, 2)
        pictures_XCHW = self.model.decode(maps_XDhw, force_not_quantize=True).sample
        pictures_XCHW = ((pictures_XCHW + 1) / 2).clamp(0, 1)
        return pictures_XCHW.unflatten(0, codes_BThw.shape[:2]).transpose(1, 2)


class VidTok(Tokenizer):
    """An `AutoencoderVidTok` with FSQ: several frames a code.

    A causal one makes its first code of the first frame alone: it decodes to fewer frames than it
    was given, and its first frame is repeated in their place.

    Args:
        model: Of diffusers.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.codebook_size = model.regularization.codebook_size
        self.width = model.regularization.codebook_dim
        self.frames = model.temporal_compression_ratio
        self.stride = 2 ** len(model.encoder.spatial_ds)
        grid = model.regularization  # its digits are ours: of one codebook, first value fastest
        if grid.num_codebooks == 1 and not grid.has_projections:
            self.levels = grid._levels.tolist()

    @torch.no_grad()
    def encode(self, frames_BCTHW: Tensor) -> Tensor:
        """Return the codes: int64 (B, t, h, w)."""
        return self.model.encode(2 * frames_BCTHW - 1)[1].long()

    def vectors(self, codes_Bthw: Tensor) -> Tensor:
        """Look codes up: float32 (B, t, h, w, D), in [-1, 1]."""
        found_BDthw = self.model.regularization.indices_to_codes(codes_Bthw)
        return found_BDthw.movedim(1, -1)

    @torch.no_grad()
    def decode(self, codes_Bthw: Tensor) -> Tensor:
        """Return the frames that codes stand for: (B, C, T, H, W) in [0, 1]."""
        frames_BCTHW = self.model.decode(self.vectors(codes_Bthw).movedim(-1, 1))
        missing = codes_Bthw.shape[1] * self.frames - frames_BCTHW.shape[2]
        if missing:
            first = frames_BCTHW[:, :, :1].expand(-1, -1, missing, -1, -1)
            frames_BCTHW = torch.cat([first, frames_BCTHW], dim=2)
        return ((frames_BCTHW + 1) / 2).clamp(0, 1)
