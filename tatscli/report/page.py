"""The HTML page of a report: its data, and rendering them with the template."""

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
    """A share, shown as a bar.

    Attributes:
        name: Its label.
        share: In [0, 1].
        words: Text at its end.
    """

    name: str
    share: float
    words: str


@dataclass(frozen=True, slots=True)
class Figure:
    """A picture with words below it.

    Attributes:
        source: A data URI.
        title: Its title.
        lines: Further lines of text.
        mark: `right` or `wrong` for predictions; empty otherwise.
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
    """A section of the page; its parts are shown in this order.

    Attributes:
        title: Its heading.
        note: A sentence below it.
        charts: SVG elements.
        further: Further SVG elements, collapsed.
        table: A table.
        bars: Bars.
        galleries: Galleries.
        text: Preformatted text, collapsed under `fold`.
        fold: Label of the collapsed text.
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
        subtitle: A description of the run.
        facts: The most important numbers: name and value.
        sections: The sections.
    """

    title: str
    subtitle: str
    facts: Sequence[tuple[str, str]]
    sections: Sequence[Section] = field(default_factory=list)


def render(page: Page) -> str:
    """Render a page as one HTML file that loads nothing else. All text is escaped.

    Raises:
        UsageError: If Jinja is not installed.
    """
    try:
        from jinja2 import Environment, StrictUndefined
        from markupsafe import Markup, escape
    except ImportError as error:
        raise UsageError(
            "`tats report` needs Jinja, which is not installed",
            hint="pip install 'tats[report]'",
        ) from error
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    # Backticks in messages become code.
    environment.filters["prose"] = lambda text: Markup(
        re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text)))
    )
    template = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")
    return environment.from_string(template).render(page=page)
