"""What a learned mask keeps is all it needs: a resumed training goes on bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tatscli.masking.rl.guard import INTERVAL
from tests.masking.rl.toy import (
    batch,
    copied,
    differing,
    filed,
    learner_of,
    make,
    noise,
    same,
    teach,
    train,
)

KINDS: list[tuple[str, dict[str, Any]]] = [
    ("adamae", {}),
    ("tats", {}),
    ("tats", {"epochs": 2, "max_kl": 1.0}),
    ("tats", {"rollouts": 3}),
    ("tats", {"rollouts": 3, "credit": "visible"}),
    ("tats", {"entropy_target": 0.9}),
    ("tats", {"reward": "relative"}),
]


@pytest.mark.parametrize("stop", [5, INTERVAL - 1, INTERVAL])
@pytest.mark.parametrize(("kind", "switch"), KINDS, ids=str)
def test_a_resumed_sampler_goes_on_bit_for_bit(
    kind: str, switch: dict[str, Any], stop: int
) -> None:
    straight, first = make(kind, **switch), make(kind, **switch)
    train(straight, INTERVAL + 3)
    train(first, stop)
    kept = filed(first.tensors())
    train(first, 2, start=stop)  # goes on and must not disturb what was saved

    resumed = make(kind, **switch)
    train(resumed, 2)  # moments, batches and memory to be replaced
    resumed.load(kept)
    assert same(resumed.tensors(), kept)
    train(resumed, INTERVAL + 3 - stop, start=stop)
    assert differing(resumed.tensors(), straight.tensors()) == []


def test_names_say_what_is_what() -> None:
    masker = make(rollouts=3)
    assert {name.split("/")[0] for name in masker.tensors()} == {"weights"}
    train(masker, 4)
    kept = masker.tensors()
    assert {name.split("/")[0] for name in kept} == {"weights", "training", "guard", "waiting"}
    assert "training/trunk.attn.qkv.weight/exp_avg" in kept
    assert "weights/reward.first" in kept and "weights/log_entropy" in kept
    assert all(isinstance(value, Tensor) for value in kept.values())
    assert same({f"weights/{k}": v for k, v in masker.state_dict().items()}, under(kept, "weights"))


def under(kept: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name: value for name, value in kept.items() if name.startswith(f"{prefix}/")}


def test_the_guard_remembers_across_a_resumption() -> None:
    first, resumed = make(), make()
    train(first, 1)
    good = copied(first.policy.state_dict())
    train(first, 4, start=1)
    resumed.load(filed(first.tensors()))
    with torch.no_grad():
        resumed.policy.position.normal_(std=30)
        resumed.policy.actor.weight.normal_(std=30)
    assert teach(resumed, INTERVAL - 1, noise()).metrics["restored"] == 1
    assert same(resumed.policy.state_dict(), good)


def test_nothing_is_learnt_before_and_an_empty_training_is_loaded_as_such() -> None:
    fresh, masker = make(), make()
    assert learner_of(fresh).tensors() == {} and fresh.guard.tensors() == {}
    train(masker, 3)
    masker.load(filed(fresh.tensors()))
    assert same(masker.tensors(), fresh.tensors())


@pytest.mark.parametrize("kind", ["tats", "adamae"])
def test_outside_of_a_training_the_weights_alone_are_taken(kind: str) -> None:
    masker = make(kind, **({"rollouts": 3} if kind == "tats" else {}))
    train(masker, 4)
    viewer = make(kind, steps=None, **({"rollouts": 3} if kind == "tats" else {}))
    viewer.load(filed(masker.tensors()))
    assert differing(viewer.tensors(), under(masker.tensors(), "weights")) == []
    clip = batch(0)[0]
    assert torch.equal(viewer.scores_BN(clip), masker.scores_BN(clip))


def test_checkpoints_of_the_first_format_are_read() -> None:
    """They kept waiting batches among the moments, the steps apart, and no guard."""
    first, resumed, twin = make(rollouts=3), make(rollouts=3), make(rollouts=3)
    train(first, 5)
    kept = {k: v for k, v in filed(first.tensors()).items() if not k.startswith("guard/")}
    old = {k.replace("waiting/", "training/waiting/"): v for k, v in kept.items()}
    assert old.keys() != kept.keys()
    resumed.load(old)
    twin.load(kept)
    for masker in (resumed, twin):
        train(masker, 2, start=5)
    assert same(resumed.tensors(), twin.tensors())
    assert len(under(resumed.tensors(), "waiting")) == 6  # one batch, after a round of three


@pytest.mark.parametrize("kind", ["tats", "adamae"])
def test_what_belongs_to_something_else_is_refused(kind: str) -> None:
    masker = make(kind)
    train(masker, 1)
    kept = filed(masker.tensors())
    with pytest.raises(RuntimeError, match="Missing key"):
        masker.load({k: v for k, v in kept.items() if k != "weights/policy.position"})
    with pytest.raises(RuntimeError, match="size mismatch"):
        masker.load(kept | {"weights/policy.position": torch.zeros(3, 3)})
    with pytest.raises(KeyError, match=r"trunk\.nothing"):
        masker.load(kept | {"training/trunk.nothing/exp_avg": torch.zeros(1)})
