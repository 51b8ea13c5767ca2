"""What is said of motion that is not there, and of whose motion is shown."""

import shutil
from dataclasses import replace

import pytest
import torch

from tatscli.recipe.load import load_recipe
from tatscli.recipe.schema import Motion
from tatscli.store.schema import Settings
from tatscli.tasks.compare_masks import compare_masks
from tatscli.tasks.mask_setup import Overrides, set_up_viewer, store_settings
from tatscli.tasks.picture_notes import clip_notes, mask_notes
from tatscli.tasks.visualize_masks import layout_of, visualize_masks
from tests.clips import pan, render
from tests.store.stores import prepare
from tests.visualize.fakes import window

SHAPE = {"size": 32, "patch": 8, "frames": 4, "stride": 2}


def seen(number=0, *, fallback=False, missing=False):
    one = window()
    flags = {"fallback_B": fallback or missing, "missing_B": missing}
    motion = replace(one.motion, **{name: torch.tensor([flag]) for name, flag in flags.items()})
    return replace(one, number=number, motion=motion)


def setup(mask="mgm", **motion):
    made = set_up_viewer(None, None, Overrides(mask, **SHAPE))
    data = made.recipe.data.model_copy(update={"motion": Motion(**motion)})
    return replace(made, recipe=made.recipe.model_copy(update={"data": data}))


def notes_of(windows, recipe):
    return clip_notes(windows, recipe, laid_out(recipe), "")


def laid_out(recipe):
    return layout_of(recipe, "title", phase="test", seed=0, fps=None, windows=None)


def test_the_fallback_taken_is_named():
    windows = [seen(), seen(1, missing=True), seen(2, fallback=True), seen(3, fallback=True)]
    tube, change = mask_notes(setup(), windows)
    assert "known of window 2: there the `mgm` mask falls back to `tube`" in tube
    assert "in windows 3, 4: there the `mgm` mask falls back to `framediff`" in change
    assert mask_notes(setup(), windows[:1]) == []
    many = [seen(number, missing=True) for number in range(9)]
    assert "9 windows (1, 2, 3, ...)" in mask_notes(setup(), many)[0]


def test_masks_that_do_not_read_motion_have_no_fallback():
    assert mask_notes(setup("tube"), [seen(missing=True)]) == []


def test_a_selection_that_reads_motion_has_one(recipe_file):
    recipe_file.write_text(recipe_file.read_text() + "predict: {kind: flow, budget: 4}\n")
    made = set_up_viewer(None, str(recipe_file), Overrides(mask="tube"))
    (note,) = mask_notes(made, [seen(missing=True)])
    assert note.endswith("window 1: there `predict.kind: flow` falls back to `random`")


def test_motion_other_than_the_recipes_is_named():
    flow = setup(source="flow", path="flow.safetensors").recipe
    assert any(
        "`data.motion.path`; this picture shows codec" in note for note in notes_of([seen()], flow)
    )
    median = setup(camera="median").recipe
    assert any("camera: median" in note for note in notes_of([seen()], median))
    assert notes_of([seen()], setup().recipe) == []


def test_settings_of_the_store_are_named_where_they_are_not_the_defaults():
    def told(scaling="auto", **prepared):
        recipe = setup(scaling=scaling).recipe
        recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"store": "s"})})
        layout = laid_out(recipe)
        reader = replace(layout.reader, prepared=Settings(**prepared))
        return clip_notes([seen()], recipe, replace(layout, reader=reader), "")

    assert told() == told(short_side=64, quality=5) == []
    as_in = "motion as in the store `s`: "
    assert told(motion="none") == [f"{as_in}`--motion none`"]
    assert told(motion_cell=8, camera="affine") == [f"{as_in}`--motion-cell 8`, `--camera affine`"]
    native = f"{as_in}`--motion native`"
    assert told(motion="native") == [
        f"{native}, so the motion of all frames is scaled to a common level"
    ]
    assert told("none", motion="native") == told("robust", motion="native") == [native]


@pytest.fixture
def prepare_as(tmp_path):
    """Prepare one clip with other settings; a recipe of the mask `mgm` for that store."""

    def make(extra="", **settings):
        clip = render(tmp_path / "v" / "clip.mp4", pan((2, 0), frames=20, height=48, width=64))
        store = tmp_path / "store"
        prepare(clip.parent, store, settings=Settings(**settings))
        recipe = tmp_path / "mgm.yaml"
        recipe.write_text(
            f"data: {{store: {store}, frames: 4, size: 32, sampling: {{stride: 2}}{extra}}}\n"
            "model: {size: nano, patch: 8}\nmask: {kind: mgm}\n"
        )
        return clip, recipe, store

    return make


def test_a_store_without_motion_gives_the_picture_its_fallback(prepare_as, reporter, tmp_path):
    """As in the training: the vectors of the file are none of its business."""
    clip, recipe, store = prepare_as(motion="none")
    found = visualize_masks(clip, reporter=reporter, recipe=str(recipe), out=tmp_path / "out.png")
    assert f"motion as in the store `{store}`: `--motion none`" in found["notes"]
    assert any("`mgm` mask falls back to `tube`" in note for note in found["notes"])
    assert found["windows"][0]["motion_hidden"] is None
    both = compare_masks(
        clip, "mgm,tube", reporter=reporter, recipe=str(recipe), out=tmp_path / "out.png"
    )
    assert any("`--motion none`" in note for note in both["notes"])
    assert any("falls back to `tube`" in note for note in both["compare"][0]["notes"])


def test_a_store_that_is_gone_is_not_missed(prepare_as, reporter, tmp_path):
    clip, recipe, store = prepare_as(motion="none")
    shutil.rmtree(store)
    found = visualize_masks(clip, reporter=reporter, recipe=str(recipe), out=tmp_path / "out.png")
    assert not any("store" in note for note in found["notes"])
    assert found["windows"][0]["motion_hidden"] is not None


def test_motion_that_is_not_the_stores_takes_nothing_over(prepare_as):
    _, path, _ = prepare_as(motion="none", motion_cell=8)
    recipe = load_recipe(path).recipe
    assert store_settings(recipe) == Settings(motion="none", motion_cell=8)
    for motion in (Motion(source="framediff"), Motion(source="flow", path="x.safetensors")):
        data = recipe.data.model_copy(update={"motion": motion})
        assert store_settings(recipe.model_copy(update={"data": data})) == Settings()


def test_no_recipe_means_no_store_even_in_the_folder_of_one(prepare_as, monkeypatch):
    monkeypatch.chdir(prepare_as(motion="none")[2])
    assert store_settings(setup().recipe) is None


@pytest.mark.parametrize(("frames", "more"), [(5, False), (7, False), (8, False), (9, True)])
def test_windows_not_shown_are_told_of_only_where_there_are_any(frames, more, reporter, tmp_path):
    """Windows span 8 frames: the first is held, is full, or is one of two."""
    clip = render(tmp_path / "clip.mp4", pan(frames=frames, height=48, width=64))
    for windows in (None, 1):
        found = visualize_masks(
            clip,
            reporter=reporter,
            overrides=Overrides("tube", **SHAPE),
            out=tmp_path / "out.png",
            windows=windows,
        )
        told = any("shows the first window" in note for note in found["notes"])
        assert told == (more and windows is None)


@pytest.mark.parametrize("mask", ["mgm", "tube"])
def test_a_single_frame_knows_no_motion(mask, reporter, tmp_path):
    clip = render(tmp_path / "clip.mp4", pan(frames=1, height=48, width=64))
    found = visualize_masks(
        clip, reporter=reporter, overrides=Overrides(mask, **SHAPE), out=tmp_path / "out.png"
    )
    assert "no frame shown has motion vectors" in found["notes"]
    assert any("falls back to `tube`" in note for note in found["notes"]) == (mask == "mgm")
    assert found["windows"][0]["motion_hidden"] is None
