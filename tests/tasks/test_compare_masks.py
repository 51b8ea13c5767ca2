"""Comparing masks: whose sections and weights each has, and what cannot be compared."""

import pytest

from tatscli.errors import RecipeError, UsageError
from tatscli.masking import MASKERS
from tatscli.tasks.compare_masks import compare_masks
from tatscli.tasks.mask_setup import Overrides, learned_kinds, set_up_viewer
from tatscli.tasks.pretrain import pretrain
from tatscli.tasks.visualize_masks import visualize_masks
from tests.clips import pan, render

SMALL = Overrides(size=64, patch=8, frames=8, stride=2)


@pytest.fixture
def clip(tmp_path):
    return render(tmp_path / "clip.mp4", pan((2, 0), frames=20, height=64, width=64))


@pytest.fixture
def compare(clip, reporter, tmp_path):
    def run(kinds, **where):
        where.setdefault(
            "overrides", SMALL if not {"run", "recipe"} & where.keys() else Overrides()
        )
        return compare_masks(clip, kinds, reporter=reporter, out=tmp_path / "out.png", **where)

    return run


@pytest.fixture
def run(trained):
    """A pretrained run of the tiny recipe, its policy trained hard."""
    return trained("optim.epochs=2", "mask.base_lr=0.3", "mask.floor=0", task=pretrain)


def test_every_kind_of_mask_can_be_compared(compare, tmp_path):
    """Each at its own default, which is that of its section in a recipe."""
    found = compare(",".join(MASKERS))
    assert {"clip", "out", "as", "grid", "fps", "notes", "compare"} == found.keys()
    assert [one["mask"] for one in found["compare"]] == list(MASKERS)
    ratios = {one["mask"]: one["ratio"] for one in found["compare"]}
    assert (ratios["tube"], ratios["mgm"], ratios["motion_bins"]) == (0.9, 0.75, 0.8)
    for one in found["compare"]:
        (window,) = one["windows"]
        assert window["frames"] == list(range(0, 16, 2))
        assert 0 < len(window["visible"]) < 256
        assert window["motion_hidden"] is not None
        assert (one["temperature"] is None) == (one["mask"] not in ("tats", "adamae"))
        assert any("untrained" in note for note in one["notes"]) == (
            one["mask"] in ("tats", "adamae", "everest")
        )
    assert (tmp_path / "out.png").stat().st_size > 0


def test_a_mask_is_compared_as_it_is_looked_at_alone(compare, clip, reporter, tmp_path):
    kinds = ["everest", "tats", "mgm", "frame"]
    found = compare(",".join(kinds), seed=7, windows=1)["compare"]
    for kind, one in zip(kinds, found, strict=True):
        overrides = Overrides(kind, size=64, patch=8, frames=8, stride=2)
        alone = visualize_masks(
            clip, reporter=reporter, overrides=overrides, out=tmp_path / "one.png", seed=7
        )
        assert (one["ratio"], one["windows"]) == (alone["ratio"], alone["windows"])
        assert set(one["notes"]) <= set(alone["notes"])


def test_one_ratio_goes_for_all(compare):
    overrides = Overrides(ratio=0.5, size=64, patch=8, frames=8, stride=2)
    found = compare("tube, mgm ,random", overrides=overrides)["compare"]
    assert [one["mask"] for one in found] == ["tube", "mgm", "random"]
    assert [one["ratio"] for one in found] == [0.5] * 3
    assert all(len(one["windows"][0]["visible"]) == 128 for one in found)


def test_a_run_brings_its_own_mask_with_its_weights(compare, run):
    found = compare("tube,tats,adamae", run=run)
    tube, tats, adamae = found["compare"]
    assert found["notes"][0] == "from runs/tiny, step 4"
    assert any("left out" in note for note in found["notes"])
    assert (tube["ratio"], tats["ratio"]) == (0.9, 0.75)  # the run's own 0.75
    assert tats["windows"][0]["entropy"] < 1 == adamae["windows"][0]["entropy"]
    assert not tats["notes"] and "untrained" in adamae["notes"][0]
    assert "error" not in tats["windows"][0]
    assert len(tats["windows"][0]["visible"]) == 16


def test_a_recipe_brings_its_section(compare, recipe_file):
    text = recipe_file.read_text()
    start = text.index("mask:")
    recipe_file.write_text(
        text[:start] + "mask: {kind: mgm, ratio: 0.5, blocks: 2}\n" + text[text.index("head:") :]
    )
    found = compare("block,mgm", recipe=str(recipe_file))["compare"]
    assert [(one["mask"], one["ratio"]) for one in found] == [("block", 0.75), ("mgm", 0.5)]


def test_a_selection_of_the_recipe_goes_for_all(compare, recipe_file):
    recipe_file.write_text(recipe_file.read_text() + "predict: {kind: random, budget: 5}\n")
    for one in compare("tube,tats,mgm", recipe=str(recipe_file))["compare"]:
        window = one["windows"][0]
        assert len(window["predict"]) == 5
        assert not set(window["predict"]) & set(window["visible"])
    recipe_file.write_text(recipe_file.read_text().replace("budget: 5", "budget: 50"))
    with pytest.raises(RecipeError, match=r"the `mgm` mask: `predict.budget: 50` is more"):
        compare("tube,mgm", recipe=str(recipe_file))


@pytest.mark.parametrize("kinds", ["", " ", ",", " , "])
def test_an_empty_list_is_refused(compare, kinds):
    with pytest.raises(UsageError, match="names no mask: choose from `random`, `tube`"):
        compare(kinds)


@pytest.mark.parametrize(("kinds", "place"), [("tube,,mgm", 2), ("tube,mgm, ", 3), (",tub", 1)])
def test_an_empty_entry_is_named_by_its_place(compare, kinds, place):
    words = f"`--compare {kinds}` names no mask at position {place}: choose from `random`,"
    with pytest.raises(UsageError, match=words):
        compare(kinds)


@pytest.mark.parametrize(("kinds", "value"), [("tube,tub", "tub"), ("a", "a")])
def test_unknown_kinds_are_named_with_those_allowed(compare, kinds, value):
    with pytest.raises(UsageError, match=f"no mask `{value}` to compare: choose.* `mgm_topk`"):
        compare(kinds)


def test_a_kind_has_one_row(compare, tmp_path):
    with pytest.raises(UsageError, match="`--compare mgm,tube, mgm` names `mgm` twice") as refused:
        compare("mgm,tube, mgm")
    assert "`tube`" in refused.value.hint
    assert not (tmp_path / "out.png").exists()


@pytest.mark.parametrize(("ratio", "kind"), [(0.999, "random"), (0.05, "frame"), (0.6, "everest")])
def test_a_ratio_that_a_kind_cannot_do_names_the_kind(compare, ratio, kind):
    overrides = Overrides(ratio=ratio, size=64, patch=8, frames=8, stride=2)
    with pytest.raises(RecipeError, match=f"the `{kind}` mask: "):
        compare(kind, overrides=overrides)


def test_a_temperature_goes_for_those_that_have_a_policy(compare, run):
    found = compare("tube,tats", run=run, overrides=Overrides(temperature=0.001))["compare"]
    assert [one["temperature"] for one in found] == [None, 0.001]
    with pytest.raises(UsageError, match="`--temperature` needs a policy"):
        compare("tube,mgm", run=run, overrides=Overrides(temperature=0.5))


def test_learned_kinds_are_those_with_a_temperature():
    """Built, not only declared: `everest` reads embeddings and has nothing to sharpen."""
    learned = [
        kind
        for kind in MASKERS
        if set_up_viewer(
            None, None, Overrides(kind, size=64, patch=8, frames=8)
        ).viewer.system.masker.temperature
        is not None
    ]
    assert learned == learned_kinds()
