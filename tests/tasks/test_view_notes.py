"""What is said of motion that is not there, and of whose motion is shown."""

from dataclasses import replace

import pytest
import torch

from tatscli.recipe.schema import Motion
from tatscli.tasks.view_notes import clip_notes, mask_notes
from tatscli.tasks.viewers import Wishes, choose_viewer
from tatscli.tasks.visualize_masks import visualize_masks
from tests.clips import pan, render
from tests.visualize.fakes import window

SHAPE = {"size": 32, "patch": 8, "frames": 4, "stride": 2}


def seen(number=0, *, fallback=False, missing=False):
    one = window()
    flags = {"fallback_B": fallback or missing, "missing_B": missing}
    motion = replace(one.motion, **{name: torch.tensor([flag]) for name, flag in flags.items()})
    return replace(one, number=number, motion=motion)


def choice(mask="mgm", **motion):
    made = choose_viewer(None, None, Wishes(mask, **SHAPE))
    data = made.recipe.data.model_copy(update={"motion": Motion(**motion)})
    return replace(made, recipe=made.recipe.model_copy(update={"data": data}))


def test_the_fallback_taken_is_named():
    windows = [seen(), seen(1, missing=True), seen(2, fallback=True), seen(3, fallback=True)]
    tube, change = mask_notes(choice(), windows)
    assert "known of window 2: there the `mgm` mask falls back to `tube`" in tube
    assert "in windows 3, 4: there the `mgm` mask falls back to `framediff`" in change
    assert mask_notes(choice(), windows[:1]) == []
    many = [seen(number, missing=True) for number in range(9)]
    assert "9 windows (1, 2, 3, ...)" in mask_notes(choice(), many)[0]


def test_masks_that_do_not_read_motion_have_no_fallback():
    assert mask_notes(choice("tube"), [seen(missing=True)]) == []


def test_a_selection_that_reads_motion_has_one(recipe_file):
    recipe_file.write_text(recipe_file.read_text() + "predict: {kind: flow, budget: 4}\n")
    made = choose_viewer(None, str(recipe_file), Wishes(mask="tube"))
    (note,) = mask_notes(made, [seen(missing=True)])
    assert note.endswith("window 1: there `predict.kind: flow` falls back to `random`")


def test_motion_other_than_the_recipes_is_named():
    flow = choice(source="flow", path="flow.safetensors").recipe
    assert any(
        "`data.motion.path`; shown are codec" in note for note in clip_notes([seen()], flow, "")
    )
    median = choice(camera="median").recipe
    assert any("camera: median" in note for note in clip_notes([seen()], median, ""))
    assert clip_notes([seen()], choice().recipe, "") == []


@pytest.mark.parametrize("mask", ["mgm", "tube"])
def test_a_single_frame_knows_no_motion(mask, reporter, tmp_path):
    clip = render(tmp_path / "clip.mp4", pan(frames=1, height=48, width=64))
    found = visualize_masks(
        clip, reporter=reporter, wishes=Wishes(mask, **SHAPE), out=tmp_path / "out.png"
    )
    assert "no motion vectors are known of any frame shown" in found["notes"]
    assert any("falls back to `tube`" in note for note in found["notes"]) == (mask == "mgm")
    assert found["windows"][0]["motion_hidden"] is None
