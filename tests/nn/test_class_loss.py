"""The loss of a classifier: torch's own with soft labels and weights, and a sum over heads."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tatscli.data.augment import Mix
from tatscli.draws import Draws
from tatscli.nn.class_loss import ClassLoss
from tatscli.nn.classifier import ONE_HEAD
from tatscli.recipe.schema import Augment
from tatscli.store.schema import ClassGroup

CLASSES = 6
GROUPS = {
    "verb": ClassGroup(names=("take", "put", "cut"), of=(0, 0, 0, 1, 1, 2)),
    "noun": ClassGroup(names=("cup", "pan", "egg", "lid"), of=(0, 1, 2, 0, 1, 2)),
}
WEIGHTS = {ONE_HEAD: [0.5, 1.0, 3.0, 0.1, 2.0, 7.0]}


def mixed(kind: str, label_B: torch.Tensor, smoothing: float) -> torch.Tensor:
    """Soft labels of a batch of small videos, mixed as training mixes them."""
    shares = {"mixup": 0.0, "cutmix": 0.0} | ({kind: 0.8} if kind != "none" else {})
    mix = Mix(Augment(label_smoothing=smoothing, **shares), CLASSES)
    return mix(torch.rand(len(label_B), 3, 2, 8, 8), label_B, draws=Draws(3))[1]


@pytest.mark.parametrize("kind", ["none", "mixup", "cutmix"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_weighted_it_is_torchs_cross_entropy_with_soft_labels(kind: str, smoothing: float) -> None:
    torch.manual_seed(0)
    target = mixed(kind, torch.tensor([0, 5, 2, 2, 1]), smoothing)
    for weights in (WEIGHTS, {}):
        scores = torch.randn(5, CLASSES, requires_grad=True)
        loss, by_head = ClassLoss({}, weights, smoothing=smoothing)([scores], target)
        weight = torch.tensor(WEIGHTS[ONE_HEAD]) if weights else None
        expected = F.cross_entropy(scores, target, weight=weight)
        torch.testing.assert_close(loss, expected)
        gradients = [torch.autograd.grad(one, scores)[0] for one in (loss, expected)]
        torch.testing.assert_close(*gradients)
        assert by_head == {}
    # Hard labels are no other case: torch's mean is then over weights, this one over clips.
    hard = torch.tensor([0, 5, 2, 2, 1])
    by_clip = F.cross_entropy(
        scores, hard, weight=torch.tensor(WEIGHTS[ONE_HEAD]), reduction="none"
    )
    one_hot = F.one_hot(hard, CLASSES).float()
    found, _ = ClassLoss({}, WEIGHTS, smoothing=0.0)([scores], one_hot)
    torch.testing.assert_close(found, by_clip.mean())


@pytest.mark.parametrize("kind", ["none", "mixup", "cutmix"])
def test_several_heads_add_up_and_labels_are_smoothed_over_members(kind: str) -> None:
    """Against a mix of each group's own smoothed labels."""
    torch.manual_seed(0)
    label_B = torch.tensor([0, 5, 2, 3])
    target = mixed(kind, label_B, 0.0)
    scores = [torch.randn(4, 3), torch.randn(4, 4)]
    weights = {"noun": [1.0, 2.0, 3.0, 4.0]}
    loss, by_head = ClassLoss(GROUPS, weights, smoothing=0.1)(scores, target)
    share = target[0, 0]  # the first video's own share; the rest is its partner's, the last
    expected = {}
    for (name, group), score in zip(GROUPS.items(), scores, strict=True):
        own = F.one_hot(torch.tensor(group.of)[label_B], len(group.names)).float()
        own = own * 0.9 + 0.1 / len(group.names)
        soft = share * own + (1 - share) * own.flip(0)
        weight = torch.tensor(weights[name]) if name in weights else None
        expected[f"loss/{name}"] = F.cross_entropy(score, soft, weight=weight)
    assert by_head.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(by_head[name], value)
    torch.testing.assert_close(loss, sum(expected.values()))
