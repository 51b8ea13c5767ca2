"""Pictures of a tokenizer: the reconstruction of a clip, its codes and their scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tatscli.console import Reporter
from tatscli.data.clip import ClipForm
from tatscli.engine.device import choose_device
from tatscli.errors import DataError, UsageError
from tatscli.nn.load import open_checkpoint
from tatscli.tasks.mask_setup import Overrides
from tatscli.tasks.picture_notes import clip_notes, limited_by
from tatscli.tasks.visualize_masks import (
    layout_of,
    named,
    refuse_columns,
    refuse_out,
    without_video,
)
from tatscli.tokenizer.load import open_run
from tatscli.visualize.codes import Coding, render_codes
from tatscli.visualize.windows import Phase, Window


def visualize_tokenizer(
    clip: Path,
    run: Path,
    *,
    reporter: Reporter,
    overrides: Overrides,
    out: Path | None = None,
    fps: float | None = None,
    windows: int | None = None,
    columns: int | None = None,
    phase: Phase = "test",
    seed: int = 0,
) -> dict[str, Any]:
    """Draw a clip, its reconstruction, its codes, and their scores where it has such.

    Args:
        clip: A video file.
        run: Run or checkpoint of a tokenizer.
        reporter: Prints messages and progress.
        overrides: Only `stride` may be set; the tokenizer's recipe determines the rest.
        out: The picture; by default `<clip's stem>.codes.mp4` in the current folder.
        fps: Frames per second of a moving picture; None follows the clip.
        windows: How many windows to show; None means all, for a png the first.
        columns: How many slices a png shows at most.
        phase: Whose clips to show, as for `visualize_masks`.
        seed: Of the clips that `train` draws.

    Returns:
        `clip`, `out`, `as`, `tokenizer`, `codebook_size`, `grid`, `fps`, `notes`, and `windows`:
        `frames`, `times`, `psnr`, `ssim` and `codes` of each, `scores` where it has such, and
        `kept`, the share of codes decoded, where it leaves some out.

    Raises:
        TatsError: If clip, run or overrides cannot be used.
    """
    foreign = [
        f"`--{name}`"
        for name in ("mask", "ratio", "size", "frames", "patch", "tubelet", "temperature")
        if getattr(overrides, name) is not None
    ]
    if foreign:
        raise UsageError(
            f"`{run}` is a tokenizer: {', '.join(foreign)} cannot be set",
            hint="`--stride`, `--as`, `--windows`, `--columns`, `--fps` and `--out` can be set",
        )
    out = out or Path(f"{clip.stem}.codes.mp4")
    refuse_out(clip, out)
    refuse_columns(out, columns)
    recipe = open_checkpoint(run).recipe
    tokenizer, _, checkpoint = open_run(run)
    tokenizer.to(choose_device("auto")[0]).eval()
    if overrides.stride is not None:
        sampling = {"mode": "dense", "stride": overrides.stride, "fps": None}
        data = recipe.data.model_copy(
            update={"sampling": recipe.data.sampling.model_copy(update=sampling)}
        )
        recipe = recipe.model_copy(update={"data": data})
    height, width = recipe.data.view_size
    stride, frames = tokenizer.stride, tokenizer.frames
    grid = (recipe.data.frames // frames, height // stride, width // stride)
    form = ClipForm(grid, frames, stride)
    title = f"{tokenizer.config.kind} tokenizer, {tokenizer.codebook_size} codes"
    layout = layout_of(
        recipe, title, phase=phase, seed=seed, fps=fps, windows=windows, columns=columns
    )
    seen: list[Window] = []
    facts: list[dict[str, Any]] = []

    def watch(window: Window, coding: Coding) -> None:
        seen.append(without_video(window))
        facts.append(coding.facts(window))
        bar.update()

    try:
        with reporter.progress(description="windows", unit="window") as bar:
            rate = render_codes(clip, out, tokenizer, form, layout, watch=watch)
    except DataError as error:
        raise named(error, clip) from error
    limited = limited_by(out) if windows is None else ""
    notes = [f"from {run}, step {checkpoint.step}"]
    notes += clip_notes(seen, recipe, layout, limited)
    for note in notes:
        reporter.info(note)
    return {
        "clip": str(clip),
        "out": str(out),
        "as": phase,
        "tokenizer": tokenizer.config.kind,
        "codebook_size": tokenizer.codebook_size,
        "grid": list(form.grid),
        "fps": rate,
        "notes": notes,
        "windows": facts,
    }
