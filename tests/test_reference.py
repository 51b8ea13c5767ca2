"""The pages that are written from help texts and the recipe schema: current, whole and readable.

`make docs` writes them anew.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from docs import command_pages, picture, recipe_keys
from tatscli.cli import COMMANDS
from tatscli.recipe.shipped import schema_text
from tests.test_cli import surface

COMMAND_PAGES = command_pages.pages()


@pytest.mark.parametrize("path", COMMAND_PAGES, ids=lambda path: path.name)
def test_command_pages_are_current(path: Path) -> None:
    assert path.read_text(encoding="utf-8") == COMMAND_PAGES[path], "out of date: run `make docs`"


def test_no_page_is_left_of_a_command_that_is_gone() -> None:
    assert set(command_pages.FOLDER.glob("*.md")) == set(COMMAND_PAGES)


def test_the_page_of_recipe_keys_is_current() -> None:
    text = recipe_keys.PAGE.read_text(encoding="utf-8")
    assert text == recipe_keys.page(), "out of date: run `make docs`"


def test_command_pages_name_every_option_and_its_help() -> None:
    for name, parts in surface().items():
        if name == "tats":
            continue
        page = COMMAND_PAGES[command_pages.FOLDER / f"{name.split()[1]}.md"]
        section = page.partition(f"## {name}\n")[2] or page
        for option in parts["options"]:
            if option != "--resume-auto":  # hidden: `--resume auto`
                assert re.search(rf"\| `[^`]*{re.escape(option.split('/')[-1])}\b", section), option


def test_command_pages_show_ranges_choices_and_exit_codes() -> None:
    page = COMMAND_PAGES[command_pages.FOLDER / "prepare.md"]
    assert "| `--quality` | integer from 2 to 31 | `3` |" in page
    assert "| `--frames` | `jpeg`, `none` | `jpeg` |" in page
    assert "| `SRC` | path | required |" in page
    assert "\n| 130 | " in page
    for text in COMMAND_PAGES.values():
        assert not re.search(r"<(int|float|str|path|list)|\[default|\[required", text)


def test_the_index_of_commands_links_all_of_them() -> None:
    index = COMMAND_PAGES[command_pages.FOLDER / "README.md"]
    assert re.findall(r"\[`tats ([a-z-]+)`\]\(\1\.md\)", index) == list(COMMANDS)


def test_recipe_keys_name_every_key_of_every_section() -> None:
    """Counted in the schema itself, not by the walk that wrote the page."""
    keys = [
        (name, key)
        for name, section in json.loads(schema_text())["$defs"].items()
        for key, field in section["properties"].items()
        if not (key == "kind" and "const" in field)
    ]
    rows = re.findall(r"^\| `(\w+)` \|", recipe_keys.page(), re.M)
    assert sorted(rows) == sorted(key for _, key in keys)


def test_links_within_recipe_keys_lead_to_headings() -> None:
    page = recipe_keys.page()
    headings = {recipe_keys.anchor(one) for one in re.findall(r"^#+ (.+)$", page, re.M)}
    assert set(re.findall(r"\]\(#([^)]+)\)", page)) <= headings


@pytest.mark.slow
def test_the_picture_of_the_readme_is_made_by_its_script(tmp_path: Path) -> None:
    """Not byte for byte: fonts and encoders of other machines differ."""
    picture.draw(tmp_path / "masks.png")
    shown, drawn = (Image.open(path) for path in (picture.PICTURE, tmp_path / "masks.png"))
    assert shown.size == drawn.size
    assert picture.PICTURE.stat().st_size < 200_000
