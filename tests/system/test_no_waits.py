"""A training step waits for nothing on the device and mixes no devices, whatever it is made of."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tatscli.console import Reporter
from tatscli.data.batch import Batch
from tatscli.data.motion import MotionField
from tatscli.engine.device import autocast
from tatscli.engine.distributed import World
from tatscli.engine.feed import Feed
from tatscli.engine.learner import Learner
from tatscli.engine.loop import optimise
from tatscli.engine.metrics import Averages
from tatscli.engine.optim import build_optimizer
from tatscli.engine.part import Weights
from tatscli.engine.schedule import lr_at
from tatscli.engine.training import Training
from tatscli.heads import HEADS
from tatscli.masking import MASKERS
from tatscli.masking.predict import PREDICT_RULES
from tatscli.nn.vit import Block
from tatscli.recipe.derive import derive_schedule
from tatscli.recipe.schema import Recipe, VqTokenizer
from tatscli.system.system import System, build_system
from tatscli.targets import TARGETS as ALL_TARGETS
from tatscli.targets import AllTargets
from tatscli.tasks.pretrain import step
from tests.system.fake_device import GPU, NoWaits, pretend_gpu, to_gpu, walk_back
from tests.teaching import write_run
from tests.tokenizer.saved import save_tokenizer
from tests.tokenizer.windows import WindowTokenizer, give

LEARNED = {"width": 16, "heads": 2}
MASKS: dict[str, dict[str, Any]] = {kind: {} for kind in MASKERS} | {
    "tats": LEARNED,
    "adamae": LEARNED,
    "everest": {"keep": 0.6},
    "schedule": {"from": "tube", "to": {"kind": "tats"} | LEARNED, "over": 0.1},
}
TARGETS = [
    [{"kind": "pixels"}],
    [{"kind": "difference"}],
    [{"kind": "pixels", "normalize": False}, {"kind": "difference", "span": "clip"}],
]
ON_DISK = {
    "teacher",
    "codes",
    "latents",
}  # these need a network that was trained; tests of their own have one
OTHER_TARGETS: dict[str, dict[str, Any]] = {
    kind: {} for kind in ALL_TARGETS.keys() - ON_DISK - {"pixels", "difference"}
} | {"hog": {"cell": 2}}
HEAD_OPTIONS: dict[str, dict[str, Any]] = {
    "decoder": {"depth": 1},
    "regressor": {"depth": 1, "regressor_depth": 1, "alignment": 2.0},
}


def recipe_of(
    mask: dict[str, Any], head: str, targets: list[dict[str, Any]], predict: str
) -> Recipe:
    return Recipe.model_validate(
        {
            "data": {
                "store": "",
                "frames": 4,
                "size": 16,
                "sampling": {"stride": 1},
                "mean": [0.4, 0.5, 0.6],
                "std": [0.2, 0.3, 0.4],
            },
            "model": {"width": 16, "depth": 1, "heads": 2, "patch": 4},
            "mask": {"ratio": 0.75, **mask},
            "head": {"kind": head, **HEAD_OPTIONS[head]},
            "targets": targets,
            "predict": {"kind": predict},
            "optim": {"total_batch": 2, "batch_per_device": 2, "epochs": 3, "clip_grad": 1.0},
        }
    )


class Arrived:
    """A batch as the loader hands it over: on the host until `to`."""

    replaced = 0

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    @property
    def row_B(self) -> Any:
        return self

    def tolist(self) -> list[int]:
        return [0, 1]

    def to(self, device: torch.device) -> Batch:
        return self.batch.to(device)


def host_batch(recipe: Recipe, size: int = 16) -> Batch:
    t, h, w = recipe.grid
    unknown_B = torch.zeros(2, dtype=torch.bool)
    motion = MotionField(
        torch.zeros(2, 2 * t, h, w, 2),
        torch.zeros(2, 2 * t, h, w),
        torch.ones(2, 2 * t, dtype=torch.bool),
        unknown_B,
        unknown_B,
        recipe.model.patch,
    )
    number_B = torch.zeros(2, dtype=torch.int64)
    video = torch.zeros(2, 3, recipe.data.frames, size, size, dtype=torch.uint8)
    return Batch(video, motion, number_B, number_B, number_B)


def train_steps(
    recipe: Recipe,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    dtype: torch.dtype = torch.float32,
    steps: int = 1,
) -> None:
    """Take whole optimiser steps on the pretend GPU, in autocast unless `dtype` is float32."""
    system = build_system(recipe).train()
    with pretend_gpu(monkeypatch):
        to_gpu(*system.parts, *(one._network[0] for one in system.frozen()))
        _train_steps(system, recipe, folder, dtype, steps)


def _train_steps(
    system: System, recipe: Recipe, folder: Path, dtype: torch.dtype, steps: int
) -> None:
    schedule = derive_schedule(recipe.optim, videos=8, repeats=1, world=1)
    model = system.autoencoder
    main = Learner(
        model,
        build_optimizer(model, recipe.optim),
        lr=lambda number: lr_at(number, schedule),
        clip_grad=recipe.optim.clip_grad,
    )
    learners = {"autoencoder": main} | system.masker.learners(schedule)
    if hasattr(system.masker, "guard"):
        # It looks at the policy once in twenty steps; here it has looked.
        system.masker.guard.load({"seen": torch.zeros(1)})

    arrived = Arrived(host_batch(recipe))  # here: the feed's thread knows of no pretend GPU

    def batches() -> Iterator[Arrived]:
        while True:
            yield arrived

    training = Training(
        model=model,
        step=lambda batch, draws: step(system, batch, draws),
        learners=learners,
        parts={
            "model": Weights(model),
            "optimizer": main,
            "masker": system.masker,
            "targets": AllTargets(system.targets),
        },
        schedule=schedule,
        batches=lambda start: batches(),
        run=recipe.run,
        folder=folder,
        meta={},
        world=World(),
        device=GPU,
        dtype=dtype,
        reporter=Reporter(stdout=io.StringIO(), stderr=io.StringIO()),
    )
    averages = Averages()
    with NoWaits():
        for _ in range(steps):
            optimise(training, Feed(batches(), GPU), averages)
            training.done += 1
    for parameter in (*model.parameters(), *system.masker.parameters()):
        assert parameter.device == GPU
    states = main.optimizer.state.values()
    assert len(states) > 5
    assert all(value.device == GPU for state in states for value in state.values())


PREDICTS = [kind for kind in PREDICT_RULES if kind != "tokenizer"]  # which needs one; see below
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
MIXES = [  # every mask with both heads, one of them rounded; the rest several times
    (mask, PREDICTS[(i + 3 * j) % len(PREDICTS)], head, (i + j) % len(TARGETS), one)
    for i, mask in enumerate(MASKERS)
    for j, head in enumerate(HEADS)
    for k, one in enumerate(DTYPES)
    if (i + j) % 2 == k
]
ALL = [
    (mask, predict, head, targets, one)
    for mask in MASKERS
    for predict in PREDICTS
    for head in HEADS
    for targets in range(len(TARGETS))
    for one in DTYPES
]
EACH = pytest.mark.parametrize("dtype", [pytest.param("fp32", marks=pytest.mark.slow), "bf16"])


@pytest.mark.parametrize(("mask", "predict", "head", "targets", "dtype"), MIXES)
def test_a_step_waits_for_nothing_and_mixes_no_devices(
    mask: str,
    predict: str,
    head: str,
    targets: int,
    dtype: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    recipe = recipe_of({"kind": mask} | MASKS[mask], head, TARGETS[targets], predict)
    train_steps(recipe, tmp_path, monkeypatch, DTYPES[dtype])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mask", "predict", "head", "targets", "dtype"), sorted(set(ALL) - set(MIXES))
)
def test_every_other_mixture_neither(
    mask: str,
    predict: str,
    head: str,
    targets: int,
    dtype: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    recipe = recipe_of({"kind": mask} | MASKS[mask], head, TARGETS[targets], predict)
    train_steps(recipe, tmp_path, monkeypatch, DTYPES[dtype])


@EACH
@pytest.mark.parametrize("kind", sorted(OTHER_TARGETS))
def test_no_target_makes_a_step_wait(
    kind: str, dtype: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    targets = [{"kind": "pixels"}, {"kind": kind} | OTHER_TARGETS[kind]]
    recipe = recipe_of({"kind": "tube"}, "decoder", targets, "random")
    train_steps(recipe, tmp_path, monkeypatch, DTYPES[dtype], steps=2)


@EACH
def test_no_teacher_makes_a_step_wait(
    dtype: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    recipe = recipe_of({"kind": "tube"}, "decoder", [{"kind": "pixels"}], "all")
    data = recipe.data.model_dump() | {"size": 32}
    write_run(tmp_path / "run", data=data, model=recipe.model.model_dump() | {"patch": 8})
    teacher = {"kind": "teacher", "run": str(tmp_path / "run"), "size": 32}
    recipe = recipe_of({"kind": "tube"}, "decoder", [teacher], "all")
    train_steps(recipe, tmp_path, monkeypatch, DTYPES[dtype])


@EACH
@pytest.mark.parametrize("kind", ["codes", "latents"])
def test_no_tokenizer_makes_a_step_wait(
    kind: str, dtype: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = VqTokenizer(kind="vq", stride=4, widths=[8], blocks=1, codes=6, code_width=2)
    run = save_tokenizer(tmp_path / "coder", config, size=16)
    target = {"kind": kind, "tokenizer": {"kind": "run", "path": str(run)}, "frames": "middle"}
    recipe = recipe_of({"kind": "tube"}, "decoder", [target], "all")
    train_steps(recipe, tmp_path, monkeypatch, DTYPES[dtype])


@EACH
@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_neither_do_its_scores_and_levels(
    sampled: bool, loss: str, dtype: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    give(monkeypatch, WindowTokenizer(stride=4))
    target = {"kind": "latents", "tokenizer": {"kind": "run", "path": "runs/x"}, "loss": loss}
    recipe = recipe_of({"kind": "tube"}, "decoder", [target], "tokenizer")
    predict = recipe.predict.model_copy(update={"sampled": sampled})
    train_steps(
        recipe.model_copy(update={"predict": predict}), tmp_path, monkeypatch, DTYPES[dtype]
    )


@EACH
@pytest.mark.parametrize(
    "switches",
    [
        {"epochs": 3},
        {"rollouts": 2, "epochs": 2},
        {"detach": False},
        {"entropy_target": 0.9},
        {"credit": "visible", "log_prob": "exact"},
        {"reward": "relative", "quota": True, "floor": 0.1, "trunk": "mha", "critic": "separate"},
    ],
)
def test_no_switch_of_the_sampler_makes_it_wait(
    switches: dict[str, Any], dtype: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    recipe = recipe_of({"kind": "tats"} | LEARNED | switches, "decoder", TARGETS[0], "all")
    train_steps(recipe, tmp_path, monkeypatch, DTYPES[dtype], steps=2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("mask", [{"kind": "tube"}, {"kind": "tats", "epochs": 3} | LEARNED])
def test_neither_do_half_precision_a_loss_scale_and_the_search_for_bad_steps(
    mask: dict[str, Any], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    recipe = recipe_of(mask, "regressor", TARGETS[2], "all")
    run = recipe.run.model_copy(update={"skip_above_std": 3.0})
    recipe = recipe.model_copy(update={"run": run})
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    train_steps(recipe, tmp_path, monkeypatch, steps=2, dtype=dtype)


@pytest.mark.parametrize("mask", [{"kind": "tats"}, {"kind": "adamae", "dropout": 0.1}])
def test_nor_does_computing_it_again(
    mask: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Real samplers are; those of the other tests are so small that their graphs are kept."""
    monkeypatch.setattr("tatscli.masking.rl.policy.pays", lambda *_: True)
    recipe = recipe_of(mask | LEARNED, "decoder", TARGETS[0], "all")
    train_steps(recipe, tmp_path, monkeypatch)


@pytest.mark.parametrize(
    "fault",
    [
        lambda x: x.sum().item(),
        lambda x: x[x > 0],
        lambda x: x.cpu(),
        lambda x: torch.zeros(3).to(GPU),
        lambda x: torch.tensor([1.0, 2.0], device=GPU),
        lambda x: x + torch.ones(3, 3),
    ],
)
def test_what_waits_or_mixes_is_found(fault: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pretend_gpu(monkeypatch):
        x = torch.zeros(3, 3, device=GPU)
        with NoWaits(), pytest.raises((RuntimeError, AssertionError)):
            fault(x)


def test_the_walk_back_is_torchs_own_backward_pass() -> None:
    torch.manual_seed(0)
    block, tokens = Block(8, 2), torch.randn(2, 5, 8)

    def gradients(backward: Any) -> list[Tensor]:
        block.zero_grad()
        backward(block(tokens).square().mean())
        return [one.grad.clone() for one in block.parameters()]

    for own, torchs in zip(gradients(walk_back), gradients(Tensor.backward), strict=True):
        torch.testing.assert_close(own, torchs)


def test_autocast_rounds_products_on_the_pretend_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    with pretend_gpu(monkeypatch), autocast(GPU, torch.bfloat16):
        x = torch.zeros(3, 3, device=GPU)
        assert (x @ x).dtype == torch.bfloat16
        assert (x @ x).softmax(dim=-1).dtype == torch.float32
