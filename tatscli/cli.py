"""The `tats` program: the command table, the exception boundary and the exit codes."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from typing import Annotated

import typer
from typer.core import TyperGroup
from typer.main import get_command

from tatscli import __version__
from tatscli.console import escape_what_streams_cannot_hold
from tatscli.errors import Exit, Stopped, TatsError, Told
from tatscli.files import DISK_ERRORS, DISK_FULL, TOO_MANY_FILES, open_files_allowed, system_error

COMMANDS = {
    "prepare": "tatscli.commands.prepare:prepare",
    "store": "tatscli.commands.store:store",
    "motion": "tatscli.commands.motion:motion",
    "pretrain": "tatscli.commands.pretrain:pretrain",
    "finetune": "tatscli.commands.finetune:finetune",
    "evaluate": "tatscli.commands.evaluate:evaluate",
    "compare": "tatscli.commands.compare:compare",
    "bench": "tatscli.commands.bench:bench",
    "runs": "tatscli.commands.runs:runs",
    "report": "tatscli.commands.report:report",
    "replay": "tatscli.commands.replay:replay",
    "predict": "tatscli.commands.predict:predict",
    "embed": "tatscli.commands.embed:embed",
    "convert": "tatscli.commands.convert:convert",
    "export": "tatscli.commands.export:export",
    "visualize-masks": "tatscli.commands.visualize_masks:visualize_masks",
    "demo": "tatscli.commands.demo:demo",
    "recipes": "tatscli.commands.recipes:recipes",
    "env": "tatscli.commands.env:env",
}
"""Every command, in the order of `tats --help`: a function or a Typer group, `EPILOG` beside it.

All these modules are imported for any command line, so none may import torch, torchvision, av
or numpy before its function runs.
"""

EPILOG = """
Examples:
  tats demo
  tats prepare ./videos
  tats pretrain recipes/ssv2.yaml
  tats visualize-masks clip.mp4
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code; only bugs leave as exceptions.

    Args:
        argv: The arguments after the program's name; None takes those of the process.
    """
    escape_what_streams_cannot_hold()
    try:
        code = _run(argv)
        sys.stdout.flush()
    except Told as error:
        return error.exit_code
    except TatsError as error:
        # A message of `Stopped` says itself that something was stopped: it is no error.
        _say(error.message if isinstance(error, Stopped) else f"error: {error.message}", error.hint)
        return error.exit_code
    except KeyboardInterrupt:
        code = Exit.INTERRUPTED
    except BrokenPipeError:  # the reader of our output has gone: nobody is left to talk to
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.FAILED
    except Exception as error:  # the machine's trouble: no space, no permission, no such place
        number, file = system_error(error), getattr(error, "filename", None)
        if number in TOO_MANY_FILES:
            allowed = open_files_allowed()
            _say(
                f"error: too many open files; this process may have {allowed}",
                "raise the limit, such as by `ulimit -n 1024`; fewer workers need fewer files",
            )
            return Exit.FAILED
        if number is None or (file is None and number not in DISK_ERRORS):
            raise
        what = f"cannot use `{file}`" if file is not None else "cannot write"
        hint = "free up disk space, then run the same command again"
        _say(f"error: {what}: {os.strerror(number)}", hint if number in DISK_FULL else None)
        return Exit.FAILED
    if code == Exit.INTERRUPTED:
        _say("interrupted")
    return code


@cache
def build_command() -> TyperGroup:
    """Assemble `tats` from `COMMANDS`; once, since reading all signatures takes 0.06 s."""
    app = typer.Typer(
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        epilog=_verbatim(EPILOG),
        context_settings={"help_option_names": ["--help", "-h"]},
    )
    app.callback(invoke_without_command=True)(_tats)
    for name, reference in COMMANDS.items():
        module, attribute = reference.split(":")
        holder = import_module(module)
        command, epilog = getattr(holder, attribute), _verbatim(holder.EPILOG)
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name, epilog=epilog)
        else:
            summary = (command.__doc__ or "").partition("\n")[0].rstrip(".")
            kind = getattr(holder, "CLASS", None)
            app.command(name, cls=kind, epilog=epilog, short_help=summary)(command)
    command = get_command(app)
    assert isinstance(command, TyperGroup)
    return command


def _tats(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    """Masked video modelling: prepare videos, pretrain, finetune, evaluate, look at the masks."""
    if version:
        print(f"tats {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit(Exit.USAGE)


def _run(argv: Sequence[str] | None) -> int:
    """Let Typer parse and call; report wrong command lines in the form of our own errors."""
    try:
        words = list(sys.argv[1:] if argv is None else argv)
        # `obj` is what a command is told of its own command line: `--nproc` starts it again.
        returned = build_command()(args=words, prog_name="tats", standalone_mode=False, obj=words)
    except (
        typer.Abort
    ) as abort:  # Typer's reading of an EOFError; there are no prompts here, so it is a bug
        raise abort.__cause__ or abort from None
    except typer.TyperException as error:
        context = getattr(error, "ctx", None)
        _say(
            f"error: {_wrong_value(error)}",
            f"`{context.command_path if context else 'tats'} --help` shows what is allowed",
        )
        return error.exit_code
    return returned if isinstance(returned, int) else Exit.OK


def _wrong_value(error: typer.TyperException) -> str:
    """Return Typer's message with the value that was given, which it leaves out of some."""
    message = error.format_message().rstrip(".").replace("Value error, ", "")
    problems = getattr(error.__context__, "errors", None)  # pydantic's, which checks for Typer
    if problems is None:
        return message
    return message.replace("Input should", f"`{problems()[0]['input']}` should")


def _say(message: str, hint: str | None = None) -> None:
    """Print a closing message on stderr, and its hint after a blank line."""
    print(message if hint is None else f"{message}\n\nhint: {hint}", file=sys.stderr)


def _verbatim(epilog: str) -> str:
    """Mark the paragraphs of an epilog so that help keeps their lines; examples stay together."""
    text = re.sub(r"\n\s*\n(?= )", "\n", epilog.strip())
    return "\n\n".join(f"\b\n{paragraph}" for paragraph in text.split("\n\n"))
