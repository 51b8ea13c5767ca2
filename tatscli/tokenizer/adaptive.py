"""`AdaptiveTokenizer`: windows of frames to codes and scores (LVMAE, Gundavarapu et al. 2024, arXiv
2411.13683): a 3D CNN after MAGVIT, FSQ, and in training zeros for all but the most salient codes.

Shapes: B batch, C colours, T frames, t slices of codes, h and w codes along the picture, N codes of
a window, D values of a code's vector.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from tatscli.nn.convolution import VideoDecoder, VideoEncoder
from tatscli.recipe import schema
from tatscli.tokenizer.base import Coded, Reconstruction, TrainedTokenizer
from tatscli.tokenizer.fsq import FiniteScalar
from tatscli.tokenizer.scorer import Scorer, highest, highest_by_sigmoid, perturbed


class AdaptiveTokenizer(TrainedTokenizer):
    """Encoder, FSQ and decoder over windows of frames, and a scorer.

    Codes are those of all places, whether salient or not: who predicts them chooses by the scores.
    In training, and where `reconstruct` shows what is kept, codes of low scores are replaced by
    that of the zero vector. A video is cut into windows from its first frame on; the last is filled
    up with its last frame, and what comes of that is cut off again.

    Args:
        config: The recipe's `tokenizer`.
        window: Frames that are encoded together.
    """

    whole = True

    def __init__(self, config: schema.AdaptiveTokenizer, *, window: int) -> None:
        super().__init__()
        self.config = config
        self.quantizer = FiniteScalar.of(config)
        self.width = self.quantizer.width
        self.stride = config.stride
        self.frames = config.tubelet
        self.window = window
        self.codebook_size = self.quantizer.size
        self.levels = self.quantizer.levels
        self.scored = config.keep is not None
        widths, blocks, patch = config.widths, config.blocks, config.patch
        self.encoder = VideoEncoder(
            widths, blocks, patch=patch, tubelet=config.tubelet, out=self.width
        )
        self.decoder = VideoDecoder(
            widths, blocks, patch=patch, tubelet=config.tubelet, given=self.width
        )
        self.scorer = (
            Scorer(config.scorer_width, stride=config.stride, tubelet=config.tubelet)
            if self.scored
            else None
        )

    def forward(self, frames_BCTHW: Tensor) -> Reconstruction:
        """Encode a window, keep the salient codes, quantise and decode, with gradient."""
        vectors_BthwD = self._embed(frames_BCTHW)
        scores_Bthw = kept_Bthw = None
        if self.scorer is not None:
            scores_Bthw, _ = self.scorer(frames_BCTHW)
            kept_Bthw = self._kept(scores_Bthw)
            # FSQ gives zeros the code of the zero vector, whatever its levels.
            vectors_BthwD = vectors_BthwD * kept_Bthw[..., None]
        found = self.quantizer(vectors_BthwD)
        video_BCTHW = self._draw(found.vectors_C)
        return Reconstruction(video_BCTHW, found.codes, found.losses, scores_Bthw, kept_Bthw)

    def encode(self, frames_BCTHW: Tensor) -> Tensor:
        """Return the codes: int64 (B, t, h, w)."""
        return self.code(frames_BCTHW).codes_Bthw

    def code(self, frames_BCTHW: Tensor) -> Coded:
        """Return codes and scores of a video of any length, window by window.

        Raises:
            ValueError: If its frames do not make whole codes.
        """
        if frames_BCTHW.shape[2] % self.frames:
            raise ValueError(f"{frames_BCTHW.shape[2]} frames, and a code covers {self.frames}")
        assert self.window is not None
        parts = list(self.stream(frames_BCTHW.split(self.window, dim=2)))
        codes_Bthw = torch.cat([part.codes_Bthw for part in parts], dim=1)
        scores = [part.scores_Bthw for part in parts if part.scores_Bthw is not None]
        return Coded(codes_Bthw, torch.cat(scores, dim=1) if scores else None)

    def stream(self, windows: Iterable[Tensor]) -> Iterator[Coded]:
        """Code a video that comes in parts of `window` frames, the last perhaps shorter.

        The first slice of a window is compared with the last of the one before it; the first slice
        of all has the scores of the second.
        """
        before_BDhw: Tensor | None = None
        for frames_BCTHW in windows:
            with torch.no_grad():
                slices = frames_BCTHW.shape[2] // self.frames
                filled_BCTHW = self._filled(frames_BCTHW)
                codes_Bthw = self.quantizer(self._embed(filled_BCTHW)).codes[:, :slices]
                scores_Bthw = None
                if self.scorer is not None:
                    scores_Bthw, before_BDhw = self.scorer(frames_BCTHW, before_BDhw)
            yield Coded(codes_Bthw, scores_Bthw)

    def vectors(self, codes_Bthw: Tensor) -> Tensor:
        """Look codes up: values in [-1, 1], float32 (B, t, h, w, D)."""
        return self.quantizer.vectors(codes_Bthw)

    @torch.no_grad()
    def decode(self, codes_Bthw: Tensor) -> Tensor:
        """Return the frames that codes stand for: (B, C, T, H, W) in [0, 1]."""
        assert self.window is not None
        slices, parts = self.window // self.frames, list[Tensor]()
        for part_Bthw in codes_Bthw.split(slices, dim=1):
            missing = slices - part_Bthw.shape[1]
            filled_Bthw = torch.cat([part_Bthw, part_Bthw[:, -1:].expand(-1, missing, -1, -1)], 1)
            video_BCTHW = self._draw(self.vectors(filled_Bthw)).clamp(0, 1)
            parts.append(video_BCTHW[:, :, : part_Bthw.shape[1] * self.frames])
        return torch.cat(parts, dim=2)

    def restore(self, coded: Coded) -> Reconstruction:
        """Show what the kept codes hold."""
        codes_Bthw, scores_Bthw = coded
        if scores_Bthw is None:
            return super().restore(coded)
        assert self.window is not None
        slices = self.window // self.frames
        kept_Bthw = torch.cat([self._chosen(part) for part in scores_Bthw.split(slices, dim=1)], 1)
        codes_Bthw = torch.where(kept_Bthw > 0, codes_Bthw, self.quantizer.zero)
        return Reconstruction(self.decode(codes_Bthw), codes_Bthw, {}, scores_Bthw, kept_Bthw)

    def _kept(self, scores_Bthw: Tensor) -> Tensor:
        """Choose as training does: (B, t, h, w), 1 or 0, or a share where the choice is soft."""
        if not self.training or self.config.topk == "straight_through":
            return self._chosen(scores_Bthw, gradient=self.training)
        others_BN, keep = self._others(scores_Bthw)
        kept_BN = perturbed(others_BN, keep, self.config.softness, self.config.samples)
        return _behind_first(kept_BN, scores_Bthw)

    def _chosen(self, scores_Bthw: Tensor, *, gradient: bool = False) -> Tensor:
        """Choose the highest scores of a window behind its first slice, which is always kept."""
        others_BN, keep = self._others(scores_Bthw)
        kept_BN = (
            highest_by_sigmoid(others_BN, keep, self.config.softness)
            if gradient
            else highest(others_BN, keep)
        )
        return _behind_first(kept_BN, scores_Bthw)

    def _others(self, scores_Bthw: Tensor) -> tuple[Tensor, int]:
        """Return the scores behind the first slice, and how many of them are kept."""
        others_BN = scores_Bthw[:, 1:].flatten(1)
        first = scores_Bthw[0, 0].numel() if self.config.first == "among" else 0
        return others_BN, min(self.config.keep - first, others_BN.shape[1])

    def _filled(self, frames_BCTHW: Tensor) -> Tensor:
        """Fill a window up with its last frame."""
        assert self.window is not None
        missing = self.window - frames_BCTHW.shape[2]
        if not missing:
            return frames_BCTHW
        held_BCTHW = frames_BCTHW[:, :, -1:].expand(-1, -1, missing, -1, -1)
        return torch.cat([frames_BCTHW, held_BCTHW], dim=2)

    def _embed(self, frames_BCTHW: Tensor) -> Tensor:
        return self.encoder(2 * frames_BCTHW - 1).permute(0, 2, 3, 4, 1)

    def _draw(self, vectors_BthwD: Tensor) -> Tensor:
        return (self.decoder(vectors_BthwD.permute(0, 4, 1, 2, 3)) + 1) / 2


def _behind_first(kept_BN: Tensor, scores_Bthw: Tensor) -> Tensor:
    """Put a first slice of ones before what is kept of the others."""
    return torch.cat(
        [torch.ones_like(scores_Bthw[:, :1]), kept_BN.view_as(scores_Bthw[:, 1:])], dim=1
    )
