"""Recipes as YAML text: read with line numbers, written so that reading gives the same again."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import yaml

from tatscli.errors import RecipeError
from tatscli.recipe.keys import Keys, dotted

if TYPE_CHECKING:
    from tatscli.recipe.schema import Recipe

# YAML 1.1, as PyYAML reads it, wants a point and a signed exponent: `1e-4` would be text.
_FLOAT = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+")


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader that reads `1e-4` as a number."""


class _Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper that quotes what `_Loader` would read as a number."""


def _represent_list(dumper: yaml.SafeDumper, items: list[Any]) -> yaml.Node:
    plain = not any(isinstance(item, (dict, list)) for item in items)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=plain)


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    # Only double quotes keep Unicode's own line breaks, which PyYAML would fold into blanks.
    style = '"' if any(mark in text for mark in "\x85\u2028\u2029") else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


for _side in (_Loader, _Dumper):
    _side.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))
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
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        document = Document(None if node is None else loader.construct_document(node))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" on line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise RecipeError(f"`{name}` is not valid YAML{where}: {error.problem}") from None
    except (yaml.YAMLError, ValueError) as error:  # a character, date or number that cannot be
        raise RecipeError(f"`{name}` is not valid YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise RecipeError(f"`{name}` is not a recipe: it is nested too deeply") from None
    finally:
        loader.dispose()
    if node is not None:
        _survey(node, (), document, set())
    return document


def parse_value(text: str) -> Any:
    """Read the value of an override as YAML.

    Raises:
        RecipeError: If it is not YAML.
    """
    return parse(text, text).value


def dump_value(value: Any) -> str:
    """Write a plain value on one line, so that `parse_value` gives it back; text in quotes, which
    nothing in it can close."""
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
