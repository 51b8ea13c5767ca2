"""`key.sub=value` on the command line."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tatscli.errors import RecipeError
from tatscli.recipe.load import load_recipe
from tatscli.recipe.schema import Mask
from tatscli.recipe.text import dump_value
from tests.recipe.kinds import listed

MINIMAL = "data: {store: prepared/x}\nmask: {kind: tats, ratio: 0.8, width: 64, heads: 4}\n"


@pytest.fixture(scope="module")
def minimal(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipes") / "minimal.yaml"
    path.write_text(MINIMAL, encoding="utf-8")
    return path


def leaves(value, keys=()):
    """Every plain value of nested mappings and lists of mappings, with its keys."""
    if isinstance(value, dict):
        for key, below in value.items():
            yield from leaves(below, (*keys, key))
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for index, below in enumerate(value):
            yield from leaves(below, (*keys, str(index)))
    else:
        yield keys, value


def test_sections_left_out_of_the_file_start_from_their_defaults(minimal):
    recipe = load_recipe(
        minimal,
        ["head.depth=2", "targets.0.weight=2", "data.sampling.short=loop", "optim.betas.1=0.99"],
    ).recipe
    assert (recipe.head.kind, recipe.head.depth) == ("decoder", 2)
    assert (recipe.targets[0].kind, recipe.targets[0].weight) == ("pixels", 2)
    assert (recipe.data.sampling.stride, recipe.data.sampling.short) == (4, "loop")
    assert recipe.optim.betas == (0.9, 0.99)


def test_an_override_that_restates_a_value_changes_nothing(minimal):
    """Every key of the schema can be reached, whatever the file leaves out."""
    recipe = load_recipe(minimal).recipe
    found = list(leaves(recipe.model_dump(mode="json")))
    assert len(found) > 80
    for keys, value in found:
        override = f"{'.'.join(keys)}={dump_value(value)}"
        loaded = load_recipe(minimal, [override])
        assert loaded.recipe == recipe, override
        assert loaded.notes == ()


@example(store="\x7f", epochs=1, rate=1.0, scales=[1.0], seed=0, checkpointing=False, split="0E0")
@given(
    store=st.text(min_size=1),
    epochs=st.integers(1, 10**9),
    rate=st.floats(0, exclude_min=True, allow_infinity=False),
    scales=st.lists(st.floats(0, 1, exclude_min=True), min_size=1, max_size=4),
    seed=st.integers(0, 2**40),
    checkpointing=st.booleans(),
    split=st.none() | st.text(),
)
def test_overrides_arrive_as_the_values_they_spell(
    minimal, store, epochs, rate, scales, seed, checkpointing, split
):
    wanted = {
        "data.store": store,
        "data.split": split,
        "data.crop_scales": scales,
        "optim.epochs": epochs,
        "optim.base_lr": rate,
        "run.seed": seed,
        "model.checkpointing": checkpointing,
    }
    recipe = load_recipe(minimal, [f"{k}={dump_value(v)}" for k, v in wanted.items()]).recipe
    for key, value in wanted.items():
        section, name = key.split(".")
        assert getattr(getattr(recipe, section), name) == value


def test_the_last_of_two_overrides_wins(minimal):
    assert load_recipe(minimal, ["run.seed=1", "run.seed=2"]).recipe.run.seed == 2


def test_a_new_kind_keeps_common_keys_and_tells_what_it_drops(minimal):
    loaded = load_recipe(minimal, ["head.width=64", "head.kind=regressor"])
    assert (loaded.recipe.head.kind, loaded.recipe.head.width) == ("regressor", 64)
    assert loaded.notes == ()
    loaded = load_recipe(minimal, ["mask.kind=tube", "model.size=nano"])
    assert (loaded.recipe.mask.kind, loaded.recipe.mask.ratio) == ("tube", 0.8)
    assert loaded.notes[0] == (
        "`mask.kind=tube` drops `mask.width`, `mask.heads`, which `tube` does not have"
    )
    assert load_recipe(minimal, ["mask={kind: random}"]).recipe.mask.ratio == 0.9


def test_a_shared_anchor_is_changed_in_one_place_only(tmp_path):
    path = tmp_path / "anchors.yaml"
    path.write_text(
        "data: {store: x, sampling: &s {stride: 2}}\nmask: {kind: tube}\nfinetune: {sampling: *s}\n"
    )
    recipe = load_recipe(path, ["finetune.sampling.stride=8"]).recipe
    assert (recipe.data.sampling.stride, recipe.finetune.sampling.stride) == (2, 8)


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("optim.epochs", "`optim.epochs` is not an override; write `key.sub=value`"),
        ("=3", "`=3` is not an override; write `key.sub=value`"),
        ("run.out=", "`run.out=` has no value; write `run.out=null` for none"),
        ("epochs=3", "`epochs` is unknown; did you mean `mask.epochs` or `optim.epochs` or"),
        ("optim.epchs=3", "`optim.epchs` is unknown; did you mean `optim.epochs`?"),
        ("opitm.epochs=3", "`opitm` is unknown; did you mean `optim`?"),
        ("optim.epochs.x=3", "`optim.epochs` holds a plain value; it has no key `x`"),
        ("targets.1.weight=3", "`targets.1` needs an index into the list: 0 to 0"),
        ("targets.pixels=3", "`targets.pixels` needs an index into the list: 0 to 0"),
        ("optim.betas.2=0.5", "`optim.betas.2` needs an index into the list: 0 to 1"),
        ("data.mean=[1, 2", "`data.mean=[1, 2`: `[1, 2` is not valid YAML"),
        ("mask.kind=cube", f'`mask.kind: "cube"` must be one of {listed(Mask)}'),
        ("optim.epochs=0", "`optim.epochs: 0` must be at least 1"),
        ("mask.width=65", "`mask`: `width: 65` is not a multiple of `heads: 4`"),
    ],
)
def test_a_wrong_override_is_explained(minimal, override, problem):
    with pytest.raises(RecipeError) as caught:
        load_recipe(minimal, [override])
    lines = caught.value.message.splitlines()[1:]
    assert len(lines) == 1
    assert problem in lines[0]
