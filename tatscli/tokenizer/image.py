"""`ImageTokenizer`: frames to codes, one by one, through a residual CNN.

Shapes: B batch, C colours, T frames, H and W pixels, X = B * T pictures, h and w codes along the
picture, D values of a code's vector.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tatscli.nn.convolution import PictureDecoder, PictureEncoder
from tatscli.recipe import schema
from tatscli.tokenizer import QUANTIZERS
from tatscli.tokenizer.base import Reconstruction, TrainedTokenizer, pictures_of
from tatscli.tokenizer.quantize import Quantizer


class ImageTokenizer(TrainedTokenizer):
    """Encoder, quantizer and decoder.

    Args:
        config: The recipe's `tokenizer`.
        quantizer: What is between encoder and decoder; None is the one that the recipe names.
    """

    def __init__(
        self,
        config: schema.Tokenizer,
        *,
        quantizer: Quantizer | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.quantizer = quantizer or QUANTIZERS[config.kind].of(config)
        self.width = self.quantizer.width
        self.stride = config.stride
        self.codebook_size = self.quantizer.size
        self.levels = self.quantizer.levels
        widths, blocks, patch = config.widths, config.blocks, config.patch
        self.encoder = PictureEncoder(widths, blocks, patch=patch, out=self.width)
        self.decoder = PictureDecoder(widths, blocks, patch=patch, given=self.width)

    def forward(self, frames_BCTHW: Tensor) -> Reconstruction:
        """Encode, quantise and decode, with gradient; what training calls."""
        found = self.quantizer(self._embed(pictures_of(frames_BCTHW)))
        return Reconstruction(
            self._video(self._draw(found.vectors_C), len(frames_BCTHW)),
            found.codes.unflatten(0, (len(frames_BCTHW), -1)),
            found.losses,
        )

    @torch.no_grad()
    def encode(self, frames_BCTHW: Tensor) -> Tensor:
        """Return the codes: int64 (B, T, h, w)."""
        codes_Xhw = self.quantizer(self._embed(pictures_of(frames_BCTHW))).codes
        return codes_Xhw.unflatten(0, (len(frames_BCTHW), -1))

    def vectors(self, codes_BThw: Tensor) -> Tensor:
        """Look codes up: float32 (B, T, h, w, D)."""
        return self.quantizer.vectors(codes_BThw)

    @torch.no_grad()
    def decode(self, codes_BThw: Tensor) -> Tensor:
        """Return the frames that codes stand for: (B, C, T, H, W) in [0, 1]."""
        vectors_XhwD = self.quantizer.vectors(codes_BThw.flatten(0, 1))
        return self._video(self._draw(vectors_XhwD).clamp(0, 1), len(codes_BThw))

    def _embed(self, pictures_XCHW: Tensor) -> Tensor:
        signed_XCHW = (2 * pictures_XCHW - 1).contiguous(memory_format=torch.channels_last)
        return self.encoder(signed_XCHW).permute(0, 2, 3, 1)

    def _draw(self, vectors_XhwD: Tensor) -> Tensor:
        return (self.decoder(vectors_XhwD.permute(0, 3, 1, 2)) + 1) / 2

    def _video(self, pictures_XCHW: Tensor, videos: int) -> Tensor:
        return pictures_XCHW.unflatten(0, (videos, -1)).transpose(1, 2)
