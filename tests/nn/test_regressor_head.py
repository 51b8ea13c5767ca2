"""MAM2's head in its system: what reaches a decoder, what reaches the encoder, and alignment."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tatscli.data.clip import Clip
from tatscli.draws import Draws
from tatscli.heads.regressor import RegressorHead
from tatscli.masking.plan import MaskPlan
from tatscli.recipe.schema import Data, Model, RandomMask, Recipe
from tatscli.system.system import System, build_system

TOKENS, HIDDEN = 32, 24


def make(*, targets: list[dict[str, Any]] | None = None, **head: Any) -> System:
    torch.manual_seed(0)
    recipe = Recipe(
        data=Data(store="", frames=4, size=16),
        model=Model(width=32, depth=2, heads=4, mlp=48, patch=4),
        mask=RandomMask(kind="random", ratio=0.75),
        head={"kind": "regressor", "regressor_depth": 2, "depth": 1, **head},
        targets=targets or [{"kind": "pixels"}, {"kind": "difference", "weight": 0.5}],
    )
    system = build_system(recipe)
    with torch.no_grad():
        for parameter in system.autoencoder.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return system


def head_of(system: System) -> RegressorHead:
    head = system.autoencoder.head
    assert isinstance(head, RegressorHead)
    return head


def clip_of(system: System) -> Clip:
    torch.manual_seed(1)
    return system.clip(torch.randint(0, 256, (2, 3, 4, 16, 16), dtype=torch.uint8))


def plan_of(system: System, clip: Clip) -> MaskPlan:
    return system.plan(clip, Draws(0))


def gradients(value: Tensor, system: System) -> dict[str, Tensor | None]:
    named = dict(system.autoencoder.named_parameters())
    found = torch.autograd.grad(value, list(named.values()), allow_unused=True, retain_graph=True)
    return dict(zip(named, found, strict=True))


def test_the_regressor_is_as_wide_as_the_encoder_and_decoders_half() -> None:
    head = head_of(make())
    block = head.regressor.blocks[0]
    assert len(head.regressor.blocks) == 2
    assert (block.width, block.heads, block.mlp[0].out_features) == (32, 4, 48)
    for scale in (0.1, 0.9):
        gamma = head_of(make(layer_scale=scale)).regressor.blocks[1].gamma_mlp
        assert gamma.mean().item() == pytest.approx(scale, abs=0.1)
    assert [(one.width, one.depth, one.outs) for one in head.decoders] == [
        (16, 1, [96]),
        (16, 1, [48]),
    ]
    assert head.decoders[0].blocks[0].attn.heads == 2
    wide = head_of(make(width=24, heads=3)).decoders[0]
    assert (wide.width, wide.blocks[0].attn.heads) == (24, 3)


@torch.no_grad()
def test_visible_tokens_never_reach_a_decoder() -> None:
    system = make()
    clip, head = clip_of(system), head_of(system)
    plan = plan_of(system, clip)
    given: list[tuple[Tensor, Tensor]] = []
    for decoder in head.decoders:
        decoder.register_forward_hook(lambda _, inputs, output: given.append(inputs))
    output = system.autoencoder(clip, plan)
    assert [one.shape for one in output.predictions] == [(2, HIDDEN, 96), (2, HIDDEN, 48)]
    for tokens, index in given:
        assert tokens.shape == (2, HIDDEN, 32)
        assert index is plan.predict_BM
    # Not by another way than their guesses either: with those held, other latents change nothing.
    guesses = given[0][0]
    held = nn.Module()
    held.forward = lambda *latents_visible_predict: guesses  # type: ignore[method-assign]
    head.regressor = held  # type: ignore[assignment]
    broken = torch.full((2, TOKENS - HIDDEN, 32), torch.nan)
    again = head(clip, broken, plan, lambda index: index)
    for first, second in zip(output.predictions, again.predictions, strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("place", [0, 1])
def test_each_decoders_gradient_reaches_the_encoder(place: int) -> None:
    system = make()
    clip = clip_of(system)
    output = system.autoencoder(clip, plan_of(system, clip))
    found = gradients(output.predictions[place].square().sum(), system)
    for name, gradient in found.items():
        if name.startswith(f"head.decoders.{1 - place}."):
            assert gradient is None, name
        else:
            assert gradient is not None and gradient.abs().max() > 0, name


@torch.no_grad()
def test_depth_zero_hands_mask_tokens_straight_to_the_decoders() -> None:
    system = make(regressor_depth=0)
    clip, head = clip_of(system), head_of(system)
    plan = plan_of(system, clip)
    output = system.autoencoder(clip, plan)
    mask_tokens = head.regressor.mask_token.expand(2, HIDDEN, -1)
    for prediction, decoder in zip(output.predictions, head.decoders, strict=True):
        assert torch.equal(prediction, decoder(mask_tokens, plan.predict_BM)[0])
    # A clip of other pixels gives the same: only positions are left to tell tokens by.
    other = system.clip(torch.zeros(2, 3, 4, 16, 16, dtype=torch.uint8))
    for first, second in zip(
        output.predictions, system.autoencoder(other, plan).predictions, strict=True
    ):
        assert torch.equal(first, second)


def test_alignment_is_the_distance_to_the_encoders_own_latents() -> None:
    system = make(alignment=2.0)
    clip, encoder = clip_of(system), system.encoder
    found = system.errors(clip, Draws(0))
    plan = found.plan
    seen = encoder(encoder.embed(clip.cubes(plan.visible_BK)), plan.visible_BK)
    guessed = head_of(system).regressor(seen, plan.visible_BK, plan.predict_BM)
    hidden = encoder(encoder.embed(clip.cubes(plan.predict_BM)), plan.predict_BM)
    by_hand = nn.functional.mse_loss(guessed, hidden.detach())
    alignment = found.auxiliary["alignment"]
    torch.testing.assert_close(alignment.error, by_hand)
    assert alignment.error.dtype == torch.float32
    assert by_hand > 0.01
    # No gradient comes through the latents of hidden tokens: it would draw them together.
    pulled = nn.functional.mse_loss(guessed, hidden)
    ours, theirs, other = (gradients(one, system) for one in (alignment.error, by_hand, pulled))
    name = "encoder.patch_embed.proj.weight"
    torch.testing.assert_close(ours[name], theirs[name])
    assert (ours[name] - other[name]).abs().max() > 1e-4  # type: ignore[operator]


def test_the_loss_adds_targets_and_alignment_by_their_weights() -> None:
    system = make(alignment=2.0)
    found = system.errors(clip_of(system), Draws(0))
    assert list(found.by_target) == ["pixels", "difference"]
    pixels, difference = (error.mean() for error in found.by_target.values())
    alignment = found.auxiliary["alignment"].error
    torch.testing.assert_close(found.loss, pixels + 0.5 * difference + 2.0 * alignment)
    torch.testing.assert_close(found.error_BM.mean(), pixels + 0.5 * difference)
    # Each is told as it is, before it is weighted.
    assert found.metrics == {
        "loss/pixels": pixels,
        "loss/difference": difference,
        "loss/alignment": alignment,
    }


def test_without_alignment_hidden_tokens_are_not_encoded() -> None:
    system = make()
    clip = clip_of(system)
    plan = plan_of(system, clip)
    encoded: list[tuple[int, ...]] = []
    system.encoder.register_forward_hook(lambda _, inputs, output: encoded.append(output.shape))
    assert not system.autoencoder(clip, plan).auxiliary
    assert encoded == [(2, TOKENS - HIDDEN, 32)]
    aligned = make(alignment=1.0)
    aligned.encoder.register_forward_hook(lambda _, inputs, output: encoded.append(output.shape))
    aligned.autoencoder(clip, plan)
    assert encoded[1:] == [(2, TOKENS - HIDDEN, 32), (2, HIDDEN, 32)]


def test_a_training_step_lowers_every_error() -> None:
    system = make(alignment=0.5)
    clip = clip_of(system)
    optimizer = torch.optim.AdamW(system.autoencoder.parameters(), lr=3e-3)
    history = []
    for _ in range(40):
        found = system.errors(clip, Draws(0))
        history.append({name: float(value.detach()) for name, value in found.metrics.items()})
        optimizer.zero_grad()
        found.loss.backward()
        optimizer.step()
    for name, first in history[0].items():
        assert history[-1][name] < 0.9 * first, name
