"""What a section may be, in the words and the order of the message about a wrong `kind`."""

from typing import Any, get_args


def listed(section: Any) -> str:
    """Spell the kinds of a union of sections: "`random`, `tube`"."""
    union, *_ = get_args(section)
    kinds = [get_args(one.model_fields["kind"].annotation)[0] for one in get_args(union)]
    return ", ".join(f"`{kind}`" for kind in kinds)
