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
