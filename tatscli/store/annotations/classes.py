"""Classes whose numbers a data set publishes."""

from __future__ import annotations

from collections.abc import Iterable

from tatscli.errors import DataError
from tatscli.store.annotations.files import whole_number

_LARGEST = 100_000  # a number beyond it is no class


def names_by_number(classes: Iterable[tuple[str, object, str]], first: int = 0) -> list[str]:
    """Return the names of classes in the order of their numbers; a gap is named by its number.

    Args:
        classes: Where each is written, its number, its name.
        first: What they are counted from.

    Raises:
        DataError: A number is not one, or is used twice; a name is missing, or is used twice.
    """
    names: dict[int, str] = {}
    numbers: dict[str, int] = {}
    for where, written, name in classes:
        number = whole_number(written, where, "class")
        if not first <= number <= _LARGEST:
            raise DataError(f"{where}: `{written}` is no class", f"classes count from {first}")
        if not name:
            raise DataError(f"{where}: class `{written}` has no name")
        if names.get(number, name) != name or numbers.get(name, number) != number:
            raise DataError(
                f"{where}: class `{written}` is `{name}`, but before, "
                + (f"it was `{names[number]}`" if number in names else f"`{numbers[name]}` was"),
                "every class has one number and one name",
            )
        names[number], numbers[name] = name, number
    return [names.get(number, str(number)) for number in range(first, max(names, default=-1) + 1)]
