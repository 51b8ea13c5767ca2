"""The command line as a whole: help, options, exit codes and what goes to which stream.

After a deliberate change of commands or options `make docs` writes the list and the pages anew.
"""

import json
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Annotated

import pytest
import typer

from tatscli import __version__, cli
from tatscli.errors import DataError, Exit, RecipeError, Stopped

FROZEN = Path(__file__).parent / "assets" / "cli_options.json"
HEAVY = {"torch", "torchvision", "av", "numpy", "yaml", "transformers"}


def surface() -> dict[str, dict[str, list[str]]]:
    """Every command with its arguments and options, as Typer sees them."""
    found: dict[str, dict[str, list[str]]] = {}

    def visit(name: str, command: object) -> None:
        params = [parameter for parameter in command.params if parameter.name != "help"]
        found[name] = {
            "arguments": [one.name for one in params if one.param_type_name == "argument"],
            "options": sorted(
                "/".join([*one.opts, *one.secondary_opts])
                for one in params
                if one.param_type_name == "option"
            ),
        }
        for sub_name, sub_command in getattr(command, "commands", {}).items():
            visit(f"{name} {sub_name}", sub_command)

    visit("tats", cli.build_command())
    return found


NAMES = [name.removeprefix("tats").split() for name in surface()]


@pytest.fixture
def command(monkeypatch):
    """Make `tats boom` run a function of the test."""

    def register(function):
        holder = types.ModuleType("boom_holder")
        holder.boom = function
        holder.EPILOG = "Examples:\n  tats boom"
        monkeypatch.setitem(sys.modules, "boom_holder", holder)
        monkeypatch.setattr(
            cli, "COMMANDS", {"boom": "boom_holder:boom", "other": "boom_holder:boom"}
        )
        cli.build_command.cache_clear()

    yield register
    cli.build_command.cache_clear()


def tats(*args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tatscli", *args],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=60,
    )


def test_an_option_is_spelled_the_same_everywhere():
    """`-o` is `--out` wherever there is one, and so for every short form."""
    spelled: dict[str, set[str]] = {}
    for entry in surface().values():
        for option in entry["options"]:
            for word in option.split("/"):
                spelled.setdefault(word, set()).add(option)
    assert {word: forms for word, forms in spelled.items() if len(forms) > 1} == {}
    assert spelled["--out"] == {"--out/-o"}


@pytest.mark.parametrize("name", NAMES, ids=lambda name: " ".join(name) or "tats")
def test_every_help_ends_in_examples_that_exist(cli, name):
    outcome = cli(*name, "--help")
    assert (outcome.code, outcome.stderr) == (0, "")
    body, _, rest = outcome.stdout.partition("Examples:\n")
    assert body.startswith("Usage: tats")
    lines = [line.strip() for line in rest.partition("\n\n")[0].splitlines()]
    assert lines
    for line in lines:
        assert f"tats{' ' if name else ''}{' '.join(name)}" in line or "tatscli" in line


def test_commands_and_options_change_only_on_purpose():
    assert surface() == json.loads(FROZEN.read_text()), __doc__.splitlines()[2]


@pytest.mark.parametrize("args", [["--help"], ["recipes", "--help"], ["pretrain", "--help"]])
def test_help_imports_nothing_heavy(args):
    """This is what keeps `tats --help` under 0.3 seconds."""
    code = (
        "import sys\nfrom tatscli.cli import main\n"
        f"assert main({args}) == 0\n"
        f"print(sorted({HEAVY} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip() == "[]"


def test_help_is_plain_text_everywhere():
    forced = {"GITHUB_ACTIONS": "true", "FORCE_COLOR": "1", "PY_COLORS": "1"}
    done = tats("--help", **forced)
    assert "\x1b" not in done.stdout
    assert done.stdout == tats("--help").stdout


def test_without_a_command_help_is_shown_and_the_code_is_that_of_misuse(cli):
    for args in ([], ["recipes"]):
        outcome = cli(*args)
        assert outcome.code == Exit.USAGE
        assert outcome.stdout.startswith("Usage: tats")


def test_version(cli):
    outcome = cli("--version")
    assert (outcome.code, outcome.stdout) == (0, f"tats {__version__}\n")


@pytest.mark.parametrize(
    ("args", "message", "hint"),
    [
        (["pretrian"], "No such command 'pretrian'. Did you mean 'pretrain'?", "tats --help"),
        (["env", "--jsno"], "No such option: --jsno", "tats env --help"),
        (["recipes", "show"], "Missing argument 'RECIPE'", "tats recipes show --help"),
    ],
)
def test_a_wrong_command_line_is_one_message_and_a_hint(cli, args, message, hint):
    outcome = cli(*args)
    assert (outcome.code, outcome.stdout) == (Exit.USAGE, "")
    first, blank, last = outcome.stderr.splitlines()
    assert first.startswith(f"error: {message}")
    assert blank == ""
    assert last == f"hint: `{hint}` shows what is allowed"


@pytest.mark.parametrize(
    ("error", "code", "stderr"),
    [
        (RecipeError("no recipe `x`", hint="look"), 2, "error: no recipe `x`\n\nhint: look\n"),
        (DataError("no store `x`"), 1, "error: no store `x`\n"),
        (Stopped("stopped at step 3", exit_code=Exit.TERMINATED), 143, "stopped at step 3\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (typer.Exit(1), 1, ""),
    ],
)
def test_errors_for_the_user_have_no_traceback(cli, command, error, code, stderr):
    def boom() -> None:
        print("partial")
        raise error

    command(boom)
    outcome = cli("boom")
    assert (outcome.code, outcome.stderr, outcome.stdout) == (code, stderr, "partial\n")


@pytest.mark.parametrize("bug", [ValueError("x"), EOFError("x"), OSError("x"), RuntimeError("x")])
def test_bugs_keep_their_traceback(cli, command, bug):
    def boom() -> None:
        raise bug

    command(boom)
    with pytest.raises(type(bug), match="x"):
        cli("boom")


def test_a_bug_ends_the_process_with_1_and_a_plain_traceback():
    code = (
        "import sys, types\nimport tatscli.cli as cli\n"
        "def boom() -> None:\n    raise ValueError('inside')\n"
        "sys.modules['holder'] = types.SimpleNamespace(boom=boom, EPILOG='x')\n"
        "cli.COMMANDS = {'boom': 'holder:boom', 'other': 'holder:boom'}\n"
        "sys.exit(cli.main(['boom']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert done.stderr.rstrip().endswith("ValueError: inside")


def test_shared_options_make_the_reporter(cli, command):
    from tatscli.commands.options import Json, Quiet, Verbose, reporter

    def boom(json: Json = False, quiet: Quiet = False, verbose: Verbose = False) -> None:
        report = reporter(json, quiet, verbose)
        report.info("said")
        report.detail("detailed")
        report.warn("careful")
        report.result({"answer": 42})

    command(boom)
    assert cli("boom").stderr == "said\nwarning: careful\n"
    assert cli("boom", "-v").stderr == "said\ndetailed\nwarning: careful\n"
    quiet = cli("boom", "-q", "--json")
    assert quiet.stderr == "warning: careful\n"
    assert quiet.json() == {"answer": 42}


def test_overrides_and_options_mix(cli, command):
    from tatscli.commands.options import Overrides, Source

    def boom(
        source: Source,
        overrides: Overrides = None,
        flag: Annotated[bool, typer.Option("--flag")] = False,
    ) -> None:
        print(source, overrides, flag)

    command(boom)
    assert cli("boom", "r", "a=1", "--flag", "b.c=-2").stdout == "r ['a=1', 'b.c=-2'] True\n"


def test_a_closed_pipe_is_no_reason_to_complain():
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as pipe:
        done = subprocess.run(
            [sys.executable, "-m", "tatscli", "recipes", "schema"],
            stdout=pipe,
            stderr=subprocess.PIPE,
            timeout=60,
        )
    assert done.stderr == b""
    assert done.returncode == Exit.FAILED


def test_the_console_script_and_the_module_are_the_same_program():
    script = Path(sys.executable).with_name("tats")
    if not script.exists():
        pytest.skip("the package is not installed beside this Python")
    done = subprocess.run([str(script), "--version"], capture_output=True, text=True, timeout=60)
    assert done.stdout == tats("--version").stdout


def test_the_page_about_the_command_line_names_every_exit_code():
    page = (Path(__file__).parents[1] / "docs" / "cli.md").read_text(encoding="utf-8")
    for code in Exit:
        assert f"| {int(code)} |" in page


if __name__ == "__main__":
    FROZEN.write_text(json.dumps(surface(), indent=2) + "\n")
