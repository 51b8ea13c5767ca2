"""Comparing masks: several kinds on the same frames of one clip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from tatscli.console import Reporter
from tatscli.errors import DataError, UsageError
from tatscli.masking import MASKERS
from tatscli.tasks.mask_setup import (
    MaskSetup,
    ModelSetup,
    Overrides,
    known_masks,
    learned_kinds,
    set_up_mask,
    set_up_model,
)
from tatscli.tasks.picture_notes import clip_notes, limited_by, mask_notes
from tatscli.tasks.visualize_masks import (
    layout_of,
    named,
    refuse_columns,
    refuse_out,
    without_video,
)
from tatscli.visualize.compare import Candidate, render_comparison
from tatscli.visualize.facts import facts_of
from tatscli.visualize.viewer import MaskedWindow
from tatscli.visualize.windows import Phase, Window

_TALLEST = 4  # rows of a film: a film of many masks becomes about as wide as it is high


def compare_masks(
    clip: Path,
    kinds: str,
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
    phase: Phase = "test",
) -> dict[str, Any]:
    """Draw what several masks hide of the same frames.

    A mask of the recipe's or run's kind is taken from there, from a run with its weights; all
    others have the defaults of their kind.

    Args:
        clip: A video file.
        kinds: Kinds of masks with commas between them, from top to bottom.
        reporter: Prints messages and progress.
        run: Pretrained run or checkpoint.
        recipe: A recipe to take the clip's shape from instead.
        overrides: Changes of these; a ratio goes for all masks, a temperature for the learned ones.
        out: The picture; by default `<clip's stem>.masks.mp4` in the current folder.
        seed: Of every mask.
        fps: Frames per second of a moving picture; None follows the clip.
        windows: How many windows to show; None means all, for a png the first.
        columns: How many slices a png shows at most.
        phase: Whose clips to show, as for `visualize_masks`.

    Returns:
        `clip`, `out`, `as`, `grid`, `fps`, `notes`, and `compare`: for each mask `mask`, `ratio`,
        `temperature`, `notes` and `windows`, as `visualize_masks` returns them.

    Raises:
        TatsError: If clip, run, kinds or overrides cannot be used.
    """
    overrides = overrides or Overrides()
    out = out or Path(f"{clip.stem}.masks.mp4")
    refuse_out(clip, out)
    refuse_columns(out, columns)
    names = _split(kinds)
    base = set_up_model(run, recipe, overrides)
    setups = _set_up(names, base, overrides)
    merged = setups[0].recipe
    title = f"{len(setups)} masks compared"
    layout = layout_of(
        merged, title, phase=phase, seed=seed, fps=fps, windows=windows, columns=columns
    )
    layout = replace(layout, tallest=_TALLEST)
    seen: list[Window] = []
    facts: list[list[dict[str, Any]]] = [[] for _ in setups]

    def watch(window: Window, results: Sequence[MaskedWindow]) -> None:
        for place, masked in enumerate(results):
            facts[place].append(facts_of(window, masked, merged.grid))
        seen.append(without_video(window))
        bar.update()

    candidates = [Candidate(_label(setup, overrides), setup.viewer) for setup in setups]
    try:
        with reporter.progress(description="windows", unit="window") as bar:
            rate = render_comparison(clip, out, candidates, layout, seed=seed, watch=watch)
    except DataError as error:
        raise named(error, clip) from error
    limited = limited_by(out) if windows is None else ""
    notes = base.notes + clip_notes(seen, merged, layout, limited)
    if run is not None or any(
        setup.viewer.system.masker.temperature is not None for setup in setups
    ):
        notes.append(
            "left out: sampler probability, reconstruction and error; `--compare` shows only "
            "the visible tokens"
        )
    own = [setup.notes + mask_notes(setup, seen) for setup in setups]
    for note in chain(notes, *own):
        reporter.info(note)
    return {
        "clip": str(clip),
        "out": str(out),
        "as": phase,
        "grid": list(merged.grid),
        "fps": rate,
        "notes": notes,
        "compare": [
            {
                "mask": setup.recipe.mask.kind,
                "ratio": setup.recipe.mask.ratio,
                "temperature": setup.viewer.system.masker.temperature,
                "notes": said,
                "windows": shown,
            }
            for setup, said, shown in zip(setups, own, facts, strict=True)
        ],
    }


def _split(kinds: str) -> list[str]:
    """Read the list of kinds.

    Raises:
        UsageError: If it names none, an unknown one, or one twice.
    """
    names = [name.strip() for name in kinds.split(",")]
    if not any(names):
        raise UsageError(f"`--compare {kinds}` names no mask: choose from {known_masks()}")
    for place, name in enumerate(names):
        if not name:
            raise UsageError(
                f"`--compare {kinds}` names no mask at position {place + 1}: "
                f"choose from {known_masks()}",
                hint="separate names with commas, such as `--compare random,tube,mgm`",
            )
        if name not in MASKERS:
            raise UsageError(
                f"there is no mask `{name}` to compare: choose from {known_masks()}",
                hint="separate names with commas, such as `--compare random,tube,mgm`",
            )
        if name in names[:place]:
            raise UsageError(
                f"`--compare {kinds}` names `{name}` twice: each mask has one row",
                hint=f"choose from {known_masks()}",
            )
    return names


def _set_up(names: list[str], base: ModelSetup, overrides: Overrides) -> list[MaskSetup]:
    """Set up every mask; they share an encoder and show no predictions.

    Raises:
        UsageError: If a temperature is given and no mask has a policy, or it is out of range.
        RecipeError: If the overrides do not suit a mask.
    """
    setups = []
    learned = set(names) & set(learned_kinds())
    for name in names:
        tempered = name in learned or not learned
        own = replace(overrides, mask=name, temperature=overrides.temperature if tempered else None)
        setup = set_up_mask(base, own, fresh=True)
        setups.append(replace(setup, viewer=replace(setup.viewer, trained=False, brief=True)))
    return setups


def _label(setup: MaskSetup, overrides: Overrides) -> str:
    temperature = setup.viewer.system.masker.temperature
    label = f"{setup.recipe.mask.kind} {setup.recipe.mask.ratio:g}"
    wished = overrides.temperature is not None and temperature is not None
    return f"{label}, T {temperature:g}" if wished else label
