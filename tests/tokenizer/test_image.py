"""The tokenizer of frames: shapes, round trips, what learns."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tatscli.recipe.schema import FsqTokenizer, VqTokenizer
from tatscli.tokenizer.adversary import Adversary
from tatscli.tokenizer.image import ImageTokenizer

SMALL: dict[str, Any] = {"stride": 8, "patch": 4, "widths": [8, 16], "blocks": 1}


def build(kind: str, **keys: Any) -> ImageTokenizer:
    torch.manual_seed(0)
    if kind == "vq":
        return ImageTokenizer(VqTokenizer(kind="vq", codes=20, code_width=4, **SMALL, **keys))
    return ImageTokenizer(FsqTokenizer(kind="fsq", levels=[4, 5], **SMALL, **keys))


@pytest.mark.parametrize("kind", ["vq", "fsq"])
def test_frames_are_coded_one_by_one_and_decoded(kind: str) -> None:
    tokenizer = build(kind).eval()
    frames = torch.rand(2, 3, 5, 16, 24)
    codes = tokenizer.encode(frames)
    assert codes.shape == (2, 5, 2, 3)
    assert codes.dtype == torch.int64
    assert tokenizer.codebook_size == 20
    assert torch.equal(tokenizer.encode(frames[1:, :, 3:4]), codes[1:, 3:4])
    latents = tokenizer.latents(frames)
    assert latents.shape == (2, 5, 2, 3, tokenizer.width)
    assert torch.equal(latents, tokenizer.vectors(codes))
    decoded = tokenizer.decode(codes)
    assert decoded.shape == frames.shape
    assert decoded.min() >= 0
    assert decoded.max() <= 1
    with torch.no_grad():
        trained = tokenizer(frames)
    assert torch.equal(trained.codes_Bthw, codes)
    torch.testing.assert_close(trained.video_BCTHW.clamp(0, 1), decoded, atol=1e-4, rtol=0)
    assert torch.equal(tokenizer.reconstruct(frames).video_BCTHW, decoded)


@pytest.mark.parametrize("patch, stride, widths", [(1, 4, 3), (2, 16, 4), (4, 4, 1), (4, 32, 4)])
def test_any_patch_and_stride_gives_its_grid(patch: int, stride: int, widths: int) -> None:
    config = FsqTokenizer(
        kind="fsq", levels=[5], stride=stride, patch=patch, widths=[8] * widths, blocks=1
    )
    tokenizer = ImageTokenizer(config).eval()
    codes = tokenizer.encode(torch.rand(1, 3, 1, 2 * stride, 3 * stride))
    assert codes.shape == (1, 1, 2, 3)
    assert tokenizer.decode(codes).shape == (1, 3, 1, 2 * stride, 3 * stride)


@pytest.mark.parametrize("kind", ["vq", "fsq"])
def test_every_weight_gets_a_gradient(kind: str) -> None:
    tokenizer = build(kind).train()
    frames = torch.rand(2, 3, 2, 16, 16)
    found = tokenizer(frames)
    loss = (found.video_BCTHW - frames).square().mean() + sum(found.losses.values())
    loss.backward()
    assert all(one.grad is not None for one in tokenizer.parameters())
    assert tokenizer.encoder.stem.weight.grad.abs().sum() > 0


def test_the_two_sides_of_the_discriminator_do_not_reach_each_other() -> None:
    from tatscli.recipe.schema import Discriminator

    torch.manual_seed(0)
    adversary = Adversary(Discriminator(width=8, layers=2))
    made = torch.rand(2, 3, 32, 32, requires_grad=True)
    true = torch.rand(2, 3, 32, 32)
    adversary.judge(made).backward()
    assert made.grad.abs().sum() > 0
    assert all(one.grad is None for one in adversary.parameters())
    made.grad = None
    adversary.loss(made, true).backward()
    assert made.grad is None
    assert all(one.grad is not None for one in adversary.parameters())
    # Hinge: verdicts beyond 1 cost nothing more.
    verdict = adversary(true)
    wanted = ((1 - verdict).clamp(min=0).mean() + (1 + adversary(made)).clamp(min=0).mean()) / 2
    torch.testing.assert_close(adversary.loss(made, true), wanted)
    torch.testing.assert_close(adversary.judge(made), -adversary(made).mean())
