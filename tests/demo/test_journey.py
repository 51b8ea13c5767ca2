"""`tats demo` from end to end on a set of a few clips."""

import json

import pytest

from tatscli.commands import demo as command
from tatscli.demo import journey
from tatscli.demo.clips import SetSize

TINY = ["optim.epochs=1", "optim.warmup_epochs=0", "finetune.optim.epochs=1"]


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """A demo of three clips a class; the pictures stay as large as the recipe says."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(journey, "SetSize", lambda: SetSize(train=2, val=1, frames=16))


@pytest.mark.usefixtures("tiny")
def test_one_command_goes_the_whole_way_and_refuses_to_do_it_twice(cli, tmp_path, monkeypatch):
    done = cli("demo", "--json", *TINY)
    assert done.code == 0, done.stderr
    found = done.json()
    assert found["chance"] == 0.125
    assert 0 <= found["from_scratch"] <= 1 and 0 <= found["pretrained"] <= 1
    assert found["videos"] == {"train": 16, "val": 8}
    assert (tmp_path / found["store"] / "dataset.json").is_file()
    assert (tmp_path / found["run"] / "checkpoints").is_dir()
    assert (tmp_path / found["masks"]).stat().st_size > 0
    assert list(found["seconds"]) == [
        "render",
        "prepare",
        "pretrain",
        "finetune (scratch)",
        "evaluate (scratch)",
        "finetune (pretrained-finetune)",
        "evaluate (pretrained-finetune)",
        "visualize",
    ]
    assert json.loads((tmp_path / "demo" / "demo.json").read_text()) == found
    for line in ("tats prepare demo/videos --out demo/store", "tats evaluate demo/scratch"):
        assert line in done.stderr

    again = cli("demo", *TINY)
    assert again.code == 2 and "`demo` holds a demo already" in again.stderr
    # Anew, but for the trainings, which are known by now.
    (tmp_path / "demo" / "left.txt").write_text("of the first")
    for stage in ("pretrain", "finetune", "visualize_masks"):
        monkeypatch.setattr(journey, stage, lambda *args, **options: None)
    monkeypatch.setattr(journey, "evaluate", lambda *args, **options: {"top1": 0.375})
    table = cli("demo", "--overwrite", "--quiet", *TINY)
    assert table.code == 0 and "TATS-pretrained" in table.stdout and "chance" in table.stdout
    assert "0.375" in table.stdout
    assert {path.name for path in (tmp_path / "demo").iterdir()} == {"demo.json", "store", "videos"}


@pytest.mark.usefixtures("tiny")
def test_a_folder_of_others_is_left_alone(cli, tmp_path):
    mine = tmp_path / "demo" / "thesis.txt"
    mine.parent.mkdir()
    mine.write_text("years of work")
    for extra in ([], ["--overwrite"]):
        done = cli("demo", *TINY, *extra)
        assert done.code == 2 and "is not empty and holds no demo" in done.stderr
    assert mine.read_text() == "years of work"


@pytest.mark.usefixtures("tiny")
def test_a_wrong_override_stops_before_anything_is_written(cli, tmp_path):
    done = cli("demo", "optim.epoch=1")
    assert done.code == 2 and "optim.epochs" in done.stderr
    assert not (tmp_path / "demo").exists()


def test_the_command_needs_nothing_heavy():
    assert command.EPILOG
