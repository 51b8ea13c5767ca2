"""Between `plan` and the backward pass a sampler keeps no graph, and learns as if it did."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tatscli.draws import Draws
from tatscli.masking.rl.policy import Policy
from tests.masking.rl.test_isolation import BF16, begin, collected, system_of
from tests.masking.rl.toy import TOKENS, bad_updates, make, noise, same, teach

ALL = 2**62


def compute_again(monkeypatch: pytest.MonkeyPatch, group: int = ALL, pays: bool = True) -> None:
    """Let samplers compute their trunks again, so many numbers of a graph at a time, or never."""
    monkeypatch.setattr("tatscli.masking.rl.policy.pays", lambda *_: pays)
    monkeypatch.setattr("tatscli.nn.recompute.GROUP_VALUES", group)
    monkeypatch.setattr("tatscli.nn.recompute.FEWEST", 1)


def learnt(kind: str, precision: torch.autocast | None, **mask: Any) -> dict[str, Tensor]:
    """Take the backward pass of a step, and return its loss, its draws and every gradient."""
    system, masker = system_of(kind, **mask)
    torch.manual_seed(7)  # for dropout
    with precision or nullcontext():
        _, found = begin(system)
        lesson = masker.learn(found.plan, found.error_BM.detach())
    assert lesson.loss is not None
    loss = found.loss + lesson.loss
    loss.backward()
    drawn = {"loss": loss.detach(), "visible": found.plan.visible_BK, "next": torch.rand(3)}
    ours = {f"sampler.{name}": one for name, one in collected(masker).items()}
    assert ours
    return drawn | ours | collected(system.autoencoder)


@pytest.mark.parametrize("precision", [None, BF16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(
    ("kind", "mask"),
    [
        ("tats", {}),
        ("tats", {"width": 12, "detach": False, "entropy_target": 0.9}),
        ("tats", {"critic": "separate", "trunk": "mha", "credit": "visible", "log_prob": "exact"}),
        ("adamae", {"dropout": 0.5, "weight": 1.0, "detach": True}),
        ("adamae", {"dropout": 0.5, "weight": 1.0, "detach": False}),
    ],
)
def test_computing_again_changes_no_bit_of_a_step(
    kind: str,
    mask: dict[str, Any],
    precision: torch.autocast | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept = learnt(kind, precision, **mask)
    compute_again(monkeypatch)
    assert same(learnt(kind, precision, **mask), kept)


@pytest.mark.parametrize(("kind", "mask"), [("tats", {}), ("adamae", {"dropout": 0})])
def test_nor_does_clip_by_clip_but_for_rounding(
    kind: str, mask: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = learnt(kind, None, **mask)
    compute_again(monkeypatch, group=1)
    torch.testing.assert_close(learnt(kind, None, **mask), kept, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("group", "clips"), [(1, 3), (ALL, 1)])
@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("kind", ["tats", "adamae"])
def test_the_autoencoder_is_done_with_its_graph_before_the_sampler_needs_its_own(
    kind: str, detach: bool, group: int, clips: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute_again(monkeypatch, group)
    system, masker = system_of(kind, detach=detach)
    inner = [
        one for name, one in system.autoencoder.named_parameters() if "patch_embed" not in name
    ]
    done: list[bool] = []
    masker.policy.trunk.register_forward_pre_hook(  # the second time it does not reach its end
        lambda *_: done.append(all(one.grad is not None for one in inner))
    )
    _, found = begin(system)
    lesson = masker.learn(found.plan, found.error_BM.detach())
    assert lesson.loss is not None
    assert done == [False] * clips
    (found.loss + lesson.loss).backward()
    assert done == [False] * clips + [True] * clips


class Alive(TorchDispatchMode):
    """Counts the bytes that operations made and that are still there."""

    def __init__(self, weights: Iterable[Tensor]) -> None:
        super().__init__()
        self.weights = {one.untyped_storage().data_ptr() for one in weights}
        self.made: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                if storage.data_ptr() in self.weights:
                    continue
                reference = StorageWeakRef(storage)
                self.made[reference.cdata] = (reference, storage.nbytes())
        return out

    @property
    def bytes(self) -> int:
        return sum(size for reference, size in self.made.values() if not reference.expired())


@pytest.mark.parametrize("group", [1, ALL])
@pytest.mark.parametrize("kind", ["tats", "adamae"])
def test_what_waits_for_the_backward_pass_is_what_the_trunk_makes_of_the_tokens(
    kind: str, group: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    widths = []
    for pays in (True, False):
        compute_again(monkeypatch, group, pays)
        masker, clip = make(kind, width=64), noise(4)
        assert clip.tokens_BND is not None
        with Alive(masker.parameters()) as alive:
            plan = masker.plan(clip, Draws(0))
            widths.append(alive.bytes / (4 * TOKENS * 64 * 4))
        assert plan is not None
    again, everything = widths
    assert 1 <= again < 1.5  # besides numbers a token
    assert everything > 14


def test_later_passes_follow_at_once_and_keep_their_graphs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compute_again(monkeypatch)
    masker = make(epochs=3, max_kl=100.0)
    calls: list[int] = []
    masker.policy.trunk.register_forward_pre_hook(lambda *_: calls.append(1))
    taught = teach(masker, 0, noise(), noise(seed=1))
    assert taught.metrics["updates"] == 4
    assert len(calls) == 2 + 2 + 4  # two plans, again in two backward passes, four later passes


def test_several_micro_batches_and_updates_end_where_kept_graphs_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    states = []
    for pays in (True, False):
        compute_again(monkeypatch, pays=pays)
        masker = make(epochs=2, max_kl=100.0, entropy_target=0.9)
        for step in range(3):
            torch.manual_seed(step)
            teach(masker, step, noise(seed=step), noise(seed=10 + step))
        states.append(masker.tensors())
        assert bad_updates(masker) == [False] * 9
    assert same(*states)


@pytest.mark.parametrize(("slices", "again"), [(16, True), (17, False)])
def test_trajectories_of_long_clips_are_not_found_a_third_time(
    slices: int, again: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tatscli.nn.recompute.GROUP_VALUES", 1)
    policy = Policy(grid=(slices, 2, 2), inputs=6, width=16, heads=2)
    calls: list[int] = []
    policy.trunk.register_forward_pre_hook(lambda *_: calls.append(1))
    policy(torch.randn(4, 4 * slices, 6), later=True).log_p_BN.sum().backward()
    assert len(calls) == (8 if again else 1)
