"""A system's one step: what is added up, under which names, and what reaches what."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tatscli.data.clip import Clip
from tatscli.draws import Draws
from tatscli.heads.base import HeadOutput
from tatscli.masking.plan import MaskPlan
from tatscli.recipe import schema
from tatscli.recipe.schema import Recipe
from tatscli.system.system import Errors, System, build_system
from tatscli.targets import TARGETS
from tatscli.targets.pixels import PixelTarget
from tests.fields import motion_of

TOKENS = 32


RECIPE = Recipe.model_validate(
    {
        "data": {"store": "", "frames": 4, "size": 16, "mean": [0.5] * 3, "std": [0.25] * 3},
        "model": {"width": 16, "depth": 1, "heads": 2, "patch": 4},
        "mask": {"kind": "random", "ratio": 0.75},
        "head": {"kind": "decoder", "depth": 1},
    }
)


def make(**sections: Any) -> System:
    torch.manual_seed(0)
    return build_system(Recipe.model_validate(RECIPE.model_dump() | sections))


def clip_of(system: System, **more: Any) -> Clip:
    torch.manual_seed(1)
    return system.clip(torch.randint(0, 256, (2, 3, 4, 16, 16), dtype=torch.uint8), **more)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


PIXELS: dict[str, Any] = {"kind": "pixels"}
DIFFERENCE: dict[str, Any] = {"kind": "difference", "span": "clip"}


@pytest.mark.parametrize(
    ("targets", "names"),
    [
        ([PIXELS], ["pixels"]),
        ([PIXELS, DIFFERENCE], ["pixels", "difference"]),
        ([PIXELS, PIXELS, DIFFERENCE, PIXELS], ["pixels", "pixels_2", "difference", "pixels_3"]),
    ],
)
def test_targets_have_names_of_their_own(targets: list[dict[str, Any]], names: list[str]) -> None:
    system = make(targets=targets)
    assert list(system.targets) == names
    found = system.errors(clip_of(system), Draws(0))
    assert list(found.by_target) == names
    assert set(found.metrics) == {f"loss/{name}" for name in names}
    for prediction, target in zip(found.predictions, system.targets.values(), strict=True):
        assert prediction.shape == (2, 24, target.predicts)


def test_kinds_of_several_words_are_told_apart_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TARGETS, "two_words", PixelTarget)
    config: Any = schema.PixelTarget.model_construct(kind="two_words", normalize=True, weight=1.0)
    system = build_system(RECIPE.model_copy(update={"targets": [config, config]}))
    assert list(system.targets) == ["two_words", "two_words_2"]
    assert set(system.errors(clip_of(system), Draws(0)).by_target) == set(system.targets)


def test_the_error_of_a_token_is_the_weighted_sum_of_its_targets() -> None:
    targets = [PIXELS | {"weight": 0.5}, DIFFERENCE | {"weight": 3.0}]
    system = make(targets=targets)
    clip = clip_of(system)
    found = system.errors(clip, Draws(0))
    assert isinstance(found, Errors)
    total = torch.zeros(2, 24)
    for (name, target), prediction in zip(system.targets.items(), found.predictions, strict=True):
        error = target.error(prediction, target.of(clip, found.plan.predict_BM))
        assert torch.equal(error, found.by_target[name])
        assert torch.equal(error.mean(), found.metrics[f"loss/{name}"])
        total = total + target.weight * error
    torch.testing.assert_close(found.error_BM, total)
    torch.testing.assert_close(found.loss, total.mean())
    assert found.error_BM.dtype == torch.float32


def test_a_plan_and_the_same_plan_are_made_of_one_seed() -> None:
    system = make(predict={"kind": "random", "budget": 5})
    clip = clip_of(system)
    found, plan = system.errors(clip, Draws(0)), system.plan(clip, Draws(0))
    assert torch.equal(found.plan.visible_BK, plan.visible_BK)
    assert torch.equal(found.plan.predict_BM, plan.predict_BM)
    assert plan.predict_BM.shape == (2, 5)


class Other(nn.Module):
    """In place of the autoencoder, as a wrapper is."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.calls = 0

    def forward(self, clip: Clip, plan: MaskPlan) -> HeadOutput:
        self.calls += 1
        output: HeadOutput = self.network(clip, plan)
        return output


def test_a_wrapper_is_called_in_place_of_the_network() -> None:
    system = make()
    other = Other(system.autoencoder)
    wrapped = system.called(other)
    found, plain = (one.errors(clip_of(one), Draws(0)) for one in (wrapped, system))
    assert other.calls == 1
    assert torch.equal(found.loss, plain.loss)
    assert wrapped.autoencoder is system.autoencoder
    assert system.network is None


def test_hidden_tokens_are_not_embedded_unless_somebody_looks_at_them() -> None:
    counts: list[int] = []

    def count(_: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        counts.append(output.shape[1])

    for sections, expected in (
        ({}, [8]),
        ({"predict": {"kind": "everest", "budget": 4}}, [TOKENS, 8]),
        ({"mask": {"kind": "tats", "ratio": 0.75, "width": 16, "heads": 2}}, [TOKENS, 8]),
        # Mask and selection look at the same embeddings.
        (
            {
                "mask": {"kind": "tats", "ratio": 0.75, "width": 16, "heads": 2},
                "predict": {"kind": "everest", "budget": 4},
            },
            [TOKENS, 8],
        ),
    ):
        system = make(**sections)
        assert system.needs_embeddings == (len(expected) == 2)
        system.encoder.patch_embed.register_forward_hook(count)
        counts.clear()
        system.errors(clip_of(system), Draws(0))
        assert counts == expected


@pytest.mark.parametrize("detach", [True, False])
def test_embeddings_of_all_tokens_have_a_graph_only_where_a_mask_reaches_back(
    detach: bool,
) -> None:
    mask = {"kind": "tats", "ratio": 0.75, "width": 16, "heads": 2, "detach": detach}
    system = make(mask=mask).train()
    assert clip_of(system).tokens_BND.requires_grad == (not detach)
    with torch.no_grad():
        assert not clip_of(system).tokens_BND.requires_grad


def test_motion_is_kept_only_where_it_is_followed() -> None:
    motion = motion_of(torch.ones(2, 4, 4, 4, 2), patch=4)
    plain, follows = make(), make(mask={"kind": "mgm", "ratio": 0.5})
    assert clip_of(plain, motion=motion).motion is None
    assert clip_of(follows, motion=motion).motion is motion
    assert make(predict={"kind": "flow", "budget": 4}).follows_motion
    label, row = torch.tensor([3, 4]), torch.tensor([5, 6])
    clip = clip_of(plain, label_B=label, row_B=row)
    assert clip.label_B is label and clip.row_B is row


def test_autocast_rounds_predictions_but_not_what_they_are_compared_with() -> None:
    system = make(targets=[PIXELS, DIFFERENCE])
    exact = system.errors(clip_of(system), Draws(0))
    with torch.autocast("cpu", torch.bfloat16):
        clip = clip_of(system)
        found = system.errors(clip, Draws(0))
    for prediction, error, (name, target) in zip(
        found.predictions, found.by_target.values(), system.targets.items(), strict=True
    ):
        assert prediction.dtype == torch.bfloat16
        expected = target.error(prediction.float(), target.of(clip, found.plan.predict_BM))
        assert torch.equal(error, expected), name
    torch.testing.assert_close(found.loss, exact.loss, atol=0.02, rtol=0)


def test_every_part_moves_and_changes_its_mode_with_the_system() -> None:
    system = make(targets=[PIXELS, DIFFERENCE])
    assert all(part.training for part in system.train().parts)
    assert not any(part.training for part in system.eval().parts)
    system.to("meta")
    assert system.device.type == "meta"
    tensors = [one for part in system.parts for one in (*part.parameters(), *part.buffers())]
    assert {one.device.type for one in tensors} == {"meta"}


def test_the_encoder_looks_without_a_graph() -> None:
    system = make()
    clip = clip_of(system)
    index = torch.tensor([[1, 5, 30], [0, 2, 9]])
    looked = system.autoencoder.look(clip, index)
    assert not looked.requires_grad
    encoder = system.encoder
    expected = encoder(encoder.embed(clip.cubes(index)), index)
    assert expected.requires_grad
    assert torch.equal(looked, expected)
