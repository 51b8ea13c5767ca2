"""`tats recipes`."""

import json
from pathlib import Path

import pytest
import yaml

from tatscli.recipe.load import load_recipe
from tatscli.recipe.shipped import recipes_folder, shipped


def test_list_names_every_recipe(cli):
    outcome = cli("recipes", "list")
    assert outcome.code == 0
    for one in shipped():
        assert one.name in outcome.stdout


def test_list_as_json(cli):
    found = {one["name"]: one for one in cli("recipes", "list", "--json").json()["recipes"]}
    assert set(found) == {one.name for one in shipped()}
    assert found["ucf101"]["mask"] == "tats"
    assert found["ucf101"]["epochs"] == 200
    assert Path(found["ucf101"]["path"]).is_file()
    assert {found["tokenizer/vq"][key] for key in ("mask", "head", "targets", "model")} == {None}


def test_show_prints_the_file_as_it_is(cli):
    outcome = cli("recipes", "show", "ucf101")
    assert outcome.stdout == (recipes_folder() / "ucf101.yaml").read_text(encoding="utf-8")


def test_show_merged_and_overridden_is_a_whole_recipe(cli, tmp_path):
    outcome = cli("recipes", "show", "ucf101", "--merged", "mask.kind=tube", "optim.epochs=3")
    assert "drops `mask.width`" in outcome.stderr
    path = tmp_path / "merged.yaml"
    path.write_text(outcome.stdout)
    assert (
        load_recipe(path).recipe
        == load_recipe("ucf101", ["mask.kind=tube", "optim.epochs=3"]).recipe
    )
    assert yaml.safe_load(outcome.stdout)["data"]["mean"] == [0.485, 0.456, 0.406]


def test_show_as_json(cli):
    shown = cli("recipes", "show", "small", "run.seed=7", "--json").json()
    assert shown["name"] == "small"
    assert shown["recipe"]["run"]["seed"] == 7


def test_a_wrong_override_is_a_usage_error(cli):
    outcome = cli("recipes", "show", "small", "run.sede=7")
    assert (outcome.code, outcome.stdout) == (2, "")
    assert "did you mean `run.seed`?" in outcome.stderr
    assert "Traceback" not in outcome.stderr


@pytest.mark.parametrize("destination", [None, "mine.yaml", "new/folder/mine.yaml"])
def test_copy_gives_an_equal_recipe_with_a_schema_that_is_found(
    cli, tmp_path, monkeypatch, destination
):
    monkeypatch.chdir(tmp_path)
    outcome = cli("recipes", "copy", "ucf101", *([destination] if destination else []))
    target = tmp_path / (destination or "ucf101.yaml")
    assert outcome.code == 0
    assert f"wrote {destination or 'ucf101.yaml'}" in outcome.stderr
    assert load_recipe(target).recipe == load_recipe("ucf101").recipe
    first, *rest = target.read_text(encoding="utf-8").splitlines()
    assert Path(first.partition("$schema=")[2]).is_file()
    assert rest == (recipes_folder() / "ucf101.yaml").read_text().splitlines()[1:]


def test_copy_replaces_nothing(cli, tmp_path):
    target = tmp_path / "ucf101.yaml"
    target.write_text("mine")
    outcome = cli("recipes", "copy", "ucf101", tmp_path)
    assert outcome.code == 2
    assert "already exists" in outcome.stderr
    assert target.read_text() == "mine"


def test_copy_is_for_shipped_recipes(cli, tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("data: {store: x}\nmask: {kind: tube}\n")
    outcome = cli("recipes", "copy", mine, tmp_path / "other.yaml")
    assert outcome.code == 2
    assert "not a shipped recipe" in outcome.stderr


def test_schema_is_what_ships(cli):
    written = (recipes_folder() / "schema.json").read_text(encoding="utf-8")
    assert cli("recipes", "schema").json() == json.loads(written)
