"""The motion target: errors against NumPy on a video, counts, and gaps that are too wide."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tatscli.data.clip import Clip, ClipForm
from tatscli.errors import RecipeError
from tatscli.recipe import schema
from tatscli.targets import build_target
from tatscli.targets.difference import DifferenceTarget

GRID, TUBELET, PATCH = (3, 2, 4), 2, 4
FORM = ClipForm(GRID, TUBELET, PATCH, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
INDEX = torch.tensor([[0, 5, 9, 14, 23], [1, 2, 15, 16, 20]])


def make(form: ClipForm = FORM, **settings: Any) -> DifferenceTarget:
    config = schema.DifferenceTarget(kind="difference", **settings)
    target = build_target(config, form=form)
    assert isinstance(target, DifferenceTarget)
    return target


def clip_of(video_BCTHW: Tensor) -> Clip:
    return FORM.clip(video_BCTHW)


def video() -> Tensor:
    """Noise; the tokens at the left barely move, so that their deviation is below the floor."""
    torch.manual_seed(0)
    source = torch.randint(0, 256, (2, 3, 6, 8, 16), dtype=torch.uint8)
    source[..., :4] = 100 + source[..., :4] % 3
    return source


def expected_differences(
    source_BCTHW: np.ndarray, b: int, token: int, *, span: str, gaps: list[int]
) -> tuple[np.ndarray, np.ndarray]:
    """One token's differences (frames, values) from the video, and which frames count."""
    _, h, w = GRID
    top, left = token // w % h * PATCH, token % w * PATCH
    patch = source_BCTHW[b, :, :, top : top + PATCH, left : left + PATCH] / 255
    frames_THWC = patch.transpose(1, 2, 3, 0).reshape(len(patch[0]), -1)
    first = token // (h * w) * TUBELET
    rows, valid = [], []
    for gap in gaps:
        for earlier in range(first, first + TUBELET):
            end = first + TUBELET if span == "cube" else len(frames_THWC)
            known = earlier + gap < end
            if known:
                rows.append(frames_THWC[earlier + gap] - frames_THWC[earlier])
            elif span == "clip":
                rows.append(np.zeros(frames_THWC.shape[1]))
            if known or span == "clip":
                valid.append(known)
    return np.array(rows), np.array(valid)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(
    ("span", "gaps"), [("cube", [1]), ("clip", [1]), ("clip", [2, 1]), ("clip", [1, 5])]
)
def test_errors_equal_numpys_on_the_video(span: str, gaps: list[int], normalize: bool) -> None:
    source = video()
    target = make(span=span, gaps=gaps, normalize=normalize, floor=0.05)
    values = target.of(clip_of(source), INDEX)
    torch.manual_seed(1)
    prediction = torch.randn(2, 5, target.predicts)
    error = target.error(prediction, values)
    assert error.shape == (2, 5)
    assert error.dtype == torch.float32
    floored = 0
    for b in range(2):
        for m, token in enumerate(INDEX[b].tolist()):
            wanted, valid = expected_differences(source.numpy(), b, token, span=span, gaps=gaps)
            kept = wanted[valid]
            if normalize:
                deviation = kept.std(ddof=1)
                floored += deviation < 0.05
                kept = (kept - kept.mean()) / max(deviation, 0.05)
            guess = prediction[b, m].double().numpy().reshape(wanted.shape)[valid]
            assert error[b, m].item() == pytest.approx(((guess - kept) ** 2).mean(), rel=1e-4)
    assert not normalize or floored  # the floor had a say


def test_a_perfect_prediction_has_no_error() -> None:
    for settings in ({"span": "cube"}, {"span": "clip", "gaps": [1, 3]}):
        target, clip = make(**settings), clip_of(video())
        values = target.of(clip, INDEX)
        assert not target.error(values.value_BMC, values).any()
        assert (target.error(values.value_BMC + 1, values) > 0.9).all()


@pytest.mark.parametrize(
    ("settings", "tubelet", "frames"),
    [
        ({"span": "cube"}, 2, 1),
        ({"span": "cube", "gaps": [1]}, 4, 3),
        ({"span": "cube", "gaps": [1, 3]}, 4, 3 + 1),
        ({"span": "clip"}, 2, 2),
        ({"span": "clip", "gaps": [1, 2, 5]}, 2, 6),
        ({"span": "clip", "gaps": [7]}, 4, 4),
    ],
)
def test_predicts_counts_the_values_that_are_compared(
    settings: dict[str, Any], tubelet: int, frames: int
) -> None:
    form = ClipForm((3, 2, 2), tubelet, 4)
    target = make(form, **settings)
    assert target.predicts == frames * 3 * 4 * 4
    pixels = torch.zeros(1, 3, 3 * tubelet, 2 * 4, 2 * 4, dtype=torch.uint8)
    values = target.of(form.clip(pixels), torch.tensor([[0, 3]]))
    assert values.value_BMC.shape == (1, 2, target.predicts)


def test_frames_at_the_end_of_the_clip_do_not_count() -> None:
    """Those of the last slice have a later frame only inside the cube."""
    target, clip = make(span="clip", normalize=False), clip_of(video())
    index = torch.tensor([[3, 20], [3, 20]])
    values = target.of(clip, index)
    assert values.valid_BMF is not None
    assert values.valid_BMF[0].tolist() == [[True, True], [True, False]]
    blind = values.value_BMC.clone()
    blind[:, 1, 48:] = 1e6
    assert not target.error(blind, values).any()
    assert make(span="cube").of(clip, index).valid_BMF is None


def test_a_token_without_a_later_frame_has_no_error_and_no_gradient() -> None:
    target, clip = make(span="clip", gaps=[5]), clip_of(video())
    index = torch.tensor([[0, 20], [0, 20]])
    prediction = torch.randn(2, 2, target.predicts, requires_grad=True)
    error = target.error(prediction, target.of(clip, index))
    assert (error[:, 0] > 0).all()
    assert not error[:, 1].any()
    error.sum().backward()
    assert prediction.grad is not None
    assert prediction.grad[:, 0].any()
    assert not prediction.grad[:, 1].any()


def test_half_precision_predictions_are_compared_in_float32() -> None:
    target, clip = make(), clip_of(video())
    values = target.of(clip, INDEX)
    prediction = torch.randn(2, 5, target.predicts).bfloat16()
    error = target.error(prediction, values)
    assert error.dtype == torch.float32
    torch.testing.assert_close(error, target.error(prediction.float(), values), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"span": "cube", "gaps": [2]}, r"needs frames 2 apart, and a cube has 2"),
        ({"span": "cube", "gaps": [1, 7, 3]}, r"`gaps: \[1, 7, 3\]` .* 7 apart, and a cube has 2"),
        ({"span": "clip", "gaps": [6]}, r"needs frames 6 apart, and a clip has 6"),
    ],
)
def test_gaps_that_are_too_wide_are_a_recipe_error(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words) as refused:
        make(**settings)
    assert refused.value.message.startswith("`targets`: ")
    assert refused.value.hint


def test_the_widest_gaps_fit_and_a_cube_of_one_frame_has_none() -> None:
    make(span="cube", gaps=[1])
    make(span="clip", gaps=[5])
    one_frame = ClipForm((6, 2, 4), 1, 4)
    make(one_frame, span="clip")
    with pytest.raises(RecipeError, match="1 apart, and a cube has 1"):
        make(one_frame)
