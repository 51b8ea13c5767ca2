"""`ema`: a slow copy of the encoder, step by step, and what it is asked."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tatscli.data.clip import Clip
from tatscli.draws import Draws
from tatscli.errors import RecipeError
from tatscli.nn.averaged import ramped
from tatscli.recipe.schema import Recipe
from tatscli.system.cost import system_cost
from tatscli.system.system import System, build_system
from tatscli.targets import AllTargets
from tatscli.targets.ema import EmaTarget

TOKENS = 32


def recipe_of(target: dict[str, Any], **model: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "data": {"store": "", "frames": 4, "size": 16, "mean": [0.5] * 3, "std": [0.25] * 3},
            "model": {"width": 16, "depth": 3, "heads": 2, "patch": 4} | model,
            "mask": {"kind": "random", "ratio": 0.75},
            "head": {"kind": "decoder", "depth": 1},
            "targets": [{"kind": "ema"} | target],
        }
    )


def make(model: dict[str, Any] | None = None, **target: Any) -> System:
    torch.manual_seed(0)
    return build_system(recipe_of(target, **model or {})).train()


def target_of(system: System) -> EmaTarget:
    target = system.targets["ema"]
    assert isinstance(target, EmaTarget)
    return target


def clip_of(system: System) -> Clip:
    generator = torch.Generator().manual_seed(1)
    video = torch.randint(0, 256, (2, 3, 4, 16, 16), dtype=torch.uint8, generator=generator)
    return system.clip(video)


INDEX = torch.tensor([[1, 5, 30], [0, 2, 9]])


def shake(system: System, by: float = 0.1) -> None:
    """Move the encoder's weights, as an optimiser does."""
    with torch.no_grad():
        for parameter in system.encoder.parameters():
            parameter.add_(torch.randn_like(parameter) * by)


def normed(features: Tensor) -> Tensor:
    centred = features - features.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()


def test_its_weights_are_those_of_the_formula_step_by_step() -> None:
    system = make(momentum=0.9, momentum_end=0.99)
    target = target_of(system)
    expected = {name: one.double() for name, one in system.encoder.named_parameters()}
    for done in range(1, 6):
        shake(system)
        lesson = target.after_step(done, 5)
        momentum = 0.9 + 0.09 * (done - 1) / 4
        assert lesson.metrics["momentum"] == pytest.approx(momentum)
        now = dict(system.encoder.named_parameters())
        expected = {
            name: momentum * one + (1 - momentum) * now[name].double()
            for name, one in expected.items()
        }
        for name, one in target.average.network.named_parameters():
            torch.testing.assert_close(one.double(), expected[name], atol=1e-6, rtol=0)
    assert (system.encoder.norm.weight - target.average.network.norm.weight).abs().max() > 0.01


@pytest.mark.parametrize(
    ("ramp", "shares"),
    [("linear", [0, 0.25, 0.5, 0.75, 1]), ("cosine", [0, 0.5 - 0.5**1.5, 0.5, 0.5 + 0.5**1.5, 1])],
)
def test_the_momentum_goes_from_its_start_to_its_end(ramp: str, shares: list[float]) -> None:
    target = target_of(make(momentum=0.8, momentum_end=1.0, ramp=ramp))
    found = [target.momentum(done, 5) for done in range(1, 6)]
    assert found == pytest.approx([0.8 + 0.2 * share for share in shares])
    assert target.momentum(1, 1) == 0.8
    assert ramped(0, 1, 1 / 3, cosine=True) == pytest.approx(0.5 - 0.5 * math.cos(math.pi / 3))


def test_a_momentum_of_0_is_the_encoder_and_of_1_never_moves() -> None:
    for momentum in (0.0, 1.0):
        system = make(momentum=momentum, momentum_end=momentum)
        start = copy.deepcopy(system.encoder.state_dict())
        shake(system)
        target_of(system).after_step(1, 2)
        expected = start if momentum else system.encoder.state_dict()
        for name, one in target_of(system).average.network.state_dict().items():
            torch.testing.assert_close(one, expected[name], atol=1e-7, rtol=0)


@pytest.mark.parametrize("layers", [1, 2, 3])
@torch.no_grad()
def test_it_is_what_the_last_blocks_make_of_the_whole_clip(layers: int) -> None:
    system = make(layers=layers)
    clip, encoder = clip_of(system), target_of(system).average.network
    outputs: list[Tensor] = []
    for block in encoder.blocks:
        block.register_forward_hook(lambda _, inputs, output: outputs.append(output))
    encoder.features(encoder.embed(clip.cubes()))
    expected = normed(sum(normed(one) for one in outputs[-layers:]))  # type: ignore[arg-type]
    found = target_of(system).of(clip, INDEX)
    picked = expected.gather(1, INDEX[..., None].expand(-1, -1, 16))
    torch.testing.assert_close(found, picked, atol=1e-4, rtol=0)


@torch.no_grad()
def test_the_final_norm_may_be_the_encoders_own() -> None:
    system = make(norm="final")
    shake(system)
    target_of(system).follow(system.encoder)
    clip, encoder = clip_of(system), system.encoder
    expected = encoder(encoder.embed(clip.cubes()))
    picked = expected.gather(1, INDEX[..., None].expand(-1, -1, 16))
    torch.testing.assert_close(target_of(system).of(clip, INDEX), picked, atol=1e-5, rtol=0)


@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_the_error_is_the_smooth_l1_distance(beta: float) -> None:
    torch.manual_seed(0)
    guess, values = torch.randn(2, 3, 16), torch.randn(2, 3, 16)
    away = (guess - values).abs()
    inner = away.square() / (2 * beta) if beta else away
    expected = torch.where(away < beta, inner, away - beta / 2).mean(-1)
    torch.testing.assert_close(target_of(make(beta=beta)).error(guess, values), expected)


def test_the_encoder_is_taught_and_the_average_is_not() -> None:
    system = make()
    found = system.errors(clip_of(system), Draws(0))
    assert found.predictions[0].shape == (2, 24, 16)
    found.loss.backward()
    assert system.encoder.patch_embed.proj.weight.grad is not None
    average = target_of(system).average
    assert not any(one.requires_grad or one.grad is not None for one in average.parameters())
    trained = {id(one) for one in system.autoencoder.parameters()}
    assert not trained & {id(one) for one in average.parameters()}


def test_it_drops_no_paths_while_the_encoder_does() -> None:
    system = make({"drop_path": 0.9})
    assert system.encoder.blocks[-1].training
    assert not any(part.training for part in target_of(system).average.modules())
    clip = clip_of(system)
    first, second = (target_of(system).of(clip, INDEX) for _ in range(2))
    assert torch.equal(first, second)


def test_its_spread_tells_a_collapse() -> None:
    system = make()
    clip, target = clip_of(system), target_of(system)
    target.of(clip, INDEX)
    spread = target.after_step(1, 9).metrics["spread"]
    with torch.no_grad():
        for parameter in target.average.parameters():
            parameter.zero_()
        target.average.network.positions.table_ND.zero_()
    target.of(clip, INDEX)
    assert 0.1 < float(spread) < 1.1
    assert target.after_step(2, 9).metrics["spread"] == 0


def test_it_runs_in_the_precision_of_the_training() -> None:
    system = make()
    seen: list[torch.dtype] = []
    target_of(system).average.network.blocks[0].mlp.register_forward_hook(
        lambda _, inputs, output: seen.append(output.dtype)
    )
    with torch.autocast("cpu", torch.bfloat16):
        found = system.errors(clip_of(system), Draws(0))
    assert seen == [torch.bfloat16]
    assert found.error_BM.dtype == torch.float32


def test_its_state_lies_under_its_name() -> None:
    system = make()
    part = AllTargets(system.targets)
    kept = part.tensors()
    assert {name.split("/")[0] for name in kept} == {"ema"}
    assert {name.removeprefix("ema/") for name in kept} == set(system.encoder.state_dict())
    other = AllTargets(make().targets)
    other.load({name: value + 1 for name, value in kept.items()})
    for name, value in other.tensors().items():
        assert torch.equal(value, kept[name] + 1), name
    with pytest.raises(RuntimeError, match="Missing key"):
        other.load({})
    assert part.after_step(1, 3).metrics.keys() == {"ema/momentum"}


def test_more_blocks_than_there_are_cannot_be_averaged() -> None:
    with pytest.raises(RecipeError, match="`layers: 4` averages more blocks than the encoder's 3"):
        make(layers=4)
    with pytest.raises(ValueError, match="`norm: final` applies to the last block"):
        make(layers=2, norm="final")


def test_the_dry_run_counts_a_forward_pass_of_the_whole_clip() -> None:
    system, flops = system_cost(recipe_of({}))
    assert system.device.type == "meta"
    assert flops["targets"] > 3 * flops["encoder"]  # a quarter of the tokens is seen
    pixels = recipe_of({}).model_copy(update={"targets": Recipe.model_fields["targets"].default})
    assert "targets" not in system_cost(pixels)[1]
