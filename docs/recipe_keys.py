"""Write the page of all recipe keys from the schema: `docs/recipe-keys.md`.

    python docs/recipe_keys.py

`make docs` runs it; `tests/test_reference.py` fails where the page is out of date.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tatscli.recipe.shipped import schema_text

PAGE = Path(__file__).with_name("recipe-keys.md")
HEAD = """\
<!-- Written by `make docs` from the recipe schema. Change the schema's descriptions instead. -->
# Recipe keys

Every key of a recipe, with its type, its default and what it does. How recipes are written, merged
and overridden: [recipes.md](recipes.md). `tats recipes show NAME --merged` prints all keys of one
recipe with their values.
"""

TYPES = {
    "integer": "integer",
    "number": "number",
    "string": "text",
    "boolean": "`true` or `false`",
    "null": "`null`",
    "object": "mapping",
}
LIMITS = (
    ("minimum", "at least"),
    ("exclusiveMinimum", "above"),
    ("maximum", "at most"),
    ("exclusiveMaximum", "below"),
)


class KeyPage:
    """Walks the schema from the top; a section that occurs twice is described where it is first."""

    def __init__(self, schema: dict[str, Any]) -> None:
        self.schema = schema
        self.sections: dict[str, dict[str, Any]] = schema["$defs"]
        self.places: dict[str, str] = {}
        self.lines: list[str] = []

    def text(self) -> str:
        """Return the page."""
        waiting: list[tuple[str, dict[str, Any]]] = list(self.schema["properties"].items())
        while waiting:
            path, field = waiting.pop(0)
            below = self._section(path, field)
            waiting[:0] = below
        return HEAD + "\n".join(self.lines).rstrip() + "\n"

    def _section(self, path: str, field: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
        """Describe what lies at a path, and return the sections below it."""
        names = [name for name in sections_of(field) if name not in self.places]
        if not names:
            return []
        several = len(sections_of(field)) > 1
        level = "#" * min(2 + path.count("."), 4)
        if self.lines[-1:] != [""]:
            self.lines.append("")
        self.lines += [f"{level} {path}", ""]
        if "." not in path and (description := field.get("description")):
            self.lines += [flat(description), ""]
        below = []
        for name in names:
            self.places[name] = path
        for name in names:
            section = self.sections[name]
            kind = section["properties"].get("kind", {}).get("const")
            if several:
                self.lines += [f"{level}# {path} with kind: {kind}", ""]
            if description := section.get("description"):
                self.lines += [flat(description), ""]
            rows, more = self._rows(path, section)
            if rows:
                self.lines += ["| key | type | default | |", "|---|---|---|---|", *rows, ""]
            else:
                self.lines += ["No other keys.", ""]
            below += more
        return below

    def _rows(
        self, path: str, section: dict[str, Any]
    ) -> tuple[list[str], list[tuple[str, dict[str, Any]]]]:
        """The rows of a section's table, and the sections in it."""
        rows, below = [], []
        for key, field in section["properties"].items():
            if key == "kind" and "const" in field:
                continue
            required = key in section.get("required", ())
            default = "required" if required else f"`{self._default(field)}`"
            cells = [f"`{key}`", self._type(f"{path}.{key}", field), default]
            rows.append(f"| {' | '.join(cells)} | {cell(field.get('description', ''))} |")
            if sections_of(field):
                below.append((f"{path}.{key}", field))
        return rows, below

    def _type(self, path: str, field: dict[str, Any]) -> str:
        """The type of a value, in words."""
        if names := sections_of(field):
            place = self.places.get(names[0], path)
            shown = f"[{place}](#{anchor(place)})"
            if field.get("type") == "array":
                shown = f"list of {shown}"
            null = any(one.get("type") == "null" for one in field.get("anyOf", ()))
            return f"{shown} or `null`" if null else shown
        if "anyOf" in field:
            return " or ".join(self._type(path, one) for one in field["anyOf"])
        if "enum" in field:
            return ", ".join(code(value) for value in field["enum"])
        if "const" in field:
            return code(field["const"])
        if field.get("type") == "array":
            if places := field.get("prefixItems"):
                inner = ", ".join(self._type(path, one) for one in places)
                return f"[{inner}]"
            return f"list of {self._type(path, field['items'])}" if "items" in field else "list"
        limits = ", ".join(f"{word} {field[name]}" for name, word in LIMITS if name in field)
        return TYPES[field["type"]] + (f" ({limits})" if limits else "")

    def _default(self, field: dict[str, Any]) -> str:
        """A default as YAML writes it; of a section, the keys that differ from its own defaults."""
        value = field.get("default")
        if isinstance(value, list):
            value = [self._less(one, field) for one in value]
        return flow(self._less(value, field))

    def _less(self, value: Any, field: dict[str, Any]) -> Any:
        names = sections_of(field)
        if not isinstance(value, dict) or not names:
            return value
        fits = [name for name in names if self._kind(name) in (None, value.get("kind"))]
        usual = {k: v.get("default") for k, v in self.sections[fits[0]]["properties"].items()}
        return {k: v for k, v in value.items() if k == "kind" or v != usual.get(k)}

    def _kind(self, name: str) -> str | None:
        found: str | None = self.sections[name]["properties"].get("kind", {}).get("const")
        return found


def sections_of(field: dict[str, Any]) -> list[str]:
    """The names of the sections that a value may be, through alternatives and lists."""
    if "$ref" in field:
        return [field["$ref"].rsplit("/", 1)[1]]
    inner = [*field.get("anyOf", ()), *field.get("oneOf", ())]
    if isinstance(field.get("items"), dict):
        inner.append(field["items"])
    return [name for one in inner for name in sections_of(one)]


def flow(value: Any) -> str:
    """Write a value as YAML's flow style does."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {flow(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(flow, value)) + "]"
    return value if isinstance(value, str) else json.dumps(value)


def code(value: Any) -> str:
    """Mark a value as code."""
    return f"`{flow(value)}`"


def anchor(heading: str) -> str:
    """The anchor that a heading of keys gets."""
    return heading.lower().replace(".", "").replace(" ", "-")


def flat(text: str) -> str:
    """Join the lines of a docstring."""
    return " ".join(text.split())


def cell(text: str) -> str:
    """Text that a table can hold."""
    return flat(text).replace("|", "\\|")


def page() -> str:
    """Return the text of the page."""
    return KeyPage(json.loads(schema_text())).text()


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
