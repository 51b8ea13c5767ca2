"""Folded trajectory attention is exact, and has the properties of the formula."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tatscli.nn.recompute import KEPT_VALUES
from tatscli.nn.trajectory import KEPT_SLICES, TrajectoryAttention, TrajectoryBlock
from tests.nn.counting import counted_macs, recomputed_trajectory_macs, trajectory_macs
from tests.nn.trajectory_reference import looped, textbook


def make(
    width: int, heads: int, slices: int, *, chunk: int | None = None, seed: int = 0
) -> TrajectoryAttention:
    torch.manual_seed(seed)
    attention = TrajectoryAttention(width, heads, slices, chunk=chunk).double()
    for parameter in attention.parameters():  # biases away from zero, attention away from flat
        torch.nn.init.normal_(parameter, std=0.5)
    return attention


def test_sub_modules_carry_motionformers_names_and_shapes() -> None:
    shapes = {name: tuple(p.shape) for name, p in TrajectoryAttention(16, 4, 2).named_parameters()}
    assert shapes == {
        "qkv.weight": (48, 16),
        "qkv.bias": (48,),
        "proj_q.weight": (16, 16),
        "proj_q.bias": (16,),
        "proj_kv.weight": (32, 16),
        "proj_kv.bias": (32,),
        "proj.weight": (16, 16),
        "proj.bias": (16,),
    }


@pytest.mark.parametrize(("slices", "sites", "heads"), [(3, 4, 2), (1, 5, 1), (4, 1, 3)])
def test_equals_the_formula_in_loops(slices: int, sites: int, heads: int) -> None:
    attention = make(6, heads, slices)
    tokens = torch.randn(2, slices * sites, 6, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(attention(tokens), looped(attention, tokens), atol=1e-12, rtol=0)


@settings(max_examples=20, deadline=None)
@given(
    st.integers(1, 5),
    st.integers(1, 7),
    st.sampled_from([1, 2, 4]),
    st.none() | st.integers(1, 6),
    st.integers(0, 2**31 - 1),
)
def test_equals_the_textbook_form_with_gradients(
    slices: int, sites: int, heads: int, chunk: int | None, seed: int
) -> None:
    attention = make(8, heads, slices, chunk=chunk, seed=seed)
    tokens = torch.randn(2, slices * sites, 8, dtype=torch.float64, requires_grad=True)
    given_out = torch.randn(2, slices * sites, 8, dtype=torch.float64)
    inputs = [tokens, *attention.parameters()]

    assert torch.equal(attention(tokens), attention.attend(tokens)[0])
    folded, folded_weights = attention.attend(tokens)
    naive, naive_weights = textbook(attention, tokens)
    torch.testing.assert_close(folded, naive, atol=1e-11, rtol=1e-11)
    torch.testing.assert_close(folded_weights, naive_weights, atol=1e-12, rtol=1e-11)
    for ours, theirs in zip(
        torch.autograd.grad(folded, inputs, given_out),
        torch.autograd.grad(naive, inputs, given_out),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=1e-9)


def test_shuffling_keys_and_values_inside_a_slice_changes_no_trajectory() -> None:
    attention = make(8, 2, 3)
    tokens = torch.randn(1, 15, 8, dtype=torch.float64)
    order = torch.cat([torch.arange(5), 5 + torch.randperm(5), 10 + torch.randperm(5)])
    paths, shuffled = attention.trajectories(tokens), attention.trajectories(tokens[:, order])
    # Queries of the first slice stand still; the second and third slice are sets to them.
    torch.testing.assert_close(paths[:, :5], shuffled[:, :5], atol=1e-12, rtol=0)
    across = torch.cat([torch.arange(5), torch.arange(10, 15), torch.arange(5, 10)])
    moved = attention.trajectories(tokens[:, across])
    assert (paths[:, :5, 1] - moved[:, :5, 1]).abs().max() > 1e-3
    torch.testing.assert_close(paths[:, :5, 1], moved[:, :5, 2], atol=1e-12, rtol=0)


def test_the_temporal_query_comes_from_the_tokens_own_slice() -> None:
    attention = make(8, 2, 3)
    tokens = torch.randn(1, 12, 8, dtype=torch.float64)
    paths = attention.trajectories(tokens)
    own = torch.stack([paths[:, n, n // 4] for n in range(12)], dim=1)
    assert attention.chunk == 2  # the second chunk holds the last slice alone
    assert torch.equal(attention._own_slice(paths[:, :8], first=0), own[:, :8])
    assert torch.equal(attention._own_slice(paths[:, 8:], first=2), own[:, 8:])


def test_temporal_attention_is_a_distribution_over_slices() -> None:
    attention = make(8, 2, 3)
    _, weights = attention.attend(torch.randn(2, 12, 8, dtype=torch.float64))
    assert weights.shape == (2, 2, 12, 3)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 12, dtype=torch.float64))


def test_the_key_bias_of_the_temporal_stage_gets_no_gradient_but_the_value_bias_does() -> None:
    attention = make(8, 2, 3)
    attention(torch.randn(1, 12, 8, dtype=torch.float64)).square().sum().backward()
    key, value = attention.proj_kv.bias.grad.chunk(2)
    assert not key.any()
    assert value.abs().min() > 0


def test_bfloat16_autocast_stays_near_float32() -> None:
    torch.manual_seed(0)
    block = TrajectoryBlock(32, 4, 4)
    tokens = torch.randn(2, 36, 32)
    exact = block(tokens)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = block(tokens)
    rounded.float().square().mean().backward()
    torch.testing.assert_close(rounded.float(), exact, atol=0.03, rtol=0.03)
    assert all(p.grad.isfinite().all() for p in block.parameters())


def test_a_width_the_heads_do_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="width 10 is not a multiple of 4 heads"):
        TrajectoryAttention(10, 4, 2)


def test_a_chunk_without_queries_is_refused() -> None:
    with pytest.raises(ValueError, match="a chunk of 0 slices"):
        TrajectoryAttention(8, 2, 2, chunk=0)


def test_trajectories_are_kept_on_short_clips_unless_a_chunk_is_asked_for() -> None:
    assert TrajectoryAttention(8, 2, KEPT_SLICES).keeps
    assert not TrajectoryAttention(8, 2, KEPT_SLICES + 1).keeps
    assert not TrajectoryBlock(8, 2, 2, chunk=1).attn.keeps


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_keeping_and_finding_again_differ_in_no_bit(
    precision: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything kept, as in a small sampler; the trajectories alone; or none of them."""
    results = []
    for small, chunk in ((KEPT_VALUES, None), (0, None), (0, 2)):
        monkeypatch.setattr("tatscli.nn.recompute.KEPT_VALUES", small)
        torch.manual_seed(0)
        block = TrajectoryBlock(32, 4, 5, chunk=chunk)
        tokens = torch.randn(2, 45, 32, requires_grad=True)
        with torch.autocast("cpu", precision, enabled=precision != torch.float32):
            out = block(tokens)
        # As in PPO, whose backward pass stands outside autocast.
        grads = torch.autograd.grad(out.float().square().sum(), [tokens, *block.parameters()])
        results.append([out, *grads])
    for everything, kept, again in zip(*results, strict=True):
        assert torch.equal(everything, kept)
        assert torch.equal(kept, again)


class Largest(TorchDispatchMode):
    """Notes the numbers in the largest tensor any operation makes."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        made = [leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        self.numel = max([self.numel, *made])
        return out


@pytest.mark.parametrize("slices", [8, 16, 32])
def test_with_a_chunk_nothing_grows_faster_than_the_clip(slices: int) -> None:
    attention = make(8, 2, slices, chunk=1)
    tokens = torch.randn(1, slices * 16, 8, dtype=torch.float64, requires_grad=True)
    saved: dict[int, int] = {}

    def save(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    weights = sum(p.untyped_storage().nbytes() for p in attention.parameters())
    with Largest() as largest, torch.autograd.graph.saved_tensors_hooks(save, lambda x: x):
        out = attention(tokens).square().sum()
        kept = sum(saved.values()) - weights
        out.backward()
    assert largest.numel == 3 * tokens.numel()  # queries, keys and values; not N x T x D or N x N
    assert kept <= 8 * tokens.nbytes


def test_without_a_chunk_long_clips_keep_every_trajectory_token() -> None:
    """The counting above sees what it claims to see."""
    attention = make(8, 2, 16, chunk=16)
    tokens = torch.randn(1, 16 * 16, 8, dtype=torch.float64, requires_grad=True)
    with Largest() as largest:
        attention(tokens).square().sum().backward()
    assert largest.numel == 16 * tokens.numel()


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [None, 1])
def test_compiled_equals_eager(chunk: int | None) -> None:
    torch.manual_seed(0)
    block = TrajectoryBlock(32, 4, 4, chunk=chunk)
    tokens = torch.randn(2, 36, 32, requires_grad=True)
    inputs = [tokens, *block.parameters()]
    results = []
    for form in (block, torch.compile(block, backend="aot_eager", fullgraph=True)):
        out = form(tokens)
        results.append([out, *torch.autograd.grad(out.square().sum(), inputs)])
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("width", "heads", "slices", "sites"), [(32, 4, 4, 9), (48, 6, 3, 16)])
def test_a_block_costs_what_the_formula_says(
    width: int, heads: int, slices: int, sites: int
) -> None:
    block = TrajectoryBlock(width, heads, slices)
    counted = counted_macs(lambda: block(torch.randn(1, slices * sites, width)))
    assert counted == trajectory_macs(slices * sites, width, heads, slices)


@pytest.mark.parametrize("small", [True, False])
@pytest.mark.parametrize("chunk", [None, 2])
def test_a_training_step_costs_three_passes_and_what_is_found_again(
    chunk: int | None, small: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    width, heads, slices, tokens = 32, 4, 4, 36
    values = tokens * width * (slices + 2 * heads)
    monkeypatch.setattr("tatscli.nn.recompute.KEPT_VALUES", values + small)
    block = TrajectoryBlock(width, heads, slices, chunk=chunk)
    given_in = torch.randn(1, tokens, width, requires_grad=True)
    counted = counted_macs(lambda: block(given_in).sum().backward(), gradients=True)
    again = recomputed_trajectory_macs(tokens, width, heads, slices, kept=chunk is None)
    if chunk is None and small:
        again = 0  # nothing is computed twice
    assert counted == 3 * trajectory_macs(tokens, width, heads, slices) + again
