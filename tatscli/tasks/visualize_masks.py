"""Looking at masks: from a run, a recipe or bare numbers to a picture of one clip."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tatscli.console import Reporter
from tatscli.engine.device import choose_device
from tatscli.engine.rng import random_at
from tatscli.errors import DecodeError, UsageError
from tatscli.masking import MASKERS, build_masker
from tatscli.nn.vit import build_encoder
from tatscli.recipe.load import load_recipe, override_recipe
from tatscli.recipe.schema import Data, Model, Recipe, Sampling, TubeMask
from tatscli.tasks.build import load_system
from tatscli.video.encode import SUFFIXES
from tatscli.visualize.render import Page, render
from tatscli.visualize.sight import Sight, Viewer
from tatscli.visualize.windows import Window

DEFAULT = Recipe(
    data=Data(store="", frames=16, size=224, sampling=Sampling(stride=4)),
    model=Model(size="nano"),
    mask=TubeMask(kind="tube"),
)
"""What is shown without a run or recipe: VideoMAE's clip and its mask; no weights are involved."""

_STRIDE = 4  # where a recipe samples whole videos and names none


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the command line asks for; None leaves it to the run, the recipe or the default."""

    mask: str | None = None
    ratio: float | None = None
    size: int | None = None
    frames: int | None = None
    stride: int | None = None
    patch: int | None = None
    tubelet: int | None = None


def visualize_masks(
    clip: Path,
    *,
    reporter: Reporter,
    run: Path | None = None,
    recipe: str | None = None,
    wishes: Wishes | None = None,
    out: Path | None = None,
    seed: int = 0,
    fps: float | None = None,
    windows: int | None = None,
) -> dict[str, Any]:
    """Draw what a mask hides of a clip, and what a pretrained run makes of it.

    Args:
        clip: A video file.
        reporter: Speaks to the user.
        run: Pretrained run or checkpoint; adds reconstruction and, for a learned mask, probability.
        recipe: A recipe to take mask and clip shape from instead.
        wishes: Changes of these.
        out: The picture; by default `<clip's stem>.masks.mp4` in the current folder.
        seed: Of the masks.
        fps: Frames per second of a moving picture; None follows the clip.
        windows: How many windows to show; None means all, for a png the first.

    Returns:
        `clip`, `out`, `mask`, `ratio`, `grid`, `fps`, `notes` and `windows`: each its `frames`,
        `times`, `visible`, `predict` and, for a learned mask, `probability` per token.

    Raises:
        TatsError: If clip, run or wishes cannot be used.
    """
    wishes = wishes or Wishes()
    out = out or Path(f"{clip.stem}.masks.mp4")
    _refuse_out(clip, out)
    viewer, settled, notes = choose_viewer(run, recipe, wishes)
    stride = settled.data.sampling.stride or _STRIDE
    seen: list[tuple[Window, Sight]] = []

    def watch(window: Window, sight: Sight) -> None:
        seen.append(_without_pictures(window, sight))
        reporter.detail(
            f"window {window.number + 1}: frames {window.frames}, "
            f"seconds {[round(time, 3) for time in window.times]}"
        )
        bar.update()

    page = Page(_title(settled), stride, fps, windows)
    with reporter.progress(description="windows", unit="window") as bar:
        try:
            rate = render(clip, out, viewer, page, seed=seed, watch=watch)
        except DecodeError as error:
            raise DecodeError(f"`{clip}`: {error.message}", error.hint) from error
    notes += _notes_of(seen, settled, out)
    for note in notes:
        reporter.info(note)
    return {
        "clip": str(clip),
        "out": str(out),
        "mask": settled.mask.kind,
        "ratio": settled.mask.ratio,
        "grid": list(settled.grid),
        "fps": rate,
        "notes": notes,
        "windows": [_facts(window, sight) for window, sight in seen],
    }


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
        return _viewer_of_run(run, wishes)
    loaded = load_recipe(recipe).recipe if recipe is not None else DEFAULT
    settled = _apply(loaded, wishes, origin=recipe or "the command line")
    device, _ = choose_device("auto")
    random_at(0)  # weights of an untrained encoder must not differ from call to call
    encoder = build_encoder(settled.model, settled.grid).to(device).eval()
    masker = build_masker(settled.mask, grid=settled.grid, width=encoder.width).to(device).eval()
    notes = _untrained(settled) if masker.needs_embeddings else []
    return Viewer(masker, encoder, settled.data.mean, settled.data.std), settled, notes


def _viewer_of_run(run: Path, wishes: Wishes) -> tuple[Viewer, Recipe, list[str]]:
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
        elif masker.needs_embeddings:
            notes += _untrained(settled)
        masker = masker.to(device).eval()
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


def _refuse_out(clip: Path, out: Path) -> None:
    """Find out before any work that the picture cannot be written.

    Raises:
        UsageError: If its suffix is unknown, or it would replace the clip.
    """
    if out.suffix.lower() not in SUFFIXES:
        raise UsageError(
            f"cannot write `{out}`: its suffix must be one of {', '.join(SUFFIXES)}",
            hint="mp4 and gif move; png is a sheet with one column a slice",
        )
    if out.exists() and clip.exists() and out.samefile(clip):
        raise UsageError(f"`{out}` is the clip itself", hint="name another file with `--out`")


def _title(recipe: Recipe) -> str:
    return f"{recipe.mask.kind} mask, ratio {recipe.mask.ratio:g}"


def _untrained(recipe: Recipe) -> list[str]:
    return [f"the `{recipe.mask.kind}` mask is untrained, so every token is as likely as the next"]


def _notes_of(seen: list[tuple[Window, Sight]], recipe: Recipe, out: Path) -> list[str]:
    """Say what the frames shown do not say of themselves."""
    first, last = seen[0][0], seen[-1][0]
    notes = []
    if recipe.data.sampling.stride is None:
        paces = "by the clock" if recipe.data.sampling.fps else "whole videos"
        notes.append(
            f"the recipe samples {paces}; shown are windows of every {_STRIDE}th frame, "
            "`--stride` chooses another step"
        )
    if last.held:
        notes.append(
            f"window {last.number + 1} is longer than the rest of the video: "
            f"frame {last.frames[-1]} also fills its last {last.held} of {len(last.frames)} places"
        )
    if not any(bool(window.motion.valid_BT.any()) for window, _ in seen):
        notes.append("no frame shown carries motion vectors: only key frames, or a codec without")
    if out.suffix.lower() == ".png" and not first.held and last is first:
        notes.append("a png shows the first window; `--windows` shows more")
    return notes


def _without_pictures(window: Window, sight: Sight) -> tuple[Window, Sight]:
    """Drop what is large, so that a film of hours fits in memory."""
    empty = window.video_TCHW.new_empty(0)
    return replace(window, video_TCHW=empty), replace(sight, reconstruction_CTHW=None)


def _facts(window: Window, sight: Sight) -> dict[str, Any]:
    """Return what `--json` tells of a window."""
    facts: dict[str, Any] = {
        "frames": window.frames,
        "times": [round(time, 6) for time in window.times],
        "visible": sight.plan.visible_BK[0].tolist(),
        "predict": sight.plan.predict_BM[0].tolist(),
    }
    if sight.score_N is not None:
        facts["probability"] = [float(f"{score:.4g}") for score in sight.score_N.tolist()]
    return facts
