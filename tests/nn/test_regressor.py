"""The latent regressor equals CAE's formula, and decoders see hidden positions alone."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tatscli.engine.parallel import train_blocks
from tatscli.nn.regressor import CrossBlock, MaskedDecoder, Regressor
from tests.nn.counting import block_macs, counted_macs, regressor_macs
from tests.nn.regressor_reference import looped

TOKENS, WIDTH, VISIBLE, HIDDEN = 12, 8, 4, 5
GRID = (2, 2, 3)


def shake(module: nn.Module) -> None:
    """Move biases away from zero, gammas from 0.1 and norms from one."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)


def make(depth: int, **changes: Any) -> Regressor:
    torch.manual_seed(0)
    regressor = Regressor(width=WIDTH, depth=depth, heads=2, grid=GRID, **changes)
    shake(regressor)
    return regressor


def decoder(depth: int, **changes: Any) -> MaskedDecoder:
    torch.manual_seed(0)
    part = MaskedDecoder(width=6, depth=depth, heads=2, outs=[7], grid=GRID, **changes)
    shake(part)
    return part


def plan(width: int = WIDTH) -> tuple[Tensor, Tensor, Tensor]:
    """Latents, visible and predicted tokens; some hidden tokens are not asked for."""
    torch.manual_seed(2)
    order = torch.stack([torch.randperm(TOKENS), torch.randperm(TOKENS)])
    return torch.randn(2, VISIBLE, width), order[:, :VISIBLE], order[:, -HIDDEN:]


@pytest.mark.parametrize("depth", [0, 1, 2, 4])
@pytest.mark.parametrize("changes", [{}, {"latent_width": 10, "mlp_hidden": 5}])
@torch.no_grad()
def test_equals_the_formula_in_loops(depth: int, changes: dict[str, int]) -> None:
    regressor = make(depth, **changes)
    inputs = plan(changes.get("latent_width", WIDTH))
    expected = looped(regressor, *inputs)
    assert expected.std() > 0.1
    torch.testing.assert_close(regressor(*inputs).double(), expected, atol=1e-5, rtol=0)
    exact = regressor.double()(inputs[0].double(), *inputs[1:])
    # The position table was made in float32.
    torch.testing.assert_close(exact, expected, atol=2e-6, rtol=0)


def test_a_block_starts_as_the_published_one() -> None:
    block = Regressor(width=16, depth=1, heads=4, grid=GRID).blocks[0]
    assert isinstance(block, CrossBlock)
    for gamma in (block.gamma_attn, block.gamma_mlp):
        assert torch.equal(gamma, torch.full((16,), 0.1))
        assert gamma.requires_grad
    assert block.k.bias is None
    assert not block.q.bias.any()
    assert not block.v.bias.any()
    assert block.mlp[0].weight.shape == (64, 16)
    # Xavier-uniform of each map on its own, not of the three as one.
    assert 0.8 < block.q.weight.abs().max() / (6 / 32) ** 0.5 <= 1


def test_the_last_norm_ends_the_stack() -> None:
    torch.manual_seed(0)
    regressed = Regressor(width=WIDTH, depth=2, heads=2, grid=GRID)(*plan())
    torch.testing.assert_close(regressed.mean(-1), torch.zeros(2, HIDDEN), atol=1e-6, rtol=0)
    torch.testing.assert_close(
        regressed.var(-1, correction=0), torch.ones(2, HIDDEN), atol=1e-4, rtol=0
    )


def test_visible_latents_stay_bit_identical_through_the_stack() -> None:
    regressor = make(4)
    latents, visible, predict = plan()
    kept = latents.clone()
    placed = latents + regressor.positions(visible)
    seen = []

    def note(block: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        queries, _, block_latents, block_placed = inputs
        assert torch.equal(block_latents, kept)
        assert torch.equal(block_placed, placed)
        assert output.shape == queries.shape == (2, HIDDEN, WIDTH)  # nothing comes back for them
        seen.append(queries)

    for block in regressor.blocks:
        block.register_forward_hook(note)
    regressor(latents, visible, predict)
    assert torch.equal(latents, kept)
    assert torch.equal(seen[0], regressor.mask_token.expand(2, HIDDEN, -1))
    assert all((a - b).abs().max() > 1e-2 for a, b in pairwise(seen))


@torch.no_grad()
def test_visible_tokens_are_a_set() -> None:
    regressor = make(4)
    latents, visible, predict = plan()
    straight = regressor(latents, visible, predict)
    order = torch.tensor([2, 0, 3, 1])
    together = regressor(latents[:, order], visible[:, order], predict)
    torch.testing.assert_close(together, straight, atol=1e-6, rtol=0)
    # Shuffling one without the other puts contents elsewhere.
    assert (regressor(latents[:, order], visible, predict) - straight).abs().max() > 1e-2


@torch.no_grad()
def test_regressed_latents_belong_to_their_tokens_in_any_order() -> None:
    regressor = make(3)
    latents, visible, predict = plan()
    order = torch.randperm(HIDDEN)
    straight, shuffled = (regressor(latents, visible, p) for p in (predict, predict[:, order]))
    torch.testing.assert_close(shuffled, straight[:, order], atol=1e-6, rtol=0)


@torch.no_grad()
def test_a_hidden_index_counts_only_through_its_position() -> None:
    regressor = make(3)
    latents, visible, predict = plan()
    free = next(i for i in range(TOKENS) if i not in visible[0] and i not in predict[0])
    moved = predict.clone()
    moved[0, 1] = free
    straight, elsewhere = (regressor(latents, visible, p) for p in (predict, moved))
    changed = (elsewhere - straight).abs().amax(-1)
    assert (changed[0] > 1e-4).all()  # the moved token and, as a key, all others of its clip
    assert not changed[1].any()
    regressor.positions.table_ND[free] = regressor.positions(predict[0, 1])
    assert torch.equal(regressor(latents, visible, moved)[0], straight[0])


@torch.no_grad()
def test_values_carry_no_position() -> None:
    """With attention forced flat, positions can enter through values only, and do not."""
    regressor = make(1)
    for block in regressor.blocks:
        assert isinstance(block, CrossBlock)
        nn.init.zeros_(block.k.weight)
    latents, visible, predict = plan()
    elsewhere = regressor(latents, (visible + 1) % TOKENS, (predict + 5) % TOKENS)
    assert torch.equal(regressor(latents, visible, predict), elsewhere)


@torch.no_grad()
def test_hidden_tokens_that_are_not_asked_for_are_no_keys() -> None:
    regressor = make(2)
    latents, visible, predict = plan()
    few, everything = (regressor(latents, visible, p) for p in (predict[:, :2], predict))
    assert (few - everything[:, :2]).abs().max() > 1e-3
    torch.testing.assert_close(
        few.double(), looped(regressor, latents, visible, predict[:, :2]), atol=1e-5, rtol=0
    )


def test_depth_zero_is_the_mask_token_and_nothing_else() -> None:
    regressor = Regressor(width=WIDTH, depth=0, heads=2, grid=GRID, latent_width=10)
    assert [name for name, _ in regressor.named_parameters()] == ["mask_token"]
    assert regressor.mask_token.abs().max() > 0
    _, visible, predict = plan()
    regressed = regressor(torch.full((2, VISIBLE, 10), torch.nan), visible, predict)
    assert torch.equal(regressed, regressor.mask_token.expand(2, HIDDEN, -1))
    assert counted_macs(lambda: regressor(torch.ones(2, VISIBLE, 10), visible, predict)) == 0


@pytest.mark.parametrize("latent_width", [WIDTH, 10])
def test_two_decoders_send_gradients_to_latents_and_every_parameter(latent_width: int) -> None:
    regressor = make(2, latent_width=latent_width)
    latents, visible, predict = plan(latent_width)
    latents.requires_grad_()
    grads = []
    for part in (decoder(2, input_width=WIDTH), decoder(1, input_width=WIDTH)):
        predictions = part(regressor(latents, visible, predict), predict)[0]
        parameters = [latents, *regressor.parameters(), *part.parameters()]
        grads.append(torch.autograd.grad(predictions.square().sum(), parameters))
        assert all(grad.abs().max() > 0 for grad in grads[-1])
        assert (grads[-1][0].abs().amax(-1) > 0).all()  # each visible token of each clip
    assert not torch.equal(grads[0][0], grads[1][0])


@pytest.mark.parametrize("depth", [0, 1, 3, 8])
@torch.no_grad()
def test_decoders_see_hidden_positions_alone(depth: int) -> None:
    part = decoder(depth, input_width=WIDTH)
    latents, visible, predict = plan()
    broken = torch.full_like(latents, torch.nan)
    # Straight past the visible tokens: depth 0 hands on mask tokens alone.
    assert part(make(0)(broken, visible, predict), predict)[0].isfinite().all()
    # Whatever of them reaches the predictions came through the regressor's guesses.
    assert part(make(1)(broken, visible, predict), predict)[0].isnan().all()
    # Hidden positions that are not asked for, and visible ones, have no row in the input.
    regressed = make(1)(latents, visible, predict)
    straight = part(regressed, predict)[0]
    asked = torch.zeros(TOKENS, dtype=torch.bool).index_fill(0, predict.flatten(), True)
    part.positions.table_ND[~asked] = torch.nan
    assert torch.equal(part(regressed, predict)[0], straight)


@torch.no_grad()
def test_decoder_adds_positions_once_before_the_first_block() -> None:
    part = decoder(2)
    torch.manual_seed(3)
    regressed, (_, _, predict) = torch.randn(2, HIDDEN, 6), plan()
    tokens = regressed + part.positions(predict)
    for block in part.blocks:
        tokens = block(tokens)
    expected = nn.functional.layer_norm(tokens, (6,), part.norm.weight, part.norm.bias, eps=1e-6)
    expected = expected @ part.head.weight.T + part.head.bias
    assert part(regressed, predict)[0].shape == (2, HIDDEN, 7)
    torch.testing.assert_close(part(regressed, predict)[0], expected, atol=1e-6, rtol=0)


@torch.no_grad()
def test_tokens_meet_in_the_decoders_blocks_and_only_there() -> None:
    torch.manual_seed(3)
    regressed, (_, _, predict) = torch.randn(2, HIDDEN, 6), plan()
    other = regressed.clone()
    other[:, 0] = torch.randn(2, 6)
    for depth, reached in ((0, False), (1, True)):
        part = decoder(depth)
        change = (part(other, predict)[0] - part(regressed, predict)[0]).abs().amax(-1)
        assert (change[:, 0] > 1e-3).all()
        assert bool((change[:, 1:] > 1e-5).all()) == bool(change[:, 1:].any()) == reached


def test_checkpointing_changes_no_bit() -> None:
    results = []
    for checkpointing in (False, True):
        regressor, part = make(3), decoder(2, input_width=WIDTH)
        for module in (regressor, part):
            train_blocks(module, checkpointing=checkpointing)
        latents, visible, predict = plan()
        latents.requires_grad_()
        out = part(regressor(latents, visible, predict), predict)[0]
        parameters = [latents, *regressor.parameters(), *part.parameters()]
        results.append([out, *torch.autograd.grad(out.square().sum(), parameters)])
    for plain, again in zip(*results, strict=True):
        assert torch.equal(plain, again)


@pytest.mark.parametrize("latent_width", [32, 48])
def test_bfloat16_autocast_stays_near_float32(latent_width: int) -> None:
    torch.manual_seed(0)
    regressor = Regressor(width=32, depth=4, heads=4, grid=GRID, latent_width=latent_width)
    train_blocks(regressor, checkpointing=True)
    part = MaskedDecoder(width=16, depth=2, heads=2, outs=[7], grid=GRID, input_width=32)
    latents, visible, predict = plan(latent_width)
    regressed = regressor(latents, visible, predict)
    exact = part(regressed, predict)[0]
    with torch.autocast("cpu", torch.bfloat16):
        rounded_regressed = regressor(latents, visible, predict)
        rounded = part(rounded_regressed, predict)[0]
    assert rounded_regressed.dtype == torch.float32  # the stream between blocks is not rounded
    torch.testing.assert_close(rounded_regressed, regressed, atol=0.03, rtol=0.03)
    torch.testing.assert_close(rounded.float(), exact, atol=0.05, rtol=0.05)
    rounded.float().square().mean().backward()
    for parameter in [*regressor.parameters(), *part.parameters()]:
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()


@pytest.mark.parametrize("mlp_hidden", [None, 20])
def test_the_cost_is_that_of_the_tokens_asked_for(mlp_hidden: int | None) -> None:
    latents, visible, predict = (x[:1] for x in plan())
    regressor = make(3, mlp_hidden=mlp_hidden)
    counted = counted_macs(lambda: regressor(latents, visible, predict))
    assert counted == regressor_macs(VISIBLE, HIDDEN, WIDTH, 3, mlp_hidden or 4 * WIDTH)
    for input_width, narrow in ((6, 0), (WIDTH, HIDDEN * WIDTH * 6)):
        part = decoder(2, input_width=input_width)
        regressed = torch.randn(1, HIDDEN, input_width)
        expected = narrow + 2 * block_macs(HIDDEN, 6) + HIDDEN * 6 * 7
        assert counted_macs(lambda p=part, r=regressed: p(r, predict)) == expected


def test_what_cannot_be_built_is_refused() -> None:
    with pytest.raises(ValueError, match="width 10 is not a multiple of 4 heads"):
        CrossBlock(10, 4)
    with pytest.raises(ValueError, match="layer-scale 0 closes"):
        CrossBlock(8, 2, layer_scale=0)
    with pytest.raises(ValueError, match="-1 blocks"):
        Regressor(width=8, depth=-1, heads=2, grid=GRID)
    with pytest.raises(ValueError, match="-1 blocks"):
        decoder(-1)
