"""VideoMAE's RandAugment: timm's pixels, on all frames alike, drawn from the generator given."""

import random
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tatscli.data import randaugment
from tatscli.data.randaugment import OPERATIONS, rand_augment_pictures

timm = pytest.importorskip("timm.data.auto_augment")

PICTURE = Image.fromarray(np.random.default_rng(0).integers(20, 250, (36, 52, 3), dtype=np.uint8))
NAMES = dict(zip(OPERATIONS, timm._RAND_INCREASING_TRANSFORMS, strict=True))


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("sign", [1, -1])
def test_every_operation_gives_the_pixels_of_timm(
    name: str, sign: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timm, "_randomly_negate", lambda value: sign * value)
    changed = 0
    for magnitude in (0.0, 0.4, 3.3, 6.9, 7.0, 7.6, 9.99):
        theirs = timm.AugmentOp(
            NAMES[name],
            prob=1.0,
            magnitude=magnitude,
            hparams={"interpolation": Image.Resampling.BICUBIC, "translate_const": 100},
        )
        expected = np.asarray(theirs(PICTURE))
        assert np.array_equal(OPERATIONS[name](PICTURE, sign * magnitude / 10), expected)
        changed += not np.array_equal(expected, PICTURE)
    assert changed >= 5


def test_the_names_are_those_of_timm() -> None:
    for ours, theirs in NAMES.items():
        assert theirs.removesuffix("Increasing").removesuffix("Rel") == ours


def test_posterize_keeps_two_bits_at_magnitude_seven_and_none_at_ten() -> None:
    assert {pixel & 63 for pixel in OPERATIONS["Posterize"](PICTURE, 0.7).tobytes()} == {0}
    assert set(OPERATIONS["Posterize"](PICTURE, 0.7).tobytes()) == {0, 64, 128, 192}
    assert set(OPERATIONS["Posterize"](PICTURE, -1.0).tobytes()) == {0}


def clip() -> Tensor:
    frame = torch.from_numpy(np.asarray(PICTURE).copy()).permute(2, 0, 1)
    return torch.stack([frame, frame // 2, frame])


def test_all_frames_are_treated_alike_and_the_generator_decides() -> None:
    torch.manual_seed(5)
    state, before = torch.get_rng_state(), clip()
    changed = 0
    for seed in range(100):
        video = clip()
        first, again = (
            rand_augment_pictures(video, magnitude=7, operations=4, rng=random.Random(seed))
            for _ in range(2)
        )
        assert (first.shape, first.dtype) == (video.shape, torch.uint8)
        assert torch.equal(first, again)
        assert torch.equal(first[0], first[2])
        assert torch.equal(video, before)
        changed += not torch.equal(first, before)
    assert 85 <= changed < 100  # nothing happens with probability 1 / 16
    assert torch.equal(torch.get_rng_state(), state)


def test_operations_are_drawn_as_timm_draws_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Equally often with replacement, one half of the time, at N(0.7, 0.05) in both directions."""
    drawn: list[tuple[str, float]] = []

    def spy(name: str) -> randaugment.Operation:
        def note(picture: Image.Image, strength: float) -> Image.Image:
            drawn.append((name, strength))
            return picture

        return note

    monkeypatch.setattr(randaugment, "OPERATIONS", {name: spy(name) for name in OPERATIONS})
    rng, video = random.Random(0), clip()[:1, :, :4, :4]
    for _ in range(1500):
        rand_augment_pictures(video, magnitude=7, operations=4, rng=rng)
    strengths = np.array([strength for _, strength in drawn])
    assert len(drawn) == pytest.approx(3000, abs=150)
    assert (strengths > 0).mean() == pytest.approx(0.5, abs=0.05)
    assert np.abs(strengths).mean() == pytest.approx(0.7, abs=0.005)
    assert np.abs(strengths).std() == pytest.approx(0.05, abs=0.005)
    counts = Counter(name for name, _ in drawn)
    assert len(counts) == 15 and min(counts.values()) > 130 and max(counts.values()) < 275
