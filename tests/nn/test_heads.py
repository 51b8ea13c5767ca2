"""The MAE decoder: subsets, branches, defaults, cost."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tatscli.nn.heads import DecoderHead, build_head
from tatscli.nn.vit import Encoder
from tatscli.recipe import schema
from tests.nn.counting import counted_macs


def make(widths: list[int], **changes: Any) -> DecoderHead:
    torch.manual_seed(0)
    encoder = Encoder(width=32, depth=1, heads=4, grid=(2, 3, 4), tubelet=2, patch=4)
    head = build_head(schema.DecoderHead(depth=2, **changes), encoder=encoder, widths=widths)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return head


def plan() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    order = torch.stack([torch.randperm(24), torch.randperm(24)])
    visible, predict = order[:, :6].sort(1).values, order[:, 6:].sort(1).values
    return torch.randn(2, 6, 32), visible, predict


def test_names_below_a_branch_are_videomaes() -> None:
    names = {name for name in make([10]).branches[0].state_dict() if ".blocks." not in name}
    assert names == {
        "encoder_to_decoder.weight",
        "mask_token",
        "decoder.norm.weight",
        "decoder.norm.bias",
        "decoder.head.weight",
        "decoder.head.bias",
    }


@pytest.mark.parametrize(
    ("changes", "expected"),
    [({}, (16, 2)), ({"width": 24, "heads": 3}, (24, 3)), ({"width": 8}, (8, 2))],
)
def test_null_settings_are_half_the_encoders(
    changes: dict[str, int], expected: tuple[int, int]
) -> None:
    head = make([10], **changes)
    assert (head.width, head.heads) == expected
    assert head(*plan())[0].shape == (2, 18, 10)


def test_every_target_has_its_own_branch() -> None:
    head = make([10, 3])
    latents, visible, predict = plan()
    first, second = head(latents, visible, predict)
    assert first.shape == (2, 18, 10)
    assert second.shape == (2, 18, 3)
    first.sum().backward()
    assert all(p.grad is not None for p in head.branches[0].parameters())
    assert all(p.grad is None for p in head.branches[1].parameters())


def test_predicting_fewer_tokens_leaves_the_others_out_of_the_decoder() -> None:
    head = make([10])
    latents, visible, predict = plan()
    (few,) = head(latents, visible, predict[:, :4])
    assert few.shape == (2, 4, 10)
    (everything,) = head(latents, visible, predict)
    # Absent mask tokens are no keys either: the result is not a slice of the full one.
    assert (few - everything[:, :4]).abs().max() > 1e-3
    counted = counted_macs(lambda: head(latents[:1], visible[:1], predict[:1, :4]))
    assert head.macs(6, 4) == counted


def test_predictions_belong_to_their_tokens_in_any_order() -> None:
    head = make([10])
    latents, visible, predict = plan()
    order = torch.randperm(18)
    (straight,) = head(latents, visible, predict)
    (shuffled,) = head(latents, visible, predict[:, order])
    torch.testing.assert_close(shuffled, straight[:, order])


def test_macs_add_up_over_branches() -> None:
    head = make([10, 3])
    latents, visible, predict = plan()
    assert head.macs(6, 18) == counted_macs(lambda: head(latents[:1], visible[:1], predict[:1]))


def test_one_head_at_least() -> None:
    encoder = Encoder(width=8, depth=1, heads=1, grid=(1, 2, 2), tubelet=1, patch=2)
    assert DecoderHead(schema.DecoderHead(), encoder=encoder, widths=[2]).heads == 1
