"""A run that is replaced: no kill at any moment loses it."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from tatscli.console import Reporter
from tatscli.engine.replaced import (
    content,
    put_back,
    put_back_on_failure,
    recover,
    set_aside,
)
from tatscli.lock import LOCK


class Killed(BaseException):
    pass


def write_run(folder: Path, text: str, *, checkpoint: bool = True) -> None:
    (folder / "results").mkdir(parents=True, exist_ok=True)
    for name in ("recipe.yaml", "run.json", "metrics.jsonl", "results/a.json"):
        (folder / name).write_text(text)
    if checkpoint:
        (folder / "checkpoints/step-0000001").mkdir(parents=True)
        (folder / "checkpoints/step-0000001/meta.json").write_text(text)


def files(folder: Path) -> dict[str, str]:
    found = (one for one in folder.rglob("*") if one.is_file())
    return {str(one.relative_to(folder)): one.read_text() for one in found}


def kill_at(monkeypatch: pytest.MonkeyPatch, move: int) -> None:
    """Let the process die before its move of that number."""
    plain, moves = Path.replace, iter(range(100))

    def replace(self: Path, target: Path) -> Path:
        if next(moves) == move:
            raise Killed
        return plain(self, target)

    monkeypatch.setattr(Path, "replace", replace)


def test_a_run_is_set_aside_and_put_back(tmp_path: Path) -> None:
    write_run(tmp_path, "old")
    (tmp_path / LOCK).write_text("held")
    before = files(tmp_path)
    set_aside(tmp_path)
    assert [one.name for one in content(tmp_path)] == []
    (tmp_path / "recipe.yaml").write_text("new")  # nothing was logged: it leaves no trace
    assert put_back(tmp_path) == (
        f"the new run has no checkpoint, so the one it was to replace is back in `{tmp_path}`"
    )
    assert files(tmp_path) == before
    assert put_back(tmp_path) is None


def test_what_the_new_run_logged_is_kept_beside(tmp_path: Path) -> None:
    write_run(tmp_path, "old")
    before = files(tmp_path)
    for attempt in ("first", "second"):
        set_aside(tmp_path)
        write_run(tmp_path, attempt, checkpoint=False)
        said = put_back(tmp_path)
        assert said is not None and said.endswith(f"is in `{tmp_path / 'failed'}`")
        after = files(tmp_path)
        assert after.pop("failed/metrics.jsonl") == attempt
        assert {name: after[name] for name in before} == before


def test_a_new_checkpoint_ends_the_old_run(tmp_path: Path) -> None:
    write_run(tmp_path, "old")
    set_aside(tmp_path)
    write_run(tmp_path, "new")
    assert put_back(tmp_path) is None
    recover(tmp_path)  # after a kill between the checkpoint and the removal
    assert set(files(tmp_path).values()) == {"new"}


def test_a_run_without_checkpoints_is_not_worth_keeping(tmp_path: Path) -> None:
    write_run(tmp_path, "old", checkpoint=False)
    set_aside(tmp_path)
    assert files(tmp_path) == {}


def test_a_second_attempt_keeps_the_run_that_the_first_has_set_aside(tmp_path: Path) -> None:
    write_run(tmp_path, "old")
    before = files(tmp_path)
    for attempt in ("first", "second"):  # both die before a checkpoint
        recover(tmp_path)
        set_aside(tmp_path)
        write_run(tmp_path, attempt, checkpoint=False)
    assert put_back(tmp_path) is not None
    assert {name: files(tmp_path)[name] for name in before} == before


def test_a_bad_step_stays_where_replay_looks_for_it(tmp_path: Path) -> None:
    write_run(tmp_path, "old")
    before, stderr = files(tmp_path), io.StringIO()
    with (
        pytest.raises(ValueError),
        put_back_on_failure(tmp_path, Reporter(stderr=stderr), main=True),
    ):
        set_aside(tmp_path)
        write_run(tmp_path, "new", checkpoint=False)
        (tmp_path / "bad-step").mkdir()
        (tmp_path / "bad-step/meta.json").write_text("bad")
        raise ValueError
    assert (tmp_path / "bad-step/meta.json").exists()
    assert f"is kept in `{tmp_path / 'replaced'}`" in stderr.getvalue()
    put_back(tmp_path)  # as `--resume` does
    assert {name: files(tmp_path)[name] for name in before} == before


@pytest.mark.parametrize("move", range(7))
def test_no_kill_loses_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, move: int) -> None:
    write_run(tmp_path, "old")
    before = files(tmp_path)
    for change in (set_aside, put_back):
        with monkeypatch.context() as patch:
            kill_at(patch, move)
            try:
                change(tmp_path)
            except Killed:
                recover(tmp_path)
        assert set(files(tmp_path).values()) == {"old"} and len(files(tmp_path)) == len(before)
        if change is set_aside and not (tmp_path / "replaced").exists():
            assert files(tmp_path) == before
            set_aside(tmp_path)
    if (tmp_path / "replaced").exists():
        put_back(tmp_path)
    assert files(tmp_path) == before
