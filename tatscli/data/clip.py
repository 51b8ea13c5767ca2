"""`Clip`: a batch of clips on its device, which masks, predict rules, heads and targets work on.

Shapes: B batch, C colours, T frames, H and W pixels, N tokens of a clip, K of them, P values of a
cube, D width. Tokens are time-major: index = (t * h + row) * w + column. The values of a cube lie
in the order (frame, row, column, colour), in the whole program.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from tatscli.data.motion import MotionField
from tatscli.data.normalize import to_unit

Answer = TypeVar("Answer")


class ClipForm(nn.Module):
    """How videos become clips: the token grid, the size of a cube, and the colours' statistics.

    Args:
        grid: Tokens along time, height and width, `(t, h, w)`.
        tubelet: Frames in a token.
        patch: Height and width of a token in pixels.
        mean: Of red, green and blue in [0, 1].
        std: Deviation of those.
        fixed: Names the fixed clips that are drawn from (`store/codes.py`); None where clips may
            be any.
    """

    mean_P: Tensor
    std_P: Tensor

    def __init__(
        self,
        grid: tuple[int, int, int],
        tubelet: int,
        patch: int,
        *,
        mean: Sequence[float] = (0.0, 0.0, 0.0),
        std: Sequence[float] = (1.0, 1.0, 1.0),
        fixed: str | None = None,
    ) -> None:
        super().__init__()
        self.fixed = fixed
        self.grid = grid
        self.tubelet = tubelet
        self.patch = patch
        self.tokens = grid[0] * grid[1] * grid[2]
        self.pixels = tubelet * patch * patch
        # Buffers, since a tensor made from numbers in every step would wait for the device.
        for name, colours in (("mean_P", mean), ("std_P", std)):
            values_P = torch.tensor([*colours], dtype=torch.float32).repeat(self.pixels)
            self.register_buffer(name, values_P, persistent=False)

    def cut(self, video_BCTHW: Tensor) -> Tensor:
        """Cut a video into the pixels of its tokens: (B, N, P).

        Raises:
            ValueError: If the video does not fill the grid.
        """
        return cut(video_BCTHW, self.grid, self.tubelet, self.patch)

    def join(self, cubes_BNP: Tensor) -> Tensor:
        """Lay all cubes of a clip out as a video, the inverse of `cut`: (B, C, T, H, W)."""
        (t, h, w), tubelet, patch = self.grid, self.tubelet, self.patch
        parts = cubes_BNP.reshape(-1, t, h, w, tubelet, patch, patch, 3)
        video = parts.permute(0, 7, 1, 4, 2, 5, 3, 6)
        return video.reshape(-1, 3, t * tubelet, h * patch, w * patch)

    def clip(
        self,
        video_BCTHW: Tensor,
        *,
        motion: MotionField | None = None,
        label_B: Tensor | None = None,
        row_B: Tensor | None = None,
        codes: Mapping[str, Tensor] | None = None,
        embed: Callable[[Tensor], Tensor] | None = None,
    ) -> Clip:
        """Make a clip of a uint8 video; the other arguments are those of `Clip`."""
        return Clip(
            self,
            self.cut(video_BCTHW),
            motion=motion,
            label_B=label_B,
            row_B=row_B,
            codes=codes,
            embed=embed,
        )


class Clip:
    """A batch of clips, cut into cubes once; what is asked for is worked out from those.

    Args:
        form: How it was cut.
        pixels_BNP: uint8 RGB, all cubes.
        motion: The clips' motion on the token grid, where a mask, predict rule or target
            needs it.
        label_B: int64 classes; -1 where there is none.
        row_B: int64 rows of the store's manifest.
        codes: By the names of `store/codes.py`, codes of the whole clip, int64 (B, t, h, w), and
            their scores, float32, where the store holds them.
        embed: Maps standardised cubes (B, N, P) to patch embeddings (B, N, D).
    """

    def __init__(
        self,
        form: ClipForm,
        pixels_BNP: Tensor,
        *,
        motion: MotionField | None = None,
        label_B: Tensor | None = None,
        row_B: Tensor | None = None,
        codes: Mapping[str, Tensor] | None = None,
        embed: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.form = form
        self.pixels_BNP = pixels_BNP
        self.motion = motion
        self.label_B = label_B
        self.row_B = row_B
        self.codes = codes or {}
        self._embed = embed
        self._tokens_BND: Tensor | None = None
        self._answers: dict[Hashable, Any] = {}

    def __len__(self) -> int:
        return self.pixels_BNP.shape[0]

    @property
    def device(self) -> torch.device:
        """Where the clip is."""
        return self.pixels_BNP.device

    @property
    def tokens_BND(self) -> Tensor:
        """Patch embeddings of all tokens, without positions; made when first asked for.

        Raises:
            ValueError: If the clip was made without `embed`.
        """
        if self._tokens_BND is None:
            if self._embed is None:
                raise ValueError("this clip has no patch embeddings: it was made without `embed`")
            self._tokens_BND = self._embed(self.cubes())
        return self._tokens_BND

    def once(self, key: Hashable, make: Callable[[], Answer]) -> Answer:
        """Return what `make` returned when it was first asked for under this key.

        Callers that need the same result, such as a target and a predict rule with one tokenizer,
        share it; nobody may change it. The key holds everything that the result depends on.
        """
        if key not in self._answers:
            self._answers[key] = make()
        found: Answer = self._answers[key]
        return found

    @property
    def unit_BCTHW(self) -> Tensor:
        """The whole video in [0, 1], float32."""
        return self.form.join(self.unit())

    def unit(self, index_BK: Tensor | None = None) -> Tensor:
        """Return the pixels of tokens in [0, 1], float32: (B, K, P); None means all, in order."""
        picked = self.pixels_BNP if index_BK is None else pick(self.pixels_BNP, index_BK)
        return to_unit(picked)

    def cubes(self, index_BK: Tensor | None = None) -> Tensor:
        """Return the standardised pixels of tokens, float32: (B, K, P); None means all."""
        return self.unit(index_BK).sub_(self.form.mean_P).div_(self.form.std_P)


def cut(video_BCTHW: Tensor, grid: tuple[int, int, int], tubelet: int, patch: int) -> Tensor:
    """Cut a video into cubes, (B, N, P): the one place that fixes the order of their values.

    Raises:
        ValueError: If the video does not fill the grid.
    """
    t, h, w = grid
    if video_BCTHW.shape[1:] != (3, t * tubelet, h * patch, w * patch):
        needed = f"(B, 3, {t * tubelet}, {h * patch}, {w * patch})"
        raise ValueError(
            f"a video of shape {tuple(video_BCTHW.shape)} does not fill a grid of "
            f"{t} x {h} x {w} tokens, which needs {needed}"
        )
    parts = video_BCTHW.reshape(-1, 3, t, tubelet, h, patch, w, patch)
    return parts.permute(0, 2, 4, 6, 3, 5, 7, 1).reshape(-1, t * h * w, 3 * tubelet * patch * patch)


def readable(tensor: Tensor) -> bool:
    """Whether values can be checked here: on the CPU, outside of a graph that is being traced.

    Reading them from a GPU would make a training step wait for it.
    """
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
    return tensor.device.type == "cpu" and type(tensor) is Tensor and not traced


def check_tokens(name: str, index_BK: Tensor, tokens: int | None = None) -> None:
    """Refuse what is no index of tokens; values are looked at only where they are `readable`.

    Args:
        name: What to call it.
        index_BK: The index.
        tokens: Tokens N of a clip, if known.

    Raises:
        ValueError: If it is not int64 (B, K), or a value is below 0 or at least `tokens`.
    """
    if index_BK.ndim != 2 or index_BK.dtype != torch.int64:
        kind = str(index_BK.dtype).removeprefix("torch.")
        raise ValueError(
            f"{name} must be int64 of shape (B, count), one row a clip; "
            f"got {kind} of shape {tuple(index_BK.shape)}"
        )
    check_range(name, index_BK, tokens)


def check_range(name: str, index: Tensor, tokens: int | None) -> None:
    """Refuse an index, of any shape, that names no token, where its values are `readable`.

    Raises:
        ValueError: If a value is below 0, which torch would count from the end, or too large.
    """
    if not index.numel() or not readable(index):
        return
    low, high = (int(end) for end in index.aminmax())
    if low < 0 or (tokens is not None and high >= tokens):
        wrong = low if low < 0 else high
        allowed = "at least 0" if tokens is None else f"0 to {tokens - 1}, of {tokens} tokens"
        raise ValueError(f"{name} holds the index {wrong}; allowed is {allowed}")


def pick(values_BNX: Tensor, index_BK: Tensor) -> Tensor:
    """Pick tokens by index: (B, N, X) and (B, K) give (B, K, X).

    Raises:
        ValueError: As `check_tokens`, or if the numbers of clips differ.
    """
    B, N, X = values_BNX.shape
    check_tokens("index_BK", index_BK, N)
    if index_BK.shape[0] != B:
        raise ValueError(f"index_BK is of {index_BK.shape[0]} clips, and there are {B}")
    first_B1 = torch.arange(B, device=index_BK.device)[:, None] * N
    # Whole rows of one matrix: several times as fast as gathering value by value.
    rows = values_BNX.reshape(B * N, X).index_select(0, (index_BK + first_B1).flatten())
    return rows.view(B, -1, X)
