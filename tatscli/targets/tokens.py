"""What targets of a tokenizer share: which of its codes belong to a cube.

Shapes: B batch, C colours, T frames, t codes along time, h and w codes along the picture, N cubes
of a clip, M of them, R codes of a cube, X values of a code.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from tatscli.data.clip import Clip, ClipForm, pick
from tatscli.errors import RecipeError
from tatscli.nn.frozen import Frozen
from tatscli.targets.base import Target
from tatscli.tokenizer.base import Tokenizer
from tatscli.tokenizer.load import open_tokenizer


class Encoding(nn.Module):
    """A tokenizer's codes, or their vectors, as the answer to frames."""

    def __init__(self, tokenizer: Tokenizer, *, vectors: bool) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.vectors = vectors

    def forward(self, frames_BCTHW: Tensor) -> Tensor:
        """Return codes (B, t, h, w), or vectors (B, t, h, w, D)."""
        if self.vectors:
            return self.tokenizer.latents(frames_BCTHW)
        return self.tokenizer.encode(frames_BCTHW)


class TokenizerTarget(Target):
    """Asks a frozen tokenizer about a clip, and hands each cube its codes.

    The tokenizer sees whole frames of the view, not standardised, perhaps at another `scale`. In
    time a cube has the codes of all its frames, or of one; where a code covers more frames than a
    cube, neighbouring cubes share it. In the picture a cube has as many codes as lie in its patch.

    Attributes:
        codebook_size: Codes to choose from.
        width: Values of a code's vector.
        per_cube: Codes of a cube R, in the order (time, row, column).

    Raises:
        RecipeError: If the codes do not fill the grid of cubes.
        CheckpointError: If there is no such tokenizer.
    """

    vectors = False

    def __init__(self, config: Any, *, form: ClipForm) -> None:
        super().__init__(config, form=form)
        tokenizer, digest = open_tokenizer(config.tokenizer)
        self.codebook_size, self.width = tokenizer.codebook_size, tokenizer.width
        self._frames = {"all": slice(None), "first": slice(0, 1)}.get(
            config.frames, slice(form.tubelet // 2, form.tubelet // 2 + 1)
        )
        self._in_time, self._in_space = _alignment(config, tokenizer, form)
        self.per_cube = max(1, self._in_time) * self._in_space[0] * self._in_space[1]
        self.frozen = Frozen(
            Encoding(tokenizer, vectors=self.vectors), path=config.tokenizer.path, digest=digest
        )

    def ask(self, clip: Clip, index_BM: Tensor) -> Tensor:
        """Return what the tokenizer says of cubes: (B, M, R), or (B, M, R, D) of vectors."""
        answer_Bthw = self.frozen(self._shown(clip))
        cubes_BNR = self._by_cube(answer_Bthw, clip.form.grid)
        picked = pick(cubes_BNR.flatten(2), index_BM)
        return picked.unflatten(2, cubes_BNR.shape[2:])

    def _shown(self, clip: Clip) -> Tensor:
        """Return the frames that the tokenizer sees: (B, C, T, H, W) in [0, 1]."""
        frames_BCTHW = clip.unit_BCTHW
        if self.config.frames != "all":
            by_cube = frames_BCTHW.unflatten(2, (-1, clip.form.tubelet))
            frames_BCTHW = by_cube[:, :, :, self._frames].flatten(2, 3)
        if self.config.scale == 1:
            return frames_BCTHW
        pictures = frames_BCTHW.transpose(1, 2).flatten(0, 1)
        height, width = (round(side * self.config.scale) for side in pictures.shape[-2:])
        pictures = F.interpolate(pictures, (height, width), mode="bilinear", antialias=True)
        return pictures.unflatten(0, (len(frames_BCTHW), -1)).transpose(1, 2)

    def _by_cube(self, answer_Bthw: Tensor, grid: tuple[int, int, int]) -> Tensor:
        """Sort codes by cube: (B, t, h, w, ...) to (B, N, R, ...)."""
        if self._in_time < 1:  # a code covers several cubes
            answer_Bthw = answer_Bthw.repeat_interleave(grid[0] // answer_Bthw.shape[1], dim=1)
        rows, columns = self._in_space
        parts = answer_Bthw.unflatten(3, (grid[2], columns)).unflatten(2, (grid[1], rows))
        parts = parts.unflatten(1, (grid[0], -1))
        # (B, t, time, h, row, w, column, ...)
        parts = parts.movedim((3, 5), (2, 3))
        return parts.flatten(4, 6).flatten(1, 3)


def _alignment(config: Any, tokenizer: Tokenizer, form: ClipForm) -> tuple[int, tuple[int, int]]:
    """Return how many codes a cube has along time, 0 where one is shared, and rows and columns.

    Raises:
        RecipeError: If the codes do not fill the grid.
    """
    slices, frames = form.grid[0], form.grid[0] * form.tubelet
    name = f"`targets`: `{config.kind}` of `{config.tokenizer.path}`"
    if tokenizer.frames > 1 and config.frames != "all":
        raise RecipeError(
            f"{name} with `frames: {config.frames}`: a code of it covers {tokenizer.frames} frames",
            hint="`frames: all`",
        )
    shown = frames if config.frames == "all" else slices
    codes, left = divmod(shown, tokenizer.frames)
    if left or not codes or (codes % slices and slices % codes):
        raise RecipeError(
            f"{name}: its codes cover {tokenizer.frames} frames each, which does not go with "
            f"{frames} frames in {slices} slices",
            hint="change `data.frames` or `model.tubelet`",
        )
    sides = []
    for cubes in form.grid[1:]:
        side = cubes * form.patch * config.scale
        codes_there, rest = divmod(side, tokenizer.stride)
        if rest or codes_there % cubes:
            height, width = (n * form.patch for n in form.grid[1:])
            raise RecipeError(
                f"{name}: with a code for each {tokenizer.stride} x {tokenizer.stride} pixels, a "
                f"view of {height} x {width} at `scale: {config.scale:g}` does not have a whole "
                f"number of codes in each of its {form.grid[1]} x {form.grid[2]} patches",
                hint=f"`scale: {tokenizer.stride / form.patch:g}` gives each patch one code",
            )
        sides.append(int(codes_there) // cubes)
    return codes // slices, (sides[0], sides[1])
