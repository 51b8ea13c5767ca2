"""One frozen tokenizer asked about clips: once each, and by cube."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tatscli.data.clip import Clip, ClipForm, pick
from tatscli.errors import RecipeError
from tatscli.recipe.schema import RunTokenizer
from tatscli.tokenizer.asked import Asked
from tests.tokenizer.windows import WindowTokenizer, give

PATCH, TUBELET = 8, 2


def ask(
    monkeypatch: pytest.MonkeyPatch, tokenizer: WindowTokenizer, form: ClipForm, **keys: Any
) -> Asked:
    give(monkeypatch, tokenizer, keys.pop("digest", "0" * 64))
    source = RunTokenizer(kind="run", path="runs/windows")
    return Asked(source, form=form, by="`targets`: `codes`", **keys)


def clip_of(slices: int, seed: int = 0) -> Clip:
    torch.manual_seed(seed)
    form = ClipForm((slices, 2, 3), TUBELET, PATCH)
    video = torch.randint(256, (2, 3, TUBELET * slices, 16, 24), dtype=torch.uint8)
    return form.clip(video)


def by_hand(clip: Clip, answer_Bthw: Tensor, token: int, rows: int, columns: int) -> Tensor:
    """The answers within a token, one slice of codes to a slice of tokens: (B, R)."""
    slice_, site = divmod(token, 6)
    row, column = divmod(site, 3)
    part = answer_Bthw[
        :, slice_, rows * row : rows * (row + 1), columns * column : columns * (column + 1)
    ]
    return part.flatten(1)


@pytest.mark.parametrize("slices", [1, 2, 5])  # windows are of two slices
def test_codes_vectors_and_scores_are_the_tokenizers_sorted_by_cube(
    monkeypatch: pytest.MonkeyPatch, slices: int
) -> None:
    tokenizer, clip = WindowTokenizer(stride=4), clip_of(slices)
    asked = ask(monkeypatch, tokenizer, clip.form)
    assert asked.per_cube == 4 and asked.scored
    whole = WindowTokenizer(stride=4).code(clip.unit_BCTHW)
    codes, vectors, scores = asked.codes(clip), asked.vectors(clip), asked.scores(clip)
    assert scores.dtype == torch.float32
    for token in range(6 * slices):
        assert torch.equal(codes[:, token], by_hand(clip, whole.codes_Bthw, token, 2, 2))
        score = by_hand(clip, whole.scores_Bthw, token, 2, 2).mean(dim=1)
        torch.testing.assert_close(scores[:, token], score)
    digits = torch.stack([codes // 4**axis % 4 for axis in range(3)], dim=-1)
    assert torch.equal(vectors, digits / 2 - 1)
    some = torch.tensor([[0, 5], [3, 4]])
    assert torch.equal(asked.codes(clip, some), pick(codes, some))
    assert torch.equal(asked.vectors(clip, some), pick(vectors.flatten(2), some).view(2, 2, 4, 3))


def test_a_score_is_shared_by_the_slices_of_a_code(monkeypatch: pytest.MonkeyPatch) -> None:
    clip = clip_of(4)
    asked = ask(monkeypatch, WindowTokenizer(frames=4, window=8), clip.form)
    scores = asked.scores(clip).view(2, 4, 6)
    assert torch.equal(scores[:, 0], scores[:, 1]) and torch.equal(scores[:, 2], scores[:, 3])
    assert scores.std() > 0


def test_one_look_at_a_clip_serves_all_who_ask_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, clip = WindowTokenizer(), clip_of(2)
    first, second = (ask(monkeypatch, tokenizer, clip.form) for _ in range(2))
    first.codes(clip)
    second.scores(clip)
    second.vectors(clip)
    assert tokenizer.parts == [4]
    first.codes(clip_of(2, seed=1))
    assert tokenizer.parts == [4, 4]
    # Another size or other weights are another question.
    larger, other = WindowTokenizer(stride=16), WindowTokenizer()
    twice = ask(monkeypatch, larger, clip.form, scale=2.0).codes(clip)
    changed = ask(monkeypatch, other, clip.form, digest="1" * 64)
    assert larger.parts == [4] and twice.shape == (2, 12, 1)
    changed.codes(clip)
    assert other.parts == [4]


def test_what_it_says_is_not_rounded_by_the_training_around_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clip, again = clip_of(3), clip_of(3)
    asked = ask(monkeypatch, WindowTokenizer(stride=16), clip.form, scale=2.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = asked.scores(clip)
    assert torch.equal(inside, asked.scores(again))


def test_single_frames_of_windows_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    form = ClipForm((2, 2, 3), TUBELET, PATCH)
    words = r"`targets`: `codes` of `runs/windows` with `frames: first`: it codes windows of 4"
    with pytest.raises(RecipeError, match=words):
        ask(monkeypatch, WindowTokenizer(frames=1), form, frames="first")


def test_codes_without_scores_have_none_to_give(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, clip = WindowTokenizer(), clip_of(2)
    tokenizer.code = lambda frames: WindowTokenizer().code(frames)._replace(scores_Bthw=None)
    asked = ask(monkeypatch, tokenizer, clip.form)
    with pytest.raises(ValueError, match="its codes have no scores"):
        asked.scores(clip)


@pytest.mark.parametrize("tokenizer", [WindowTokenizer(stride=4), WindowTokenizer(4, 1, 2)])
def test_codes_by_cube_find_back_to_their_places(
    monkeypatch: pytest.MonkeyPatch, tokenizer: WindowTokenizer
) -> None:
    clip = clip_of(5)
    asked = ask(monkeypatch, tokenizer, clip.form)
    whole = tokenizer.code(clip.unit_BCTHW).codes_Bthw
    right = tokenizer.decode(whole)
    assert right.shape == clip.unit_BCTHW.shape
    assert torch.equal(asked.decoded(clip), right)
    codes_BNR = asked.codes(clip)
    assert torch.equal(asked.decoded(clip, codes_BNR), right)
    # One code of one cube is changed: its own pixels are, and no others.
    changed = codes_BNR.clone()
    changed[1, 8, -1] = (changed[1, 8, -1] + 1) % 64  # slice 1, row 0, column 2, lowest right code
    differs = (asked.decoded(clip, changed) != right).any(dim=1).nonzero()
    last = 3 if tokenizer.frames == 1 else 2  # the last code of a cube covers one frame or both
    assert differs.amin(dim=0).tolist() == [1, last, 4, 20]
    assert differs.amax(dim=0).tolist() == [1, 3, 7, 23]


def test_what_is_decoded_has_the_size_and_frames_of_the_view(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clip = clip_of(2)
    small = WindowTokenizer(stride=4, frames=1, window=None)
    asked = ask(monkeypatch, small, clip.form, scale=0.5, frames="middle")
    found = asked.decoded(clip)
    assert found.shape == clip.unit_BCTHW.shape
    assert torch.equal(found[:, :, 0], found[:, :, 1])  # both frames of a cube are the one shown
    assert not torch.equal(found[:, :, 1], found[:, :, 2])
    plain = small.decode(asked.codes(clip).view(2, 2, 2, 3))
    right = plain.repeat_interleave(2, dim=3).repeat_interleave(2, dim=4)
    assert (found[:, :, ::2] - right).abs().mean() < 0.1  # but for what resizing smooths


def test_the_nearest_codes_of_vectors_are_those_they_came_from(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clip = clip_of(3)
    asked = ask(monkeypatch, WindowTokenizer(stride=4), clip.form)
    codes, vectors = asked.codes(clip), asked.vectors(clip)
    assert torch.equal(asked.nearest(vectors), codes)
    noise = torch.rand(vectors.shape).sub(0.5).mul(0.49)  # levels are 0.5 apart
    assert torch.equal(asked.nearest(vectors + noise), codes)
    far = torch.tensor([-9.0, 9.0, 0.1]).expand_as(vectors)
    assert asked.nearest(far).unique().tolist() == [0 + 4 * 3 + 16 * 2]
    asked.levels = None
    with pytest.raises(ValueError, match="do not lie on a grid of levels"):
        asked.nearest(vectors)


def test_a_code_of_several_cubes_cannot_be_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    clip = clip_of(4)
    asked = ask(monkeypatch, WindowTokenizer(frames=4, window=8), clip.form)
    assert asked.shared and asked.decoded(clip).shape == clip.unit_BCTHW.shape
    with pytest.raises(ValueError, match="a code belongs to several cubes"):
        asked.decoded(clip, asked.codes(clip))
