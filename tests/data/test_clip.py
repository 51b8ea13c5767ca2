"""Clips: cubes in one order of values, cut and joined, and what is worked out only when asked."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tatscli.data.clip import Clip, ClipForm, pick
from tatscli.data.normalize import standardized

GRID, TUBELET, PATCH = (2, 2, 3), 2, 4
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


def make() -> ClipForm:
    return ClipForm(GRID, TUBELET, PATCH, mean=MEAN, std=STD)


def video(grid: tuple[int, int, int] = GRID, tubelet: int = TUBELET, patch: int = PATCH) -> Tensor:
    torch.manual_seed(0)
    shape = (2, 3, grid[0] * tubelet, grid[1] * patch, grid[2] * patch)
    return torch.randint(0, 256, shape, dtype=torch.uint8)


INDEX = torch.tensor([[3, 8, 11], [0, 1, 10]])


def test_values_follow_the_order_frame_row_column_colour() -> None:
    source = video()
    cubes = make().clip(source).pixels_BNP
    assert cubes.shape == (2, 12, 96)
    assert cubes.dtype == torch.uint8
    for t, row, column in [(0, 0, 0), (1, 0, 2), (1, 1, 1)]:
        token = cubes[1, (t * 2 + row) * 3 + column]
        for f, y, x, c in [(0, 0, 0, 1), (1, 2, 3, 0), (1, 3, 0, 2)]:
            expected = source[1, c, t * 2 + f, row * 4 + y, column * 4 + x]
            assert token[((f * 4 + y) * 4 + x) * 3 + c] == expected


@given(
    st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4)),
    st.integers(1, 3),
    st.integers(1, 3),
)
def test_joined_cubes_are_the_video(grid: tuple[int, int, int], tubelet: int, patch: int) -> None:
    form, source = ClipForm(grid, tubelet, patch), video(grid, tubelet, patch)
    assert form.tokens == grid[0] * grid[1] * grid[2]
    assert form.pixels == tubelet * patch * patch
    assert torch.equal(form.join(form.cut(source)), source)


def test_a_video_of_another_size_is_refused() -> None:
    for shape in ((1, 3, 4, 12, 8), (1, 1, 4, 8, 12), (1, 3, 2, 8, 12)):
        with pytest.raises(ValueError, match=r"needs \(B, 3, 4, 8, 12\)"):
            make().clip(torch.zeros(shape, dtype=torch.uint8))


def test_cubes_of_any_tokens_are_standardised_by_colour() -> None:
    source = video()
    clip = make().clip(source)
    before = clip.pixels_BNP.clone()
    assert torch.equal(clip.unit_BCTHW, source / 255)
    expected = make().cut(standardized(source, MEAN, STD))
    torch.testing.assert_close(clip.cubes(), expected)
    torch.testing.assert_close(clip.cubes(INDEX), pick(expected, INDEX))
    assert torch.equal(clip.unit(INDEX), pick(make().cut(source), INDEX) / 255)
    assert clip.unit().dtype == clip.cubes().dtype == torch.float32
    assert torch.equal(clip.pixels_BNP, before)  # the bytes are not worked on in place


def test_picking_takes_each_clips_own_tokens_with_their_gradient() -> None:
    values = torch.randn(2, 12, 5, requires_grad=True)
    picked = pick(values, INDEX)
    assert picked.shape == (2, 3, 5)
    for clip, row in enumerate(INDEX.tolist()):
        for place, token in enumerate(row):
            assert torch.equal(picked[clip, place], values[clip, token])
    picked.sum().backward()
    assert values.grad is not None
    assert [clip.nonzero().flatten().tolist() for clip in values.grad.amax(-1)] == INDEX.tolist()


def test_embeddings_are_made_once_and_only_when_asked_for() -> None:
    seen: list[Tensor] = []

    def embed(cubes: Tensor) -> Tensor:
        seen.append(cubes)
        return cubes[..., :7] * 2

    clip = make().clip(video(), embed=embed)
    assert not seen
    first = clip.tokens_BND
    assert clip.tokens_BND is first
    assert len(seen) == 1
    assert torch.equal(seen[0], clip.cubes())
    assert torch.equal(first, clip.cubes()[..., :7] * 2)
    with pytest.raises(ValueError, match="no patch embeddings"):
        _ = make().clip(video()).tokens_BND


def test_a_question_is_answered_once_for_each_clip_and_key() -> None:
    clips = [make().clip(video()) for _ in range(2)]
    asked: list[int] = []

    def answer() -> None:  # an answer may be None, too
        asked.append(len(asked))

    for clip in clips:
        for key in ("one", "one", ("two", 1.0), "one"):
            assert clip.once(key, answer) is None
    assert asked == [0, 1, 2, 3]
    assert clips[0].once("three", lambda: 3) == clips[0].once("three", lambda: 4) == 3


def test_a_clip_keeps_what_it_is_given() -> None:
    label, row = torch.tensor([3, -1]), torch.tensor([7, 9])
    clip = make().clip(video(), label_B=label, row_B=row)
    assert isinstance(clip, Clip)
    assert len(clip) == 2
    assert clip.device == torch.device("cpu")
    assert clip.label_B is label
    assert clip.row_B is row
    assert clip.motion is None


def test_the_form_has_nothing_to_save_but_moves_with_its_system() -> None:
    form = make()
    assert not form.state_dict()
    assert {buffer.device.type for buffer in form.to("meta").buffers()} == {"meta"}
