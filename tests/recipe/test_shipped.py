"""The recipes in `recipes/`: valid, commented, found by name, with a schema that is up to date."""

import json
import re
from pathlib import Path

import pytest

from tatscli.recipe.load import load_recipe
from tatscli.recipe.schema import Recipe
from tatscli.recipe.shipped import recipes_folder, schema_text, shipped, shipped_name

RECIPES = shipped()
PUBLISHED = ["hmdb51", "k400", "ssv2", "ucf101"]


@pytest.fixture(params=RECIPES, ids=lambda one: one.name)
def one(request):
    return request.param


def test_the_recipes_of_this_repository_are_the_ones_found():
    assert recipes_folder() == Path(__file__).resolve().parents[2] / "recipes"
    assert {*PUBLISHED, "small"} <= {one.name for one in RECIPES}


def test_it_loads_and_reads_the_store_of_its_own_name(one):
    loaded = load_recipe(one.name)
    assert loaded.recipe == load_recipe(one.path).recipe
    assert loaded.name == one.name.replace("/", "-")
    assert loaded.recipe.data.store.startswith("prepared/")


def test_it_names_the_schema_and_says_what_it_needs_and_how_to_run_it(one):
    lines = one.path.read_text(encoding="utf-8").splitlines()
    schema = lines[0].removeprefix("# yaml-language-server: $schema=")
    assert (one.path.parent / schema).resolve() == recipes_folder() / "schema.json"
    header = "\n".join(line for line in lines if line.startswith("#"))
    assert "tats prepare" in header or "tats demo" in header
    assert f"tats pretrain {one.name}" in header or "tats demo" in header
    assert one.summary


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_value_of_a_published_recipe_has_a_comment(name):
    for line in load_recipe(name).source.read_text(encoding="utf-8").splitlines():
        # Plain keys speak for themselves where the section says it: kind, split and the store.
        if re.match(r" +\w+: \S", line) and not re.match(r" +(kind|split): ", line):
            assert " # " in line, line


def test_the_numbers_of_the_published_settings():
    """Against the tables of VideoMAE's, AdaMAE's and EVEREST's scripts, and TATS's 200 epochs."""
    found = {}
    for name in PUBLISHED:
        recipe = load_recipe(name).recipe
        optim, tune, test = recipe.optim, recipe.finetune, recipe.evaluate
        found[name] = {
            "pretrain": (optim.epochs, optim.total_batch, recipe.data.sampling.stride),
            "peak": round(optim.base_lr * optim.total_batch / 256, 9),
            "finetune": (tune.optim.epochs, tune.optim.total_batch, tune.repeats),
            "tune_lr": tune.optim.base_lr,
            "regularisation": (tune.optim.layer_decay, tune.drop_path, tune.head_dropout),
            "views": (test.segments, test.crops),
            "flip": (recipe.data.flip, tune.augment.flip),
        }
        assert recipe.grid == (8, 14, 14)
        assert (recipe.model.size, recipe.head.depth) == ("base", 4)
    assert found == {
        "ssv2": {
            "pretrain": (800, 2048, 2),
            "peak": 1.2e-3,
            "finetune": (50, 512, 1),
            "tune_lr": 5e-4,
            "regularisation": (0.75, 0.1, 0.0),
            "views": (2, 3),
            "flip": (0, 0),
        },
        "k400": {
            "pretrain": (800, 2048, 4),
            "peak": 1.2e-3,
            "finetune": (100, 512, 1),
            "tune_lr": 1e-3,
            "regularisation": (0.75, 0.1, 0.0),
            "views": (5, 3),
            "flip": (0, 0.5),
        },
        "ucf101": {
            "pretrain": (200, 192, 4),
            "peak": 2.25e-4,
            "finetune": (100, 128, 2),
            "tune_lr": 5e-4,
            "regularisation": (0.7, 0.2, 0.5),
            "views": (5, 3),
            "flip": (0, 0.5),
        },
        "hmdb51": {
            "pretrain": (4800, 192, 2),
            "peak": 7.5e-4,
            "finetune": (50, 128, 2),
            "tune_lr": 1e-3,
            "regularisation": (0.7, 0.2, 0.5),
            "views": (10, 3),
            "flip": (0, 0.5),
        },
    }


def test_the_schema_is_current():
    written = (recipes_folder() / "schema.json").read_text(encoding="utf-8")
    assert json.loads(written) == json.loads(schema_text()), "run `make schema`"


def test_every_key_of_the_schema_is_described():
    for name, section in json.loads(schema_text())["$defs"].items():
        for key, field in section["properties"].items():
            described = key == "kind" or "description" in field or "$ref" in field
            assert described, f"{name}.{key}"


def test_the_page_about_recipes_names_every_section_and_recipe():
    page = (Path(__file__).resolve().parents[2] / "docs" / "recipes.md").read_text("utf-8")
    for name in [*Recipe.model_fields, *(one.name for one in RECIPES)]:
        assert f"| `{name}` |" in page


def test_only_files_of_the_package_have_a_shipped_name(tmp_path):
    assert shipped_name(recipes_folder() / "mgm" / "ssv2.yaml") == "mgm/ssv2"
    assert shipped_name(tmp_path / "ssv2.yaml") is None
