"""`tats recipes`: list, show and copy the recipes that ship with the package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tatscli.commands.options import Json, Overrides, Quiet, Source, Verbose, reporter
from tatscli.errors import Exit, UsageError

EPILOG = """
Examples:
  tats recipes list
  tats recipes show ucf101
  tats recipes copy ucf101 my.yaml
"""

LIST_EPILOG = """\b
Examples:
  tats recipes list
  tats recipes list --json
"""

SHOW_EPILOG = """\b
Examples:
  tats recipes show ucf101
  tats recipes show ucf101 --merged
  tats recipes show ssv2 mask.kind=tube --merged
"""

COPY_EPILOG = """\b
Examples:
  tats recipes copy small
  tats recipes copy ucf101 my.yaml
"""

SCHEMA_EPILOG = """\b
Examples:
  tats recipes schema > recipes/schema.json
"""

recipes = typer.Typer(rich_markup_mode=None, help="List, show and copy the shipped recipes")


@recipes.callback(invoke_without_command=True)
def _help(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit(Exit.USAGE)


@recipes.command("list", epilog=LIST_EPILOG)
def list_recipes(json: Json = False, quiet: Quiet = False, verbose: Verbose = False) -> None:
    """List the shipped recipes."""
    from tatscli.recipe.load import load_recipe
    from tatscli.recipe.shipped import shipped

    report = reporter(json, quiet, verbose)
    found = []
    for one in shipped():
        recipe = load_recipe(one.path).recipe
        masked = recipe.tokenizer is None  # a tokenizer's recipe has no use for these sections
        found.append(
            {
                "name": one.name,
                "summary": one.summary,
                "mask": recipe.mask.kind if masked else None,
                "head": recipe.head.kind if masked else None,
                "targets": [target.kind for target in recipe.targets] if masked else None,
                "model": recipe.model.size if masked else None,
                "epochs": recipe.optim.epochs,
                "store": recipe.data.store,
                "path": str(one.path),
            }
        )
    columns = ("name", "mask", "model", "epochs", "summary")
    rows = (["-" if recipe[key] is None else recipe[key] for key in columns] for recipe in found)
    report.table("Recipes", columns, rows)
    report.result({"recipes": found})


@recipes.command("show", epilog=SHOW_EPILOG)
def show(
    source: Source,
    overrides: Overrides = None,
    merged: Annotated[
        bool, typer.Option("--merged", help="Print all keys, with defaults and overrides, as YAML.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Print a recipe: the file as it is, or merged with defaults and overrides."""
    from tatscli.recipe.load import load_recipe
    from tatscli.recipe.text import dump_recipe

    report = reporter(json, quiet, verbose)
    loaded = load_recipe(source, overrides or ())
    for note in loaded.notes:
        report.info(note)
    if json:
        payload = loaded.recipe.model_dump(mode="json")
        report.result({"name": loaded.name, "path": str(loaded.source), "recipe": payload})
    elif merged or overrides:
        report.stdout.write(dump_recipe(loaded.recipe))
    else:
        report.stdout.write(loaded.source.read_text(encoding="utf-8"))


@recipes.command("copy", epilog=COPY_EPILOG)
def copy(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A shipped recipe.")],
    destination: Annotated[
        Path | None,
        typer.Argument(
            metavar="[DEST]", help="File or folder; default: NAME.yaml in the current folder."
        ),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Copy a shipped recipe, comments included, as a starting point for your own."""
    from tatscli.recipe.load import load_recipe
    from tatscli.recipe.shipped import recipes_folder, shipped_name

    report = reporter(json, quiet, verbose)
    loaded = load_recipe(name)
    if shipped_name(loaded.source) is None:
        raise UsageError(
            f"`{name}` is your own file, not a shipped recipe", hint="copy it with `cp`"
        )
    target = destination or Path()
    if target.is_dir():
        target = target / f"{loaded.name}.yaml"
    schema = recipes_folder() / "schema.json"
    lines = loaded.source.read_text(encoding="utf-8").splitlines(keepends=True)
    if lines[0].startswith("# yaml-language-server"):  # a relative path would not lead there
        lines[0] = f"# yaml-language-server: $schema={schema}\n"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("x", encoding="utf-8") as file:
            file.writelines(lines)
    except FileExistsError:
        raise UsageError(f"`{target}` already exists", hint="choose another DEST") from None
    report.info(f"wrote {target}")
    report.result({"name": loaded.name, "path": str(target)})


@recipes.command("schema", epilog=SCHEMA_EPILOG)
def schema() -> None:
    """Print the JSON schema that editors use to check and complete recipes."""
    from tatscli.recipe.shipped import schema_text

    print(schema_text(), end="")
