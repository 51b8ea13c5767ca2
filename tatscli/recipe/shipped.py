"""The shipped recipes, and the JSON schema for editors."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Shipped:
    """A recipe that comes with the package.

    Args:
        name: What the command line calls it: the path below the recipes folder, without suffix.
        path: The file.
        summary: Its first comment line.
    """

    name: str
    path: Path
    summary: str


def recipes_folder() -> Path:
    """The recipes of an installed wheel, or of the source tree this package is imported from."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "shipped_recipes"
    return installed if installed.is_dir() else package.parent / "recipes"


def shipped() -> list[Shipped]:
    """All recipes of the package, by name; those in sub-folders last."""
    folder = recipes_folder()
    paths = sorted(folder.rglob("*.yaml"), key=lambda path: (len(path.parts), path))
    return [Shipped(shipped_name(path) or path.stem, path, _summary(path)) for path in paths]


def shipped_name(path: Path) -> str | None:
    """The name of a recipe file of the package; None for any other file."""
    folder = recipes_folder()
    resolved = path.resolve()
    if folder not in resolved.parents:
        return None
    return resolved.relative_to(folder).with_suffix("").as_posix()


def schema_text() -> str:
    """The JSON schema of recipes, for `recipes/schema.json`."""
    from tatscli.recipe.schema import Recipe

    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Recipe.model_json_schema(),
    }
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def _summary(path: Path) -> str:
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("#") and "yaml-language-server" not in line:
            return line.lstrip("# ").rstrip()
    return ""
