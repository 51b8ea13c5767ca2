"""Notes on a picture of masks: what it does not show by itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tatscli.data.motion_source import one_scale
from tatscli.recipe.schema import Recipe, ScheduleMask
from tatscli.store.schema import Settings
from tatscli.tasks.mask_setup import MaskSetup
from tatscli.visualize.render import Layout, is_sheet
from tatscli.visualize.viewer import Viewer
from tatscli.visualize.windows import Window


def clip_notes(
    windows: Sequence[Window], recipe: Recipe, layout: Layout, limited: str
) -> list[str]:
    """Return notes about the frames and their motion.

    Args:
        windows: What is shown.
        recipe: That was followed.
        layout: Says whose motion was read.
        limited: What shows only the first window by default; empty if all are shown.
    """
    last = windows[-1]
    notes = []
    if layout.reader.phase == "train":
        notes.append(
            f"clips as training draws them: frames, crop and flip by `--seed {layout.reader.seed}`"
        )
    if last.held:
        notes.append(
            f"the video is shorter than a window: its frame {last.frames[-1]} also fills the last "
            f"{last.held} of {len(last.frames)} places"
            if recipe.data.sampling.stride is not None
            else f"frame {last.frames[-1]} fills the last {last.held + 1} of {len(last.frames)} "
            f"places of window {last.number + 1}"
        )
    motion = layout.reader.data.motion
    if motion != recipe.data.motion:
        notes.append(
            "the recipe takes its motion from `data.motion.path`; this picture shows codec vectors"
        )
    if motion.camera != "none":
        notes.append(f"camera motion is removed (`data.motion.camera: {motion.camera}`)")
    notes += _store_notes(recipe, layout)
    if all(window.motion.fallback_B.any() for window in windows):
        notes.append("no frame shown has motion vectors")
    if limited and last.more:
        notes.append(f"{limited} shows the first window; `--windows` shows more")
    return notes


def _store_notes(recipe: Recipe, layout: Layout) -> list[str]:
    """Name the settings of the store that the picture follows, where they are not the defaults."""
    usual, prepared = Settings(), layout.reader.prepared
    if prepared is None or layout.reader.data.motion.source != "codec":
        return []
    options = {
        "--motion": (prepared.motion, usual.motion),
        "--motion-cell": (prepared.motion_cell, usual.motion_cell),
        "--camera": (prepared.camera, usual.camera),
    }
    taken = [f"`{name} {value}`" for name, (value, default) in options.items() if value != default]
    if not taken:
        return []
    note = f"motion as in the store `{recipe.data.store}`: {', '.join(taken)}"
    motion = layout.reader.data.motion
    scaled = motion.scaling == "auto" and one_scale(motion, prepared)
    return [f"{note}, so the motion of all frames is scaled to a common level" if scaled else note]


def mask_notes(setup: MaskSetup, windows: Sequence[Window]) -> list[str]:
    """Say what masks, `predict` rules and targets that need motion do where there is none."""
    system, recipe = setup.viewer.system, setup.recipe
    parts = []
    if system.masker.needs_motion:
        parts.append((f"the `{recipe.mask.kind}` mask", "`tube`"))
    if system.predict.needs_motion:
        parts.append((f"`predict.kind: {recipe.predict.kind}`", "`random`"))
    lost = [one for one in windows if one.motion.fallback_B.any()]
    missing = [one.number + 1 for one in lost if one.motion.missing_B.any()]
    changes = [one.number + 1 for one in lost if not one.motion.missing_B.any()]
    notes = []
    if isinstance(recipe.mask, ScheduleMask):
        notes.append(
            f"the `schedule` mask is shown as at the end of training: `{recipe.mask.to.kind}`"
        )
    for who, fallback in parts:
        if missing:
            notes.append(
                f"no motion is known of {_listed(missing)}: there {who} falls back to {fallback}"
            )
        if changes:
            notes.append(
                f"no motion vectors in {_listed(changes)}: there {who} falls back to "
                "`framediff`, the change of brightness"
            )
    if lost and setup.viewer.trained:
        where = _listed([one.number + 1 for one in lost])
        notes += [
            f"no motion is known of {where}: there the error has no part of `targets: {name}`"
            for name, target in system.targets.items()
            if target.needs_motion
        ]
    return notes


def left_out(viewer: Viewer, recipe: Recipe, *, growth: bool) -> list[str]:
    """Name the rows there is nothing to show for."""
    if growth:
        return ["left out: reconstruction and error; `--every` shows only the policy"]
    rows = []
    if viewer.system.masker.temperature is None:
        rows.append(f"sampler probability (the `{recipe.mask.kind}` mask has no policy)")
    if not viewer.trained:
        rows.append("reconstruction and error (they need `--run`)")
    elif viewer.pixel_target is None and viewer.difference_target is None:
        rows.append("reconstruction (the model predicts no pixels)")
    target = viewer.code_target
    if viewer.trained and target is not None:
        if target.asked.shared:
            rows.append("predicted codes decoded (each code covers several tokens)")
        elif not target.chosen:
            rows.append("predicted codes decoded (the latents do not lie on a grid of levels)")
    return [f"left out: {', '.join(rows)}"] if rows else []


def limited_by(out: Path, every: int | None = None) -> str:
    """Return what shows only the first window of a clip by default, if anything."""
    if every is not None:
        return "`--every`"
    return "a png" if is_sheet(out) else ""


def _listed(numbers: list[int]) -> str:
    """Name windows, a few of them one by one."""
    if len(numbers) == 1:
        return f"window {numbers[0]}"
    shown = ", ".join(map(str, numbers[:3]))
    return f"windows {shown}" if len(numbers) <= 3 else f"{len(numbers)} windows ({shown}, ...)"
