"""The examples of docs/extend.md are put into a copy of the package and trained together."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.clips import pan, render

ROOT = Path(__file__).resolve().parents[1]

RECIPE = """
data: {{store: {store}, frames: 4, size: 32, sampling: {{stride: 1}}, workers: 0}}
model: {{width: 32, depth: 1, heads: 2, patch: 8}}
mask: {{kind: checkers}}
predict: {{kind: centre, budget: 3}}
head: {{kind: pooled, hidden: 16}}
targets: [{{kind: colour}}, {{kind: pixels, weight: 0.5}}]
optim: {{epochs: 4, total_batch: 2, batch_per_device: 2}}
run: {{log_every: 1, save_every: 1, device: cpu}}
"""
CODER = """
data: {{store: {store}, frames: 2, size: 32, sampling: {{stride: 1}}, workers: 0}}
tokenizer: {{kind: signs, bits: 5, stride: 8, widths: [8, 8], blocks: 1}}
optim: {{epochs: 2, total_batch: 2, batch_per_device: 2}}
run: {{log_every: 1, device: cpu}}
"""


def blocks() -> list[tuple[str, str]]:
    """First line and rest of every Python block of the page."""
    text = (ROOT / "docs" / "extend.md").read_text(encoding="utf-8")
    found = re.findall(r"```python\n# ([^\n]+)\n(.*?)```", text, flags=re.DOTALL)
    assert len(found) == text.count("```python"), "a block does not say where it goes"
    return found


def put(block: tuple[str, str], home: Path) -> None:
    """Write a new file, or add lines to one, as the first line of the block says."""
    where, code = block
    if where.startswith("new: "):
        path = home / where.removeprefix("new: ")
        assert not path.exists()
        path.write_text(code)
        return
    name, side, beside = re.fullmatch(r"(\S+), (after|before): (.+)", where).groups()
    path = home / name
    lines = path.read_text().splitlines(keepends=True)
    (number,) = [n for n, line in enumerate(lines) if line.strip().startswith(beside)]
    lines.insert(number + (side == "after"), code if side == "after" else f"{code}\n\n")
    path.write_text("".join(lines))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package with the examples in it, and a store and a recipe beside it."""
    home = tmp_path_factory.mktemp("extended")
    shutil.copytree(ROOT / "tatscli", home / "tatscli", ignore=shutil.ignore_patterns("*.pyc"))
    for block in blocks():
        put(block, home)
    for number in range(4):
        path = home / "videos" / f"{number}.mp4"
        path.parent.mkdir(exist_ok=True)
        render(path, pan((1, 0), frames=6, height=32, width=40, seed=number))
    run(home, ["prepare", "videos", "--out", "store", "--workers", "1"])
    (home / "extended.yaml").write_text(RECIPE.format(store="store"))
    (home / "coder.yaml").write_text(CODER.format(store="store"))
    return home


SCRIPT = """
import contextlib, io, json, sys
from tatscli.cli import main

said = []
for words in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as stdout:
        code = main(words)
    if code:
        sys.exit(code)
    said.append(stdout.getvalue())
print(json.dumps(said))
"""


def run(home: Path, *lines: list[str]) -> list[str]:
    """Run lines of `tats` with the extended package, all in one process; return what each said."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(lines)],
        cwd=home,
        env=os.environ | {"PYTHONPATH": str(home), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_examples_train_resume_and_are_drawn(home: Path) -> None:
    look = ["visualize-masks", "videos/0.mp4", "--run", "runs/extended", "--out", "a.png", "--json"]
    said = run(
        home,
        ["pretrain", "extended.yaml", "--dry-run", "--json"],
        ["pretrain", "extended.yaml", "--max-steps", "2", "--json"],
        ["pretrain", "extended.yaml", "--resume", "--json"],
        look,
    )
    plan, _, result, drawn = map(json.loads, said)
    assert (plan["tokens"], plan["visible"], plan["predicted"]) == (32, 16, 3)
    assert result["steps"] == 8
    assert result["loss"] == pytest.approx(
        result["loss/colour"] + 0.5 * result["loss/pixels"], rel=1e-5
    )
    assert len(drawn["windows"][0]["error"]) == 3


def test_the_quantizer_trains_and_codes(home: Path) -> None:
    look = ["visualize-masks", "videos/0.mp4", "--run", "runs/coder", "--out", "b.png", "--json"]
    result, drawn = map(json.loads, run(home, ["pretrain", "coder.yaml", "--json"], look))
    assert result["loss"] == pytest.approx(result["loss/reconstruction"])
    assert drawn["codebook_size"] == 32
    codes = {code for frame in drawn["windows"][0]["codes"] for row in frame for code in row}
    assert len(codes) > 1
    assert codes <= set(range(32))


@pytest.mark.slow  # mypy reads the whole copy
def test_the_examples_are_typed_and_in_style(home: Path) -> None:
    new = [where.removeprefix("new: ") for where, _ in blocks() if where.startswith("new: ")]
    for words in (
        ["ruff", "check", "--config", str(ROOT / "pyproject.toml"), *new],
        ["ruff", "format", "--check", "--config", str(ROOT / "pyproject.toml"), *new],
        ["mypy", "--config-file", str(ROOT / "pyproject.toml")],
    ):
        done = subprocess.run(
            [sys.executable, "-m", *words], cwd=home, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
