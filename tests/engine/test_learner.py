"""One learner: steps left out bit for bit, clipping, moments through plain tensors, ranks."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from tatscli.engine.learner import Learner
from tatscli.engine.optim import build_optimizer, set_lr
from tatscli.recipe.schema import Optim
from tests.engine.toy import ToyModel


def make(*, fused: bool = True, seed: int = 0, **options: Any) -> Learner:
    torch.manual_seed(seed)
    model = ToyModel().eval()  # without dropout
    optimizer = build_optimizer(model, Optim(base_lr=0.1))
    if not fused:
        optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    return Learner(model, optimizer, lr=lambda step: 0.01 * (step + 1), **options)


def loss_of(learner: Learner, seed: int, factor: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return factor * learner.module(torch.randn(4, 6, generator=generator)).square().mean()


def step(learner: Learner, seed: int, factor: float = 1.0, **how: Any) -> Tensor | None:
    learner.begin(seed)
    loss_of(learner, seed, factor).backward()
    return learner.update(**how)


def state_of(learner: Learner) -> dict[str, Tensor]:
    weights = learner.module.state_dict()
    return {key: one.clone() for key, one in (weights | learner.tensors()).items()}


def assert_equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    assert [key for key in first if not torch.equal(first[key], second[key])] == []


def test_the_optimiser_of_a_cpu_is_fused() -> None:
    assert make().optimizer.defaults["fused"]
    assert not make(fused=False).optimizer.defaults["fused"]


@pytest.mark.parametrize("clip_grad", [None, 0.1])
@pytest.mark.parametrize("factor", [math.nan, math.inf, 1e38])
@pytest.mark.parametrize("fused", [True, False])
def test_a_gradient_that_is_not_finite_changes_no_bit(
    fused: bool, factor: float, clip_grad: float | None
) -> None:
    """Weights, moments and their count: later steps are those of a twin that never saw it."""
    learner, twin = (make(fused=fused, clip_grad=clip_grad) for _ in range(2))
    for number in range(2):
        step(learner, number)
        step(twin, number)
    before = state_of(learner)
    for _ in range(2):
        norm = step(learner, 2, factor)
        assert norm is not None
        assert not norm.isfinite()
        assert_equal(state_of(learner), before)
    assert all(one.grad is None for one in learner.module.parameters())
    step(learner, 3)
    step(twin, 3)
    assert_equal(state_of(learner), state_of(twin))
    assert not torch.equal(learner.module.layers[0].weight, before["layers.0.weight"])


def test_a_first_step_that_is_not_finite_changes_no_weight() -> None:
    learner, twin = make(), make()
    step(learner, 0, math.nan)
    step(learner, 1)
    step(twin, 1)
    assert_equal(state_of(learner), state_of(twin))


@pytest.mark.parametrize("fused", [True, False])
def test_a_step_can_be_left_out_and_is_no_bad_one(fused: bool) -> None:
    learner = make(fused=fused)
    step(learner, 0)
    before = state_of(learner)
    norm = step(learner, 1, skip=torch.tensor(True))
    assert norm is not None and norm.isfinite()
    assert_equal(state_of(learner), before)
    step(learner, 1, skip=torch.tensor(False))
    assert not torch.equal(learner.module.layers[0].weight, before["layers.0.weight"])


@pytest.mark.parametrize("fused", [True, False])
def test_halted_it_makes_no_update_any_more(fused: bool) -> None:
    learner = make(fused=fused)
    learner.halted = torch.tensor(False)
    step(learner, 0)
    before = state_of(learner)
    learner.halted |= torch.tensor(True)
    step(learner, 1)
    learner.learn(loss_of(learner, 2))
    assert_equal(state_of(learner), before)
    assert learner.left_out is not None and learner.left_out


def test_without_gradients_there_is_no_step() -> None:
    learner = make()
    before = state_of(learner)
    assert learner.update() is None
    assert_equal(state_of(learner), before)


def test_the_norm_is_that_before_clipping() -> None:
    learner = make(clip_grad=0.01)
    kept: list[Tensor] = []

    def note(*_: Any) -> None:
        gradients = [one.grad.flatten() for one in learner.module.parameters()]
        kept.append(torch.cat(gradients).norm())

    learner.optimizer.register_step_pre_hook(note)
    loss_of(learner, 0).backward()
    gradients = [one.grad.flatten() for one in learner.module.parameters() if one.grad is not None]
    expected = torch.cat(gradients).norm()
    norm = learner.update()
    assert norm is not None
    torch.testing.assert_close(norm, expected)
    assert expected > 0.02
    assert kept[0].item() == pytest.approx(0.01, rel=1e-3)


def test_beginning_a_step_sets_the_rate_of_every_group() -> None:
    learner = make()
    learner.optimizer.param_groups[1]["lr_scale"] = 0.5
    assert learner.begin(7) == pytest.approx(0.08)
    assert learner.step == 7
    assert [group["lr"] for group in learner.optimizer.param_groups] == pytest.approx([0.08, 0.04])


def test_a_step_of_its_own_is_backward_and_update_outside_of_autocast() -> None:
    learner, twin = make(), make()
    assert learner.begin(3) == twin.begin(3)
    loss = loss_of(learner, 0)
    with torch.autocast("cpu", torch.bfloat16):
        norm = learner.learn(loss)
    loss_of(twin, 0).backward()
    expected = twin.update()
    assert expected is not None and torch.equal(norm, expected)
    assert_equal(state_of(learner), state_of(twin))
    assert learner.left_out is not None and not learner.left_out
    before = state_of(learner)
    learner.learn(loss_of(learner, 1), skip=torch.tensor(True))
    assert_equal(state_of(learner), before)
    assert learner.left_out


def test_a_step_of_its_own_over_a_share_of_the_videos_has_that_share_of_the_rate() -> None:
    learner, twin = make(), make()
    learner.begin(3)
    learner.learn(loss_of(learner, 0), share=0.25)
    set_lr(twin.optimizer, 0.25 * 0.04)
    loss_of(twin, 0).backward()
    twin.update()
    assert_equal(state_of(learner), state_of(twin))


@pytest.mark.parametrize("fused", [True, False])
def test_moments_survive_the_way_through_plain_tensors(fused: bool) -> None:
    first, second = make(fused=fused), make(fused=fused, seed=1)
    step(first, 0)
    assert {key.rsplit("/", 1)[1] for key in first.tensors()} == {"step", "exp_avg", "exp_avg_sq"}
    second.module.load_state_dict(first.module.state_dict())
    second.load(first.tensors())
    step(first, 1)
    step(second, 1)
    assert_equal(state_of(first), state_of(second))


def test_loaded_moments_are_copies_and_replace_what_was_there() -> None:
    first, second = make(), make()
    step(first, 0)
    for number in range(3):
        step(second, number)
    given = first.tensors()
    second.load(given)
    assert_equal(second.tensors(), given)
    before = {name: one.clone() for name, one in given.items()}
    step(second, 4)
    assert_equal(given, before)
    second.load({})
    assert not second.tensors()


def test_forgetting_drops_the_moments_and_not_the_weights() -> None:
    learner, fresh = make(), make(seed=1)
    step(learner, 0)
    learner.forget()
    assert not learner.tensors()
    fresh.module.load_state_dict(learner.module.state_dict())
    step(learner, 1)
    step(fresh, 1)
    assert_equal(state_of(learner), state_of(fresh))


def _rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    learner = make(averages=True)
    norms = []
    for number in range(3):
        # One rank's trouble is everybody's.
        factor = math.nan if (rank, number) == (1, 1) else 1.0
        learner.begin(number)
        loss_of(learner, 10 * number + rank, factor).backward()
        norm = learner.update()
        assert norm is not None
        norms.append(norm)
    bad = [not norm.isfinite() for norm in norms]
    result = {"state": state_of(learner), "bad": bad, "norms": norms}
    torch.save(result, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_ranks_average_their_gradients_and_leave_out_the_same_steps(tmp_path: Path) -> None:
    mp.spawn(_rank, args=(str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert_equal(first["state"], second["state"])
    assert first["bad"] == second["bad"] == [False, True, False]
    alone = make()
    for number in (0, 2):
        alone.begin(number)
        for rank in (0, 1):
            (loss_of(alone, 10 * number + rank) / 2).backward()
        norm = alone.update()
        torch.testing.assert_close(norm, first["norms"][number])
    for name, value in alone.module.state_dict().items():
        torch.testing.assert_close(first["state"][name], value)
