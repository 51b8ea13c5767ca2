"""What an override of the mask or of the model's size brings along, and what it tells."""

import pytest

from tatscli.recipe.load import load_recipe, override_recipe
from tatscli.recipe.schema import TubeMask


def said(loaded):
    return [note for note in loaded.notes if " drops " not in note]


@pytest.mark.parametrize(
    ("name", "old", "ratio", "visible"),
    [("ssv2", 0.95, 0.9, 160), ("k400", 0.95, 0.9, 160), ("ucf101", 0.9, 0.75, 392)],
)
def test_the_tube_baseline_has_videomaes_ratio(name, old, ratio, visible):
    loaded = load_recipe(name, ["mask.kind=tube"])
    assert loaded.recipe.mask == TubeMask(kind="tube", ratio=ratio)
    assert 8 * (196 - int(ratio * 196)) == visible
    first, *rest = said(loaded)
    assert first == (
        f"`mask.kind=tube` sets `mask.ratio: {ratio}` (was {old}), as in `videomae/{name}`"
    )
    epochs = ["`optim.epochs` stays 200; `videomae/ucf101` has 3200"] if name == "ucf101" else []
    assert rest == epochs
    assert loaded.merged["mask"] == {"kind": "tube", "ratio": ratio}  # what the run keeps


def test_a_copy_of_a_recipe_is_treated_as_the_recipe(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(load_recipe("ucf101").source.read_text())
    mine, shipped = (load_recipe(name, ["mask.kind=tube"]) for name in (path, "ucf101"))
    assert mine.recipe == shipped.recipe
    assert mine.notes == shipped.notes


def test_adamae_has_its_published_width_and_rate():
    loaded = load_recipe("ucf101", ["mask.kind=adamae"])
    mask = loaded.recipe.mask
    assert (mask.ratio, mask.width, mask.dropout, mask.base_lr) == (0.95, None, 0.1, None)
    assert said(loaded) == [
        "`mask.kind=adamae` sets `mask.ratio: 0.95` (was 0.9), `mask.width: null`"
        " (was 384), `mask.base_lr: null` (was 0.0003), the defaults of"
        " `adamae`"
    ]


@pytest.mark.parametrize("order", [1, -1])
def test_what_the_command_line_sets_itself_stays(order):
    words = ["mask.kind=tube", "mask.ratio=0.8", "optim.epochs=100"]
    loaded = load_recipe("ucf101", words[::order])
    assert (loaded.recipe.mask.ratio, loaded.recipe.optim.epochs) == (0.8, 100)
    assert said(loaded) == []
    whole = load_recipe("ssv2", ["mask={kind: tube, ratio: 0.5}", "mask.kind=random"])
    assert (whole.recipe.mask.kind, whole.recipe.mask.ratio) == ("random", 0.5)


def test_nothing_changes_where_the_kind_stays_or_lies_elsewhere():
    for words in (["mask.kind=tats"], ["model.size=base"], ["head.kind=decoder"]):
        loaded = load_recipe("ssv2", words)
        assert loaded.recipe == load_recipe("ssv2").recipe
        assert loaded.notes == ()
    drop = load_recipe("lvmae/diving48", ["finetune.drop.kind=random"]).recipe.finetune.drop
    assert drop.ratio == 0.2


def test_a_model_of_no_published_size_keeps_the_recipes_ratio_and_says_so():
    spelled = ["model.size=null", "model.width=64", "model.depth=2", "model.heads=2"]
    loaded = load_recipe("ssv2", [*spelled, "mask.kind=tube"])
    assert loaded.recipe.mask.ratio == 0.95
    assert said(loaded) == [
        "`mask.kind=tube` keeps `mask.ratio: 0.95` from the recipe; `videomae/ssv2` has"
        " `ratio: 0.9`"
    ]
    loaded = load_recipe("small", ["mask.kind=random"])
    assert loaded.recipe.mask.ratio == 0.75
    assert said(loaded) == [
        "`mask.kind=random` keeps `mask.ratio: 0.75` from the recipe; the defaults of `random` are"
        " `ratio: 0.9`"
    ]
    for kind in ("tube", "mgm"):  # `videomae/small` and `mgm/small` have what the recipe has
        assert said(load_recipe("small", [f"mask.kind={kind}"])) == []
    assert load_recipe("ssv2", ["mask.kind=tube", "model.size=small"]).recipe.mask.ratio == 0.9


@pytest.mark.parametrize(("size", "depth"), [("small", 4), ("large", 12), ("huge", 12)])
def test_a_size_brings_the_decoder_published_with_it(size, depth):
    loaded = load_recipe("k400", [f"model.size={size}"])
    assert loaded.recipe.head.depth == depth
    told = f"`model.size={size}` sets `head.depth: 12`, the published value for this size (was 4)"
    named = f"`videomae/k400-{size}` has VideoMAE's batch and learning rate for this size"
    assert said(loaded) == ([told, named] if depth == 12 else [named])
    back = load_recipe("videomae/k400-large", ["model.size=base"])
    assert back.recipe.head.depth == 4


def test_a_depth_of_ones_own_and_other_heads_stay():
    for words in (["head.depth=4"], ["head={kind: decoder, depth: 4}"]):
        for order in (1, -1):
            both = ["model.size=large", *words][::order]
            assert load_recipe("k400", both).recipe.head.depth == 4
    regressor = load_recipe("mam2/k400", ["model.size=large"])
    assert regressor.recipe.head.depth == 4
    assert load_recipe("small", ["model.size=tiny"]).recipe.head.depth == 1


def test_a_runs_own_recipe_keeps_its_ratio(tmp_path):
    """What is looked at stays alike: `tats visualize-masks --run R --mask tube`."""
    recipe = load_recipe("ssv2").recipe
    assert override_recipe(recipe, ["mask.kind=tube"], origin=tmp_path).mask.ratio == 0.95
