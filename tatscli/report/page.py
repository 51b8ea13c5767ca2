"""The page of a report: what it may show, and the template it is shown by."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tatscli.errors import UsageError


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text under column names."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, slots=True)
class Bar:
    """A share as a bar.

    Attributes:
        name: What it is of.
        share: In [0, 1].
        words: What stands at its end.
    """

    name: str
    share: float
    words: str


@dataclass(frozen=True, slots=True)
class Figure:
    """A picture with words below it.

    Attributes:
        source: A data URI.
        title: What it shows.
        lines: More about it.
        mark: `right` or `wrong`, where there is an answer; empty where there is none.
    """

    source: str
    title: str
    lines: Sequence[str] = ()
    mark: str = ""


@dataclass(frozen=True, slots=True)
class Gallery:
    """Figures under a heading."""

    title: str
    figures: Sequence[Figure]


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page; what it has is shown in this order.

    Attributes:
        title: Its heading.
        note: A sentence below it.
        charts: SVG elements.
        further: More of them, folded away.
        table: Numbers.
        bars: Shares.
        galleries: Pictures.
        text: Preformatted text, folded away under `fold`.
        fold: What is written on the fold.
    """

    title: str
    note: str = ""
    charts: Sequence[str] = ()
    further: Sequence[str] = ()
    table: Table | None = None
    bars: Sequence[Bar] = ()
    galleries: Sequence[Gallery] = ()
    text: str = ""
    fold: str = ""


@dataclass(frozen=True, slots=True)
class Page:
    """A whole report.

    Attributes:
        title: The run's name.
        subtitle: What kind of run it is.
        facts: The most important numbers: name and value.
        sections: The rest.
    """

    title: str
    subtitle: str
    facts: Sequence[tuple[str, str]]
    sections: Sequence[Section] = field(default_factory=list)


def render(page: Page) -> str:
    """Write a page as one HTML file that loads nothing else. All text is escaped.

    Raises:
        UsageError: If Jinja is not installed.
    """
    try:
        from jinja2 import Environment, StrictUndefined
        from markupsafe import Markup, escape
    except ImportError as error:
        raise UsageError(
            "`tats report` writes with Jinja, which is not installed",
            hint="pip install 'tats[report]'",
        ) from error
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    # What messages put in backticks is code here.
    environment.filters["prose"] = lambda text: Markup(
        re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text)))
    )
    template = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")
    return environment.from_string(template).render(page=page)
