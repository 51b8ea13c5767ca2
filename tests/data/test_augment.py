import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tatscli.data.augment import Mix, erase
from tatscli.draws import Draws
from tatscli.recipe.schema import Augment

MEAN, STD = (0.4, 0.5, 0.6), (0.1, 0.05, 0.02)


def box(video: Tensor, seed: int, probability: float = 1.0) -> tuple[Tensor, Tensor]:
    """Erase; return the video and where it changed, (T, H, W)."""
    erased = erase(video, probability=probability, mean=MEAN, std=STD, rng=random.Random(seed))
    return erased, (erased != video).any(1)


def test_erasing_fills_one_rectangle_in_every_frame_with_fresh_noise() -> None:
    video = torch.zeros(4, 3, 64, 80, dtype=torch.uint8)
    shares = []
    for seed in range(200):
        erased, where = box(video, seed)
        assert not video.any()
        rows, cols = where.any(0).any(1).nonzero(), where.any(0).any(0).nonzero()
        tall, wide = int(rows.max() - rows.min()) + 1, int(cols.max() - cols.min()) + 1
        assert where.sum() == 4 * tall * wide  # the noise of these colours never is 0
        assert not torch.equal(erased[0], erased[1])
        shares.append(tall * wide / (64 * 80))
    assert 0.015 < min(shares) < 0.05
    assert 0.27 < max(shares) < 0.345


def test_erasing_noise_has_the_colours_of_the_data() -> None:
    erased, where = box(torch.zeros(16, 3, 64, 64, dtype=torch.uint8), seed=3)
    inside = erased.permute(0, 2, 3, 1)[where].float() / 255
    torch.testing.assert_close(inside.mean(0), torch.tensor(MEAN), atol=0.01, rtol=0)
    torch.testing.assert_close(inside.std(0), torch.tensor(STD), atol=0.01, rtol=0)


def test_erasing_keeps_its_probability_and_repeats_itself() -> None:
    video = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    hits = sum(bool(box(video, seed, 0.25)[1].any()) for seed in range(1000))
    assert hits == pytest.approx(250, abs=45)
    assert torch.equal(box(video, 7)[0], box(video, 7)[0])


def mix(labels: Tensor, video: Tensor, seed: int = 0, **change: Any) -> tuple[Tensor, Tensor]:
    augment = Augment(**{"label_smoothing": 0.0, **change})
    return Mix(augment, classes=8)(video, labels, draws=Draws(seed))


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    labels = torch.arange(6)
    return labels, labels.float().view(6, 1, 1, 1, 1).expand(6, 3, 4, 32, 40).contiguous()


def test_mixup_blends_pixels_and_labels_by_the_same_share(batch: tuple[Tensor, Tensor]) -> None:
    labels, video = batch
    before = video.clone()
    shares = set()
    for seed in range(30):
        mixed, soft = mix(labels, video, seed, cutmix=0)
        share = soft[0, 0].item()
        shares.add(round(share, 3))
        torch.testing.assert_close(mixed, video * share + video.flip(0) * (1 - share))
        torch.testing.assert_close(soft.sum(1), torch.ones(6))
        torch.testing.assert_close(soft[0, 5].item(), 1 - share)
        # A video made of its own label has, after mixing, the expectation of its soft label.
        torch.testing.assert_close(soft @ torch.arange(8.0), mixed[:, 0, 0, 0, 0])
    assert torch.equal(video, before)
    assert len(shares) > 20


def test_cutmix_pastes_one_box_through_time_and_counts_its_area(
    batch: tuple[Tensor, Tensor],
) -> None:
    labels, video = batch
    for seed in range(30):
        mixed, soft = mix(labels, video, seed, mixup=0)
        pasted = mixed[0] == 5
        assert torch.equal(pasted, pasted[:1, :1].expand_as(pasted))
        assert soft[0, 5].item() == pytest.approx(pasted[0, 0].float().mean().item())
        rows, cols = pasted[0, 0].any(1), pasted[0, 0].any(0)
        assert torch.equal(pasted[0, 0], rows[:, None] & cols[None])
        assert torch.equal(mixed[5] == 0, pasted)


@pytest.mark.parametrize(
    ("change", "share"),
    [
        ({"mix_switch": 0.25}, 0.25),
        ({"mix_switch": 0.0}, 0.0),
        ({"mixup": 0.0}, 1.0),
        ({"cutmix": 0.0}, 0.0),
    ],
)
def test_the_switch_chooses_between_the_two(
    batch: tuple[Tensor, Tensor], change: dict[str, float], share: float
) -> None:
    labels, video = batch
    whole = [
        torch.equal(mixed, mixed.round())
        for mixed in (mix(labels, video, seed, **change)[0] for seed in range(200))
    ]
    assert sum(whole) / 200 == pytest.approx(share, abs=0.1)


def test_mixing_can_be_off_or_rare(batch: tuple[Tensor, Tensor]) -> None:
    labels, video = batch
    untouched: Callable[..., int] = lambda **change: sum(  # noqa: E731
        mix(labels, video, seed, **change)[0] is video for seed in range(200)
    )
    assert untouched(mixup=0, cutmix=0) == 200
    assert untouched(mix_probability=0.5) == pytest.approx(100, abs=25)
    assert untouched() == 0


def test_label_smoothing_spreads_over_all_classes(batch: tuple[Tensor, Tensor]) -> None:
    labels, video = batch
    _, soft = mix(labels, video, mixup=0, cutmix=0, label_smoothing=0.1)
    expected = torch.full((6, 8), 0.1 / 8)
    expected[torch.arange(6), labels] += 0.9
    torch.testing.assert_close(soft, expected)


def test_the_draws_decide_everything(batch: tuple[Tensor, Tensor]) -> None:
    labels, video = batch
    first, again, other = (mix(labels, video, seed) for seed in (4, 4, 5))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[1], other[1])
