"""A collapsed or broken policy is found within some steps, set back, said, and training goes on."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from tatscli.draws import Draws
from tatscli.masking.rl.guard import INTERVAL, Guard
from tatscli.masking.rl.learned import LearnedMasker
from tests.masking.rl.toy import (
    TOKENS,
    bad_updates,
    batch,
    copied,
    learner_of,
    make,
    noise,
    same,
    share,
    teach,
    train,
)

LOOK = INTERVAL - 1
"""The step after which the guard looks for the second time."""


def collapse(masker: LearnedMasker) -> None:
    """Make a policy that shows the same tokens to every clip."""
    with torch.no_grad():
        masker.policy.position.normal_(std=30)
        masker.policy.actor.weight.normal_(std=30)


def break_(masker: LearnedMasker) -> None:
    with torch.no_grad():
        masker.policy.trunk.get_parameter("norm1.weight")[0] = torch.nan


def remembered(guard: Guard, masker: LearnedMasker) -> dict[str, torch.Tensor]:
    """Return a copy of the state that a guard would go back to."""
    kept = guard.tensors()
    return copied({name: kept[name] for name in masker.policy.state_dict()})


@pytest.mark.parametrize("kind", ["tats", "adamae"])
def test_a_collapse_is_set_back_and_names_the_key(kind: str) -> None:
    masker = make(kind)
    train(masker, 1)
    good = copied(masker.policy.state_dict())
    train(masker, 4, start=1)
    assert not same(masker.policy.state_dict(), good)
    collapse(masker)
    taught = teach(masker, LOOK, noise())
    assert taught.metrics["restored"] == 1 and taught.metrics["entropy"] < 0.5
    (notice,) = taught.after.notices
    assert "normalised entropy" in notice and "continues from its last good state" in notice
    assert ("`mask.entropy`, now 1" in notice) == (kind == "tats")
    assert ("`mask.base_lr`" in notice) == (kind == "adamae")
    assert same(masker.policy.state_dict(), good)
    assert learner_of(masker).tensors() == {}  # momentum would lead straight back
    taught = teach(masker, LOOK + 1, batch(0)[0])
    assert taught.metrics["entropy"] > 0.9  # the policy of before
    assert taught.metrics["restored"] == 0 and not taught.after.notices


def test_it_looks_once_in_so_many_steps_and_remembers_the_last_good_policy() -> None:
    masker = make()
    train(masker, 2 * INTERVAL)
    good = copied(masker.policy.state_dict())
    train(masker, 5, start=2 * INTERVAL)
    collapse(masker)
    for step in range(2 * INTERVAL + 5, 3 * INTERVAL - 1):
        taught = teach(masker, step, noise())
        assert taught.metrics["restored"] == 0 and taught.metrics["entropy"] < 0.5
    taught = teach(masker, 3 * INTERVAL - 1, noise())
    assert taught.metrics["restored"] == 1
    assert same(masker.policy.state_dict(), good)


def test_until_it_was_good_once_it_looks_every_step() -> None:
    masker = make(base_lr=1e-30)
    uniform = copied(masker.policy.state_dict())
    collapse(masker)
    for step in range(2):
        taught = teach(masker, step, noise())
        assert taught.metrics["restored"] == 1
        assert "there is no earlier good state to restore" in taught.after.notices[0]
        assert not any(name.startswith("guard/") for name in masker.tensors())
    masker.policy.load_state_dict(uniform)
    assert not teach(masker, 2, noise()).after.notices
    kept = {k.removeprefix("guard/"): v for k, v in masker.tensors().items() if "guard/" in k}
    assert same(kept, dict(masker.policy.state_dict()))


def test_a_wished_entropy_is_named_instead() -> None:
    masker = make(entropy_target=0.9)
    train(masker, 2)
    collapse(masker)
    taught = teach(masker, LOOK, noise())
    assert "`mask.entropy_target`, now 0.9" in taught.after.notices[0]


@pytest.mark.parametrize("kind", ["tats", "adamae"])
def test_a_policy_that_is_not_finite_is_set_back(kind: str) -> None:
    masker = make(kind)
    train(masker, 1)
    good = copied(masker.policy.state_dict())
    break_(masker)
    taught = teach(masker, LOOK, noise())
    assert not taught.plan.faulty_B(TOKENS).any()  # drawn uniformly meanwhile
    assert taught.plan.visible_BK.shape[1] == masker.visible
    assert taught.metrics["restored"] == 1
    assert "not finite" in taught.after.notices[0]
    assert same(masker.policy.state_dict(), good)
    taught = teach(masker, LOOK + 1, noise())
    assert bad_updates(masker)[-2:] == [True, False]
    assert not same(masker.policy.state_dict(), good)  # it learns again


@pytest.mark.parametrize("fault", [collapse, break_])
def test_a_policy_whose_batches_are_collected_is_guarded_too(
    fault: Callable[[LearnedMasker], None],
) -> None:
    masker = make(rollouts=2)
    train(masker, 2)
    good = remembered(masker.guard, masker)
    fault(masker)
    for step in range(2, INTERVAL):
        taught = teach(masker, step, noise())
        assert taught.metrics["restored"] == (step == LOOK)
    assert same(masker.policy.state_dict(), good)


def test_a_batch_that_is_not_finite_is_no_fault_of_the_policy() -> None:
    masker = make()
    policy = masker.policy
    guard = Guard(policy)
    guard.hear(torch.tensor(math.nan))
    assert guard.after_step(INTERVAL) is None
    assert guard.tensors() == {}  # nor does it speak for it
    guard.hear(torch.tensor(0.8))
    assert guard.after_step(INTERVAL) is None
    assert same(guard.tensors(), dict(policy.state_dict()))


def test_what_an_earlier_step_heard_is_not_looked_at() -> None:
    """A schedule asks the policy in some steps only, and a resumed run knows nothing of them."""
    policy = torch.nn.Linear(2, 2)
    guard = Guard(policy)
    guard.hear(torch.tensor(0.9))
    assert guard.after_step(1) is None and guard.tensors()
    guard.hear(torch.tensor(0.1))
    assert guard.after_step(INTERVAL - 1) is None
    assert guard.after_step(INTERVAL) is None
    guard.hear(torch.tensor(0.1))
    assert "has collapsed" in str(guard.after_step(2 * INTERVAL))


def test_an_update_that_breaks_the_policy_is_seen_though_its_entropy_was_fine_before() -> None:
    masker = make()
    guard = Guard(masker.policy)
    guard.hear(torch.tensor(0.9))
    assert guard.after_step(1) is None
    good = copied(guard.tensors())
    break_(masker)
    guard.hear(torch.tensor(0.9))
    found = guard.after_step(INTERVAL)
    assert found is not None and "not finite" in found
    assert same(guard.tensors(), good) and same(dict(masker.policy.state_dict()), good)


@pytest.mark.parametrize("kind", ["tats", "adamae"])
def test_without_a_finite_policy_draws_are_uniform(kind: str) -> None:
    masker = make(kind)
    break_(masker)
    shown = ~masker.plan(noise(2000), Draws(0)).hidden_BN(TOKENS)
    uniform = torch.full((TOKENS,), 0.25)
    torch.testing.assert_close(shown.float().mean(0), uniform, atol=0.04, rtol=0)


def test_what_it_remembers_is_a_copy() -> None:
    masker = make()
    train(masker, 1)
    before = remembered(masker.guard, masker)
    train(masker, 2, start=1)
    assert same(remembered(masker.guard, masker), before)
    twin = Guard(masker.policy)
    twin.load(before)
    masker.policy.load_state_dict(twin.tensors())
    train(masker, 1, start=3)
    assert same(remembered(twin, masker), before)


def test_training_recovers_after_a_collapse() -> None:
    masker = make()
    train(masker, 30)
    collapse(masker)
    train(masker, 150, start=30)
    assert share(masker) > 0.2
