"""The encoder: layout, positions, patch embedding, subsets, memory saving, cost."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from tatscli.engine.parallel import train_blocks
from tatscli.nn.positions import sine_cosine_table
from tatscli.nn.vit import SIZES, DropPath, Encoder, build_encoder
from tatscli.recipe.schema import Model
from tests.nn.counting import block_macs, counted_macs


def make(**changes: Any) -> Encoder:
    torch.manual_seed(0)
    settings = {"width": 32, "depth": 2, "heads": 4, "grid": (2, 3, 4), "tubelet": 2, "patch": 4}
    return Encoder(**(settings | changes))


def test_parameter_names_are_videomaes() -> None:
    names = {name for name, _ in make(depth=1).named_parameters()}
    block = {"norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"}
    block |= {"attn.qkv.weight", "attn.q_bias", "attn.v_bias", "attn.proj.weight", "attn.proj.bias"}
    block |= {f"mlp.{layer}.{part}" for layer in ("fc1", "fc2") for part in ("weight", "bias")}
    outer = {"patch_embed.proj.weight", "patch_embed.proj.bias", "norm.weight", "norm.bias"}
    assert names == outer | {f"blocks.0.{name}" for name in block}
    assert set(make().state_dict()) == {name for name, _ in make().named_parameters()}


@pytest.mark.parametrize("size", SIZES)
def test_every_size_has_its_published_number_of_parameters(size: str) -> None:
    patch = 14 if size == "giant" else 16
    with torch.device("meta"):
        encoder = build_encoder(Model(size=size, patch=patch), (8, 224 // patch, 224 // patch))
    width, depth, _, mlp = SIZES[size]
    block = 4 * width**2 + 2 * width * mlp + 8 * width + mlp
    expected = (3 * 2 * patch**2 + 1) * width + depth * block + 2 * width
    assert sum(p.numel() for p in encoder.parameters()) == expected
    # VideoMAE (B: 87 M), and VideoMAE V2 for giant.
    published = {"small": 22e6, "base": 87e6, "large": 305e6, "huge": 633e6, "giant": 1.012e9}
    if size in published:
        assert expected == pytest.approx(published[size], rel=0.02)


def test_a_model_spelled_out_is_the_one_of_that_name() -> None:
    named = Model(size="nano", drop_path=0.1)
    spelled = Model(width=128, depth=6, heads=4, drop_path=0.1)
    encoders = [build_encoder(model, (2, 2, 2)) for model in (named, spelled)]
    first, second = ({k: v.shape for k, v in one.state_dict().items()} for one in encoders)
    assert first == second
    assert [one.heads for one in encoders] == [4, 4]
    narrow = build_encoder(Model(width=48, depth=1, heads=6, mlp=40), (2, 2, 2))
    assert (narrow.width, narrow.depth, narrow.heads, narrow.mlp) == (48, 1, 6, 40)
    assert narrow.blocks[0].mlp.fc1.weight.shape == (40, 48)
    assert narrow.blocks[0].attn.heads == 6


def test_giant_is_videomae_v2s() -> None:
    with torch.device("meta"):
        giant = build_encoder(Model(size="giant", patch=14), (8, 16, 16))
    assert (giant.width, len(giant.blocks), giant.heads, giant.mlp) == (1408, 40, 16, 6144)
    assert all(block.mlp.fc1.weight.shape == (6144, 1408) for block in giant.blocks)
    assert all(block.attn.heads == 16 for block in giant.blocks)


def test_position_table_is_the_formula_entry_by_entry() -> None:
    table = sine_cosine_table(50, 6)
    for position in (0, 1, 17, 49):
        for column in range(6):
            angle = position / 10000 ** (2 * (column // 2) / 6)
            expected = math.cos(angle) if column % 2 else math.sin(angle)
            assert table[position, column].item() == pytest.approx(expected, abs=1e-6)


def test_embedding_cubes_equals_the_convolution() -> None:
    encoder = make()
    video = torch.randn(2, 3, 4, 12, 16)
    proj = encoder.patch_embed.proj
    expected = nn.functional.conv3d(video, proj.weight, proj.bias, stride=proj.stride)
    cubes = encoder.cubes(video)
    torch.testing.assert_close(encoder.embed(cubes), expected.flatten(2).transpose(1, 2))
    some = torch.tensor([3, 11, 20])
    torch.testing.assert_close(encoder.embed(cubes[:, some]), encoder.embed(cubes)[:, some])


def test_cubes_keep_the_dtype_and_every_pixel() -> None:
    video = torch.randint(0, 256, (2, 3, 4, 12, 16), dtype=torch.uint8)
    cubes = make().cubes(video)
    assert cubes.dtype == torch.uint8
    # Token 1 * 12 + 2 * 4 + 3 is the last slice, row and column; colours come last in a cube.
    assert torch.equal(cubes[1, 23].reshape(2, 4, 4, 3), video[1, :, 2:, 8:, 12:].movedim(0, -1))


def test_a_video_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"needs \(B, 3, 4, 12, 16\)"):
        make().cubes(torch.zeros(1, 3, 4, 16, 12))


def test_a_subset_gets_the_positions_of_its_indices() -> None:
    encoder = make().eval()
    tokens = torch.randn(2, 24, 32)
    everything = torch.arange(24).expand(2, -1)
    torch.testing.assert_close(encoder(tokens), encoder(tokens, everything))
    order = torch.stack([torch.randperm(24), torch.randperm(24)])
    shuffled = encoder(tokens.gather(1, order[..., None].expand(-1, -1, 32)), order)
    expected = encoder(tokens).gather(1, order[..., None].expand(-1, -1, 32))
    torch.testing.assert_close(shuffled, expected)  # attention has no order but the positions
    assert (encoder(tokens[:, :5], everything[:, :5]) - encoder(tokens)[:, :5]).abs().max() > 1e-3


def test_forward_is_the_normalised_features() -> None:
    encoder = make()
    tokens = torch.randn(1, 24, 32)
    assert torch.equal(encoder(tokens), encoder.norm(encoder.features(tokens)))
    assert encoder.norm.eps == 1e-6


def test_checkpointing_changes_memory_only() -> None:
    plain, saving = make(drop_path=0.5), make(drop_path=0.5)
    train_blocks(saving, checkpointing=True)
    assert list(saving.state_dict()) == list(plain.state_dict())
    tokens = torch.randn(8, 24, 32)
    results = []
    for encoder in (plain, saving):
        torch.manual_seed(1)
        encoder(tokens).square().sum().backward()
        results.append([p.grad for p in encoder.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_drop_path_drops_whole_clips_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    drop = DropPath(0.25)
    out = drop(torch.ones(4000, 2, 3))
    assert sorted(set(out.flatten().tolist())) == pytest.approx([0, 1 / 0.75])
    assert torch.equal(out, out[:, :1, :1].expand_as(out))
    assert out.mean().item() == pytest.approx(1, abs=0.03)
    assert torch.equal(drop.eval()(torch.ones(2, 2, 3)), torch.ones(2, 2, 3))
    rates = [1 - block.drop_path.keep.item() for block in make(depth=3, drop_path=0.2).blocks]
    assert rates == pytest.approx([0, 0.1, 0.2])


def test_start_values_are_xavier_uniform_and_zero() -> None:
    encoder = make()
    weight = encoder.blocks[0].attn.qkv.weight
    bound = math.sqrt(6 / (32 + 96))
    assert 0.95 * bound < weight.abs().max() <= bound
    assert not encoder.blocks[1].mlp.fc1.bias.any()
    assert not encoder.blocks[1].attn.q_bias.any()


@pytest.mark.parametrize("mlp", [None, 40])
def test_the_cost_is_that_of_the_tokens_given(mlp: int | None) -> None:
    """What is hidden is not even embedded."""
    encoder = make(mlp=mlp)
    cubes, index = torch.randn(1, 24, 96), torch.arange(0, 24, 3)[None]
    counted = counted_macs(lambda: encoder(encoder.embed(cubes[:, index[0]]), index))
    inner = 4 * 32 if mlp is None else mlp
    block = 8 * (4 * 32**2 + 2 * 32 * inner) + 2 * 8**2 * 32
    assert counted == 8 * 96 * 32 + 2 * block
    if mlp is None:
        assert block == block_macs(8, 32)


def test_base_costs_what_the_method_note_computes() -> None:
    with FakeTensorMode():
        encoder = build_encoder(Model(size="base"), (8, 14, 14))
        seen, cubes = torch.zeros(1, 156, 768), torch.zeros(1, 1568, 1536)
        index = torch.arange(156)[None]
        # 13.7 G for 156 visible tokens and 1.85 G for embedding all patches.
        assert counted_macs(lambda: encoder(seen, index)) == pytest.approx(13.7e9, rel=0.005)
        assert counted_macs(lambda: encoder.embed(cubes)) == pytest.approx(1.85e9, rel=0.005)
