"""Training steps as `tats pretrain` takes them, on clips in memory, and what they take at least.

A step is the body of the loop in `tatscli/engine/loop.py`: forward pass, masker, backward pass,
every optimiser, metrics, and the averages of a log line where one is due. Nothing is decoded.

Shapes: B batch, T frames, H and W pixels, h and w token rows and columns.
"""

from __future__ import annotations

import gc
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

if TYPE_CHECKING:
    from tatscli.data.batch import Batch
    from tatscli.data.motion import MotionField
    from tatscli.recipe.schema import Recipe
    from tatscli.system.system import System

STEPS, FIRST = 10_000, 5_000  # of the schedule, and where it stands: every warm-up is over


def moving(
    batch: int, *, frames: int, rows: int, columns: int, patch: int, device: str = "cpu"
) -> MotionField:
    """Make the motion of clips in which a third of the picture moves by some pixels a frame."""
    import torch

    from tests.fields import motion_of

    generator = torch.Generator().manual_seed(0)
    shape = (batch, frames, rows, columns)
    moves = torch.rand(shape, generator=generator) < 1 / 3
    field = torch.randn((*shape, 2), generator=generator) * 4 * moves[..., None]
    return motion_of(field, patch=patch).to(device)


def noise(recipe: Recipe, batch: int, *, motion: bool = False) -> Batch:
    """Make clips of random pixels as the loader would hand them over."""
    import torch

    from tatscli.data.batch import Batch

    data, (_, rows, columns) = recipe.data, recipe.grid
    generator = torch.Generator().manual_seed(0)
    return Batch(
        torch.randint(
            0,
            256,
            (batch, 3, data.frames, *data.view_size),
            dtype=torch.uint8,
            generator=generator,
        ),
        moving(batch, frames=data.frames, rows=rows, columns=columns, patch=recipe.model.patch)
        if motion
        else None,
        torch.full((batch,), -1),
        torch.arange(batch),
        torch.zeros(batch, dtype=torch.int64),
    )


class Steps:
    """A training on one batch, again and again; each call is an optimiser step.

    Args:
        recipe: What is trained. Its total batch is that of `batch`, without accumulation.
        system: What it describes.
        batch: The clips.
        device: Where the system goes.
        dtype: Autocast precision, by name.

    Attributes:
        means: Averages of the last log line, the loss among them.
    """

    def __init__(
        self,
        recipe: Recipe,
        system: System,
        batch: Batch,
        *,
        device: str = "cpu",
        dtype: str = "float32",
    ) -> None:
        import torch

        from tatscli.console import Reporter
        from tatscli.engine.distributed import World
        from tatscli.engine.feed import Feed
        from tatscli.engine.learner import Learner
        from tatscli.engine.metrics import Averages
        from tatscli.engine.optim import build_optimizer
        from tatscli.engine.parallel import train_blocks
        from tatscli.engine.part import Weights
        from tatscli.engine.schedule import lr_at
        from tatscli.engine.training import Training
        from tatscli.recipe.derive import derive_schedule
        from tatscli.tasks import pretrain

        clips, where = len(batch.row_B), torch.device(device)
        torch.set_float32_matmul_precision("high")  # as every training sets it
        optim = recipe.optim.model_copy(
            update={"total_batch": clips, "batch_per_device": clips, "epochs": STEPS}
        )
        schedule = derive_schedule(optim, videos=clips, repeats=1, world=1)
        model = system.to(where).train().autoencoder
        again, compiled = recipe.model.checkpointing, recipe.run.compile
        train_blocks(model, checkpointing=again, compiled=compiled)
        main = Learner(
            model,
            build_optimizer(model, optim),
            lr=lambda step: lr_at(step, schedule),
            clip_grad=optim.clip_grad,
        )
        given = batch.to(where)
        self.training = Training(
            model=model,
            step=lambda one, draws: pretrain.step(system, one, draws),
            learners={"autoencoder": main} | system.masker.learners(schedule),
            parts={"model": Weights(model), "optimizer": main, "masker": system.masker},
            schedule=schedule,
            batches=lambda _: iter(lambda: given, None),
            run=recipe.run,
            folder=Path(),
            meta={},
            world=World(),
            device=where,
            dtype=getattr(torch, dtype),
            reporter=Reporter(quiet=True),
            done=FIRST,
        )
        self.means: dict[str, float] = {}
        self._feed = Feed(self.training.batches(FIRST), self.training.device)
        self._averages = Averages()

    def __call__(self) -> None:
        """Take a step, and wait for the device."""
        import torch

        from tatscli.engine.loop import optimise

        training = self.training
        optimise(training, self._feed, self._averages)
        training.done += 1
        if training.done % training.run.log_every == 0:
            self.read()
        if training.done == FIRST + 1:
            gc.collect()
            gc.freeze()
        if training.device.type == "cuda":
            torch.cuda.synchronize()

    def read(self) -> dict[str, float]:
        """Return the averages since the last log line, as the loop reads them for the next."""
        self.means = self._averages.read()
        self.training.bad_steps.check(self.training.done, self.training.reporter)
        return self.means


def counted(recipe: Recipe, system: System | None = None, *, clips: int = 1) -> dict[str, int]:
    """Count the floating-point operations of a clip's step: `autoencoder`, and `whole` with masker.

    Products alone are counted, forward and backward, and no number is computed. Missing are norms,
    softmax and the optimisers' work, which reads and writes every weight but multiplies few.

    Args:
        recipe: What is trained.
        system: What it describes, on torch's meta device; built there by default.
        clips: Of a batch, where more is computed again than with one clip.
    """
    import torch

    from tatscli.draws import Draws
    from tatscli.masking.plan import MaskPlan
    from tatscli.system.system import build_system
    from tatscli.tasks import pretrain
    from tests.nn.counting import counted_macs

    batch = noise(recipe, clips).to("meta")
    with torch.device("meta"):
        system = (system or build_system(recipe)).to("meta").train()
        tokens, visible = system.form.tokens, system.masker.visible
        shape = (clips, recipe.data.frames, *recipe.grid[1:])
        known = {name: torch.zeros(shape, dtype=torch.int64) for name in system.cached_codes}
        batch = replace(batch, codes=known)
        plan = MaskPlan(
            torch.arange(visible).expand(clips, -1),
            torch.arange(tokens - system.selection.budget, tokens).expand(clips, -1),
        )

    def autoencoder() -> None:
        output = system.autoencoder(system.clip(batch.video_BCTHW), plan)
        errors = [*output.predictions, *(one.error for one in output.auxiliary.values())]
        sum(one.sum() for one in errors).backward()

    def whole() -> None:
        lesson = pretrain.step(system, batch, Draws(0))
        assert lesson.loss is not None
        lesson.loss.backward()

    return {
        work.__name__: round(2 * counted_macs(work, gradients=True) / clips)
        for work in (autoencoder, whole)
    }


def product_speed(side: int = 2048, times: int = 2) -> float:
    """Measure the machine's matrix product: operations in a second of processor time."""
    import torch

    one, other = torch.randn(2, side, side)
    one @ other
    started = time.process_time()
    for _ in range(times):
        one @ other
    return times * 2 * side**3 / (time.process_time() - started)
