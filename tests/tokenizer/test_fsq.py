"""FSQ against vector-quantize-pytorch: codes, indices and gradients."""

from __future__ import annotations

import math

import pytest
import torch
from vector_quantize_pytorch import FSQ

from tatscli.tokenizer.fsq import FiniteScalar

LEVELS = [[8, 5, 5, 5], [8, 8, 8], [3], [7, 4, 6]]


@pytest.mark.parametrize("levels", [*LEVELS, [8] * 6], ids=str)
def test_codes_indices_and_gradients_are_the_librarys(levels: list[int]) -> None:
    torch.manual_seed(0)
    given = torch.randn(4, 50, len(levels)) * 2
    upstream = torch.randn_like(given)
    ours, theirs = given.clone().requires_grad_(), given.clone().requires_grad_()
    found = FiniteScalar(levels)(ours)
    wanted, indices = FSQ(levels)(theirs)
    (found.vectors_C * upstream).sum().backward()
    (wanted * upstream).sum().backward()
    assert torch.equal(found.codes, indices.long())
    torch.testing.assert_close(found.vectors_C, wanted, atol=1e-6, rtol=0)
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-6, rtol=0)


@pytest.mark.parametrize("levels", LEVELS, ids=str)
def test_every_code_is_reached_and_looked_up(levels: list[int]) -> None:
    quantizer = FiniteScalar(levels)
    codes = torch.arange(math.prod(levels))
    vectors = quantizer.vectors(codes)
    torch.testing.assert_close(vectors, FSQ(levels).indices_to_codes(codes[:, None])[:, 0])
    # Undo bound: what lands on a code's step is that code again.
    step = vectors * quantizer.width_C
    before = ((step + quantizer.offset_C) / quantizer.half_C).atanh() - quantizer.shift_C
    assert torch.equal(quantizer(before).codes, codes)


def test_zero_is_a_legal_code_of_zero() -> None:
    """What LVMAE's masked tokens rest on."""
    quantizer = FiniteScalar([8, 7, 5])
    found = quantizer(torch.zeros(1, 3))
    assert found.vectors_C.abs().max() == 0
    assert found.codes.item() == quantizer.zero.item()


def test_what_is_not_finite_has_a_legal_code_too() -> None:
    """Such a step is left out by the optimiser; counting its codes must not end the run."""
    quantizer = FiniteScalar([8, 5, 5])
    given = torch.tensor([[math.nan] * 3, [math.inf] * 3, [-math.inf] * 3])
    found = quantizer(given)
    assert found.codes.tolist() == [quantizer(torch.zeros(3)).codes.item(), 199, 0]
    assert found.vectors_C[0].isnan().all()


@pytest.mark.parametrize("levels", [[8] * 6, [8, 5, 5, 5], [16], [3]], ids=str)
def test_the_gradient_of_the_entropy_is_finite(levels: list[int]) -> None:
    """Choices far away are rounded to 0, where a plain x log x has none."""
    torch.manual_seed(0)
    given = (3 * torch.randn(50, len(levels))).requires_grad_()
    sum(FiniteScalar(levels, entropy=0.1)(given).losses.values()).backward()
    assert given.grad is not None
    assert given.grad.isfinite().all()
    assert given.grad.abs().sum() > 0


def test_commitment_is_the_distance_to_the_steps() -> None:
    torch.manual_seed(0)
    given = torch.randn(100, 2)
    quantizer = FiniteScalar([5, 5], commitment=0.25)
    bounded = quantizer.bound(given)
    expected = 0.25 * (bounded - bounded.round()).square().mean()
    torch.testing.assert_close(quantizer(given).losses["commitment"], expected)


def test_the_entropy_term_wants_clear_choices_of_all_codes() -> None:
    quantizer = FiniteScalar([5, 5], entropy=1.0)

    def term(bounded: torch.Tensor) -> float:
        return quantizer._entropy(bounded).item()

    step = torch.cartesian_prod(torch.arange(-2.0, 3), torch.arange(-2.0, 3))
    clear_and_even = term(step)
    assert clear_and_even < term(torch.zeros(25, 2))  # clear, but all alike
    assert clear_and_even < term(step + 0.5)  # even, but between two steps
    assert clear_and_even == pytest.approx(-2 * math.log(5), abs=0.3)
