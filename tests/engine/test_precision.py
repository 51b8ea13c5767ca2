"""Devices and precisions by name, the loss scale of fp16, TF32, and what stays in fp32."""

from __future__ import annotations

import io
import json
import math
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from tatscli.console import Reporter
from tatscli.engine import device as devices
from tatscli.engine import session as sessions
from tatscli.engine.checkpoint import find_checkpoint
from tatscli.engine.device import choose_device, choose_precision, cpu_features, slow_precision
from tatscli.engine.distributed import World
from tatscli.engine.loop import train
from tatscli.engine.loss_scale import BACKOFF, FIRST, GROWTH, INTERVAL, LossScale
from tatscli.engine.part import Lesson
from tatscli.engine.session import session
from tatscli.engine.training import Training
from tatscli.errors import TatsError, UsageError
from tatscli.recipe.schema import Run
from tests.engine.test_learner import assert_equal, loss_of, make, state_of, step
from tests.engine.toy import ToyBatch, said, toy_training

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


def lines(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


# Devices and precisions


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda place: None)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *, including_emulation: True)


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    ("choice", "place"),
    [("auto", "cuda"), ("cuda", "cuda"), ("cuda:0", "cuda:0"), ("cuda:1", "cuda:1")],
)
def test_a_gpu_is_chosen_by_name_or_number(choice: str, place: str) -> None:
    assert choose_device(choice)[0] == torch.device(place)


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    ("choice", "says"),
    [
        ("cuda:2", "torch sees 2 GPUs, `cuda:0` to `cuda:1`"),
        ("cuda:-1", "`cuda:-1` is not a device"),
        ("cuda:", "`cuda:` is not a device"),
        ("cpu:0", "`cpu:0` is not a device"),
        ("gpu", "`gpu` is not a device"),
    ],
)
def test_what_is_no_device_is_refused_with_what_there_is(choice: str, says: str) -> None:
    with pytest.raises(UsageError) as refused:
        choose_device(choice)
    assert says in refused.value.message


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(UsageError, match=r"`run\.device: cuda:1` is not available"):
        choose_device("cuda:1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UsageError, match="torch sees 1 GPU, only `cuda:0`"):
        choose_device("cuda:1")


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    ("device", "world", "place"),
    [
        ("cuda:1", World(), "cuda:1"),
        ("cuda", World(), "cuda:0"),
        ("cuda", World(rank=1, size=2, local_rank=1, local_size=2, gpu=1), "cuda:1"),
        ("cuda:1", World(rank=1, size=2, local_rank=1, local_size=2), None),
    ],
)
def test_a_numbered_gpu_is_for_one_process(
    device: str, world: World, place: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Joined:
        def __init__(self, kind: str, **_: object) -> None:
            assert kind == "cuda"

        def __enter__(self) -> World:
            return world

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(sessions.joining, "joined", Joined)
    monkeypatch.setattr(sessions, "seed_torch", lambda seed: None)
    quiet = Reporter(stdout=io.StringIO(), stderr=io.StringIO())
    if place is None:
        refused = pytest.raises(UsageError, match="cuda:1` names one GPU for 2 processes")
        with refused, session(Run(device="cuda:1"), quiet):
            pass
        return
    with session(Run(device=device), quiet) as here:
        assert here.device == torch.device(place)


@pytest.mark.parametrize("name", ["cuda:x", "cuda:", "cuda:1.0", "gpu", "CPU"])
def test_a_recipe_takes_no_other_device(name: str) -> None:
    with pytest.raises(ValueError, match="device"):
        Run.model_validate({"device": name})


def gpu_with_bf16(there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def supported(including_emulation: bool = True) -> bool:
        return there or including_emulation  # as torch has it

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)


def cpu_with(features: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "cpu_features", lambda: frozenset(features))


def test_auto_is_bf16_where_a_gpu_computes_it_and_not_where_torch_emulates_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpu_with_bf16(True, monkeypatch)
    assert choose_precision("auto", CUDA)[0] == torch.bfloat16
    gpu_with_bf16(False, monkeypatch)
    dtype, reason = choose_precision("auto", CUDA)
    assert dtype == torch.float32 and "run.precision=fp16" in reason
    assert "this GPU lacks bf16 instructions" in str(slow_precision(torch.bfloat16, CUDA))
    assert slow_precision(torch.float16, CUDA) is None


@pytest.mark.parametrize("feature", ["avx512_bf16", "amx_bf16", "bf16", None])
def test_a_cpu_computes_bf16_where_it_can_and_says_so(
    feature: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu_with({"avx2"} | ({feature} if feature else set()), monkeypatch)
    dtype, reason = choose_precision("auto", CPU)
    assert dtype == torch.float32
    assert ("supports bf16" in reason) == (feature is not None)
    assert choose_precision("bf16", CPU) == (torch.bfloat16, "set in the recipe")
    slow = slow_precision(torch.bfloat16, CPU)
    assert (slow is None) == (feature is not None)
    assert slow is None or "slower than fp32 here: this CPU lacks bf16 instructions" in slow
    assert "many times slower" in str(slow_precision(torch.float16, CPU))
    assert slow_precision(torch.float32, CPU) is None


def test_what_a_cpu_can_do_is_read_from_torch_or_linux(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cpu_features.cache_clear()
    there = MappingProxyType({"avx512_bf16": True, "amx_bf16": False})
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: there, raising=False)
    assert cpu_features() == {"avx512_bf16"}
    cpu_features.cache_clear()
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    monkeypatch.setattr(devices, "Path", lambda _: tmp_path / "cpuinfo")
    (tmp_path / "cpuinfo").write_text("flags\t\t: fpu avx512_bf16\nbugs\t\t: amx_bf16\n")
    assert cpu_features() == {"fpu", "avx512_bf16"}
    cpu_features.cache_clear()
    (tmp_path / "cpuinfo").unlink()
    assert cpu_features() == frozenset()
    cpu_features.cache_clear()


@pytest.mark.parametrize("tf32", [True, False])
def test_tf32_is_a_switch_of_the_recipe(tf32: bool) -> None:
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    quiet = Reporter(stdout=io.StringIO(), stderr=io.StringIO())
    try:
        with session(Run(device="cpu", tf32=tf32), quiet):
            assert torch.backends.cuda.matmul.allow_tf32 is tf32
            assert torch.backends.cudnn.allow_tf32 is tf32
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
    assert Run().tf32


# The loss scale


def test_the_scale_moves_as_torchs_own() -> None:
    assert (FIRST, GROWTH, BACKOFF, INTERVAL) == (2.0**16, 2.0, 0.5, 2000)
    scale = LossScale(CPU)
    own, tracker = torch.tensor(FIRST), torch.zeros((), dtype=torch.int32)
    generator = torch.Generator().manual_seed(0)
    overflows = torch.rand(9000, generator=generator) < 0.0004
    overflows[:4] = True
    seen = set[float]()
    for number, overflow in enumerate(overflows):
        scale.hear(torch.tensor(False))
        scale.hear(overflow)
        scale.hear(torch.tensor(False))
        lesson = scale.after_step(number + 1, len(overflows))
        assert lesson.metrics["loss_scale"] == own
        torch._amp_update_scale_(own, tracker, overflow.float(), GROWTH, BACKOFF, INTERVAL)
        assert torch.equal(scale.scale, own)
        assert torch.equal(scale.tensors()["good"], tracker)
        assert torch.equal(scale.fell, overflow)
        seen.add(float(own) / float(lesson.metrics["loss_scale"]))
    assert seen == {1.0, GROWTH, BACKOFF}


def test_a_scale_that_cannot_grow_stays_finite() -> None:
    scale = LossScale(CPU)
    scale.load({"scale": torch.tensor(2.0**127), "good": torch.tensor(INTERVAL - 1).int()})
    scale.after_step(1, 1)
    assert scale.scale == 2.0**127


def test_scaled_and_unscaled_again_an_update_is_the_same_to_the_bit() -> None:
    """A power of two moves exponents alone; the norm is that of the unscaled gradient."""
    scaled, plain = make(clip_grad=0.1), make(clip_grad=0.1)
    scaled.loss_scale = LossScale(CPU)
    for number in range(3):
        scaled.begin(number)
        scaled.loss_scale.scaled(loss_of(scaled, number)).backward()
        norm = scaled.update()
        wanted = step(plain, number)
        assert norm is not None and wanted is not None and torch.equal(norm, wanted)
        # A step of its own, of another learner's kind, scales by itself.
        assert torch.equal(scaled.learn(loss_of(scaled, 9)), plain.learn(loss_of(plain, 9)))
    assert_equal(state_of(scaled), state_of(plain))


def test_overflows_of_any_learner_lower_the_scale_and_skipped_steps_do_not() -> None:
    scale, first, second = LossScale(CPU), make(), make()
    for learner in (first, second):
        learner.loss_scale = scale

    def round_of(*factors: float, skip: bool = False) -> Tensor:
        for learner, factor in zip((first, second), factors, strict=True):
            scale.scaled(loss_of(learner, 0, factor)).backward()
            learner.update(skip=torch.tensor(skip))
        scale.after_step(1, 1)
        return scale.scale

    assert round_of(1.0, 1.0) == FIRST
    assert round_of(1.0, math.inf) == FIRST / 2
    assert round_of(math.nan, 1.0) == FIRST / 4
    assert round_of(math.nan, 1.0, skip=True) == FIRST / 4  # its loss was bad, not its scale
    first.learn(loss_of(first, 1, math.inf))
    assert round_of(1.0, 1.0) == FIRST / 8


def test_the_gradient_of_a_sharded_weight_is_unscaled_where_it_lies(tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        sharded = distribute_tensor(torch.full((4, 2), 2.0**18), mesh, [Shard(0)])
        plain = torch.full((3,), 2.0**17)
        LossScale(CPU).unscale_([sharded, plain])
        assert torch.equal(sharded.full_tensor(), torch.full((4, 2), 4.0))
        assert torch.equal(plain, torch.full((3,), 2.0))
    finally:
        dist.destroy_process_group()


def half_training(folder: Path, *, worth: float = 1.0, **options: Any) -> Training:
    """The toy in fp16, its loss times `worth`."""
    training = toy_training(folder, **options)
    plain = training.step

    def step(batch: ToyBatch, generator: torch.Generator) -> Lesson:
        lesson = plain(batch, generator)
        assert lesson.loss is not None
        return lesson._replace(loss=lesson.loss.float() * worth)

    fields = [name for name in Training.__slots__ if name not in ("bad_steps", "loss_scale")]
    given = {name: getattr(training, name) for name in fields}
    parts = {name: part for name, part in training.parts.items() if name != "bad_steps"}
    return Training(**{**given, "parts": parts, "step": step, "dtype": torch.float16})


def test_a_training_in_fp16_finds_its_scale_and_learns(tmp_path: Path) -> None:
    """Its first gradients overflow: those steps are skipped, counted apart, and are no bad ones."""
    training = half_training(tmp_path, worth=40.0, epochs=15, max_bad_steps=1)
    result = train(training)
    written = lines(tmp_path)
    scales = [line["loss_scale"] for line in written]
    searched = [line["scale_skipped"] for line in written]
    assert searched[0] and 0 < sum(searched) < 10 and result["skipped"] == 0
    fell = [after < before for before, after in pairwise(scales)]
    assert scales[0] == FIRST and fell == [bool(one) for one in searched[:-1]]
    assert [line["skipped"] for line in written] == [0.0] * 30
    assert written[-1]["loss"] < 0.5 * written[0]["loss"]
    assert all("grad_norm" in line for line, one in zip(written, searched, strict=True) if not one)
    assert "not finite" not in said(training)


def test_fp16_is_resumed_to_the_bit(tmp_path: Path) -> None:
    straight = half_training(tmp_path / "straight", worth=40.0)
    train(straight)
    train(half_training(tmp_path / "halves", worth=40.0, max_steps=5))
    again = half_training(tmp_path / "halves", worth=40.0)
    again.restore(find_checkpoint(tmp_path / "halves"))
    train(again)
    for name in ("model", "optimizer", "loss_scale", "bad_steps"):
        first, second = (
            find_checkpoint(tmp_path / one).tensors(name) for one in ("straight", "halves")
        )
        assert_equal(first, second)


def test_fp16_may_begin_and_end_in_the_middle_of_a_run(tmp_path: Path) -> None:
    train(toy_training(tmp_path, max_steps=2))
    for make_it, steps in ((half_training, 4), (toy_training, 6), (half_training, 8)):
        training = make_it(tmp_path, max_steps=steps)
        training.restore(find_checkpoint(tmp_path))
        assert train(training)["steps"] == steps


def test_a_scale_that_falls_without_end_is_a_fault(tmp_path: Path) -> None:
    training = half_training(tmp_path, max_bad_steps=3, epochs=20)
    weight = training.model.layers[0].weight
    weight.register_hook(lambda grad: grad * math.inf)
    with pytest.raises(TatsError, match="3 bad steps in a row, the last at step 19:") as refused:
        train(training)  # 17 halvings to a half, and two more
    assert "below a loss scale of 1" in refused.value.message
    assert "run.precision=bf16" in str(refused.value.hint)
    kept = find_checkpoint(tmp_path / "bad-step")
    assert kept.meta["precision"] == "float16"
    assert kept.tensors("loss_scale")["scale"] < 1
