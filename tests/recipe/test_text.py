"""Recipes as YAML text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tatscli.recipe.load import load_recipe
from tatscli.recipe.schema import Recipe
from tatscli.recipe.shipped import shipped
from tatscli.recipe.text import dump_mapping, dump_recipe, parse

TRICKY = ["1e-4", "1E5", "-3e+2", ".5e1", "null", "no", "on", "0x10", "1:30", "2024-01-01", "~", ""]
WORDS = st.text() | st.sampled_from(TRICKY)
SIDES = st.integers(1, 40).map(lambda tokens: 16 * tokens)


@pytest.mark.parametrize("name", [one.name for one in shipped()])
def test_a_dumped_recipe_loads_as_the_same_recipe(name, tmp_path):
    recipe = load_recipe(name).recipe
    path = tmp_path / "again.yaml"
    path.write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(path).recipe == recipe


@given(
    store=WORDS,
    size=SIDES | st.tuples(SIDES, SIDES),
    out=st.none() | WORDS,
    lr=st.floats(0, exclude_min=True, allow_infinity=False),
    betas=st.tuples(*[st.floats(0, 1, exclude_min=True, exclude_max=True)] * 2),
    mask=st.sampled_from(["random", "tube", "tats"]),
)
def test_any_valid_recipe_survives_the_round_trip(
    tmp_path_factory, store, size, out, lr, betas, mask
):
    recipe = Recipe.model_validate(
        {
            "data": {"store": store, "size": size},
            "mask": {"kind": mask},
            "optim": {"base_lr": lr, "betas": betas},
            "run": {"out": out},
        }
    )
    path = tmp_path_factory.mktemp("dump") / "r.yaml"
    path.write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(path).recipe == recipe


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | WORDS,
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(), below, max_size=3),
)


@given(st.dictionaries(st.text(), VALUES, max_size=4))
def test_reading_undoes_writing(mapping):
    assert parse(dump_mapping(mapping), "text").value == mapping


def test_lines_are_those_of_the_keys():
    document = parse("a:\n  b: 1\n  c:\n    - x\n    - {d: 2}\n", "text")
    assert document.lines == {
        ("a",): 1,
        ("a", "b"): 2,
        ("a", "c"): 3,
        ("a", "c", 0): 4,
        ("a", "c", 1): 5,
        ("a", "c", 1, "d"): 5,
    }


def test_lists_of_values_stay_on_a_line():
    assert dump_mapping({"betas": [0.9, 0.95]}) == "betas: [0.9, 0.95]\n"
