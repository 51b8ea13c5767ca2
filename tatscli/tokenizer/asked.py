"""`Asked`: the codes and scores that a frozen tokenizer gives to clips, sorted by cube.

Shapes: B batch, C colours, T frames, t codes along time, h and w codes along the picture, N cubes
of a clip, M of them, R codes of a cube, D values of a code's vector.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tatscli.data.clip import Clip, ClipForm, pick
from tatscli.engine.device import full_precision
from tatscli.errors import RecipeError
from tatscli.nn.frozen import Frozen
from tatscli.recipe import schema
from tatscli.store.codes import codes_key, scores_key
from tatscli.tokenizer.base import Coded, Tokenizer, rescaled
from tatscli.tokenizer.fsq import radix
from tatscli.tokenizer.load import open_tokenizer

ANY_CLIPS = (
    "it looks at several frames at once, and with `data.sampling.clips: null` clips start at any"
    " frame, so its codes cannot be cached"
)


def by_clip(tokenizer: Tokenizer) -> bool:
    """Whether the codes of a frame depend on the other frames of the clip."""
    return tokenizer.frames > 1 or tokenizer.window is not None or tokenizer.scored


class Asked(nn.Module):
    """Asks a frozen tokenizer about clips, and hands each cube its codes.

    The tokenizer sees whole frames of the view, not standardised, perhaps at another `scale`. In
    time a cube has the codes of all its frames, or of one; where a code covers more frames than a
    cube, neighbouring cubes share it. In the picture a cube has as many codes as lie in its patch.

    A tokenizer runs once per clip, however many ask: the result stays with the clip.

    Args:
        source: Where the tokenizer comes from.
        form: How clips are cut.
        by: Who uses it, for messages, such as "`targets`: `codes`".
        frames: Which frames of a cube are shown: `all`, the `first` or the `middle` one.
        scale: By which frames are resized first.
        cached: Read codes that the store holds, where clips bring them along.

    Attributes:
        name: Who uses which tokenizer, for messages.
        codebook_size: Codes to choose from.
        width: Values of a code's vector.
        levels: Steps of each of them, or None.
        scored: Codes have scores.
        per_cube: Codes of a cube R, in the order (time, row, column).
        cached: Under which name the store holds the codes; None asks the tokenizer in every step.

    Raises:
        RecipeError: If the codes do not fill the grid of cubes.
        CheckpointError: If there is no such tokenizer.
    """

    def __init__(
        self,
        source: schema.TrainedTokenizer,
        *,
        form: ClipForm,
        by: str,
        frames: str = "all",
        scale: float = 1.0,
        cached: bool = False,
    ) -> None:
        super().__init__()
        tokenizer, digest = open_tokenizer(source)
        self.name = f"{by} of `{source.path}`"
        self.codebook_size, self.width = tokenizer.codebook_size, tokenizer.width
        self.levels: Sequence[int] | None = tokenizer.levels
        self.scored = tokenizer.scored
        self.frames, self.scale = frames, scale
        self._in_time, self._in_space = _alignment(self.name, tokenizer, form, frames, scale)
        self.per_cube = max(1, self._in_time) * self._in_space[0] * self._in_space[1]
        size = (form.grid[1] * form.patch, form.grid[2] * form.patch)
        clips = form.fixed if by_clip(tokenizer) else None
        if cached and by_clip(tokenizer) and clips is None:
            raise RecipeError(
                f"{self.name} with `cached: true`: {ANY_CLIPS}",
                hint="`data.sampling.clips: 4` draws from four fixed clips of each video",
            )
        self.cached = codes_key(digest, size, scale, clips) if cached else None
        self.frozen = Frozen(_Answers(tokenizer), path=source.path, digest=digest)

    def codes(self, clip: Clip, index_BM: Tensor | None = None) -> Tensor:
        """Return the codes of cubes: int64 (B, M, R); None means all, in order."""
        codes_BNR = self._by_cube(self._coded(clip).codes_Bthw, clip.form.grid)
        return codes_BNR if index_BM is None else pick(codes_BNR, index_BM)

    def vectors(self, clip: Clip, index_BM: Tensor | None = None) -> Tensor:
        """Return the vectors of the codes of cubes: float32 (B, M, R, D); None means all."""
        return self._look_up(self.codes(clip, index_BM))

    def scores(self, clip: Clip) -> Tensor:
        """Return how salient each cube is, the mean of its codes: float32 (B, N).

        Raises:
            ValueError: If the tokenizer has no scores.
        """
        scores_Bthw = self._coded(clip).scores_Bthw
        if scores_Bthw is None:
            raise ValueError(f"{self.name}: its codes have no scores")
        return self._by_cube(scores_Bthw, clip.form.grid).mean(dim=2)

    def nearest(self, vectors_BMRD: Tensor) -> Tensor:
        """Return the codes whose vectors are nearest: int64 (B, M, R).

        Raises:
            ValueError: If they do not lie on a grid of levels.
        """
        if self.levels is None:
            raise ValueError(f"{self.name}: its codes do not lie on a grid of levels")
        codes_BMR = torch.zeros_like(vectors_BMRD[..., 0], dtype=torch.long)
        for axis, (levels, step) in enumerate(zip(self.levels, radix(self.levels), strict=True)):
            code_L = step * torch.arange(levels, device=vectors_BMRD.device)
            value_L = self._look_up(code_L[None, None])[0, 0, :, axis]
            distance_BMRL = (vectors_BMRD[..., axis, None] - value_L).abs()
            codes_BMR = codes_BMR + step * distance_BMRL.argmin(dim=-1)
        return codes_BMR

    @property
    def shared(self) -> bool:
        """Whether a code belongs to several cubes."""
        return self._in_time < 1

    def decoded(self, clip: Clip, codes_BNR: Tensor | None = None) -> Tensor:
        """Return the video that the codes of clips hold, or others in their place: the frames of
        the view, (B, C, T, H, W) in [0, 1].

        Where a cube shows one of its frames, all of them are that one.

        Raises:
            ValueError: If others are given where a code belongs to several cubes.
        """
        slices, *sides = clip.form.grid
        length, size = slices * clip.form.tubelet, [side * clip.form.patch for side in sides]
        codes_Bthw = self._coded(clip).codes_Bthw
        if codes_BNR is not None:
            codes_Bthw = self._from_cubes(codes_BNR, clip.form.grid)
        video_BCTHW: Tensor = self.frozen(codes_Bthw, True)
        video_BCTHW = video_BCTHW.float().repeat_interleave(length // video_BCTHW.shape[2], dim=2)
        pictures = video_BCTHW.transpose(1, 2).flatten(0, 1)
        if list(pictures.shape[-2:]) != size:
            pictures = F.interpolate(pictures, size, mode="bilinear", antialias=True)
        return pictures.unflatten(0, (-1, length)).transpose(1, 2)

    def _look_up(self, codes_BMR: Tensor) -> Tensor:
        vectors: Tensor = self.frozen(codes_BMR[..., None])
        return vectors.squeeze(3)

    def _coded(self, clip: Clip) -> Coded:
        """Return codes and scores of the frames shown, once for each clip."""
        key = (Asked, self.frozen.digest, self.scale, self.frames, self.cached)
        return clip.once(key, lambda: self._ask(clip))

    def _ask(self, clip: Clip) -> Coded:
        known = None if self.cached is None else clip.codes.get(self.cached)
        if self.cached is not None and known is not None:
            scores_Bthw = clip.codes.get(scores_key(self.cached))
            return Coded(self._shown(known, 1, clip.form.tubelet), scores_Bthw)
        # Autocast would round what is resized.
        with full_precision(clip.device):
            frames_BCTHW = self._shown(clip.unit_BCTHW, 2, clip.form.tubelet)
            coded: Coded = self.frozen(rescaled(frames_BCTHW, self.scale))
            return coded

    def _shown(self, values: Tensor, dim: int, tubelet: int) -> Tensor:
        """Keep the frames of each cube that count, along the dimension of time."""
        if self.frames == "all":
            return values
        frame = tubelet // 2 if self.frames == "middle" else 0
        by_cube = values.unflatten(dim, (-1, tubelet))
        return by_cube.narrow(dim + 1, frame, 1).flatten(dim, dim + 1)

    def _by_cube(self, answer_Bthw: Tensor, grid: tuple[int, int, int]) -> Tensor:
        """Sort codes or scores by cube: (B, t, h, w) to (B, N, R)."""
        if self._in_time < 1:  # a code covers several cubes
            answer_Bthw = answer_Bthw.repeat_interleave(grid[0] // answer_Bthw.shape[1], dim=1)
        rows, columns = self._in_space
        parts = answer_Bthw.unflatten(3, (grid[2], columns)).unflatten(2, (grid[1], rows))
        parts = parts.unflatten(1, (grid[0], -1))
        # (B, t, time, h, row, w, column)
        return parts.movedim((3, 5), (2, 3)).flatten(4, 6).flatten(1, 3)

    def _from_cubes(self, codes_BNR: Tensor, grid: tuple[int, int, int]) -> Tensor:
        """Undo `_by_cube`: (B, N, R) to (B, t, h, w).

        Raises:
            ValueError: If a code belongs to several cubes.
        """
        if self.shared:
            raise ValueError(f"{self.name}: a code belongs to several cubes")
        parts = codes_BNR.unflatten(1, grid).unflatten(4, (self._in_time, *self._in_space))
        return parts.movedim((2, 3), (3, 5)).flatten(5, 6).flatten(3, 4).flatten(1, 2)


class _Answers(nn.Module):
    """A tokenizer behind one call, as `Frozen` makes it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, given: Tensor, decode: bool = False) -> Coded | Tensor:
        """Code frames (B, C, T, H, W), or look codes (B, t, h, w) up, (B, t, h, w, D), or decode
        them."""
        if given.is_floating_point():
            return self.tokenizer.code(given)
        if decode:
            return self.tokenizer.decode(given)
        return self.tokenizer.vectors(given)


def _alignment(
    name: str, tokenizer: Tokenizer, form: ClipForm, frames: str, scale: float
) -> tuple[int, tuple[int, int]]:
    """Return how many codes a cube has along time, 0 where one is shared, and rows and columns.

    Raises:
        RecipeError: If the codes do not fill the grid.
    """
    slices, length = form.grid[0], form.grid[0] * form.tubelet
    together = tokenizer.window or tokenizer.frames
    if together > 1 and frames != "all":
        raise RecipeError(
            f"{name} with `frames: {frames}`: each of its codes covers {tokenizer.frames} frames"
            if together == tokenizer.frames
            else f"{name} with `frames: {frames}`: it codes windows of {together} frames",
            hint="`frames: all`",
        )
    shown = length if frames == "all" else slices
    codes, left = divmod(shown, tokenizer.frames)
    if left or not codes or (codes % slices and slices % codes):
        raise RecipeError(
            f"{name}: its codes cover {tokenizer.frames} frames each, which does not fit "
            f"{length} frames in {slices} slices",
            hint="change `data.frames` or `model.tubelet`",
        )
    sides = []
    for cubes in form.grid[1:]:
        codes_there, rest = divmod(cubes * form.patch * scale, tokenizer.stride)
        if rest or codes_there % cubes:
            height, width = (n * form.patch for n in form.grid[1:])
            raise RecipeError(
                f"{name}: with a code for each {tokenizer.stride} x {tokenizer.stride} pixels, a "
                f"view of {height} x {width} at `scale: {scale:g}` does not have a whole "
                f"number of codes in each of its {form.grid[1]} x {form.grid[2]} patches",
                hint=f"`scale: {tokenizer.stride / form.patch:g}` gives each patch one code",
            )
        sides.append(int(codes_there) // cubes)
    return codes // slices, (sides[0], sides[1])
