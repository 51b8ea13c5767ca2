"""`tats store` as it is typed."""

import json
import shutil

import pytest

from tatscli.store.reader import Store
from tatscli.store.shards import Shard
from tests.clips import pan, render


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Videos of two splits and two classes, one of them without motion, one noise; their store."""
    from tatscli.cli import main

    folder = tmp_path_factory.mktemp("base")
    for split in ("train", "val"):
        for index, name in enumerate(("fall", "walk")):
            clip = pan((index, 1), frames=10, height=64, width=96, seed=index)
            render(folder / "videos" / split / name / f"{split}.mp4", clip)
    for name in ("val/walk/still.avi", "val/walk/still again.avi"):
        clip = pan((0, 0), frames=5, height=64, width=96)
        render(folder / "videos" / name, clip, codec="ffv1")
    (folder / "videos" / "train" / "fall" / "noise.mp4").write_bytes(b"noise" * 40)
    out = str(folder / "store")
    assert main(["prepare", str(folder / "videos"), "--out", out, "-q", "--motion", "native"]) == 1
    return folder


@pytest.fixture
def here(base, tmp_path, monkeypatch):
    shutil.copytree(base / "store", tmp_path / "store")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_info(here, cli):
    told = cli("store", "info", "store", "--json").json()
    size = sum(path.stat().st_size for path in (here / "store" / "shards").iterdir())
    assert (told["videos"], told["failed"], told["frames"]) == (6, 1, 50)
    assert (told["bytes"], told["shards"], told["part"]) == (size, 1, None)
    assert told["hours"] == pytest.approx(50 / 25 / 3600, abs=1e-4)
    assert told["splits"] == {"train": 2, "val": 4}
    assert told["motion"] == {"native": 4, "none": 2}
    assert told["codecs"] == {"h264": 4, "ffv1": 2}
    assert told["sizes"] == {"96x64": 6}
    assert told["class_names"] == ["fall", "walk"]
    assert told["settings"]["short_side"] == 256
    assert told["fingerprint"] == Store.open("store").fingerprint()
    table = cli("store", "info", "store").stdout
    for text in ("short_side 256", "native 4, none 2", "2: fall, walk", "train 2, val 4"):
        assert text in table


def test_list(here, cli):
    lines = [line.split("\t") for line in cli("store", "list", "store").stdout.splitlines()]
    assert [line[0] for line in lines] == sorted(line[0] for line in lines)
    assert lines[0] == [
        *("train/fall/noise.mp4", "failed", "train", "fall"),
        Store.open("store").rows[0].reason,
    ]
    assert lines[1] == [
        *("train/fall/train.mp4", "ok", "train", "fall"),
        *("10 frames", "96x64", "h264", "motion native"),
    ]


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (["--status", "failed"], ["train/fall/noise.mp4"]),
        (["--status", "ok", "--split", "train"], ["train/fall/train.mp4", "train/walk/train.mp4"]),
        (["--motion", "none"], ["val/walk/still again.avi", "val/walk/still.avi"]),
        (["--motion", "native", "--split", "val"], ["val/fall/val.mp4", "val/walk/val.mp4"]),
        (["--motion", "reencode"], []),
    ],
)
def test_list_of_some(here, cli, options, found):
    told = cli("store", "list", "store", *options, "--json").json()
    assert [row["id"] for row in told["rows"]] == found
    assert told["found"] == len(found)
    plain = cli("store", "list", "store", *options).stdout
    assert [line.split("\t")[0] for line in plain.splitlines()] == found


def test_list_of_a_few(here, cli):
    outcome = cli("store", "list", "store", "--limit", 2)
    assert len(outcome.stdout.splitlines()) == 2
    assert "showing 2 of 7" in outcome.stderr
    told = cli("store", "list", "store", "--limit", 2, "--json").json()
    assert (told["found"], len(told["rows"])) == (7, 2)
    assert told["rows"][1] == json.loads((here / "store/manifest.jsonl").read_text().split("\n")[1])


def test_list_refuses_what_there_is_not(here, cli):
    outcome = cli("store", "list", "store", "--split", "test")
    assert outcome.code == 1 and "no split `test`; it has `train`, `val`" in outcome.stderr
    assert cli("store", "list", "store", "--status", "perhaps").code == 2


def test_verify_and_repair(here, base, cli):
    sound = cli("store", "verify", "store", "--decode", "--json")
    assert sound.code == 0
    assert (sound.json()["videos"], sound.json()["findings"]) == (6, [])
    row = Store.open("store").rows[1]
    shard = Shard(here / "store" / row.shard)
    data = bytearray(shard.path.read_bytes())
    data[shard.videos[row.id]["motion"].start] ^= 1
    shard.path.write_bytes(data)
    broken = cli("store", "verify", "store")
    assert broken.code == 1
    assert row.id in broken.stdout and "--repair" in broken.stderr
    repaired = cli("store", "verify", "store", "--repair", "--json")
    assert repaired.code == 1 and repaired.json()["dropped"] == 1
    (finding,) = repaired.json()["findings"]
    assert (finding["id"], finding["shard"]) == (row.id, row.shard)
    assert (
        "is unfinished now; rerun the same `tats prepare` to re-create its 1 missing"
        in repaired.stderr
    )
    for name in ("verify", "info", "list"):
        refused = cli("store", name, "store")
        assert refused.code == 1 and "is unfinished" in refused.stderr
    again = cli("prepare", base / "videos", "--out", "store", "-q", "--motion", "native")
    assert again.code == 1  # the noise
    assert cli("store", "verify", "store").code == 0


def test_lists(here, cli):
    outcome = cli("store", "lists", "store", "--out", "lists", "--separator", ",", "--json")
    assert outcome.code == 0
    assert {"lists/train.csv", "lists/val.csv"} <= set(outcome.json()["lists"])
    assert "val/walk/still again.avi" in (here / "lists" / "val.csv").read_text()
    assert "train/fall/train.mp4" in (here / "lists" / "train.csv").read_text()
    assert cli("store", "lists", "store", "--out", "spaces").code in (1, 2)  # a path has a space


def test_merge(here, cli):
    outcome = cli("store", "merge", "store", "--out", "merged/all", "--json")
    assert outcome.code == 0
    told = outcome.json()
    assert told == {
        **{"stores": 1, "ok": 6, "failed": 1, "frames": 50, "repeated": 0},
        **{"linked": 1, "copied": 0, "store": "merged/all"},
    }
    assert Store.open("merged/all").rows == Store.open("store").rows
    again = cli("store", "merge", "store", "--out", "merged/all")
    assert again.code == 2 and "already exists" in again.stderr


@pytest.mark.parametrize("name", ["info", "verify", "list", "merge"])
def test_what_is_no_store(here, cli, name):
    options = ["--out", "merged"] if name == "merge" else []
    outcome = cli("store", name, "nowhere", *options)
    assert (outcome.code, outcome.stdout) == (1, "")
    assert "error: there is no store at `nowhere`" in outcome.stderr


def test_a_merged_store_needs_a_name(here, cli):
    outcome = cli("store", "merge", "store", "--out", ".")
    assert outcome.code == 2 and "`.` is not a valid name for a new store" in outcome.stderr
