"""What targets of a tokenizer share: which of its codes belong to a cube.

Shapes: B batch, C colours, T frames, t codes along time, h and w codes along the picture, N cubes
of a clip, M of them, R codes of a cube, X values of a code.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from tatscli.data.clip import Clip, ClipForm, pick
from tatscli.errors import RecipeError
from tatscli.nn.frozen import Frozen
from tatscli.store.codes import codes_key
from tatscli.targets.base import Target
from tatscli.tokenizer.base import Tokenizer, rescaled
from tatscli.tokenizer.load import open_tokenizer


class Encoding(nn.Module):
    """A tokenizer's codes, or their vectors, as the answer to frames, or to codes known before."""

    def __init__(self, tokenizer: Tokenizer, *, vectors: bool) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.vectors = vectors

    def forward(self, given: Tensor) -> Tensor:
        """Return codes (B, t, h, w), or vectors (B, t, h, w, D), of frames (B, C, T, H, W) or
        codes (B, T, h, w)."""
        codes_Bthw = self.tokenizer.encode(given) if given.is_floating_point() else given
        return self.tokenizer.vectors(codes_Bthw) if self.vectors else codes_Bthw


class TokenizerTarget(Target):
    """Asks a frozen tokenizer about a clip, and hands each cube its codes.

    The tokenizer sees whole frames of the view, not standardised, perhaps at another `scale`. In
    time a cube has the codes of all its frames, or of one; where a code covers more frames than a
    cube, neighbouring cubes share it. In the picture a cube has as many codes as lie in its patch.

    Attributes:
        codebook_size: Codes to choose from.
        width: Values of a code's vector.
        per_cube: Codes of a cube R, in the order (time, row, column).
        cached: Under which name the store holds the codes; None asks the tokenizer in every step.

    Raises:
        RecipeError: If the codes do not fill the grid of cubes.
        CheckpointError: If there is no such tokenizer.
    """

    vectors = False

    def __init__(self, config: Any, *, form: ClipForm) -> None:
        super().__init__(config, form=form)
        tokenizer, digest = open_tokenizer(config.tokenizer)
        self.codebook_size, self.width = tokenizer.codebook_size, tokenizer.width
        self._frame = form.tubelet // 2 if config.frames == "middle" else 0
        size = (form.grid[1] * form.patch, form.grid[2] * form.patch)
        self.cached = codes_key(digest, size, config.scale) if config.cached else None
        self._in_time, self._in_space = _alignment(config, tokenizer, form)
        self.per_cube = max(1, self._in_time) * self._in_space[0] * self._in_space[1]
        self.frozen = Frozen(
            Encoding(tokenizer, vectors=self.vectors), path=config.tokenizer.path, digest=digest
        )

    def ask(self, clip: Clip, index_BM: Tensor) -> Tensor:
        """Return what the tokenizer says of cubes: (B, M, R), or (B, M, R, D) of vectors."""
        answer_Bthw = self.frozen(
            self._known(clip) if self.cached in clip.codes else self._shown(clip)
        )
        cubes_BNR = self._by_cube(answer_Bthw, clip.form.grid)
        picked = pick(cubes_BNR.flatten(2), index_BM)
        return picked.unflatten(2, cubes_BNR.shape[2:])

    def _shown(self, clip: Clip) -> Tensor:
        """Return the frames that the tokenizer sees: (B, C, T, H, W) in [0, 1]."""
        frames_BCTHW = self._chosen(clip.unit_BCTHW, 2, clip.form.tubelet)
        return rescaled(frames_BCTHW, self.config.scale)

    def _known(self, clip: Clip) -> Tensor:
        """Return the codes that were made beforehand, of the same frames: (B, T, h, w)."""
        assert self.cached is not None
        return self._chosen(clip.codes[self.cached], 1, clip.form.tubelet)

    def _chosen(self, values: Tensor, dim: int, tubelet: int) -> Tensor:
        """Keep the frames of each cube that count, along the dimension of time."""
        if self.config.frames == "all":
            return values
        by_cube = values.unflatten(dim, (-1, tubelet))
        return by_cube.narrow(dim + 1, self._frame, 1).flatten(dim, dim + 1)

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
