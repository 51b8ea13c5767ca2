"""Write one page for each command, from what Typer knows of it: `docs/commands/*.md`.

    python docs/command_pages.py

`make docs` runs it; `tests/test_reference.py` fails where a page is out of date.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from tatscli.cli import COMMANDS, build_command

FOLDER = Path(__file__).with_name("commands")
NOTE = "<!-- Written by `make docs` from `tats {} --help`. Change the help text instead. -->"
INDEX_NOTE = "<!-- Written by `make docs`. Change the help texts instead. -->"

GUIDES = {
    "prepare": ["prepare", "datasets", "motion", "scale"],
    "store": ["store", "tokenizers"],
    "motion": ["motion", "motion-masks"],
    "pretrain": ["recipes", "watching", "resume", "precision", "scale"],
    "finetune": ["finetune", "watching", "resume"],
    "evaluate": ["evaluation", "results"],
    "compare": ["evaluation"],
    "bench": ["bench", "benchmarks"],
    "runs": ["evaluation"],
    "report": ["report"],
    "replay": ["precision"],
    "predict": ["predict"],
    "embed": ["predict"],
    "convert": ["weights"],
    "export": ["export"],
    "visualize-masks": ["visualize", "masks", "learned-masks"],
    "demo": ["demo"],
    "recipes": ["recipes", "recipe-keys"],
    "env": ["scale"],
}
"""The pages that explain what a command is for."""

VALUES = {
    "int": "integer",
    "int range": "integer",
    "float": "number",
    "float range": "number",
    "str": "text",
    "path": "path",
    "list[str]": "text, any number of times",
    "list[Path]": "path, any number of times",
}
"""Typer's names of types, for readers."""

EXTRA = re.compile(r"  \[((?:[^][]|\[[^][]*\])*)\]$")
RANGE = re.compile(r"(?:(-?[\d.]+)<=)?x(?:>=(-?[\d.]+)|<=(-?[\d.]+))?")


def pages() -> dict[Path, str]:
    """Return the text of every page by its path; needs no store, model or network."""
    app = build_command()
    texts = {FOLDER / f"{name}.md": _page(name, app.commands[name]) for name in app.commands}
    return {FOLDER / "README.md": _index(app), **texts}


def _index(app: Any) -> str:
    lines = [
        INDEX_NOTE,
        "# Commands",
        "",
        "One page for each command. What they share (exit codes, streams, the keys of `--json`,",
        "environment variables) is in [cli.md](../cli.md).",
        "",
        "| command | what it does | guide |",
        "|---|---|---|",
    ]
    for name in COMMANDS:
        command = app.commands[name]
        text = _sentence(command.get_short_help_str(limit=200))
        guide = ", ".join(f"[{page}](../{page}.md)" for page in GUIDES[name])
        lines.append(f"| [`tats {name}`]({name}.md) | {text} | {guide} |")
    return "\n".join(lines) + "\n"


def _page(name: str, command: Any) -> str:
    lines = [NOTE.format(name), f"# tats {name}", ""]
    lines += _describe(f"tats {name}", command, "##")
    for sub_name, sub in getattr(command, "commands", {}).items():
        lines += [
            f"## tats {name} {sub_name}",
            "",
            *_describe(f"tats {name} {sub_name}", sub, "###"),
        ]
    guides = ", ".join(f"[{page}](../{page}.md)" for page in GUIDES[name])
    lines += ["## See also", ""]
    lines.append(f"Guides: {guides}. What all commands share, and `--json`: [cli.md](../cli.md).")
    return "\n".join(lines) + "\n"


def _describe(path: str, command: Any, level: str) -> list[str]:
    """The body of a command's section: what it does, how it is called, options, epilog."""
    context = typer.Context(command, info_name=path)
    pieces = " ".join([path, *command.collect_usage_pieces(context)])
    usage = re.sub("[{}]", "", pieces).replace("......", "...")  # a metavar with its own dots
    lines = [*_paragraphs(command.help), "", "```text", usage, "```", ""]
    for kind in ("argument", "option"):
        rows = [_row(one, context) for one in command.params if one.param_type_name == kind]
        found = [row for row in rows if row is not None]
        if found:
            lines += [f"| {kind} | value | default | |", "|---|---|---|---|", *found, ""]
    commands = getattr(command, "commands", None)
    if commands:
        lines += ["| command | |", "|---|---|"]
        lines += [
            f"| `{path} {name}` | {_sentence(one.get_short_help_str(limit=200))} |"
            for name, one in commands.items()
        ]
        lines.append("")
    return lines + list(_epilog(command.epilog or "", level))


def _row(parameter: Any, context: Any) -> str | None:
    """One row of a table; None of an option that help does not show."""
    record = parameter.get_help_record(context)
    if record is None:
        return None
    names, text = record
    notes: list[str] = []
    while found := EXTRA.search(text):
        notes = [*found[1].split("; "), *notes]
        text = text[: found.start()]
    *words, last = names.rsplit(" ", 1) if re.search(r" [<A-Z[(]", names) else (names,)
    if "<" in names:  # a type of two words, such as <int range>
        start = names.index("<")
        words, last = [names[:start].rstrip()], names[start:]
    shown, value = (words[0], last) if words else (last, "")
    limits = [one for one in notes if RANGE.fullmatch(one)]
    default = next(
        (one.removeprefix("default: ") for one in notes if one.startswith("default")), ""
    )
    default = "required" if "required" in notes else _default(default)
    cells = [f"`{shown}`", _value(value, limits), default, _cell(text)]
    return "| " + " | ".join(cells) + " |"


def _value(text: str, limits: list[str]) -> str:
    """What may be given: choices, or a type with its limits."""
    if not text:
        return ""
    if not text.startswith("<"):
        return f"`{_cell(text)}`"
    inner = text[1:-1]
    if inner not in VALUES and "|" in inner:
        return ", ".join(f"`{choice}`" for choice in inner.split("|"))
    shown = VALUES.get(inner, inner)
    for limit in limits:
        low, least, most = RANGE.fullmatch(limit).groups()  # type: ignore[union-attr]
        if low is not None:
            shown += f" from {low}"
        if least is not None:
            shown += f", at least {least}"
        if most is not None:
            shown += f" to {most}" if low is not None else f", at most {most}"
    return shown


def _default(text: str) -> str:
    """A default as code where it is a value, as text where help says it in words."""
    if text.startswith("(") and text.endswith(")"):
        text = text[1:-1]
    return _cell(text) if " " in text or not text else f"`{text}`"


def _epilog(text: str, level: str) -> Iterator[str]:
    """Examples as a block that can be copied, exit codes as a list, anything else as it is."""
    for paragraph in text.replace("\b\n", "").split("\n\n"):
        first, *rest = paragraph.splitlines() or [""]
        if first == "Examples:":
            yield from [
                f"{level} Examples",
                "",
                "```bash",
                *(line.strip() for line in rest),
                "```",
                "",
            ]
        elif first.startswith("Exit codes:"):
            joined = " ".join([first, *rest]).removeprefix("Exit codes:").rstrip(".")
            yield from [f"{level} Exit codes", "", "| code | |", "|---|---|"]
            for code, meaning in re.findall(r"(?:^|, )\s*(\d+) (.*?)(?=, \d+ |$)", joined.strip()):
                yield f"| {code} | {_cell(meaning)} |"
            yield ""
        elif paragraph:
            yield from [*_paragraphs(paragraph), ""]


def _paragraphs(text: str) -> list[str]:
    """Wrap nothing: a paragraph is one line, so that a changed word is a change of one line."""
    return "\n\n".join(" ".join(part.split()) for part in text.strip().split("\n\n")).splitlines()


def _sentence(text: str) -> str:
    return _cell(text.rstrip("."))


def _cell(text: str) -> str:
    """Text that a table can hold; what looks like a tag is kept from being one."""
    text = " ".join(text.split()).replace("|", "\\|")
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(
        one if one.startswith("`") else re.sub(r"<(\w)", r"&lt;\1", one) for one in parts
    )


def main() -> None:
    """Write all pages, and remove those of commands that are gone."""
    FOLDER.mkdir(exist_ok=True)
    texts = pages()
    for path in set(FOLDER.glob("*.md")) - texts.keys():
        path.unlink()
    for path, text in texts.items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
