"""Targets of a tokenizer on clips whose codes are known by construction.

Every frame of every patch is painted in a grey of its own, and the tokenizer reads greys.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tatscli.data.clip import Clip, ClipForm
from tatscli.data.view import View
from tatscli.errors import RecipeError
from tatscli.recipe.schema import CodesTarget, LatentsTarget
from tatscli.targets import build_target
from tatscli.targets.base import Target
from tatscli.tokenizer import asked
from tatscli.tokenizer.base import Tokenizer
from tatscli.tokenizer.fsq import FiniteScalar

PATCH, GRID, TUBELET = 8, (2, 3, 4), 2


class GreyTokenizer(Tokenizer):
    """The code of a square is its mean brightness, 0 to 255."""

    codebook_size, width = 256, 2

    def __init__(self, stride: int = PATCH, frames: int = 1) -> None:
        super().__init__()
        self.stride, self.frames = stride, frames

    def encode(self, frames_BCTHW: Tensor) -> Tensor:
        grey = frames_BCTHW.mean(dim=1, keepdim=True)
        size = (self.frames, self.stride, self.stride)
        return F.avg_pool3d(grey, size, size)[:, 0].mul(255).round().long()

    def vectors(self, codes_Bthw: Tensor) -> Tensor:
        return torch.stack([codes_Bthw, -codes_Bthw], dim=-1).float()


def painted(seed: int = 0, side: int = PATCH) -> tuple[Tensor, Tensor]:
    """Two clips, uint8 (2, 3, T, H, W), and their greys by square of `side`, (2, T, h, w)."""
    torch.manual_seed(seed)
    frames, height, width = GRID[0] * TUBELET, GRID[1] * PATCH, GRID[2] * PATCH
    grey = torch.randint(0, 256, (2, frames, height // side, width // side), dtype=torch.uint8)
    large = grey.repeat_interleave(side, 2).repeat_interleave(side, 3)
    return large[:, None].expand(-1, 3, -1, -1, -1), grey.long()


def clip_of(video: Tensor) -> Clip:
    return ClipForm(GRID, TUBELET, PATCH).clip(video)


def build(
    monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer, kind: str = "codes", **keys: Any
) -> Target:
    monkeypatch.setattr(asked, "open_tokenizer", lambda source: (tokenizer, "digest"))
    section = {"codes": CodesTarget, "latents": LatentsTarget}[kind]
    config = section.model_validate(
        {"kind": kind, "tokenizer": {"kind": "run", "path": "runs/grey"}} | keys
    )
    return build_target(config, form=ClipForm(GRID, TUBELET, PATCH))


def all_tokens() -> Tensor:
    return torch.arange(GRID[0] * GRID[1] * GRID[2]).expand(2, -1)


def by_hand(grey: Tensor, clip: int, token: int, frame: int) -> int:
    """The grey of a token's frame, by its place in the grid."""
    sites = GRID[1] * GRID[2]
    time, site = divmod(token, sites)
    row, column = divmod(site, GRID[2])
    return int(grey[clip, time * TUBELET + frame, row, column])


@pytest.mark.parametrize("frames, shown", [("all", [0, 1]), ("first", [0]), ("middle", [1])])
def test_every_token_has_the_codes_of_its_frames(
    monkeypatch: pytest.MonkeyPatch, frames: str, shown: list[int]
) -> None:
    video, grey = painted()
    target = build(monkeypatch, GreyTokenizer(), frames=frames)
    assert target.predicts == len(shown) * 256
    values = target.of(clip_of(video), all_tokens())
    for clip in range(2):
        for token in range(24):
            wanted = [by_hand(grey, clip, token, frame) for frame in shown]
            assert values[clip, token].tolist() == wanted
    some = torch.tensor([[3, 20], [7, 8]])
    picked = target.of(clip_of(video), some)
    assert torch.equal(picked, values.gather(1, some[..., None].expand_as(picked)))


def test_they_follow_a_crop_and_a_flip(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tokenizer is shown the view, not the stored frame."""
    torch.manual_seed(1)
    frames, rows, columns = 4, GRID[1] + 2, GRID[2] + 3
    grey = torch.randint(0, 256, (frames, rows, columns), dtype=torch.uint8)
    stored = grey.repeat_interleave(PATCH, 1).repeat_interleave(PATCH, 2)
    stored_TCHW = stored[:, None].expand(-1, 3, -1, -1)
    size = (GRID[1] * PATCH, GRID[2] * PATCH)
    view = View(rows * PATCH, columns * PATCH, PATCH, 2 * PATCH, *size, size, flip=True)
    video = view.frames(stored_TCHW).transpose(0, 1)[None].expand(2, -1, -1, -1, -1)
    seen = grey[:, 1 : 1 + GRID[1], 2 : 2 + GRID[2]].flip(2).long()
    values = build(monkeypatch, GreyTokenizer()).of(clip_of(video), all_tokens())
    for token in range(24):
        wanted = [by_hand(seen[None], 0, token, frame) for frame in range(TUBELET)]
        assert values[0, token].tolist() == wanted


def test_several_codes_in_a_patch_come_frame_by_frame_row_by_row(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    video, grey = painted(side=4)
    target = build(monkeypatch, GreyTokenizer(stride=4))
    assert target.predicts == 2 * 4 * 256
    values = target.of(clip_of(video), all_tokens())
    time, row, column = 1, 2, 3
    wanted = grey[0, 2:4, 4:6, 6:8].flatten().tolist()
    assert values[0, (time * GRID[1] + row) * GRID[2] + column].tolist() == wanted


def test_a_scale_gives_a_coarse_tokenizer_its_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    video, grey = painted()
    target = build(monkeypatch, GreyTokenizer(stride=16), scale=2)
    values = target.of(clip_of(video), all_tokens())
    assert values.shape == (2, 24, 2)
    # Resizing blurs the borders of squares, so that brightness is only near.
    assert (values[0, 5] - torch.tensor([by_hand(grey, 0, 5, f) for f in (0, 1)])).abs().max() < 40


def test_a_code_of_several_frames_is_shared_by_its_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    video, _ = painted()
    target = build(monkeypatch, GreyTokenizer(frames=4))
    assert target.predicts == 256
    values = target.of(clip_of(video), all_tokens())
    assert torch.equal(values[:, :12], values[:, 12:])
    mean = video[0, 0, :, :PATCH, :PATCH].float().mean().round().long()
    assert values[0, 0, 0] == mean


def test_the_error_is_the_cross_entropy_of_each_code(monkeypatch: pytest.MonkeyPatch) -> None:
    video, _ = painted()
    target = build(monkeypatch, GreyTokenizer())
    index = all_tokens()[:, :5]
    values = target.of(clip_of(video), index)
    torch.manual_seed(2)
    logits = torch.randn(2, 5, target.predicts)
    error = target.error(logits, values)
    assert error.shape == (2, 5)
    two = logits[1, 3].view(2, 256).log_softmax(-1)
    wanted = -(two[0, values[1, 3, 0]] + two[1, values[1, 3, 1]]) / 2
    torch.testing.assert_close(error[1, 3], wanted)
    right = F.one_hot(values, 256).flatten(2) * 1000.0
    assert target.error(right, values).max() == 0


def test_latents_are_the_vectors_of_the_same_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    video, _ = painted()
    codes = build(monkeypatch, GreyTokenizer()).of(clip_of(video), all_tokens())
    target = build(monkeypatch, GreyTokenizer(), kind="latents")
    values = target.of(clip_of(video), all_tokens())
    assert target.predicts == values.shape[-1] == 4
    assert torch.equal(values.view(2, 24, 2, 2), torch.stack([codes, -codes], -1).float())
    error = target.error(values + 2, values)
    assert torch.equal(error, torch.full((2, 24), 4.0))


class GridTokenizer(GreyTokenizer):
    """Greys as the cells of a grid of three axes, some of which have more levels."""

    levels = (4, 3, 8)
    codebook_size, width = 96, 3

    def encode(self, frames_BCTHW: Tensor) -> Tensor:
        return super().encode(frames_BCTHW) % 96

    def vectors(self, codes_Bthw: Tensor) -> Tensor:
        return FiniteScalar(self.levels).vectors(codes_Bthw)


def test_levels_are_those_of_the_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    video, grey = painted()
    vectors = build(monkeypatch, GridTokenizer(), kind="latents").of(clip_of(video), all_tokens())
    target = build(monkeypatch, GridTokenizer(), kind="latents", loss="cross_entropy")
    levels = target.of(clip_of(video), all_tokens())
    assert target.predicts == 2 * (4 + 3 + 8)
    assert levels.shape == (2, 24, 2, 3)
    half = torch.tensor([4, 3, 8]) // 2
    assert torch.equal((levels - half) / half, vectors.view(2, 24, 2, 3))
    code = by_hand(grey, 1, 7, 1) % 96
    assert levels[1, 7, 1].tolist() == [code % 4, code // 4 % 3, code // 12]


def test_the_error_of_levels_is_the_mean_cross_entropy_of_each_value(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    video, _ = painted()
    target = build(monkeypatch, GridTokenizer(), kind="latents", loss="cross_entropy")
    levels = target.of(clip_of(video), all_tokens()[:, :5])
    torch.manual_seed(3)
    logits = torch.randn(2, 5, target.predicts, requires_grad=True)
    error = target.error(logits, levels)
    assert error.shape == (2, 5) and error.dtype == torch.float32
    wanted = 0.0
    for place, code in enumerate(levels[1, 3].tolist()):
        first = 15 * place
        for count, level in zip((4, 3, 8), code, strict=True):
            wanted -= logits[1, 3, first : first + count].log_softmax(-1)[level].item() / 6
            first += count
    assert error[1, 3].item() == pytest.approx(wanted, rel=1e-5)
    (gradient,) = torch.autograd.grad(error.sum(), logits)
    assert (gradient != 0).all()  # every logit has a part
    ones = [F.one_hot(levels[..., axis], count) for axis, count in enumerate((4, 3, 8))]
    right = torch.cat(ones, dim=-1).flatten(2) * 1000.0
    assert target.error(right, levels).max() == 0


def test_levels_of_codes_that_are_no_grid_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    words = "`latents` of `runs/grey` with `loss: cross_entropy`: its codes do not lie on a grid"
    with pytest.raises(RecipeError, match=words) as refused:
        build(monkeypatch, GreyTokenizer(), kind="latents", loss="cross_entropy")
    assert refused.value.hint == "`loss: mse`, or a target of `kind: codes`"


@pytest.mark.parametrize(
    "tokenizer, keys, words",
    [
        (GreyTokenizer(stride=16), {}, "does not have a whole number of codes"),
        (GreyTokenizer(stride=12), {}, "does not have a whole number of codes"),
        (GreyTokenizer(frames=3), {}, "its codes cover 3 frames"),
        (GreyTokenizer(frames=2), {"frames": "first"}, "each of its codes covers 2 frames"),
    ],
)
def test_codes_that_do_not_fill_the_grid_are_refused(
    monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer, keys: dict[str, Any], words: str
) -> None:
    with pytest.raises(RecipeError, match=words):
        build(monkeypatch, tokenizer, **keys)
