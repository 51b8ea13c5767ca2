"""The adaptive tokenizer of videos: shapes, windows, what is kept, what learns."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from tatscli.nn.convolution import VideoDecoder, VideoEncoder
from tatscli.recipe.schema import AdaptiveTokenizer as Config
from tatscli.recipe.schema import Discriminator
from tatscli.tokenizer.adaptive import AdaptiveTokenizer
from tatscli.tokenizer.adversary import Adversary

SMALL: dict[str, Any] = {"stride": 8, "patch": 4, "widths": [8, 16], "blocks": 1, "scorer_width": 4}


def build(*, window: int = 8, **keys: Any) -> AdaptiveTokenizer:
    torch.manual_seed(0)
    given = SMALL | {"levels": [4, 5], "keep": 5} | keys
    return AdaptiveTokenizer(Config(kind="adaptive", **given), window=window)


def test_the_published_shape() -> None:
    """16 x 224 x 224 to 8 x 14 x 14 of 2^18 codes, without computing a number."""
    with torch.device("meta"):
        tokenizer = AdaptiveTokenizer(
            Config(kind="adaptive", patch=1, widths=[8, 8, 16, 16, 16]), window=16
        )
        found = tokenizer(torch.zeros(1, 3, 16, 224, 224))
    assert found.codes_Bthw.shape == (1, 8, 14, 14)
    assert found.video_BCTHW.shape == (1, 3, 16, 224, 224)
    assert tokenizer.codebook_size == 2**18
    assert (tokenizer.width, tokenizer.frames, tokenizer.levels) == (6, 2, [8] * 6)


@pytest.mark.parametrize("patch, stride, levels", [(1, 4, 3), (1, 8, 4), (2, 8, 3), (4, 4, 1)])
@pytest.mark.parametrize("tubelet", [1, 2, 4])
def test_any_patch_stride_and_tubelet_gives_its_grid(
    patch: int, stride: int, levels: int, tubelet: int
) -> None:
    sides: dict[str, Any] = {"widths": [4] * levels, "blocks": 1}
    tokenizer = build(stride=stride, patch=patch, tubelet=tubelet, **sides).eval()
    codes = tokenizer.encode(torch.rand(1, 3, 8, 2 * stride, 3 * stride))
    assert codes.shape == (1, 8 // tubelet, 2, 3)
    assert tokenizer.decode(codes).shape == (1, 3, 8, 2 * stride, 3 * stride)


def test_pixels_go_back_to_their_own_places() -> None:
    """Encoder and decoder that only carry values: the cubes are laid out as they were read."""
    decoder = VideoDecoder([24], 1, patch=2, tubelet=2, given=24)
    for layer in decoder.blocks:
        torch.nn.init.zeros_(layer.inner[-1].weight)
        torch.nn.init.zeros_(layer.inner[-1].bias)
    decoder.stem = torch.nn.Identity()
    decoder.out = torch.nn.Identity()
    video = torch.rand(1, 3, 4, 4, 6)
    cubes = video.reshape(1, 3, 2, 2, 2, 2, 3, 2).permute(0, 1, 3, 5, 7, 2, 4, 6)
    assert torch.equal(decoder(cubes.reshape(1, 24, 2, 2, 3)), video)
    encoder = VideoEncoder([4], 1, patch=2, tubelet=2, out=2)
    assert encoder.stem.weight.shape == (4, 3, 2, 2, 2)


@pytest.mark.parametrize("topk", ["straight_through", "perturbed"])
def test_every_weight_gets_a_gradient(topk: str) -> None:
    tokenizer = build(topk=topk).train()
    frames = torch.rand(2, 3, 8, 16, 16)
    found = tokenizer(frames)
    (found.video_BCTHW - frames).square().mean().backward()
    silent = [n for n, one in tokenizer.named_parameters() if one.grad is None]
    assert silent == []
    assert tokenizer.scorer is not None
    assert tokenizer.scorer.first.weight.grad.abs().sum() > 0
    assert tokenizer.scorer.second.weight.grad.abs().sum() > 0


def test_without_the_adaptive_part_there_is_no_scorer() -> None:
    tokenizer = build(keep=None).train()
    assert not tokenizer.scored
    assert not [name for name, _ in tokenizer.named_parameters() if name.startswith("scorer")]
    frames = torch.rand(1, 3, 8, 16, 16)
    found = tokenizer(frames)
    assert found.scores_Bthw is None
    assert found.kept_Bthw is None
    assert tokenizer.code(frames).scores_Bthw is None
    shown = tokenizer.eval().reconstruct(frames)
    assert torch.equal(shown.codes_Bthw, tokenizer.encode(frames))


@pytest.mark.parametrize("first, others", [("beside", 5), ("among", 1)])
def test_the_first_slice_and_so_many_others_are_kept(first: str, others: int) -> None:
    tokenizer = build(first=first)
    frames = torch.rand(3, 3, 8, 16, 16)
    found = tokenizer(frames)
    assert found.kept_Bthw is not None
    assert found.scores_Bthw is not None
    kept = found.kept_Bthw.detach().round()
    assert kept[:, 0].min() == 1
    assert kept[:, 1:].flatten(1).sum(dim=1).tolist() == [others] * 3
    dropped = kept == 0
    assert (
        found.scores_Bthw[:, 1:][dropped[:, 1:]].max()
        <= (torch.where(kept[:, 1:] > 0, found.scores_Bthw[:, 1:], 9).amin())
        or len(frames) > 1
    )
    # What is dropped is the code of the zero vector, and nothing of it reaches the decoder.
    assert (found.codes_Bthw[dropped] == tokenizer.quantizer.zero).all()
    assert tokenizer.vectors(found.codes_Bthw)[dropped].abs().max() == 0
    shown = tokenizer.eval().reconstruct(frames)
    assert torch.equal(shown.kept_Bthw, kept)
    assert torch.equal(shown.codes_Bthw, found.codes_Bthw)
    torch.testing.assert_close(
        shown.video_BCTHW, found.video_BCTHW.detach().clamp(0, 1), atol=1e-5, rtol=0
    )


def test_windows_are_coded_apart_and_the_last_is_filled_up() -> None:
    tokenizer = build().eval()
    frames = torch.rand(1, 3, 20, 16, 24)
    codes, scores = tokenizer.code(frames)
    assert codes.shape == (1, 10, 2, 3)
    assert scores is not None
    assert scores.shape == (1, 10, 2, 3)
    assert torch.equal(codes[:, :4], tokenizer.encode(frames[:, :, :8]))
    assert torch.equal(codes[:, 4:8], tokenizer.encode(frames[:, :, 8:16]))
    held = torch.cat([frames[:, :, 16:], frames[:, :, -1:].expand(-1, -1, 4, -1, -1)], dim=2)
    assert torch.equal(codes[:, 8:], tokenizer.encode(held)[:, :2])
    # The seam: the first slice of a window is compared with the last of the one before.
    alone, _ = tokenizer.scorer(frames)
    torch.testing.assert_close(scores, alone)
    assert not torch.equal(scores[:, 4], tokenizer.code(frames[:, :, 8:16]).scores_Bthw[:, 0])
    assert tokenizer.decode(codes).shape == frames.shape
    assert torch.equal(tokenizer.decode(codes)[:, :, :8], tokenizer.decode(codes[:, :4]))
    with pytest.raises(ValueError, match="19 frames"):
        tokenizer.code(frames[:, :, :19])


def test_what_is_still_scores_nothing_outside_of_cuts() -> None:
    tokenizer = build().eval()
    still = torch.rand(1, 3, 1, 16, 16).expand(-1, -1, 24, -1, -1)
    assert tokenizer.code(still).scores_Bthw.abs().max() == 0
    cut = torch.cat([still, torch.rand(1, 3, 1, 16, 16).expand(-1, -1, 24, -1, -1)], dim=2)
    scores = tokenizer.code(cut).scores_Bthw
    assert scores[:, 12].min() > 0
    assert scores[:, :12].abs().max() == scores[:, 13:].abs().max() == 0


def test_a_stream_of_any_length_holds_a_window() -> None:
    """1,100 frames: of what was coded before, nothing is alive."""
    tokenizer = build().eval()
    alive: list[weakref.ref[Tensor]] = []

    def windows() -> Iterator[Tensor]:
        for first in range(0, 1100, 8):
            torch.manual_seed(first)
            frames = torch.rand(1, 3, min(8, 1100 - first), 16, 16)
            alive.append(weakref.ref(frames))
            yield frames
            del frames
            assert sum(one() is not None for one in alive) <= 1

    slices = sum(part.codes_Bthw.shape[1] for part in tokenizer.stream(windows()))
    assert slices == 550


def test_a_stream_gives_what_the_whole_gives() -> None:
    tokenizer = build().eval()
    frames = torch.rand(2, 3, 20, 16, 16)
    parts = list(tokenizer.stream(frames.split(8, dim=2)))
    codes, scores = tokenizer.code(frames)
    assert torch.equal(torch.cat([one.codes_Bthw for one in parts], 1), codes)
    assert scores is not None
    assert torch.equal(torch.cat([one.scores_Bthw for one in parts], 1), scores)


def test_a_discriminator_of_videos_sees_them_whole() -> None:
    torch.manual_seed(0)
    adversary = Adversary(Discriminator(width=4, layers=3), dims=3)
    true, made = torch.rand(2, 3, 16, 32, 32), torch.rand(2, 3, 16, 32, 32)
    assert adversary(true).shape[:3] == (2, 1, 2)
    shuffled = true[:, :, torch.randperm(16)]
    assert not torch.allclose(adversary(true).mean(), adversary(shuffled).mean(), atol=1e-6)
    assert adversary(true[:, :, :2]).shape[2] == 1  # the shortest windows as well
    adversary.loss(made, true).backward()
    assert all(one.grad is not None for one in adversary.parameters())


def test_the_logistic_loss_is_that_of_probabilities() -> None:
    torch.manual_seed(0)
    adversary = Adversary(Discriminator(width=4, layers=2, loss="nonsaturating"))
    true, made = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16)
    on_true, on_made = adversary(true).sigmoid(), adversary(made).sigmoid()
    wanted = -on_true.log().mean() - (1 - on_made).log().mean()
    torch.testing.assert_close(adversary.loss(made, true), wanted)
    torch.testing.assert_close(adversary.judge(made), -on_made.log().mean())


def test_r1_is_half_the_squared_slope() -> None:
    torch.manual_seed(0)
    adversary = Adversary(Discriminator(width=4, layers=1))
    true = torch.rand(1, 3, 8, 8)
    slope = adversary.slope(true)
    total = 0.0
    double = adversary.double()
    for place in range(true.numel()):
        step = torch.zeros(true.numel(), dtype=torch.float64)
        step[place] = 1e-5
        moved = [double(true.double() + sign * step.view_as(true)).mean() for sign in (1, -1)]
        total += ((moved[0] - moved[1]) / 2e-5).item() ** 2
    assert slope.item() == pytest.approx(total / 2, rel=1e-3)
    adversary.float().slope(true).backward()
    assert adversary.layers[0].weight.grad.abs().sum() > 0
