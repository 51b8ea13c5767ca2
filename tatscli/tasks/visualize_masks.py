"""Pictures of masks: from a viewer to a picture of one clip."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from tatscli.console import Reporter
from tatscli.draws import Draws
from tatscli.engine.checkpoint import Checkpoint
from tatscli.errors import DataError, UsageError
from tatscli.files import refuse_unwritable
from tatscli.nn.load import open_checkpoint
from tatscli.recipe.schema import Recipe
from tatscli.tasks.mask_setup import (
    Overrides,
    kept_checkpoints,
    learned_masks,
    set_up_viewer,
    shown_motion,
    store_settings,
)
from tatscli.tasks.picture_notes import clip_notes, left_out, limited_by, mask_notes
from tatscli.video.encode import SUFFIXES
from tatscli.visualize.facts import facts_of, mean_insight
from tatscli.visualize.growth import Snapshot, refuse_sheet, render_growth
from tatscli.visualize.render import COLUMNS, Layout, is_sheet, mask_title, render, windows_of
from tatscli.visualize.viewer import MaskedWindow, Viewer
from tatscli.visualize.windows import Phase, Window, WindowReader


@dataclass(slots=True)
class _Drawn:
    """What a picture showed, and the frame rate written; for the result."""

    seen: list[tuple[Window, MaskedWindow]]
    fps: float | None
    checkpoints: list[dict[str, Any]] | None = None


def visualize_masks(
    clip: Path,
    *,
    reporter: Reporter,
    run: Path | None = None,
    recipe: str | None = None,
    overrides: Overrides | None = None,
    out: Path | None = None,
    seed: int = 0,
    fps: float | None = None,
    windows: int | None = None,
    columns: int | None = None,
    every: int | None = None,
    phase: Phase = "test",
) -> dict[str, Any]:
    """Draw what a mask hides of a clip, and what a pretrained run makes of it.

    Args:
        clip: A video file.
        reporter: Prints messages and progress.
        run: Pretrained run or checkpoint; adds reconstruction, error and, for a learned mask,
            probability.
        recipe: A recipe to take mask and clip shape from instead.
        overrides: Changes of these.
        out: The picture; by default `<clip's stem>.masks.mp4` in the current folder.
        seed: Of the masks, and of the clips that `train` draws.
        fps: Frames per second of a moving picture; None follows the clip, or shows two checkpoints
            a second.
        windows: How many windows to show; None means all that follow each other, and one of those
            that are drawn or span the video, for a png or with `every` the first.
        columns: How many slices a png, or a picture with `every`, shows at most.
        every: Show instead how the policy developed: every N-th of the checkpoints that the run
            keeps, counted back from the last.
        phase: Whose clips to show: those that pretraining draws, or those of evaluation.

    Returns:
        `clip`, `out`, `as` (the phase), `mask`, `ratio`, `temperature`, `grid`, `fps`, `notes` and
        `windows`: the facts of each (`facts_of`). With `every`, `windows` is that of the last
        checkpoint, and `checkpoints` has `step`, `entropy`, `motion_share`, `motion_lift`,
        `motion_hidden` and `visible_per_slice` of each, means over the windows.

    Raises:
        TatsError: If clip, run or overrides cannot be used.
    """
    overrides = overrides or Overrides()
    out = out or Path(f"{clip.stem}.masks.mp4")
    refuse_out(clip, out)
    if every is None:
        refuse_columns(out, columns)
    if every is not None and run is None:
        raise UsageError("`--every` needs `--run`: it shows the checkpoints of a training")
    setup = set_up_viewer(run, recipe, overrides)
    viewer, merged = setup.viewer, setup.recipe
    title = _title(merged, overrides)
    layout = layout_of(
        merged, title, phase=phase, seed=seed, fps=fps, windows=windows, columns=columns
    )
    try:
        if every is not None and run is not None:
            _refuse_growth(viewer, merged, run)
            kept = kept_checkpoints(run, every)
            drawn = _draw_growth(clip, out, viewer, kept, overrides, layout, seed, reporter)
        else:
            drawn = _draw(clip, out, viewer, layout, seed, reporter)
    except DataError as error:
        raise named(error, clip) from error
    limited = limited_by(out, every) if windows is None else ""
    notes = setup.notes + clip_notes([window for window, _ in drawn.seen], merged, layout, limited)
    notes += mask_notes(setup, [window for window, _ in drawn.seen])
    notes += left_out(viewer, merged, growth=every is not None)
    if drawn.checkpoints is not None and len(drawn.checkpoints) == 1:
        notes.append(
            "only one checkpoint to show: a larger `run.keep` keeps more of them, a smaller "
            "`run.save_every` writes them more often"
        )
    for note in notes:
        reporter.info(note)
    result = {
        "clip": str(clip),
        "out": str(out),
        "as": phase,
        "mask": merged.mask.kind,
        "ratio": merged.mask.ratio,
        "temperature": viewer.system.masker.temperature,
        "grid": list(merged.grid),
        "fps": drawn.fps,
        "notes": notes,
        "windows": [facts_of(window, masked, merged.grid) for window, masked in drawn.seen],
    }
    return result if drawn.checkpoints is None else result | {"checkpoints": drawn.checkpoints}


def _draw(
    clip: Path, out: Path, viewer: Viewer, layout: Layout, seed: int, reporter: Reporter
) -> _Drawn:
    """Draw the windows one after the other, remembering no pictures."""
    seen: list[tuple[Window, MaskedWindow]] = []

    def watch(window: Window, masked: MaskedWindow) -> None:
        seen.append(without_pictures(window, masked))
        reporter.detail(
            f"window {window.number + 1}: frames {window.frames}, "
            f"seconds {[round(time, 3) for time in window.times]}"
        )
        bar.update()

    with reporter.progress(description="windows", unit="window") as bar:
        rate = render(clip, out, viewer, layout, seed=seed, watch=watch)
    return _Drawn(seen, rate)


def _draw_growth(
    clip: Path,
    out: Path,
    viewer: Viewer,
    checkpoints: list[Checkpoint],
    overrides: Overrides,
    layout: Layout,
    seed: int,
    reporter: Reporter,
) -> _Drawn:
    """Draw the same windows, with the same noise, at one checkpoint after the other."""
    windows = list(islice(windows_of(clip, viewer.system.form, layout), layout.windows or 1))
    refuse_sheet(out, len(checkpoints) * len(windows))
    snapshots: list[Snapshot] = []
    with reporter.progress(
        total=len(checkpoints), description="checkpoints", unit="checkpoint"
    ) as bar:
        for checkpoint in checkpoints:
            then = set_up_viewer(checkpoint.path, None, overrides)
            policy = replace(then.viewer, trained=False, brief=True)
            draws = Draws(seed)
            results = [policy.mask(window, draws) for window in windows]
            snapshots.append(Snapshot(checkpoint.step, results))
            bar.update()
    grid = viewer.system.form.grid
    rate = render_growth(clip, out, windows, snapshots, layout, grid)
    numbers = [{"step": one.step} | mean_insight(windows, one.results, grid) for one in snapshots]
    return _Drawn(list(zip(windows, snapshots[-1].results, strict=True)), rate, numbers)


def _refuse_growth(viewer: Viewer, recipe: Recipe, run: Path) -> None:
    """Refuse `--every` where no policy was trained.

    Raises:
        UsageError: If the run trained no policy for the mask.
    """
    trained = open_checkpoint(run).recipe.mask.kind
    if trained == recipe.mask.kind and viewer.system.masker.temperature is not None:
        return
    raise UsageError(
        f"`--every` shows how a policy developed, and `{run}` trained none for the "
        f"`{recipe.mask.kind}` mask",
        hint=f"leave `--mask` out; learned masks are {learned_masks()}",
    )


def refuse_out(clip: Path, out: Path) -> None:
    """Refuse, before any work, an output that cannot be written.

    Raises:
        UsageError: If its suffix is unknown, or it would replace the clip.
    """
    if out.suffix.lower() not in SUFFIXES:
        raise UsageError(
            f"cannot write `{out}`: its suffix must be one of {', '.join(SUFFIXES)}",
            hint="mp4 and gif move; png is a sheet with one column a slice",
        )
    if out.exists() and clip.exists() and out.samefile(clip):
        raise UsageError(f"`{out}` is the clip itself", hint="choose another file with `--out`")
    refuse_unwritable(out)


def refuse_columns(out: Path, columns: int | None) -> None:
    """Refuse a number of columns for a film.

    Raises:
        UsageError: If it is.
    """
    if columns is not None and not is_sheet(out):
        raise UsageError(
            f"`--columns` is for a png: `{out}` is a film, which shows every frame",
            hint="leave it out, or choose a png with `--out`",
        )


def layout_of(
    recipe: Recipe,
    title: str,
    *,
    phase: Phase,
    seed: int,
    fps: float | None,
    windows: int | None,
    columns: int | None = None,
) -> Layout:
    """Return how the picture is made."""
    data = recipe.data.model_copy(update={"motion": shown_motion(recipe)})
    reader = WindowReader(data, phase, seed, store_settings(recipe))
    most = COLUMNS if columns is None else columns
    return Layout(title, reader, fps, windows, columns=most)


def _title(recipe: Recipe, overrides: Overrides) -> str:
    title = mask_title(recipe.mask)
    return (
        title
        if overrides.temperature is None
        else f"{title}, temperature {overrides.temperature:g}"
    )


def named(error: DataError, clip: Path) -> DataError:
    """Return an error about a clip with the clip's name, which a file that does not open lacks."""
    message = error.message if f"`{clip}`" in error.message else f"`{clip}`: {error.message}"
    return type(error)(message, error.hint)


def without_pictures(window: Window, masked: MaskedWindow) -> tuple[Window, MaskedWindow]:
    """Drop what is large, so that a film of hours fits in memory."""
    pictures = ("reconstruction", "coded", "guessed", "change", "guessed_change")
    nothing: dict[str, Any] = {f"{name}_CTHW": None for name in pictures}
    return without_video(window), replace(masked, **nothing)


def without_video(window: Window) -> Window:
    """Drop the frames of a window."""
    return replace(window, video_TCHW=window.video_TCHW.new_empty(0))
