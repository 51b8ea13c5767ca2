"""Files and folders that are there whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from tatscli.files import draft_of


def fill(folder: Path, text: str) -> None:
    folder.mkdir()
    (folder / "file").write_text(text)


def test_a_draft_takes_the_place_of_a_folder_and_an_error_keeps_it(tmp_path: Path) -> None:
    target = tmp_path / "run"
    fill(target, "old")
    with pytest.raises(ValueError, match="stop"), draft_of(target) as draft:
        fill(draft, "new")
        raise ValueError("stop")
    assert (target / "file").read_text() == "old"
    with draft_of(target) as draft:
        fill(draft, "new")
        assert (target / "file").read_text() == "old"
    assert (target / "file").read_text() == "new"
    assert [one.name for one in tmp_path.iterdir()] == ["run"]


def test_what_a_kill_between_two_renames_left_is_not_lost(tmp_path: Path) -> None:
    target = tmp_path / "run"
    fill(tmp_path / ".run.old", "old")
    fill(tmp_path / ".run.part", "new")
    with pytest.raises(ValueError, match="stop"), draft_of(target):
        raise ValueError("stop")
    assert (target / "file").read_text() == "old"
    assert [one.name for one in tmp_path.iterdir()] == ["run"]
