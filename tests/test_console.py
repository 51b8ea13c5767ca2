"""What a `Reporter` prints, and what where the encoding of a stream lacks characters."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from tatscli.console import Reporter, duration

NAME = "日本 ü \udcff"  # the last is how Python reads a byte of a file's name that is not UTF-8


def stream(encoding: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), encoding=encoding)


def text(written: io.TextIOWrapper) -> str:
    written.flush()
    return written.buffer.getvalue().decode(written.encoding)  # type: ignore[attr-defined]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8", "utf-16"])
def test_a_table_and_a_result_are_written_whatever_the_encoding(encoding: str) -> None:
    out, err = stream(encoding), stream(encoding)
    err.reconfigure(errors="backslashreplace")
    plain = Reporter(stdout=out, stderr=err)
    plain.table(NAME, [NAME], [(NAME,)])
    plain.warn(NAME)
    lines = text(out).splitlines()
    assert lines[0].rstrip().endswith("\\udcff") and len({len(line) for line in lines[1:]}) <= 2
    assert ("日本" in text(out)) == encoding.startswith("utf")
    assert ("\\u65e5" in text(out)) != encoding.startswith("utf")
    found = stream(encoding)
    Reporter(json_output=True, stdout=found, stderr=err).result({NAME: [NAME]})
    assert json.loads(text(found)) == {NAME: [NAME]}


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "ascii:strict"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
    ids=["ascii", "strict", "C"],
)
def test_the_program_writes_escapes_and_never_a_traceback(
    environment: dict[str, str], tmp_path: Path
) -> None:
    run = tmp_path / "日本"
    (run / "results").mkdir(parents=True)
    (run / "run.json").write_text(json.dumps({"recipe": "ünter"}))
    code = "import sys; from tatscli.cli import main; sys.exit(main() or main(['runs', chr(252)]))"
    ended = subprocess.run(
        [sys.executable, "-c", code, "runs", str(tmp_path)],
        capture_output=True,
        env=os.environ | environment,
        timeout=120,
    )
    assert ended.returncode in (1, 2)  # under C, `ü` is no word at all
    assert ended.stdout.isascii() and rb"\xfcnter" in ended.stdout
    assert ended.stderr.isascii() and b"error: " in ended.stderr
    assert b"Traceback" not in ended.stderr


def test_too_many_open_files_are_one_line(monkeypatch: pytest.MonkeyPatch, cli: Any) -> None:
    full = OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    monkeypatch.setattr("tatscli.tasks.runs.list_runs", Mock(side_effect=full))
    outcome = cli("runs")
    assert outcome.code == 1 and outcome.stderr.startswith("error: too many open files")
    assert "ulimit -n" in outcome.stderr


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.042, "0.042 s"),
        (7.31, "7.3 s"),
        (59.6, "60 s"),
        (89, "89 s"),
        (95, "2 min"),
        (3600, "60 min"),
        (5400, "1 h 30 min"),
        (7200, "2 h"),
        (11_100, "3 h 5 min"),
        (187_200, "2 days 4 h"),
        (172_800, "2 days"),
    ],
)
def test_a_duration_reads_as_people_say_it(seconds: float, said: str) -> None:
    assert duration(seconds) == said
