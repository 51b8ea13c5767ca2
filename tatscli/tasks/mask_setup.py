"""What a picture of masks shows: from a run, a recipe or options to a viewer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tatscli.engine.checkpoint import Checkpoint, find_checkpoint
from tatscli.engine.device import choose_device
from tatscli.engine.folders import kept_in
from tatscli.engine.rng import seed_torch
from tatscli.errors import DataError, RecipeError, UsageError
from tatscli.masking import MASKERS, build_masker
from tatscli.masking.base import Masker
from tatscli.masking.predict import build_predict
from tatscli.masking.rl.learned import LearnedMasker
from tatscli.nn.load import LoadedRun
from tatscli.recipe.load import load_recipe, override_recipe
from tatscli.recipe.schema import Data, Model, Motion, Recipe, Sampling, TubeMask
from tatscli.store.reader import Store
from tatscli.store.schema import Settings
from tatscli.system.load import load_system
from tatscli.system.system import System, build_system
from tatscli.visualize.viewer import Viewer

DEFAULT = Recipe(
    data=Data(store="", frames=16, size=224, sampling=Sampling(stride=4)),
    model=Model(size="nano"),
    mask=TubeMask(kind="tube"),
)
"""Shown without a run or recipe: VideoMAE's clip and mask, without weights."""

_UNTRAINED_ENCODER = (
    "patch embeddings are those of an untrained encoder; `--run` takes a trained one"
)
_TEMPERATURES = (0.001, 1000.0)  # beyond, logits over temperature leave float32 or say nothing


@dataclass(frozen=True, slots=True)
class Overrides:
    """Options of the command line; None leaves a value to the run, the recipe or the default.

    `size` is the side of the view, or its height and width. `temperature` divides the logits of a
    learned mask: below 1 sharpens the policy.
    """

    mask: str | None = None
    ratio: float | None = None
    size: int | tuple[int, int] | None = None
    frames: int | None = None
    stride: int | None = None
    patch: int | None = None
    tubelet: int | None = None
    temperature: float | None = None


@dataclass(frozen=True, slots=True)
class ModelSetup:
    """What masks are shown on: the clip's shape, and a run if there is one.

    Attributes:
        recipe: With the overrides of the clip, before those of the mask.
        run: The checkpoint and the system with its weights.
        chosen: Whether a user chose the recipe, and with it its mask.
    """

    recipe: Recipe
    run: tuple[Path, LoadedRun, System] | None = None
    chosen: bool = True

    @property
    def notes(self) -> list[str]:
        """What the user should know about where it comes from."""
        if self.run is None:
            return []
        path, loaded, _ = self.run
        return [f"from {path}, step {loaded.checkpoint.step}"]


@dataclass(frozen=True, slots=True)
class MaskSetup:
    """A mask to show.

    Attributes:
        viewer: Mask and model.
        recipe: The recipe, with all overrides.
        notes: What the user should know.
    """

    viewer: Viewer
    recipe: Recipe
    notes: list[str]


def set_up_viewer(run: Path | None, recipe: str | None, overrides: Overrides) -> MaskSetup:
    """Set up the mask and model to show.

    Raises:
        UsageError: If run, recipe and overrides contradict each other, or there is no such mask.
        RecipeError: If the numbers do not make a valid recipe.
        CheckpointError: If the run cannot be used.
    """
    if overrides.mask is not None and overrides.mask not in MASKERS:
        raise UsageError(f"there is no mask `{overrides.mask}`: choose from {known_masks()}")
    base = set_up_model(run, recipe, overrides)
    setup = set_up_mask(base, overrides, fresh=not base.chosen)
    return replace(setup, notes=[*base.notes, *setup.notes])


def set_up_model(run: Path | None, recipe: str | None, overrides: Overrides) -> ModelSetup:
    """Set up the clip, and the run if there is one.

    Raises:
        UsageError: If run, recipe and overrides contradict each other.
        RecipeError: If the numbers do not make a valid recipe.
        CheckpointError: If the run cannot be used.
    """
    if run is not None and recipe is not None:
        raise UsageError("`--run` and `--recipe` exclude each other: a run has its own recipe")
    if run is not None:
        _refuse_shape(overrides)
        loaded, system = load_system(run, device=choose_device("auto")[0])
        merged = _apply(loaded.recipe, _clip_changes(overrides), origin=str(run))
        return ModelSetup(merged, (run, loaded, system))
    loaded_recipe = load_recipe(recipe).recipe if recipe is not None else DEFAULT
    merged = _apply(loaded_recipe, _clip_changes(overrides), origin=recipe or "the command line")
    return ModelSetup(merged, chosen=recipe is not None)


def set_up_mask(base: ModelSetup, overrides: Overrides, *, fresh: bool) -> MaskSetup:
    """Set up the mask.

    Args:
        base: Clip and encoder.
        overrides: About the mask.
        fresh: A mask of another kind than the recipe's comes with its own defaults; otherwise it
            takes over what both kinds know, as an override of a recipe does.

    Raises:
        UsageError: If the temperature cannot be used.
        RecipeError: If the overrides do not suit the mask; the message names its kind.
    """
    kind = overrides.mask or base.recipe.mask.kind
    origin = "the command line" if base.run is None else str(base.run[0])
    changes: dict[str, Any] = {"mask.ratio": overrides.ratio}
    if kind != base.recipe.mask.kind:
        changes = {
            "mask" if fresh else "mask.kind": f"{{kind: {kind}}}" if fresh else kind
        } | changes
    try:
        merged = _apply(base.recipe, changes, origin=origin)
        system, notes = _system_of(base, merged)
    except RecipeError as error:
        raise RecipeError(f"the `{kind}` mask: {error.message}", error.hint) from error
    _set_temperature(system.masker, merged, overrides.temperature)
    return MaskSetup(Viewer(system, trained=base.run is not None), merged, notes)


def _system_of(base: ModelSetup, merged: Recipe) -> tuple[System, list[str]]:
    """Build the system with the mask, around the run's model if there is one.

    Returns:
        The system, and notes on what in it is not trained.
    """
    seed_torch(0)  # weights that nothing trained must not differ from call to call
    if base.run is None:
        system = build_system(merged).to(choose_device("auto")[0]).eval()
        if system.needs_embeddings and system.masker.temperature is None:
            return system, [_UNTRAINED_ENCODER]
        return system, _untrained_policy(system.masker, merged)
    _, loaded, trained = base.run
    if (merged.mask, merged.predict) == (loaded.recipe.mask, loaded.recipe.predict):
        return trained, []
    width = trained.encoder.width
    masker = build_masker(merged.mask, grid=merged.grid, width=width)
    predict = build_predict(merged.resolved_predict, form=trained.form, predicted=masker.predicted)
    system = replace(trained, masker=masker, predict=predict).to(trained.device).eval()
    if merged.mask.kind != loaded.recipe.mask.kind:
        return system, _untrained_policy(masker, merged)
    masker.load_state_dict(trained.masker.state_dict())
    return system, []


def _untrained_policy(masker: Masker, merged: Recipe) -> list[str]:
    if masker.temperature is None:
        return []
    return [f"the `{merged.mask.kind}` mask is untrained, so all tokens are equally likely"]


def _refuse_shape(overrides: Overrides) -> None:
    """Refuse overrides of what a trained model fixes.

    Raises:
        UsageError: If there are any.
    """
    fixed = [
        f"`--{name}`"
        for name in ("size", "frames", "patch", "tubelet")
        if getattr(overrides, name) is not None
    ]
    if fixed:
        raise UsageError(
            f"{', '.join(fixed)} cannot be set with `--run`: they are fixed by the model",
            hint="`--mask`, `--ratio` and `--stride` can be set",
        )


def _clip_changes(overrides: Overrides) -> dict[str, Any]:
    return {
        "data.size": list(overrides.size) if isinstance(overrides.size, tuple) else overrides.size,
        "data.frames": overrides.frames,
        "data.sampling.mode": None if overrides.stride is None else "dense",
        "data.sampling.stride": overrides.stride,
        "data.sampling.fps": None if overrides.stride is None else "null",
        "model.patch": overrides.patch,
        "model.tubelet": overrides.tubelet,
    }


def _apply(recipe: Recipe, keys: dict[str, Any], *, origin: str) -> Recipe:
    """Change the recipe where a value is given; its own checks find mistakes."""
    changes = [f"{key}={value}" for key, value in keys.items() if value is not None]
    return override_recipe(recipe, changes, origin=Path(origin))


def kept_checkpoints(run: Path, every: int) -> list[Checkpoint]:
    """Return every N-th of a run's checkpoints, ascending, counted back from the last.

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
    kept = [find_checkpoint(path) for path in reversed(kept_in(run / "checkpoints"))]
    return kept[(len(kept) - 1) % every :: every]


def _set_temperature(masker: Masker, recipe: Recipe, temperature: float | None) -> None:
    """Set the temperature of a learned mask.

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
            f"`--temperature` needs a policy, and the `{recipe.mask.kind}` mask has none",
            hint=f"learned masks have one: {learned_masks()}",
        )
    masker.temperature = temperature


def shown_motion(recipe: Recipe) -> Motion:
    """Return the motion source of a picture: precomputed flow belongs to a store, not to files."""
    motion = recipe.data.motion
    if motion.source != "flow":
        return motion
    return motion.model_copy(update={"source": "codec", "path": None})


def store_settings(recipe: Recipe) -> Settings | None:
    """Return how the store of a recipe was prepared; None if it is not there, as a picture needs
    none.

    What it says of motion is left out unless the recipe takes its motion from the store.
    """
    if not recipe.data.store:
        return None
    try:
        prepared = Store.open(recipe.data.store).settings
    except (DataError, OSError):
        return None
    own = recipe.data.motion.source == "codec"
    return prepared if own else Settings(short_side=prepared.short_side)


def known_masks() -> str:
    return ", ".join(f"`{name}`" for name in MASKERS)


def learned_kinds() -> list[str]:
    """Return the kinds of masks that have a policy, and with it a temperature."""
    return [name for name, masker in MASKERS.items() if issubclass(masker, LearnedMasker)]


def learned_masks() -> str:
    return ", ".join(f"`{name}`" for name in learned_kinds())
