"""A training without video: a linear model on made-up batches, for tests of the loop."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tatscli.console import Reporter
from tatscli.draws import Draws
from tatscli.engine.checkpoint import find_checkpoint
from tatscli.engine.distributed import World
from tatscli.engine.learner import Learner
from tatscli.engine.optim import build_optimizer
from tatscli.engine.part import Lesson, Weights
from tatscli.engine.schedule import lr_at
from tatscli.engine.training import Training
from tatscli.recipe.derive import derive_schedule
from tatscli.recipe.schema import Optim, Run
from tatscli.seeding import seed_of

VIDEOS = 16


@dataclass
class ToyBatch:
    """Eight inputs and what they should map to; its rows are its own."""

    inputs: Tensor
    wanted: Tensor
    row_B: Tensor
    replaced: int = 0

    def to(self, device: torch.device) -> ToyBatch:
        return self


class ToyModel(nn.Module):
    """Dropout makes the training depend on the random state."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(6, 12), nn.LayerNorm(12), nn.Dropout(0.3), nn.Linear(12, 2)
        )

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layers(inputs)


def toy_batch(number: int, size: int) -> ToyBatch:
    """Every row has inputs of its own, whatever batch it comes in."""
    rows = torch.arange(number * size, (number + 1) * size)
    generators = [torch.Generator().manual_seed(seed_of(7, row)) for row in rows.tolist()]
    inputs = torch.stack([torch.randn(6, generator=one) for one in generators])
    return ToyBatch(inputs, inputs[:, :2] - inputs[:, 2:4], rows)


def toy_training(
    folder: Path,
    *,
    epochs: int = 5,
    total_batch: int = 8,
    batch_per_device: int = 8,
    clip_grad: float | None = None,
    world: World | None = None,
    **run: object,
) -> Training:
    """Five passes of two steps each, by default; `world` is one of several processes."""
    world = world or World()
    folder.mkdir(parents=True, exist_ok=True)
    optim = Optim(
        epochs=epochs,
        total_batch=total_batch,
        batch_per_device=batch_per_device,
        base_lr=1.0,
        warmup_epochs=1,
        clip_grad=clip_grad,
    )
    schedule = derive_schedule(optim, videos=VIDEOS, repeats=1, world=world.size)
    torch.manual_seed(3)
    model = ToyModel()
    synced = DistributedDataParallel(model) if world.size > 1 else None
    learner = Learner(
        model,
        build_optimizer(model, optim),
        lr=lambda step: lr_at(step, schedule),
        clip_grad=clip_grad,
    )

    def step(batch: ToyBatch, draws: Draws) -> Lesson:
        noise = 0.1 * draws.uniform(tuple(batch.wanted.shape), batch.wanted.device)
        loss = ((synced or model)(batch.inputs) - batch.wanted - noise).square().mean()
        return Lesson({"seen": float(learner.step)}, loss=loss)

    def batches(start: int) -> Iterator[ToyBatch]:
        number = start * schedule.accumulation * world.size + world.rank
        while True:
            yield toy_batch(number, schedule.batch_per_device)
            number += world.size

    return Training(
        model=model,
        step=step,
        learners={"toy": learner},
        parts={"model": Weights(model), "optimizer": learner},
        schedule=schedule,
        batches=batches,
        run=Run.model_validate({"log_every": 1, "save_every": 0.5, **run}),
        folder=folder,
        meta={"kind": "pretrained"},
        world=world,
        device=torch.device("cpu"),
        dtype=torch.float32,
        reporter=Reporter(stdout=io.StringIO(), stderr=io.StringIO()),
        synced=synced,
    )


def resumed(folder: Path, **options: object) -> Training:
    """The same training, continued from its last checkpoint."""
    training = toy_training(folder, **options)  # type: ignore[arg-type]
    training.restore(find_checkpoint(folder))
    return training


def said(training: Training) -> str:
    """What its reporter has said so far."""
    return training.reporter.stderr.getvalue()  # type: ignore[attr-defined]


def timeless(folder: Path) -> list[dict[str, float]]:
    """The lines of a run's metrics, without what was measured of time and memory."""
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    measured = ("wall", "clips_per_second", "mfu", "peak_memory_gb")
    return [
        {k: v for k, v in one.items() if k not in measured and not k.endswith("_seconds")}
        for one in found
    ]
