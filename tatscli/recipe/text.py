"""Recipes as YAML text: read with line numbers, written so that they read back unchanged."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import yaml

from tatscli.errors import RecipeError
from tatscli.recipe.keys import Keys, dotted

if TYPE_CHECKING:
    from tatscli.recipe.schema import Recipe

_TAG = "tag:yaml.org,2002:"
_DEPTH, _NODES = 40, 100_000  # far above any recipe's; nested aliases grow exponentially
_SIGN, _DIGITS = r"[-+]?", r"[0-9]+(?:_[0-9]+)*"
_PLAIN = [
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", rf"{_SIGN}{_DIGITS}", list("-+0123456789")),
    (
        "float",
        rf"{_SIGN}(?:{_DIGITS}(?:\.[0-9]*)?|\.[0-9]+)(?:[eE]{_SIGN}[0-9]+)?"
        rf"|{_SIGN}\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    ("merge", r"<<", ["<"]),
]
"""Types of unquoted values besides text: tag, pattern, first characters.

These are YAML 1.2's, with decimal numbers only. YAML 1.1, PyYAML's default, reads `0100` as octal,
`1:30` as 90 (base 60), `on` and `no` as booleans, `2024-1-1` as a date, and `1e-4` as text.
"""


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the types of `_PLAIN`, and no other tags."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 (as PyYAML types it)
    yaml_constructors: ClassVar[dict[str | None, Any]] = {
        tag: make
        for tag, make in yaml.SafeLoader.yaml_constructors.items()
        if tag in (None, *(f"{_TAG}{kind}" for kind in ("null", "str", "seq", "map")))
    }


class _Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper that quotes text which PyYAML or `_Loader` would read as another
    type."""


def _read_plain(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> bool | int | float:
    """Read a boolean or a number; the tag may be explicit, as in `!!int 3`."""
    text = str(loader.construct_scalar(node))
    word = text.lower().lstrip("+")
    if node.tag == f"{_TAG}bool" and word in ("true", "false"):
        return word == "true"
    try:
        if node.tag == f"{_TAG}int":
            return int(text)
        if node.tag == f"{_TAG}float":
            return float(word.replace(".inf", "inf").replace(".nan", "nan"))
    except ValueError:
        pass
    kind = "`true` or `false`" if node.tag == f"{_TAG}bool" else "a number"
    raise yaml.constructor.ConstructorError(
        None, None, f"`{_short(text)}` cannot be read as {kind}", node.start_mark
    )


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 40 else f"{text[:37]}..."


def _represent_list(dumper: yaml.SafeDumper, items: list[Any]) -> yaml.Node:
    plain = not any(isinstance(item, (dict, list)) for item in items)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=plain)


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    # Only double quotes keep Unicode line breaks, which PyYAML would fold into spaces.
    style = '"' if any(mark in text for mark in "\x85\u2028\u2029") else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


for _side in (_Loader, _Dumper):
    for _kind, _pattern, _first in _PLAIN:
        _side.add_implicit_resolver(f"{_TAG}{_kind}", re.compile(rf"(?:{_pattern})\Z"), _first)
for _kind in ("bool", "int", "float"):
    _Loader.add_constructor(f"{_TAG}{_kind}", _read_plain)
_Dumper.add_representer(list, _represent_list)
_Dumper.add_representer(str, _represent_text)


@dataclass
class Document:
    """A YAML text as values, with the line of every key and what is wrong with the text itself."""

    value: Any
    lines: dict[Keys, int] = field(default_factory=dict)
    problems: list[tuple[int, str]] = field(default_factory=list)


def parse(text: str, name: str) -> Document:
    """Read YAML.

    Args:
        text: The YAML text.
        name: What to call it in messages.

    Raises:
        RecipeError: If it is not YAML; the message tells line and column.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        document = Document(None if node is None else loader.construct_document(node))
        if node is not None:
            _survey(node, (), document, set())
    except RecursionError:
        raise RecipeError(f"`{name}` is nested more than {_DEPTH} levels deep") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" on line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise RecipeError(f"`{name}` is not valid YAML{where}: {error.problem}") from None
    except (yaml.YAMLError, ValueError) as error:  # a character that YAML does not allow
        raise RecipeError(f"`{name}` is not valid YAML: {' '.join(str(error).split())}") from None
    return document


def parse_value(text: str) -> Any:
    """Read the value of an override as YAML.

    Raises:
        RecipeError: If it is not YAML.
    """
    return parse(text, _short(text)).value


def dump_value(value: Any) -> str:
    """Write a plain value on one line, so that `parse_value` reads it back; text is quoted and
    escaped."""
    style = '"' if isinstance(value, str) else None
    text = yaml.dump(
        value,
        Dumper=_Dumper,
        default_style=style,
        default_flow_style=True,
        allow_unicode=True,
        width=math.inf,
    )
    return str(text).removesuffix("...\n").strip()


def dump_mapping(mapping: dict[str, Any]) -> str:
    """Write plain values as YAML, in the order they have."""
    return yaml.dump(mapping, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def dump_recipe(recipe: Recipe) -> str:
    """Write every key of a recipe as YAML; loading the text gives an equal recipe."""
    return dump_mapping(recipe.model_dump(mode="json"))


def _survey(node: yaml.Node, keys: Keys, document: Document, open_nodes: set[int]) -> None:
    """Note lines and repeated keys below a node; an alias to an enclosing node is not followed."""
    if id(node) in open_nodes:
        return
    if len(keys) > _DEPTH:
        raise RecursionError
    if len(document.lines) > _NODES:
        raise ValueError(f"its aliases expand to more than {_NODES:,} values")
    below = open_nodes | {id(node)}
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            document.lines[(*keys, index)] = item.start_mark.line + 1
            _survey(item, (*keys, index), document, below)
    elif isinstance(node, yaml.MappingNode):
        first: dict[str, int] = {}
        for key_node, value_node in node.value:
            key, line = str(key_node.value), key_node.start_mark.line + 1
            here = (*keys, key)
            if key in first:
                again = f"`{dotted(here)}` is given twice, first on line {first[key]}"
                document.problems.append((line, again))
            first.setdefault(key, line)
            document.lines.setdefault(here, line)
            _survey(value_node, here, document, below)
