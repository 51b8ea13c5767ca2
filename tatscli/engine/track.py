"""Trackers: whoever is told the numbers of `metrics.jsonl` and the pictures of a training as well.

A tracker that fails is told nothing more and costs one warning, never a training.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from tatscli.console import Reporter
from tatscli.errors import UsageError
from tatscli.files import write_safely

Line = Mapping[str, Any]  # of metrics.jsonl: numbers by name, with `step`; null where not finite


class Tracker(Protocol):
    """What the loop asks of a tracker; steps never fall.

    One is made with the run folder, the steps done, what checkpoints say of the run, the lines of
    `metrics.jsonl` up to there, and the reporter. Lines that it lacks it takes from these.
    """

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        """Take the numbers of a step."""

    def picture(self, step: int, name: str, image_HWC: np.ndarray) -> None:
        """Take a picture, uint8 RGB."""

    def close(self) -> None:
        """Finish writing."""


class TensorBoard:
    """Event files in `<run>/tensorboard`; of steps that a kill has undone, the viewer shows those
    taken again."""

    def __init__(
        self, folder: Path, done: int, about: Line, lines: Sequence[Line], reporter: Reporter
    ) -> None:
        from torch.utils.tensorboard import SummaryWriter

        place = folder / "tensorboard"
        known = place.exists()
        self._writer = SummaryWriter(str(place), purge_step=done + 1 if known else None)
        for line in [] if known else lines:
            self.numbers(line["step"], numbers_of(line))

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        """Take the numbers of a step."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()  # before a checkpoint that a resumed run would begin after

    def picture(self, step: int, name: str, image_HWC: np.ndarray) -> None:
        """Take a picture, uint8 RGB."""
        self._writer.add_image(name, image_HWC, step, dataformats="HWC")
        self._writer.flush()

    def close(self) -> None:
        """Finish writing."""
        self._writer.close()


class WandB:
    """A run of Weights & Biases, in `<run>/wandb`; its own environment variables apply, such as
    `WANDB_MODE=offline` and `WANDB_PROJECT`.

    A resumed training continues the same run, whose id is kept in `<run>/wandb/run-id`. Steps that
    it has already are the same ones again, and it keeps the first.
    """

    def __init__(
        self, folder: Path, done: int, about: Line, lines: Sequence[Line], reporter: Reporter
    ) -> None:
        import wandb

        self._wandb = wandb
        file = folder / "wandb" / "run-id"
        known = file.exists()
        name = file.read_text("utf-8", errors="replace").strip() if known else secrets.token_hex(4)
        file.parent.mkdir(parents=True, exist_ok=True)
        self._run: Any = wandb.init(
            dir=str(folder),
            id=name,
            resume="allow",
            name=folder.resolve().name,
            config=about.get("recipe"),
            reinit="create_new",
            # Our streams stay ours: no copies of the terminal, no lines between progress bars.
            settings=wandb.Settings(console="off", silent=True),
        )
        write_safely(file, name)
        if not self._run.offline:
            reporter.info(f"wandb: {self._run.url}")
        # A step is written once the next one comes: a kill may have lost the last.
        missing = [one for one in lines if one["step"] == done] if known else lines
        for line in missing:
            self.numbers(line["step"], numbers_of(line))

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        """Take the numbers of a step."""
        self._run.log(dict(values), step=step)

    def picture(self, step: int, name: str, image_HWC: np.ndarray) -> None:
        """Take a picture, uint8 RGB."""
        self._run.log({name: self._wandb.Image(image_HWC)}, step=step)

    def close(self) -> None:
        """Finish writing."""
        self._run.finish()


TRACKERS: dict[str, Callable[..., Tracker]] = {"tensorboard": TensorBoard, "wandb": WandB}
"""Every value of `run.track`, which is also the name of the package that it needs."""


def need_trackers(names: Sequence[str]) -> None:
    """Find out that a tracker's package is missing.

    Raises:
        UsageError: If so.
    """
    for name in names:
        if find_spec(name) is None:
            raise UsageError(
                f"`run.track: [{name}]` needs the package `{name}`, which is not installed",
                hint="pip install 'tats[track]'",
            )


class Trackers:
    """All trackers of a run.

    Args:
        names: Which ones, of `TRACKERS`.
        reporter: Hears of one that fails.
        given: What each is made with: see `Tracker`.
    """

    def __init__(self, names: Sequence[str], *given: Any, reporter: Reporter) -> None:
        self._reporter = reporter
        self._open: dict[str, Tracker] = {}
        for name in dict.fromkeys(names):
            try:
                self._open[name] = TRACKERS[name](*given, reporter)
            except Exception as error:  # whatever it is, the training goes on
                self._failed(name, error)

    def numbers(self, line: Line) -> None:
        """Pass on a line of `metrics.jsonl`."""
        self._each(lambda one: one.numbers(line["step"], numbers_of(line)))

    def picture(self, step: int, name: str, image_HWC: np.ndarray) -> None:
        """Pass on a picture, uint8 RGB."""
        self._each(lambda one: one.picture(step, name, image_HWC))

    def close(self) -> None:
        """Let all finish writing."""
        self._each(lambda one: one.close())
        self._open.clear()

    def _each(self, tell: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._open.items()):
            try:
                tell(tracker)
            except Exception as error:
                del self._open[name]
                self._failed(name, error)

    def _failed(self, name: str, error: Exception) -> None:
        reason = (str(error) or type(error).__name__).strip().splitlines()[0]
        self._reporter.warn(
            f"`run.track: {name}` failed and is disabled; training continues: {reason}"
        )


def numbers_of(line: Line) -> dict[str, float]:
    """Return the numbers of a line, without the step and those that are null."""
    return {name: one for name, one in line.items() if name != "step" and one is not None}
