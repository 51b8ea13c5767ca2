"""Positions: VideoMAE's for a grid, or those of another grid, interpolated and then kept."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from tatscli.engine.checkpoint import find_checkpoint, restore_part
from tatscli.engine.part import Weights
from tatscli.errors import CheckpointError
from tatscli.nn.load import copy_weights, fits, load_encoder, positions_moved
from tatscli.nn.positions import (
    Positions,
    carried_over,
    interpolated,
    position_tables,
    sine_cosine_table,
)
from tatscli.nn.vit import build_encoder
from tatscli.recipe.schema import Recipe
from tatscli.system.system import build_system
from tests.teaching import recipe_of, write_run

GRIDS = st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(1, 4))


def by_hand(table_ND: Tensor, before: Any, grid: Any) -> np.ndarray:
    """Trilinear interpolation of cell centres, cell by cell, in double precision."""
    width = table_ND.shape[1]
    values = table_ND.double().numpy().reshape(*before, width)
    result = np.zeros((*grid, width))
    for place in itertools.product(*(range(side) for side in grid)):
        corners = []
        for at, old, new in zip(place, before, grid, strict=True):
            where = max(0.0, (at + 0.5) * old / new - 0.5)
            low = min(int(where), old - 1)
            share = where - low
            corners.append([(low, 1 - share), (min(low + 1, old - 1), share)])
        for (t, a), (y, b), (x, c) in itertools.product(*corners):
            result[place] += a * b * c * values[t, y, x]
    return result.reshape(-1, width)


@settings(max_examples=40)
@given(before=GRIDS, grid=GRIDS)
def test_interpolation_is_trilinear_between_the_middles_of_cells(before: Any, grid: Any) -> None:
    torch.manual_seed(0)
    table_ND = torch.randn(before[0] * before[1] * before[2], 3)
    found = interpolated(table_ND, before, grid)
    assert found.dtype == torch.float32 and found.is_contiguous()
    np.testing.assert_allclose(found.numpy(), by_hand(table_ND, before, grid), atol=1e-5)


def test_the_published_growth_from_16_to_128_frames() -> None:
    table_ND = sine_cosine_table(8 * 14 * 14, 12)
    found = interpolated(table_ND, (8, 14, 14), (64, 14, 14))
    np.testing.assert_allclose(
        found.numpy(), by_hand(table_ND, (8, 14, 14), (64, 14, 14)), atol=1e-5
    )


@given(grid=GRIDS)
def test_the_same_grid_changes_no_bit_and_keeps_nothing(grid: Any) -> None:
    module = Positions(grid, 6)
    other = torch.randn(module.table_ND.shape)
    assert torch.equal(interpolated(other, grid, grid), other)
    done, words = carried_over(module, {}, grid)
    assert (done, words) == ({}, "")
    done, words = carried_over(module, {"table_ND": other}, grid)
    assert words == "" and done["table_ND"] is other


def test_as_built_they_are_videomaes_and_no_part_of_a_checkpoint() -> None:
    module = Positions((2, 3, 4), 6)
    assert torch.equal(module(), sine_cosine_table(24, 6))
    index = torch.tensor([[3, 0], [23, 7]])
    assert torch.equal(module(index), sine_cosine_table(24, 6)[index])
    assert module.state_dict() == {} and not list(module.parameters()) and not module.kept


def test_a_state_dict_says_which_positions_there_are() -> None:
    first, second, plain = (nn.Sequential(Positions((1, 2, 2), 4)) for _ in range(3))
    own = torch.randn(4, 4)
    first.load_state_dict({"0.table_ND": own})
    assert first[0].kept and first.state_dict().keys() == {"0.table_ND"}
    alias = second[0].table_ND
    second.load_state_dict(first.state_dict())
    assert torch.equal(second[0](), own) and second[0].table_ND is alias
    twin = copy.deepcopy(second)
    assert twin[0].kept and torch.equal(twin.state_dict()["0.table_ND"], own)
    own.zero_()  # what was loaded is a copy
    assert second[0]().abs().sum() > 0
    second.load_state_dict(plain.state_dict())
    assert torch.equal(second[0](), plain[0]()) and second.state_dict() == {}
    with pytest.raises(RuntimeError, match=r"0\.table_ND have shape \(6, 4\).*1 x 2 x 2 needs"):
        first.load_state_dict({"0.table_ND": torch.zeros(6, 4)})


def test_a_large_grid_costs_nothing_on_the_meta_device() -> None:
    with torch.device("meta"):
        module = Positions((64, 14, 14), 768)
    assert module().is_meta and module().shape == (12544, 768)


def grown(frames: int, **changes: Any) -> Recipe:
    return recipe_of(**{"data": {"store": "", "frames": frames, "size": 32}} | changes)


HEADS = {
    "decoder": {"kind": "decoder", "depth": 1},
    "shared": {"kind": "decoder", "depth": 1, "shared": True},
    "regressor": {"kind": "regressor", "depth": 1, "regressor_depth": 1},
}


@pytest.mark.parametrize("head", HEADS)
def test_a_whole_system_goes_to_another_grid_and_on_from_there(tmp_path: Path, head: str) -> None:
    given = {"head": HEADS[head], "targets": [{"kind": "pixels"}, {"kind": "difference"}]}
    write_run(tmp_path / "short", **given)
    start = find_checkpoint(tmp_path / "short")
    assert not any("position" in name for name in start.tensors("model"))
    longer = build_system(grown(12, **given)).autoencoder
    tables = position_tables(longer)
    assert len(tables) == {"decoder": 3, "shared": 2, "regressor": 4}[head]
    model = start.tensors("model")
    assert fits(longer, model, start)
    copied = copy_weights(longer, model, start)
    assert str(copied) == (
        f"{len(model)} tensors; positions of 2 x 4 x 4 tokens interpolated to 6 x 4 x 4"
    )
    for name, one in tables.items():
        expected = by_hand(sine_cosine_table(32, one.width), (2, 4, 4), (6, 4, 4))
        np.testing.assert_allclose(longer.state_dict()[name].numpy(), expected, atol=1e-5)
    # Saved and restored, they are the same to the bit, in modules that know no history.
    again = build_system(grown(12, **given)).autoencoder
    again.load_state_dict(longer.state_dict())
    assert again.state_dict().keys() == longer.state_dict().keys()
    for name, value in longer.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_kept_positions_go_on_from_themselves(tmp_path: Path) -> None:
    write_run(tmp_path / "first")
    start = find_checkpoint(tmp_path / "first")
    encoder = build_encoder(grown(6).model, (3, 4, 4))
    load_encoder(encoder, start)
    own = torch.randn(encoder.positions.table_ND.shape)
    encoder.positions.table_ND.copy_(own)
    write_run(tmp_path / "second", data={"store": "", "frames": 6, "size": 32})
    tensors = {f"encoder.{name}": one for name, one in encoder.state_dict().items()}
    second = find_checkpoint(tmp_path / "second")
    save_file(tensors, second.path / "model.safetensors")

    same = build_encoder(grown(6).model, (3, 4, 4))
    assert str(load_encoder(same, second)) == f"{len(tensors)} tensors"
    assert torch.equal(same.positions(), own) and same.positions.kept
    wider = build_encoder(grown(6).model, (5, 4, 4))
    words = str(load_encoder(wider, second))
    assert words.startswith(f"{len(tensors) - 1} tensors; positions of 3 x 4 x 4 tokens")
    expected = by_hand(own, (3, 4, 4), (5, 4, 4))
    np.testing.assert_allclose(wider.positions().numpy(), expected, atol=1e-5)
    assert positions_moved(second, grown(6)) == ""
    assert "interpolated to 5 x 4 x 4" in positions_moved(second, grown(10))


def test_another_width_or_patch_is_refused_as_before(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    start = find_checkpoint(tmp_path / "run")
    sizes = {"width": 16, "depth": 1, "heads": 2, "patch": 8}
    for change in ({"width": 32}, {"patch": 16}, {"tubelet": 1}):
        recipe = grown(4, model=sizes | change)
        with pytest.raises(CheckpointError, match=r"\d+ of \d+ tensors match"):
            load_encoder(build_encoder(recipe.model, recipe.grid), start)


def test_positions_that_do_not_fit_a_grid_are_a_users_error(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    start = find_checkpoint(tmp_path / "run")
    wrong = start.tensors("model") | {"encoder.positions.table_ND": torch.zeros(7, 16)}
    save_file(wrong, start.path / "model.safetensors")
    system = build_system(grown(4))
    with pytest.raises(CheckpointError, match="does not fit the recipe"):
        restore_part("model", Weights(system.autoencoder), start)
    for encoder in (system.encoder, build_encoder(grown(8).model, (4, 4, 4))):
        with pytest.raises(CheckpointError, match=r"is `positions.table_ND`"):
            load_encoder(encoder, start)


def test_a_slow_copy_follows_to_the_new_grid(tmp_path: Path) -> None:
    given = {"targets": [{"kind": "ema"}]}
    write_run(tmp_path / "run", **given)
    start = find_checkpoint(tmp_path / "run")
    system = build_system(grown(8, **given))
    copy_weights(system.autoencoder, start.tensors("model"), start)
    system.follow()
    target = system.targets["ema"]
    network = target.average.network  # type: ignore[attr-defined]
    assert torch.equal(network.positions(), system.encoder.positions())
    kept = target.tensors()
    assert "positions.table_ND" in kept
    fresh = build_system(grown(8, **given)).targets["ema"]
    fresh.load(kept)
    assert torch.equal(fresh.average.network.positions(), network.positions())  # type: ignore[attr-defined]
