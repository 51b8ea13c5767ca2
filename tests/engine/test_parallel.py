"""How a model is shared: who may, and a sharded one beside a whole one, in a group of one process.

Groups of two: `tests/tasks/test_parallel.py`; compiled blocks: `tests/tasks/test_compile.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor

from tatscli.draws import Draws
from tatscli.engine import distributed
from tatscli.engine.distributed import World
from tatscli.engine.learner import Learner
from tatscli.engine.optim import build_optimizer
from tatscli.engine.parallel import (
    blocks_of,
    choose_parallel,
    full_tensors,
    shard,
    train_blocks,
    whole_weights,
    without_averaging,
)
from tatscli.engine.part import Weights
from tatscli.errors import UsageError
from tatscli.nn.averaged import Averaged, Following
from tatscli.recipe.schema import Optim, Recipe, Run
from tatscli.system.system import System, build_system
from tatscli.tokenizer.scorer import Scorer


@pytest.mark.parametrize(
    ("asked", "size", "found"),
    [
        ("auto", 1, "none"),
        ("auto", 2, "ddp"),
        ("none", 1, "none"),
        ("ddp", 2, "ddp"),
        ("fsdp", 2, "fsdp"),
        ("ddp", 1, "none"),
        ("fsdp", 1, "none"),
    ],
)
def test_one_process_shares_nothing_and_several_do(asked: str, size: int, found: str) -> None:
    assert choose_parallel(Run.model_validate({"parallel": asked}), World(size=size)) == found


def test_torch_does_not_remark_on_a_gpu_that_is_not_there(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What `run.compile` on a CPU would print among our own lines."""
    train_blocks(nn.Module(), compiled=True)
    logger = logging.getLogger("torch.utils.cpp_extension")
    logger.warning("No CUDA runtime is found, using CUDA_HOME='%s'", "/usr/local")
    logger.warning("something else")
    assert [one.getMessage() for one in caplog.records] == ["something else"]


def test_several_processes_that_shall_not_share_are_refused() -> None:
    with pytest.raises(UsageError, match=r"`run.parallel: none` with 4 processes") as raised:
        choose_parallel(Run(parallel="none"), World(size=4))
    assert "`ddp`, `fsdp` or `auto`" in str(raised.value.hint)


@pytest.fixture(scope="module")
def mesh() -> Iterator[DeviceMesh]:
    """A group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


RANDOM = {"kind": "random", "ratio": 0.75}


def built(**sections: Any) -> System:
    torch.manual_seed(0)
    recipe = {
        "data": {"store": "", "frames": 4, "size": 16},
        "model": {"width": 16, "depth": 2, "heads": 2, "patch": 4},
        "mask": {"kind": "tats", "width": 16, "heads": 2, "ratio": 0.75, "detach": False},
        "head": {"kind": "decoder", "depth": 1},
    }
    return build_system(Recipe.model_validate(recipe | sections)).train()


def learner_of(module: nn.Module) -> Learner:
    optimizer = build_optimizer(module, Optim(base_lr=0.01))
    return Learner(module, optimizer, lr=lambda step: 0.01, clip_grad=0.1)


def loss_of(system: System, seed: int = 0) -> Tensor:
    """The loss of a batch, whose mask looks at the embeddings before the model is called."""
    generator = torch.Generator().manual_seed(seed)
    video = torch.randint(0, 256, (2, 3, 4, 16, 16), dtype=torch.uint8, generator=generator)
    errors = system.errors(system.clip(video), Draws(seed))
    lesson = system.masker.learn(errors.plan, errors.error_BM.detach())
    return errors.loss if lesson.loss is None else errors.loss + lesson.loss


def state_of(learner: Learner) -> dict[str, Tensor]:
    """Weights and moments, whole."""
    kept = dict(learner.module.state_dict()) | learner.tensors()
    return {name: one.clone() for name, one in full_tensors(kept)}


def assert_equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


@pytest.mark.parametrize(
    "sections",
    [
        {},
        # Two looks of the encoder in a step; and nothing for it to learn.
        {"head": {"kind": "regressor", "depth": 1, "regressor_depth": 1, "alignment": 1}},
        {"head": {"kind": "regressor", "depth": 1, "regressor_depth": 0}, "mask": RANDOM},
    ],
)
def test_a_sharded_model_learns_what_a_whole_one_does_bit_by_bit(
    mesh: DeviceMesh, sections: dict[str, Any]
) -> None:
    whole, sharded = built(**sections), built(**sections)
    names = [name for name, _ in whole.autoencoder.named_parameters()]
    shard(sharded.autoencoder, mesh, torch.float32)
    assert [name for name, _ in sharded.autoencoder.named_parameters()] == names
    assert all(isinstance(one, DTensor) for one in sharded.autoencoder.parameters())
    learners = [learner_of(system.autoencoder) for system in (whole, sharded)]
    for step in range(3):
        norms = []
        for system, learner in zip((whole, sharded), learners, strict=True):
            learner.begin(step)
            factor = torch.nan if step == 1 else 1.0  # a step that is left out
            (factor * loss_of(system, step)).backward()
            norm = learner.update()
            assert norm is not None and not isinstance(norm, DTensor)
            norms.append(norm)
            assert learner.left_out is not None and bool(learner.left_out) == (step == 1)
        torch.testing.assert_close(norms[1], norms[0], equal_nan=True)
        assert_equal(*map(state_of, learners))


def test_gradients_that_are_held_are_those_of_one_backward_pass(mesh: DeviceMesh) -> None:
    whole, sharded = built(), built()
    shard(sharded.autoencoder, mesh, torch.float32)
    (loss_of(whole, 0) + loss_of(whole, 1)).backward()
    with without_averaging(sharded.autoencoder):
        loss_of(sharded, 0).backward()
    loss_of(sharded, 1).backward()
    for one, other in zip(
        whole.autoencoder.parameters(), sharded.autoencoder.parameters(), strict=True
    ):
        assert one.grad is not None and other.grad is not None
        torch.testing.assert_close(distributed.full(other.grad), one.grad)


def test_state_goes_from_whole_to_sharded_and_back(mesh: DeviceMesh) -> None:
    whole, sharded, again = built(), built(), built()
    shard(sharded.autoencoder, mesh, torch.float32)
    first, second, third = (learner_of(one.autoencoder) for one in (whole, sharded, again))
    first.begin(0)
    loss_of(whole).backward()
    first.update()
    for one, other in ((first, second), (second, third)):
        for source, sink in ((one, other), (Weights(one.module), Weights(other.module))):
            kept = dict(full_tensors(source.tensors()))
            assert not any(isinstance(tensor, DTensor) for tensor in kept.values())
            sink.load(kept)
    assert all(isinstance(one, DTensor) for one in sharded.autoencoder.parameters())
    assert_equal(state_of(second), state_of(first))
    assert_equal(state_of(third), state_of(first))
    with pytest.raises(RuntimeError, match="size mismatch"):
        Weights(sharded.autoencoder).load({**kept, "head.branches.0.mask_token": torch.zeros(3)})


def test_what_is_gathered_is_asked_without_the_others(
    mesh: DeviceMesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    system, whole = built(), built()
    slow = Averaged(system.encoder).network
    pairs = [(slow, system.encoder)]
    shard(system.autoencoder, mesh, torch.float32)
    shard(slow, mesh, torch.float32, averaged=True)
    tokens = torch.randn(1, 32, 16)
    expected = list(whole.encoder.by_block(tokens))
    with whole_weights(system.autoencoder, pairs), torch.inference_mode():
        for collective in ("all_gather_into_tensor", "all_gather_single"):
            monkeypatch.setattr(dist, collective, None, raising=False)
        for encoder in (system.encoder, slow):
            for _ in range(2):
                assert all(map(torch.equal, encoder.by_block(tokens), expected))
                assert torch.equal(encoder(tokens), whole.encoder.norm(expected[-1]))
        assert not any(isinstance(one, DTensor) for one in slow.parameters())
    monkeypatch.undo()
    for module in (system.autoencoder, slow):
        assert all(isinstance(one, DTensor) for one in module.parameters())
    loss_of(system).backward()  # and it trains on
    loss_of(whole).backward()
    for one, other in zip(system.encoder.parameters(), whole.encoder.parameters(), strict=True):
        assert one.grad is not None
        assert torch.equal(distributed.full(one.grad), other.grad)


def test_an_average_follows_share_by_share(mesh: DeviceMesh) -> None:
    whole, sharded = built().encoder, built().encoder
    followings = [Following(one, 0.9) for one in (whole, sharded)]
    shard(sharded, mesh, torch.float32)
    shard(followings[1].average.network, mesh, torch.float32, averaged=True)
    for encoder, following in zip((whole, sharded), followings, strict=True):
        for parameter in encoder.parameters():
            distributed.share(parameter.detach()).mul_(2)
        following.after_step(30, 40)
    first, second = (dict(full_tensors(one.tensors())) for one in followings)
    assert_equal(first, second)
    assert not torch.equal(first["norm.weight"], torch.ones(16))
    followings[1].load({name: torch.zeros_like(one) for name, one in first.items()})
    assert not any(one.any() for _, one in full_tensors(followings[1].tensors()))


def test_weights_are_rounded_on_their_way_and_sums_are_not(mesh: DeviceMesh) -> None:
    encoder: Any = built().encoder
    encoder.scorer = Scorer(4, stride=4, tubelet=2)
    shard(encoder, mesh, torch.bfloat16)
    assert all(one.dtype == torch.float32 for one in encoder.parameters())
    seen: dict[str, Tensor] = {}
    encoder.blocks[0].mlp.register_forward_pre_hook(
        lambda module, given: seen.update(weight=module.fc1.weight, normed=given[0])
    )
    encoder.scorer.first.register_forward_pre_hook(
        lambda module, given: seen.update(exact=module.weight)
    )
    with torch.autocast("cpu", torch.bfloat16):
        tokens = encoder(encoder.embed(torch.randn(1, 32, 96)))
        score, _ = encoder.scorer(torch.rand(1, 3, 4, 16, 16))
    assert seen["weight"].dtype == torch.bfloat16
    assert seen["exact"].dtype == score.dtype == torch.float32
    # Normalised in float32, and so is the stream between blocks.
    assert seen["normed"].dtype == tokens.dtype == torch.float32
    (tokens.square().mean() + score.sum()).backward()
    gradients = [one.grad for one in encoder.parameters()]
    assert all(one is not None and one.dtype == torch.float32 for one in gradients)


def test_blocks_are_those_of_all_stacks() -> None:
    system = built(head={"kind": "regressor", "depth": 2, "regressor_depth": 1})
    names = {module: name for name, module in system.autoencoder.named_modules()}
    assert [names[one] for one in blocks_of(system.autoencoder)] == [
        "encoder.blocks.0",
        "encoder.blocks.1",
        "head.regressor.blocks.0",
        "head.decoders.0.blocks.0",
        "head.decoders.0.blocks.1",
    ]
