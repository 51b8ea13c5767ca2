"""Frame differences against a loop over frames and tokens."""

from __future__ import annotations

import pytest
import torch

from tatscli.data.framediff import frame_difference


def video(frames: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (frames, 3, 12, 18), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_it_is_the_mean_change_of_the_pixels_of_a_token(layout: torch.memory_format) -> None:
    clip = video(4)
    change, valid = frame_difference(
        clip.contiguous(memory_format=layout), [3, 5, 7, 9], grid=(2, 3)
    )
    assert valid.tolist() == [False, True, True, True]
    numbers = clip.double()
    for time in range(1, 4):
        for row in range(2):
            for column in range(3):
                part = (slice(None), slice(row * 6, row * 6 + 6), slice(column * 6, column * 6 + 6))
                wanted = (numbers[time][part] - numbers[time - 1][part]).abs().mean()
                assert change[time, row, column].item() == pytest.approx(wanted.item(), rel=1e-5)
    assert torch.equal(change[0], change[1])


def test_held_frames_change_nothing_and_a_jump_back_is_no_change() -> None:
    change, valid = frame_difference(video(5), [0, 2, 2, 1, 3], grid=(2, 3))
    assert valid.tolist() == [False, True, False, False, True]
    assert not change[2].any()
    assert torch.equal(change[3], change[4])
    assert torch.equal(change[0], change[1])


def test_one_frame_says_nothing() -> None:
    change, valid = frame_difference(video(1), [7], grid=(2, 3))
    assert not valid.any()
    assert not change.any()
