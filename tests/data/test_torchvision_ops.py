import io
import random
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tatscli.data.torchvision_ops import decode_jpegs, rand_augment
from tatscli.errors import TatsError
from tests.data.fake_store import jpeg


def pictures(count: int) -> list[np.ndarray]:
    y, x = np.mgrid[:40, :56]
    waves = [np.stack([x * 3, y * 4, (x + y) + 9 * i], -1) for i in range(count)]
    return [jpeg(wave.astype(np.uint8)) for wave in waves]


def test_decodes_as_pillow_does_in_rgb_and_in_order() -> None:
    files = pictures(3)
    expected = np.stack([np.asarray(Image.open(io.BytesIO(file)).convert("RGB")) for file in files])
    video = decode_jpegs(files)
    assert (video.shape, video.dtype) == ((3, 3, 40, 56), torch.uint8)
    difference = video.permute(0, 2, 3, 1).int() - torch.from_numpy(expected).int()
    assert difference.abs().max() <= 2  # two builds of libjpeg
    assert video.is_contiguous(memory_format=torch.channels_last)


def test_grey_pictures_become_rgb_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    video = decode_jpegs([jpeg(np.full((8, 8), 77, np.uint8))])
    assert video.shape == (1, 3, 8, 8)
    assert (video.int() - 77).abs().max() <= 1
    assert not recwarn


@pytest.mark.parametrize("keep", [0, 10, 0.5])
def test_broken_bytes_are_an_error(keep: float) -> None:
    file = pictures(1)[0]
    with pytest.raises(RuntimeError):
        decode_jpegs([file[: int(keep * len(file)) if keep < 1 else int(keep)]])


def test_frames_of_different_sizes_are_an_error() -> None:
    with pytest.raises(RuntimeError):
        decode_jpegs([*pictures(1), jpeg(np.zeros((8, 8, 3), np.uint8))])


def test_without_torchvision_the_hint_names_a_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(TatsError, match=torch.__version__.split("+")[0]) as caught:
        decode_jpegs(pictures(1))
    assert "torchvision==" in (caught.value.hint or "")


def clip(frames: int = 4) -> Tensor:
    frame = torch.randint(0, 256, (3, 32, 32), generator=torch.Generator().manual_seed(0))
    return frame.to(torch.uint8).expand(frames, 3, 32, 32)


def test_rand_augment_treats_all_frames_alike_and_repeats_itself() -> None:
    changed = 0
    for seed in range(40):
        video = rand_augment(clip(), magnitude=7, operations=4, rng=random.Random(seed))
        again = rand_augment(clip(), magnitude=7, operations=4, rng=random.Random(seed))
        assert (video.shape, video.dtype) == ((4, 3, 32, 32), torch.uint8)
        assert torch.equal(video, again)
        assert torch.equal(video, video[:1].expand_as(video))
        changed += not torch.equal(video, clip())
    # Nothing happens with probability (1/2 + 1/2 x share of idle draws) ^ 4, about one in twelve.
    assert 28 <= changed < 40


def test_rand_augment_leaves_the_global_generators_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    rand_augment(clip(), magnitude=7, operations=20, rng=random.Random(1))
    assert torch.equal(torch.rand(3), expected)


def test_rand_augment_grows_with_its_magnitude() -> None:
    def change(magnitude: int) -> float:
        video = clip(1)
        total = 0.0
        for seed in range(60):
            out = rand_augment(video, magnitude=magnitude, operations=2, rng=random.Random(seed))
            total += (out.float() - video.float()).abs().mean().item()
        return total

    assert change(1) < change(5) < change(10)
