"""A collapsed or broken policy is set back, said once, and training goes on."""

import copy

import pytest
import torch

from tests.masking.learning.toy import batch, make, seeded, share, train


def collapse(masker):
    """Make a policy that shows the same tokens to every clip."""
    with torch.no_grad():
        masker.policy.position.normal_(std=30)
        masker.policy.actor.weight.normal_(std=30)


@pytest.mark.parametrize("kind", ["tats", "adamae"])
def test_a_collapse_is_set_back_and_names_the_key(kind):
    masker = make(kind)
    train(masker, 5)
    collapse(masker)
    plan = masker.plan(batch(5)[0], generator=seeded())
    metrics = masker.learn(plan, torch.rand(plan.predict_BM.shape))
    assert metrics["restored"] == 1 and metrics["entropy"] < 0.5
    (notice,) = masker.notices()
    assert "normalised entropy" in notice and "goes on with its last good state" in notice
    assert ("`mask.entropy`, now 1" in notice) == (kind == "tats")
    assert masker.notices() == []
    assert train(masker, 1, start=6)["entropy"] > 0.9  # the policy of before


def test_a_wished_entropy_is_named_instead():
    masker = make(entropy_target=0.9)
    train(masker, 2)
    collapse(masker)
    train(masker, 1)
    assert "`mask.entropy_target`, now 0.9" in masker.notices()[0]


def test_a_policy_that_is_not_finite_is_set_back():
    masker = make()
    train(masker, 5)
    good = copy.deepcopy(masker.policy.state_dict())
    with torch.no_grad():
        masker.policy.trunk.mlp.fc1.weight[0, 0] = torch.nan
    plan = masker.plan(batch(0)[0])
    assert plan.visible_BK.shape[1] == masker.visible  # drawn uniformly meanwhile
    metrics = masker.learn(plan, torch.rand(plan.predict_BM.shape))
    assert metrics["restored"] == 1
    assert "not finite" in masker.notices()[0]
    for name, value in masker.policy.state_dict().items():
        assert value.isfinite().all() and value.shape == good[name].shape
    assert train(masker, 3)["updates"] == 1


def test_training_recovers_after_a_collapse():
    masker = make()
    train(masker, 30)
    collapse(masker)
    train(masker, 150, start=30)
    assert share(masker) > 0.2
