"""PPO's bookkeeping: collected batches, later passes, and where they stop."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tatscli.masking.rl.learned import LearnedMasker
from tests.masking.rl.toy import (
    Taught,
    bad_updates,
    copied,
    learner_of,
    make,
    noise,
    random_errors,
    same,
    share,
    teach,
    train,
)


def learnt_from(masker: LearnedMasker) -> dict[str, Tensor]:
    """Return what an update changes: weights, and the optimiser's moments and steps."""
    return copied(dict(masker.policy.state_dict()) | learner_of(masker).tensors())


def recorded(masker: LearnedMasker) -> list[dict[str, Tensor]]:
    """Return a list that grows by the state after each update that `after_step` computes."""
    states: list[dict[str, Tensor]] = []
    learner = learner_of(masker)
    learn = learner.learn

    def learn_and_look(loss: Tensor, **how: Any) -> Tensor:
        norm = learn(loss, **how)
        states.append(learnt_from(masker))
        return norm

    learner.learn = learn_and_look  # type: ignore[method-assign]
    return states


def test_the_rollouts_graph_serves_the_first_update() -> None:
    for epochs in (1, 3):
        masker = make(epochs=epochs, max_kl=100.0)
        calls: list[int] = []
        masker.policy.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        taught = teach(masker, 0, noise())
        assert len(calls) == epochs
        assert taught.metrics.get("updates", 0) == epochs - 1
        assert all(one["step"] == epochs for one in learner_of(masker).optimizer.state.values())


def test_several_updates_a_batch_learn_faster_in_the_same_direction() -> None:
    shares = []
    for changes in ({"epochs": 4, "max_kl": 1.0}, {}):
        masker = make(**changes)
        train(masker, 40)
        shares.append(share(masker))
    assert shares[0] > shares[1] + 0.02


def test_ratios_are_one_at_the_first_update_and_move_after_it() -> None:
    masker = make()
    train(masker, 10)
    first = teach(masker, 10, noise(2)).metrics
    assert first["kl"] == first["clip_fraction"] == 0
    later = teach(make(epochs=2, base_lr=0.05, max_kl=100.0), 0, noise(2))
    assert later.lessons[0].metrics["kl"] == 0
    assert later.metrics["kl"] > 0 and later.metrics["clip_fraction"] > 0


@pytest.mark.parametrize("switch", [{}, {"entropy_target": 0.9}], ids=str)
def test_passes_end_once_the_policy_has_moved_too_far_as_if_there_were_no_more(
    switch: dict[str, Any],
) -> None:
    def taught_by(**changes: Any) -> tuple[LearnedMasker, Taught]:
        masker = make(base_lr=5e-3, **switch, **changes)
        error = torch.rand(4, 30)
        return masker, teach(masker, 0, noise(), errors=lambda _: error)

    masker, taught = taught_by(epochs=10, max_kl=1e-2)
    made = int(taught.metrics["updates"])
    assert 2 <= made <= 7
    assert taught.metrics["kl"] <= 1e-2
    twin, free = taught_by(epochs=1 + made, max_kl=100.0)
    assert free.metrics == taught.metrics  # as they were before the last update made
    assert same(masker.tensors(), twin.tensors())
    farther, more = taught_by(epochs=2 + made, max_kl=100.0)
    assert more.metrics["kl"] > 1e-2
    assert not same(masker.tensors(), farther.tensors())


def test_where_not_even_one_later_pass_is_allowed_nothing_moves() -> None:
    masker, twin = make(epochs=4, base_lr=0.05, max_kl=1e-9), make(base_lr=0.05)
    error = torch.rand(4, 30)
    taught = teach(masker, 0, noise(), errors=lambda _: error)
    assert taught.metrics["updates"] == 0
    assert math.isnan(taught.after.metrics["kl"])  # of no update there is nothing to say
    assert taught.metrics["restored"] == 0
    teach(twin, 0, noise(), errors=lambda _: error)
    assert same(masker.tensors(), twin.tensors())


def test_rollouts_are_collected_before_an_update() -> None:
    masker = make(rollouts=3)
    before = copied(masker.tensors())
    weights = [name for name in before if "policy." in name]
    made = []
    for step in range(6):
        taught = teach(masker, step, noise(seed=step))
        assert taught.lessons[0].loss is None and taught.norm is None  # no graph waits
        assert not any(one.requires_grad for one in masker.tensors().values())
        made.append(taught.metrics.get("updates", 0))
        unmoved = all(torch.equal(before[name], masker.tensors()[name]) for name in weights)
        assert unmoved == (step < 2)
        waiting = {name.split("/")[1] for name in masker.tensors() if name.startswith("waiting/")}
        assert waiting == {str(number) for number in range((step + 1) % 3)}
    assert made[:2] == made[3:5] == [0, 0] and made[2] == 3 and made[5] >= 1


def test_a_round_ends_once_the_policy_has_moved_too_far_from_a_batch() -> None:
    masker = make(rollouts=4, base_lr=0.1, max_kl=1e-4)
    train(masker, 7)
    twin = copy.deepcopy(masker)
    twin.config = twin.config.model_copy(update={"max_kl": 100.0})
    states = recorded(twin)
    error = torch.rand(4, 30)
    # The second round begins off-policy for all but its first batch.
    taught, free = (teach(one, 7, noise(), errors=lambda _: error) for one in (masker, twin))
    made = int(taught.metrics["updates"])
    assert 1 <= made < 4
    assert (free.metrics["updates"], len(states)) == (4, 4)
    assert same(learnt_from(masker), states[made - 1])
    assert not same(states[made - 1], states[made])


def test_a_batch_that_is_not_finite_ends_the_round_it_is_in() -> None:
    def taught_by(errors: Tensor) -> tuple[LearnedMasker, list[dict[str, Tensor]], Taught]:
        masker = make(rollouts=3, epochs=2, max_kl=100.0, entropy_target=0.9, baseline="none")
        states = recorded(masker)
        for step, error in enumerate(errors):
            taught = teach(masker, step, noise(seed=step), errors=lambda _, one=error: one)
        return masker, states, taught

    errors = torch.rand(3, 4, 30)
    _, states, whole = taught_by(errors)
    assert whole.metrics["updates"] == 6
    errors[1, 0, 0] = math.nan
    masker, _, taught = taught_by(errors)
    assert taught.metrics["updates"] == 1
    assert bad_updates(masker) == [False, True, False, False, True, False]
    assert same(learnt_from(masker), states[0])
    miss = 0.9 - taught.metrics["entropy"]  # before the one update
    torch.testing.assert_close(masker.log_entropy, torch.tensor(0.3 * miss))
    for step in range(3, 6):
        taught = teach(masker, step, noise(seed=step))
    assert taught.metrics["updates"] == 6


def test_collected_batches_are_judged_when_they_were_drawn() -> None:
    """Advantages are relative to the level of errors of their own time."""
    masker = make(rollouts=2, credit="visible", baseline="none")
    teach(masker, 0, noise(), errors=random_errors)
    before = copied(masker.tensors())["waiting/0/advantage_BA"]
    masker.reward.update(torch.tensor([0.0, 200.0]))
    assert torch.equal(masker.tensors()["waiting/0/advantage_BA"], before)


def test_every_micro_batch_is_passed_over_again() -> None:
    masker = make(epochs=3, max_kl=100.0)
    taught = teach(masker, 0, noise(seed=1), noise(seed=2))
    assert taught.metrics["updates"] == 4
    assert all(one["step"] == 5 for one in learner_of(masker).optimizer.state.values())
