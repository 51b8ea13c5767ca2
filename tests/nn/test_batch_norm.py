"""BatchNorm without weights: torch's numbers, and no trace of what is not finite."""

from __future__ import annotations

import torch
from torch import nn

from tatscli.nn.batch_norm import BatchNorm


def test_it_computes_what_torch_does() -> None:
    torch.manual_seed(0)
    ours, torchs = BatchNorm(5), nn.BatchNorm1d(5, affine=False, eps=1e-6)
    for step in range(4):
        one = (torch.randn(7, 5) * 3 + step).requires_grad_()
        other = one.detach().clone().requires_grad_()
        (ours(one).pow(3)).sum().backward()
        (torchs(other).pow(3)).sum().backward()
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(ours(one), torchs(other), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.running_mean_D, torchs.running_mean)
    torch.testing.assert_close(ours.running_var_D, torchs.running_var)
    given = torch.randn(3, 5)
    torch.testing.assert_close(ours.eval()(given), torchs.eval()(given))


def test_what_all_clips_share_goes_and_what_tells_them_apart_stays() -> None:
    norm = BatchNorm(4)
    signs = torch.tensor([1.0, -1.0, 1.0, -1.0])[:, None]
    out = norm(100 + 1e-2 * signs * torch.ones(4))
    torch.testing.assert_close(out, signs.expand(4, 4), rtol=1e-2, atol=1e-2)


def test_numbers_that_are_not_finite_leave_no_trace() -> None:
    norm = BatchNorm(2)
    norm(torch.tensor([[1.0, 2.0], [3.0, 5.0]]))
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    norm(torch.tensor([[1.0, 2.0], [torch.inf, 5.0]]))
    for name, value in norm.state_dict().items():
        assert torch.equal(value, before[name])
