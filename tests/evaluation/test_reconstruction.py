"""PSNR, SSIM and the use of codes, against scikit-image and by hand."""

from __future__ import annotations

import math

import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from tatscli.evaluation.reconstruction import code_counts, code_use, perplexity, psnr, ssim


def pictures() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    true = torch.rand(3, 3, 24, 31)
    return (true + 0.1 * torch.randn_like(true)).clamp(0, 1), true


def test_psnr_is_scikit_images() -> None:
    made, true = pictures()
    wanted = [
        peak_signal_noise_ratio(t.numpy(), m.numpy(), data_range=1)
        for m, t in zip(made, true, strict=True)
    ]
    assert psnr(made, true).tolist() == pytest.approx(wanted, rel=1e-5)


def test_ssim_is_scikit_images() -> None:
    made, true = pictures()
    wanted = [
        structural_similarity(
            t.numpy(),
            m.numpy(),
            data_range=1,
            channel_axis=0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        for m, t in zip(made, true, strict=True)
    ]
    assert ssim(made, true).tolist() == pytest.approx(wanted, abs=1e-5)


def test_autocast_does_not_round_the_ssim() -> None:
    made, true = pictures()
    wanted = ssim(made, true)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(ssim(made, true), wanted)


def test_pictures_smaller_than_the_window_have_an_ssim_too() -> None:
    small = torch.rand(2, 3, 8, 6)
    assert ssim(small, small).tolist() == pytest.approx([1, 1])


def test_use_and_perplexity_of_codes() -> None:
    count = code_counts(torch.tensor([[0, 0], [3, 3]]), 8)
    assert count.tolist() == [2, 0, 0, 2, 0, 0, 0, 0]
    assert code_use(count).item() == 0.5  # of the four that were counted, no more can be used
    assert code_use(torch.tensor([2.0, 0, 0, 7])).item() == 0.5
    kept = code_counts(torch.tensor([[0, 0], [3, 3]]), 8, torch.tensor([[1.0, 0.0], [1.0, 1.0]]))
    assert kept.tolist() == [1, 0, 0, 2, 0, 0, 0, 0]
    assert perplexity(count).item() == pytest.approx(2)
    uneven = torch.tensor([9.0, 1.0])
    wanted = math.exp(-(0.9 * math.log(0.9) + 0.1 * math.log(0.1)))
    assert perplexity(uneven).item() == pytest.approx(wanted)
