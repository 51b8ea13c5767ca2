"""`motion`: the field itself at the token, to one scale, and only where it is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tatscli.data.clip import Clip, ClipForm
from tatscli.data.motion import MotionField
from tatscli.draws import Draws
from tatscli.errors import DataError
from tatscli.recipe import schema
from tatscli.recipe.schema import Recipe
from tatscli.system.system import build_system
from tatscli.targets import build_target
from tatscli.targets.motion import MotionTarget
from tests.fields import motion_of

GRID, TUBELET, PATCH = (3, 2, 4), 2, 4
FORM = ClipForm(GRID, TUBELET, PATCH)
INDEX = torch.tensor([[0, 5, 9, 14, 23], [1, 2, 15, 16, 20]])


def make(**settings: Any) -> MotionTarget:
    target = build_target(schema.MotionTarget(kind="motion", **settings), form=FORM)
    assert isinstance(target, MotionTarget)
    return target


def clip_of(motion: MotionField | None) -> Clip:
    video = torch.zeros(2, 3, 6, 8, 16, dtype=torch.uint8)
    return FORM.clip(video, motion=motion)


def field(seed: int = 0) -> Tensor:
    return 5 * torch.randn(2, 6, 2, 4, 2, generator=torch.Generator().manual_seed(seed))


def looped(field_BThw2: Tensor, b: int, token: int, divisor: float) -> list[float]:
    """One token's values: frame by frame, x before y."""
    time, site = divmod(token, 8)
    row, column = divmod(site, 4)
    frames = range(time * TUBELET, (time + 1) * TUBELET)
    return [
        float(field_BThw2[b, frame, row, column, axis]) / divisor
        for frame in frames
        for axis in range(2)
    ]


@pytest.mark.parametrize(("scale", "divisor"), [("none", 1.0), ("patch", PATCH)])
def test_it_is_the_field_at_the_token(scale: str, divisor: float) -> None:
    target, motion = make(scale=scale), motion_of(field(), patch=PATCH)
    assert target.predicts == 2 * TUBELET
    assert target.needs_motion
    values, valid = target.of(clip_of(motion), INDEX)
    assert valid.all() and valid.shape == (2, 5, TUBELET)
    expected = [[looped(field(), b, int(i), divisor) for i in INDEX[b]] for b in range(2)]
    torch.testing.assert_close(values, torch.tensor(expected))


def test_a_pan_is_one_vector_everywhere() -> None:
    pan = torch.tensor([3.0, -4.0]).expand(2, 6, 2, 4, 2)
    values, _ = make(scale="none").of(clip_of(motion_of(pan)), INDEX)
    assert torch.equal(values, torch.tensor([3.0, -4, 3, -4]).expand(2, 5, 4))
    values, _ = make().of(clip_of(motion_of(pan)), INDEX)  # of length 5, which is the scale
    torch.testing.assert_close(values, torch.tensor([0.6, -0.8, 0.6, -0.8]).expand(2, 5, 4))


def test_the_scale_of_a_clip_is_that_of_what_is_known() -> None:
    known = torch.ones(2, 6, dtype=torch.bool)
    known[0, [0, 3]] = False
    moved = field()
    moved[0, [0, 3]] = 1000.0  # a neighbour's, whatever it is
    values, valid = make().of(clip_of(motion_of(moved, valid_BT=known)), INDEX)
    squares = (moved[0, [1, 2, 4, 5]].numpy().astype(np.float64) ** 2).sum(-1)
    length = float(np.sqrt(squares.mean()))
    assert 1 < length < 20
    expected = torch.tensor([looped(moved, 0, int(i), length) for i in INDEX[0]])
    torch.testing.assert_close(values[0], expected)
    assert valid[0].tolist() == [[False, True]] * 2 + [[True, False]] * 2 + [[True, True]]
    assert valid[1].all()


def test_still_clips_are_not_blown_up() -> None:
    noise = field() / 1000
    values, _ = make(floor=2.0).of(clip_of(motion_of(noise)), INDEX)
    halves, _ = make(scale="none").of(clip_of(motion_of(noise)), INDEX)
    torch.testing.assert_close(values, halves / 2)


def test_unknown_frames_do_not_count() -> None:
    known = torch.ones(2, 6, dtype=torch.bool)
    known[0, 0] = False  # half of the first slice
    known[1, 2:4] = False  # the whole second slice
    target = make(scale="none")
    values, valid = target.of(clip_of(motion_of(field(), valid_BT=known)), INDEX)
    guess = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(3))
    error = target.error(guess, (values, valid))
    square = (guess - values).square()
    torch.testing.assert_close(error[0, 0], square[0, 0, 2:].mean())
    torch.testing.assert_close(error[0, 4], square[0, 4].mean())
    assert INDEX[1, 2] // 8 == 1 and error[1, 2] == 0
    guess[0, :2, :2] = torch.inf  # not even where it is far off
    assert torch.isfinite(target.error(guess, (values, valid))).all()


@pytest.mark.parametrize("which", ["missing_B", "fallback_B"])
def test_a_clip_without_motion_counts_nothing(which: str) -> None:
    lost = torch.tensor([True, False])
    motion = motion_of(field(), **{which: lost})
    target = make()
    values = target.of(clip_of(motion), INDEX)
    error = target.error(torch.full((2, 5, 4), 9.0), values)
    assert (error[0] == 0).all() and (error[1] > 1).all()
    assert torch.isfinite(values[0]).all()


def test_clips_that_come_without_are_one_message() -> None:
    with pytest.raises(
        DataError, match="`targets: motion` needs motion, but these clips have none"
    ):
        make().of(clip_of(None), INDEX)


RECIPE: dict[str, Any] = {
    "data": {"store": "", "frames": 4, "size": 16},
    "model": {"width": 16, "depth": 1, "heads": 2, "patch": 4},
    "mask": {"kind": "random", "ratio": 0.75},
    "targets": [{"kind": "pixels"}, {"kind": "motion"}],
}


def test_a_system_keeps_the_motion_for_its_target() -> None:
    system = build_system(Recipe.model_validate(RECIPE))
    motion = motion_of(torch.ones(2, 4, 4, 4, 2), patch=4)
    assert system.follows_motion
    clip = system.clip(torch.zeros(2, 3, 4, 16, 16, dtype=torch.uint8), motion=motion)
    assert clip.motion is motion
    found = system.errors(clip, Draws(0))
    assert found.predictions[1].shape == (2, 24, 4)
    found.by_target["motion"].mean().backward()
    assert system.encoder.patch_embed.proj.weight.grad is not None
    still = build_system(Recipe.model_validate(RECIPE | {"targets": [{"kind": "pixels"}]}))
    assert not still.follows_motion


def test_a_source_without_direction_is_refused() -> None:
    data = RECIPE["data"] | {"motion": {"source": "framediff"}}
    with pytest.raises(ValueError, match=r"`data\.motion\.source: framediff` has no direction"):
        Recipe.model_validate(RECIPE | {"data": data})
