"""What is looked at: from a run, a recipe or bare numbers to a viewer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tatscli.engine.checkpoint import PREFIX, Checkpoint, find_checkpoint
from tatscli.engine.device import choose_device
from tatscli.engine.rng import random_at
from tatscli.errors import UsageError
from tatscli.masking import MASKERS, build_masker
from tatscli.masking.base import Masker
from tatscli.nn.vit import build_encoder
from tatscli.recipe.load import load_recipe, override_recipe
from tatscli.recipe.schema import Data, Model, Recipe, Sampling, TubeMask
from tatscli.tasks.build import load_system
from tatscli.visualize.sight import Viewer

DEFAULT = Recipe(
    data=Data(store="", frames=16, size=224, sampling=Sampling(stride=4)),
    model=Model(size="nano"),
    mask=TubeMask(kind="tube"),
)
"""What is shown without a run or recipe: VideoMAE's clip and its mask; no weights are involved."""

STRIDE = 4  # where a recipe samples whole videos and names none
_TEMPERATURES = (0.001, 1000.0)  # beyond, logits over temperature leave float32 or say nothing


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the command line asks for; None leaves it to the run, the recipe or the default.

    `temperature` divides the logits of a learned mask: below 1 sharpens the policy.
    """

    mask: str | None = None
    ratio: float | None = None
    size: int | None = None
    frames: int | None = None
    stride: int | None = None
    patch: int | None = None
    tubelet: int | None = None
    temperature: float | None = None


def choose_viewer(
    run: Path | None, recipe: str | None, wishes: Wishes
) -> tuple[Viewer, Recipe, list[str]]:
    """Settle what is looked at: the viewer, the recipe it follows, and what users must be told.

    Raises:
        UsageError: If run, recipe and wishes contradict each other, or there is no such mask.
        RecipeError: If the numbers do not make a valid recipe.
        CheckpointError: If the run cannot be used.
    """
    if run is not None and recipe is not None:
        raise UsageError("`--run` and `--recipe` exclude each other: a run has its own recipe")
    if wishes.mask is not None and wishes.mask not in MASKERS:
        known = ", ".join(f"`{name}`" for name in MASKERS)
        raise UsageError(f"there is no mask `{wishes.mask}`: choose from {known}")
    if run is not None:
        return viewer_of_run(run, wishes)
    loaded = load_recipe(recipe).recipe if recipe is not None else DEFAULT
    settled = _apply(loaded, wishes, origin=recipe or "the command line")
    device, _ = choose_device("auto")
    random_at(0)  # weights of an untrained encoder must not differ from call to call
    encoder = build_encoder(settled.model, settled.grid).to(device).eval()
    masker = build_masker(settled.mask, grid=settled.grid, width=encoder.width).to(device).eval()
    notes = _untrained(settled) if masker.temperature is not None else []
    _set_temperature(masker, settled, wishes.temperature)
    return Viewer(masker, encoder, settled.data.mean, settled.data.std), settled, notes


def viewer_of_run(run: Path, wishes: Wishes) -> tuple[Viewer, Recipe, list[str]]:
    """Take everything from a run; only mask, ratio and stride may differ from it."""
    fixed = [
        f"`--{name}`"
        for name in ("size", "frames", "patch", "tubelet")
        if getattr(wishes, name) is not None
    ]
    if fixed:
        raise UsageError(
            f"{', '.join(fixed)} cannot be chosen with `--run`: the model fixes what it sees",
            hint="`--mask`, `--ratio` and `--stride` may be",
        )
    device, _ = choose_device("auto")
    loaded, system = load_system(run, device=device)
    settled = _apply(loaded.recipe, wishes, origin=str(run))
    notes = [f"from {run}, step {loaded.checkpoint.step}"]
    masker = system.masker
    if settled.mask != loaded.recipe.mask:
        masker = build_masker(settled.mask, grid=settled.grid, width=system.encoder.width)
        if settled.mask.kind == loaded.recipe.mask.kind:
            masker.load_state_dict(system.masker.state_dict())
        elif masker.temperature is not None:
            notes += _untrained(settled)
        masker = masker.to(device).eval()
    _set_temperature(masker, settled, wishes.temperature)
    data, targets = settled.data, tuple(system.targets)
    viewer = Viewer(masker, system.encoder, data.mean, data.std, system.autoencoder, targets)
    return viewer, settled, notes


def _apply(recipe: Recipe, wishes: Wishes, *, origin: str) -> Recipe:
    """Change the recipe as wished; the recipe's own rules find what is wrong."""
    keys = {
        "mask.kind": wishes.mask,
        "mask.ratio": wishes.ratio,
        "data.size": wishes.size,
        "data.frames": wishes.frames,
        "data.sampling.mode": None if wishes.stride is None else "dense",
        "data.sampling.stride": wishes.stride,
        "data.sampling.fps": None if wishes.stride is None else "null",
        "model.patch": wishes.patch,
        "model.tubelet": wishes.tubelet,
    }
    changes = [f"{key}={value}" for key, value in keys.items() if value is not None]
    return override_recipe(recipe, changes, origin=Path(origin))


def kept_checkpoints(run: Path, every: int) -> list[Checkpoint]:
    """Return every so many of a run's checkpoints, ascending, counted back from the last.

    Raises:
        UsageError: If `every` is not positive, or `run` is a single checkpoint.
        CheckpointError: If there is none, or one cannot be read.
    """
    if every < 1:
        raise UsageError(f"`--every {every}` must be at least 1: every checkpoint")
    found = find_checkpoint(run)
    if found.path == run.resolve():
        raise UsageError(
            f"`--every` needs a whole run: `{run}` is one checkpoint",
            hint="give the run folder that holds its `checkpoints`",
        )
    paths = (run / "checkpoints").glob(f"{PREFIX}*")
    kept = sorted((find_checkpoint(path) for path in paths), key=lambda one: one.step)
    return kept[(len(kept) - 1) % every :: every]


def _set_temperature(masker: Masker, recipe: Recipe, temperature: float | None) -> None:
    """Let a learned mask score and draw at a temperature.

    Raises:
        UsageError: If it is out of range, or the mask has no policy.
    """
    if temperature is None:
        return
    low, high = _TEMPERATURES
    if not low <= temperature <= high:
        raise UsageError(
            f"`--temperature {temperature:g}` must lie between {low:g} and {high:g}",
            hint="below 1 sharpens the policy, above 1 flattens it",
        )
    if masker.temperature is None:
        raise UsageError(
            f"`--temperature` needs a policy and the `{recipe.mask.kind}` mask has none",
            hint=f"learned masks have one: {learned_masks()}",
        )
    masker.temperature = temperature


def _untrained(recipe: Recipe) -> list[str]:
    return [f"the `{recipe.mask.kind}` mask is untrained, so every token is as likely as the next"]


def learned_masks() -> str:
    learned = [name for name, masker in MASKERS.items() if masker.needs_embeddings]
    return ", ".join(f"`{name}`" for name in learned)
