"""What `pip install` leaves behind: the wheel has the recipes, and the program finds them there."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from tatscli.cli import COMMANDS
from tatscli.recipe.shipped import shipped

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return next(folder.glob("*.whl"))


@pytest.mark.slow
def test_the_wheel_has_code_recipes_and_licence_and_nothing_else(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    tops = {name.partition("/")[0].partition("-")[0] for name in names}
    assert tops == {"tatscli", "tats"}
    for one in shipped():
        assert f"tatscli/shipped_recipes/{one.name}.yaml" in names
    assert "tatscli/shipped_recipes/schema.json" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not [name for name in names if name.endswith(".pyc")]


@pytest.mark.slow
def test_an_installed_wheel_finds_its_recipes_away_from_the_source(wheel, tmp_path):
    site = tmp_path / "site"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", site, wheel],
        check=True,
    )
    done = subprocess.run(
        [sys.executable, "-m", "tatscli", "recipes", "list", "--json"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)["recipes"]
    assert {one["name"] for one in found} == {one.name for one in shipped()}
    assert all(Path(one["path"]).is_relative_to(site) for one in found)


@pytest.mark.slow
def test_the_program_of_a_fresh_environment_is_that_of_the_wheel(wheel, tmp_path):
    """An environment of its own, which borrows the packages of this one after its own."""
    home = tmp_path / "fresh"
    venv.create(home, with_pip=False, symlinks=True)
    scheme = {"base": str(home), "platbase": str(home)}
    site, scripts = (
        Path(sysconfig.get_path(name, scheme="venv", vars=scheme))
        for name in ("purelib", "scripts")
    )
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    python = scripts / "python"
    subprocess.run(
        [python, "-m", "pip", "install", "-q", "--no-deps", "--ignore-installed", wheel], check=True
    )
    alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def tats(*words):
        done = subprocess.run(
            [scripts / "tats", *words], cwd=tmp_path, env=alone, capture_output=True, text=True
        )
        assert (done.returncode, done.stderr) == (0, ""), words
        return done.stdout

    assert all(f" {name} " in tats("--help") for name in COMMANDS)
    assert tats("export", "--help").startswith("Usage: tats export")
    assert Path(json.loads(tats("env", "--json"))["package"]) == site / "tatscli"


@pytest.mark.slow
def test_the_constraints_can_be_met():
    """Every requirement of a development set-up has a pin, and the pins fit the requirements."""
    from importlib.metadata import requires

    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    pins = {
        canonicalize_name(name): version
        for name, _, version in (
            line.partition("==") for line in (ROOT / "constraints.txt").read_text().splitlines()
        )
    }
    wanted = [Requirement(line) for line in requires("tats") or ()]
    for extra in ("", "dev", "hf", "onnx", "report", "tokenizers", "track"):
        for one in wanted:
            if one.marker and not one.marker.evaluate({"extra": extra}):
                continue
            if one.name != "tats":
                assert pins[canonicalize_name(one.name)] in one.specifier, one
    assert pins["torch"] != "2.13.0"
