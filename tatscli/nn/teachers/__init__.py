"""Teachers: trained networks whose features of a clip are a target. A new source is a file, its key
in the recipe and a line here."""

from __future__ import annotations

from collections.abc import Callable

import torch

from tatscli.data.clip import ClipForm
from tatscli.errors import RecipeError
from tatscli.nn.frozen import Frozen
from tatscli.nn.teachers.base import Given, Source, Teacher
from tatscli.nn.teachers.hf import open_transformers
from tatscli.nn.teachers.run import open_run
from tatscli.nn.teachers.torchvision_nets import open_torchvision
from tatscli.recipe import schema

SOURCES: dict[str, Callable[[schema.TeacherTarget, Given], Source]] = {
    "run": open_run,
    "transformers": open_transformers,
    "torchvision": open_torchvision,
}


def build_teacher(config: schema.TeacherTarget, *, form: ClipForm) -> tuple[Frozen, int]:
    """Open the teacher of a recipe.

    Under `torch.device("meta")` it is built without its weights, which are not even read.

    Returns:
        The network, which maps clips in [0, 1] (B, 3, T, H, W) to features (B, N, D), and D.

    Raises:
        RecipeError: If there is no such teacher, its weights cannot be used, or its tokens are not
            those of the clips.
    """
    given = Given.of(form, config.size, meta=torch.get_default_device().type == "meta")
    # What a teacher draws for weights it then throws away must not change the student's own.
    with torch.random.fork_rng(devices=[]):
        source = SOURCES[config.source](config, given)
    _refuse_other_grid(source.teacher, given)
    teacher = source.teacher.to(torch.bfloat16 if config.precision == "bf16" else torch.float32)
    return Frozen(teacher, path=source.path, digest=source.digest), teacher.width


def _refuse_other_grid(teacher: Teacher, given: Given) -> None:
    """Refuse a teacher whose token grid is not the clips'.

    Raises:
        RecipeError: If so; the message names both grids.
    """
    sees = tuple(own or other for own, other in zip(teacher.sees, given.clip, strict=True))
    if (teacher.grid, sees) == (given.grid, given.clip):
        return
    theirs, ours = (" x ".join(map(str, grid)) for grid in (teacher.grid, given.grid))
    hint = "change `data.frames`, `data.size` or `model` to fit, or the teacher's `size`"
    if sees[0] == given.clip[0] and sees[1:] != given.clip[1:]:
        side = sees[1] if sees[1] == sees[2] else list(sees[1:])
        hint = f"`size: {side}` resizes the clip for the teacher"
    shown = "the same" if sees == given.clip else _clip(given.clip)
    raise RecipeError(
        f"`targets`: the teacher `{teacher.name}` has a grid of {theirs} tokens for "
        f"{_clip(sees)}, and the recipe one of {ours} for {shown}",
        hint=hint,
    )


def _clip(size: tuple[int, ...]) -> str:
    frames, height, width = size
    return f"clips of {frames} frames of {height} x {width} pixels"
