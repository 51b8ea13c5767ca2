"""`tats prepare` as it is typed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tatscli.store.reader import Store
from tests.clips import pan, render, static
from tests.processes import hear_interrupts

TEN = """
    asl_again.mkv asl_eat.mkv bike_16_frames.avi camtrap_tiny_1fps.avi camtrap_tiny_eland.mp4
    cube_mpeg1_es.mpeg french_gp_1906.ogv grid_talker_1.mpg puck_force.avi webcam_mjpeg.avi
"""
THREE = {
    "made_truncated_no_moov.mp4": "moov atom not found",
    "made_random_bytes.mp4": "Invalid data found",
    "made_audio_only.mp4": "no video stream (holds 1 audio)",
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_store_is_named_after_the_folder(here, cli):
    render(here / "videos" / "walk" / "a.mp4", static(frames=3))
    render(here / "videos" / "fall" / "b.mp4", static(frames=4))
    outcome = cli("prepare", "./videos", "--workers", 1)
    assert outcome.code == 0
    assert "found 2 videos" in outcome.stderr and "2 classes" in outcome.stderr
    assert f"wrote `{Path('prepared/videos')}`" in outcome.stderr
    assert "7" in outcome.stdout
    assert len(Store.open("prepared/videos").rows) == 2


def test_the_present_folder_has_a_name_as_well(here, cli, monkeypatch):
    render(here / "mine" / "a.mp4", static(frames=3))
    monkeypatch.chdir(here / "mine")
    assert cli("prepare", ".", "--json", "--workers", 1).json()["store"] == "prepared/mine"


def test_lists_and_json(here, cli):
    for name in "abc":
        render(here / "videos" / f"{name}.mp4", pan(frames=5, height=64, width=64))
    (here / "train.csv").write_text("a.mp4 jump\nb.mp4 run\n")
    (here / "fold.txt").write_text("c.mp4 run\ngone.mp4 run\n")
    lists = ("--annotations", "train.csv", "--annotations", "val=fold.txt")
    outcome = cli("prepare", "videos", "--out", "here/store", *lists, "--json", "--workers", 2)
    told = outcome.json()
    assert outcome.code == 1
    assert (told["ok"], told["failed"], told["frames"]) == (3, 1, 15)
    assert told["failures"] == [
        {"id": "gone.mp4", "reason": "cannot be read: no such file or directory"}
    ]
    assert told["warnings"] == [] and told["store"] == "here/store"
    assert 0 < told["seconds"] < 60
    store = Store.open("here/store")
    assert store.class_names == ["jump", "run"]
    assert [store.rows[index].label for index in store.part("val")] == [1]


@pytest.mark.shared
def test_ten_good_clips_and_three_bad_ones(here, cli, shared):
    (here / "mixed").mkdir()
    for folder, names in (("real", TEN.split()), ("nasty", THREE)):
        for name in names:
            os.symlink(shared / "clips" / folder / name, here / "mixed" / name)
    outcome = cli("prepare", "mixed", "--json", "--workers", 2)
    told = outcome.json()
    assert outcome.code == 1
    assert (told["ok"], told["failed"]) == (10, 3)
    assert {failure["id"] for failure in told["failures"]} == set(THREE)
    for failure in told["failures"]:
        assert THREE[failure["id"]] in failure["reason"]
    store = Store.open("prepared/mixed")
    assert {store.rows[index].id for index in store.part(None)} == set(TEN.split())
    assert sum(store.rows[index].frames for index in store.part(None)) == told["frames"]


def test_check_reports_alike_and_writes_nothing(here, cli):
    render(here / "videos" / "a.mp4", static(frames=3))
    (here / "videos" / "bad.mp4").write_bytes(b"bad" * 100)
    outcome = cli("prepare", "videos", "--check", "--json", "--workers", 1)
    told = outcome.json()
    assert outcome.code == 1
    assert (told["ok"], told["failed"], told["frames"], told["store"]) == (1, 1, 3, None)
    assert told["motion"] == {"native": 0, "reencode": 0, "none": 0}
    parts = [cli("prepare", "videos", "--check", "--json", "--part", f"{n}/2") for n in (1, 2)]
    assert sum(part.json()["ok"] + part.json()["failed"] for part in parts) == 2
    assert [entry.name for entry in here.iterdir()] == ["videos"]


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        (["prepare", "nowhere"], 2, "there is no folder `nowhere`"),
        (["prepare", "empty"], 1, "no videos in `empty`: it is empty"),
        (["prepare", "videos", "--annotations", "none.csv"], 2, "there is no list `none.csv`"),
        (["prepare", "videos", "--annotations", "bad.csv"], 1, "`bad.csv`, line 2: more than"),
        (["prepare", "videos", "--out", "videos"], 2, "is not empty and not a store"),
        (["prepare", "videos", "--quality", "90"], 2, "'--quality': `90` should be"),
        (["prepare", "videos", "--quality", "1"], 2, "'--quality': `1` should be"),
        (["prepare", "videos", "--out", ".", "--part", "1/2"], 2, "`--out .` has no name"),
        (["prepare", "videos", "--add", "--overwrite"], 2, "`--overwrite` deletes what `--add`"),
    ],
)
def test_wrong_command_lines(here, cli, line, code, message):
    render(here / "videos" / "a.mp4", static(frames=2))
    (here / "empty").mkdir()
    (here / "bad.csv").write_text("a.mp4 0\nb.mp4 0 1 2\n")
    outcome = cli(*line)
    assert outcome.code == code
    assert outcome.stdout == ""
    assert message in outcome.stderr and "hint: " in outcome.stderr


def test_short_side_zero_keeps_the_size(here, cli):
    render(here / "videos" / "a.mp4", static(frames=2, height=300, width=400))
    cli("prepare", "videos", "--short-side", 0, "--motion-cell", 8, "--workers", 1)
    store = Store.open("prepared/videos")
    assert (store.rows[0].width, store.rows[0].height) == (400, 300)
    assert store.motion(0, [0])[0].shape == (1, 38, 50, 2)


def test_control_c_is_130_and_resumable(here, cli):
    render(here / "videos" / "a.mp4", pan((1, 0), frames=900, height=128, width=128))
    command = [sys.executable, "-m", "tatscli", "prepare", "videos", "--workers", "1"]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(
        command, env=env, cwd=here, stderr=subprocess.PIPE, preexec_fn=hear_interrupts
    )
    deadline = time.monotonic() + 60
    while not list((here / "prepared").glob("videos/.spool-*/0.jpeg")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Traceback" not in stderr
    assert cli("prepare", "videos", "--workers", 1).code == 0


def test_prepare_needs_no_torch():
    code = (
        "import sys, tatscli.store.prepare, tatscli.store.reader, tatscli.video.reader;"
        " sys.exit('torch' in sys.modules)"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    assert subprocess.run([sys.executable, "-c", code], env=env).returncode == 0


def test_check_takes_nothing_that_writes(cli, tmp_path):
    (tmp_path / "videos").mkdir()
    for option in (["--out", tmp_path / "store"], ["--overwrite"], ["--add"], ["--retry-failed"]):
        outcome = cli("prepare", tmp_path / "videos", "--check", *option)
        assert outcome.code == 2 and "`--check` writes nothing" in outcome.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["videos"]
