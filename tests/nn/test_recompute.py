"""What is computed again equals what was not kept: values, gradients, random numbers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tatscli.masking.rl.policy import Policy
from tatscli.nn import recompute
from tatscli.nn.recompute import grouped_as_on_gpu, pays, recomputed_by_clip
from tatscli.nn.trajectory import TrajectoryBlock

VALUES = 10


def sized(monkeypatch: pytest.MonkeyPatch, clips: int) -> list[int]:
    """Let a group be of so many clips, and return a list for the groups that there will be."""
    monkeypatch.setattr(recompute, "GROUP_VALUES", clips * VALUES + VALUES // 2)
    monkeypatch.setattr(recompute, "FEWEST", 1)
    return []


@pytest.mark.parametrize("critic", ["shared", "separate"])
@pytest.mark.parametrize("trunk", ["trajectory", "mha"])
@pytest.mark.parametrize("group", [0, 1, 2, 5])
def test_clip_by_clip_the_gradient_is_that_of_all_at_once(
    trunk: str, critic: str, group: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sized(monkeypatch, group)
    torch.manual_seed(0)
    policy = Policy(grid=(3, 2, 2), inputs=6, width=16, heads=2, trunk=trunk, critic=critic)
    policy.double()
    tokens = torch.randn(5, 12, 6, dtype=torch.float64, requires_grad=True)
    inputs = [tokens, *(one for name, one in policy.named_parameters() if "trunk" in name)]

    def results(small: bool) -> tuple[Tensor, ...]:
        out = torch.stack(recomputed_by_clip(policy._trunks, tokens, values=VALUES, small=small))
        return out, *torch.autograd.grad(out.square().sum(), inputs)

    for ours, plain in zip(results(False), results(True), strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize(("clips", "sizes"), [(1, [1] * 5), (2, [2, 2, 1]), (9, [5])])
def test_a_group_has_as_many_clips_as_there_is_room_for(
    clips: int, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = sized(monkeypatch, clips)

    def stage(tokens: Tensor) -> tuple[Tensor]:
        seen.append(len(tokens))
        return (tokens.square(),)

    tokens = torch.randn(5, 3, 2, requires_grad=True)
    (out,) = recomputed_by_clip(stage, tokens, values=VALUES)
    assert seen == sizes
    out.sum().backward()
    assert seen == sizes + sizes[::-1]  # each once more, one after the other
    assert torch.equal(tokens.grad, 2 * tokens)


def test_a_group_is_at_most_a_quarter_of_the_batch() -> None:
    seen: list[int] = []

    def stage(tokens: Tensor) -> tuple[Tensor]:
        seen.append(len(tokens))
        return (tokens.square(),)

    recomputed_by_clip(stage, torch.randn(9, 3, 2, requires_grad=True), values=VALUES)
    assert seen == [2, 2, 2, 2, 1]


def test_the_memory_of_a_gpu_is_counted_with_its_groups() -> None:
    seen: list[int] = []

    def stage(tokens: Tensor) -> tuple[Tensor]:
        seen.append(len(tokens))
        return (tokens.square(),)

    tokens = torch.randn(32, 3, 2, requires_grad=True)
    values = recompute.GROUP_VALUES // 2
    recomputed_by_clip(stage, tokens, values=values)
    assert seen == [2] * 16
    seen.clear()
    with grouped_as_on_gpu():
        recomputed_by_clip(stage, tokens, values=values)
    assert seen == [8] * 4


def test_it_pays_for_batches_of_four_clips_and_more_than_one_group() -> None:
    clip = recompute.GROUP_VALUES // 4
    assert pays(4, clip) and pays(400, clip)
    assert not pays(4, clip - 1) and not pays(3, 100 * clip)


def test_stages_within_a_group_keep_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """The temporal stage of trajectory attention is not computed a third time."""
    sized(monkeypatch, 1)
    block = TrajectoryBlock(16, 2, 3)
    calls: list[int] = []
    follow = block.attn._follow

    def counted(found: object, first: int) -> tuple[Tensor, Tensor]:
        calls.append(first)
        return follow(found, first)  # type: ignore[arg-type]

    block.attn._follow = counted  # type: ignore[method-assign, assignment]
    monkeypatch.setattr(recompute, "KEPT_VALUES", 0)
    tokens = torch.randn(2, 12, 16, requires_grad=True)
    block(tokens).sum().backward()
    assert calls == [0, 2, 2, 0]
    calls.clear()
    (out,) = recomputed_by_clip(lambda x: (block(x),), tokens, values=VALUES)
    out.sum().backward()
    assert calls == [0, 2] * 4  # two clips, forward and again
    monkeypatch.setattr(recompute, "INSIDE_VALUES", 0)
    calls.clear()
    (out,) = recomputed_by_clip(lambda x: (block(x),), tokens, values=VALUES)
    out.sum().backward()
    assert len(calls) == 12


def test_without_a_graph_or_where_it_is_small_everything_runs_once_and_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = sized(monkeypatch, 1)

    def stage(tokens: Tensor) -> tuple[Tensor]:
        seen.append(len(tokens))
        return (tokens.exp(),)

    tokens = torch.randn(5, 3, 2, requires_grad=True)
    with torch.no_grad():
        recomputed_by_clip(stage, tokens, values=VALUES)
    recomputed_by_clip(stage, tokens, values=VALUES, small=True)[0].sum().backward()
    assert seen == [5, 5]


def test_dropout_drops_the_same_the_second_time(monkeypatch: pytest.MonkeyPatch) -> None:
    sized(monkeypatch, 2)
    dropout, ones = nn.Dropout(0.5), torch.ones(5, 3, 40, requires_grad=True)
    (out,) = recomputed_by_clip(
        lambda x: (dropout(x * 1.0) ** 2,), ones, values=VALUES, random=True
    )
    state = torch.get_rng_state()
    out.sum().backward()
    assert torch.equal(ones.grad, 2 * out.detach())  # 8 where it is kept, 0 where it is dropped
    assert 0 < (out == 0).float().mean() < 1
    assert torch.equal(torch.get_rng_state(), state)  # which the backward pass leaves alone
