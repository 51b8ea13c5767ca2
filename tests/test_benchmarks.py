"""Benchmarks and studies, which the suite does not run, still fit the code that they measure."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest
import torch

from tatscli.recipe.load import load_recipe
from tatscli.system.system import build_system
from tests.benchmarks import bench_loop
from tests.benchmarks.steps import FIRST, Steps, noise

TESTS = Path(__file__).parent
SCRIPTS = sorted([*TESTS.glob("benchmarks/*.py"), *TESTS.glob("studies/*.py")])


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_what_a_script_imports_from_us_is_there(path: Path) -> None:
    """Most import inside functions, so that importing the script is not enough to tell."""
    importlib.import_module(f"tests.{path.parent.name}.{path.stem}")
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ImportFrom) or not node.module:
            continue
        if node.module.partition(".")[0] in ("tatscli", "tests"):
            module = importlib.import_module(node.module)
            for name in node.names:
                if not hasattr(module, name.name):
                    importlib.import_module(f"{node.module}.{name.name}")


def test_steps_are_those_of_a_training() -> None:
    recipe = load_recipe("demo", ["run.log_every=2"]).recipe
    torch.manual_seed(0)
    system = build_system(recipe)
    steps = Steps(recipe, system, noise(recipe, 2, motion=system.follows_motion))
    before = {name: one.clone() for name, one in system.autoencoder.state_dict().items()}
    for _ in range(2):
        steps()
    assert steps.training.done == FIRST + 2
    assert steps.means["loss"] > 0
    moved = [not torch.equal(one, before[k]) for k, one in system.autoencoder.state_dict().items()]
    assert any(moved)


def test_the_loop_is_measured_beside_bare_steps() -> None:
    found = bench_loop.measured("nano", {"batch": 2, "steps": 2, "rounds": 1})
    assert all(found[side] > 0 for side in ("bare", "norm", "loop"))
