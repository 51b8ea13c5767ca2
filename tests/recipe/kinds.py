"""What a section may be, in the words and the order of the message about a wrong `kind`."""

from typing import Any

from tatscli.recipe.keys import Kinds, node_of


def listed(section: Any) -> str:
    """Spell the kinds of a union of sections: "`random`, `tube`"."""
    kinds = node_of(section)
    assert isinstance(kinds, Kinds)
    return ", ".join(f"`{kind}`" for kind in kinds.by_name)
