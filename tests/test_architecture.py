"""The picture in docs/architecture.md and the code say the same."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "tatscli"
FILES = sorted(PACKAGE.rglob("*.py"))


def floors() -> list[list[str]]:
    """The rows of the floors table, from the top: names of folders and files."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = text.split("## Floors")[1].split("## Words")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    return [re.findall(r"`([^`]+?)/?`", row) for row in rows]


def rooms_imported(file: Path) -> set[str]:
    """The folders and files of the package that a file imports from."""
    rooms = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("tatscli."):
            name = node.module.split(".")[1]
            rooms.add(name if (PACKAGE / name).is_dir() else f"{name}.py")
    return rooms


def room_of(file: Path) -> str:
    parts = file.relative_to(PACKAGE).parts
    return parts[0]


def test_every_room_is_on_a_floor() -> None:
    drawn = {room for floor in floors() for room in floor}
    there = {room_of(file) for file in FILES if file.name not in ("__init__.py", "__main__.py")}
    assert there == drawn


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_only_point_down(file: Path) -> None:
    height = {room: number for number, floor in enumerate(floors()) for room in floor}
    here = height.get(room_of(file), -1)
    upwards = {room for room in rooms_imported(file) if height[room] < here}
    assert not upwards, f"{file.relative_to(PACKAGE)} imports from above: {sorted(upwards)}"


def test_files_have_one_subject_and_at_most_350_lines() -> None:
    long = {
        str(file.relative_to(ROOT)): lines
        for file in FILES
        if (lines := len(file.read_text(encoding="utf-8").splitlines())) > 350
    }
    assert not long
    assert not [file for file in FILES if file.name in ("utils.py", "helpers.py", "common.py")]
