"""`tats predict`: against `tats evaluate` on a store of the same videos, and as a command."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from tatscli.api import load
from tatscli.console import Reporter
from tatscli.errors import UsageError
from tatscli.tasks.evaluate import evaluate
from tatscli.tasks.predict import predict
from tatscli.tasks.results import read_scores
from tatscli.video.reader import VideoReader
from tests.clips import pan, render, static
from tests.small_runs import NAMES, render_films, save_run, store_of, tiny_recipe


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("predict")
    save_run(folder / "tuned", tiny_recipe(), seed=1)
    save_run(folder / "pretrained", tiny_recipe(), names=None)
    store_of(render_films(folder / "videos"), folder / "store")
    (folder / "broken.mp4").write_bytes(b"nothing of the kind")
    return folder


def film(home: Path, name: str = "falls") -> Path:
    return home / "videos" / "val" / name / "a.mp4"


@pytest.mark.parametrize(
    ("data", "windows", "crops"),
    [
        ({"sampling": {"stride": 2}}, 1, 1),
        ({"sampling": {"stride": 2}}, 3, 3),
        ({"sampling": {"fps": 8}}, 2, 1),
        ({"sampling": {"mode": "uniform"}}, 2, 1),
        ({"resize": "videomae", "size": 16}, 2, 3),
    ],
)
def test_it_says_what_evaluate_says(
    home: Path, tmp_path: Path, reporter: Reporter, data: dict[str, Any], windows: int, crops: int
) -> None:
    run = save_run(tmp_path / "run", tiny_recipe(home / "store", data=data), seed=4)
    views = [f"evaluate.segments={windows}", f"evaluate.crops={crops}"]
    out = tmp_path / "result.json"
    scores = read_scores(out, evaluate(run, reporter=reporter, overrides=views, out=out))
    found = predict(
        [home / "videos"], run, reporter=reporter, windows=windows, crops=crops, device="cpu"
    )["clips"]
    assert [clip["clip"] for clip in found] == scores.videos
    assert scores.videos == [f"val/{name}/a.mp4" for name in NAMES]
    for clip, score_L in zip(found, scores.score_RL.tolist(), strict=True):
        assert clip["top"][0]["index"] == int(np.argmax(score_L))
        for one in clip["top"]:
            # JPEG's loss is all there is between the two.
            assert one["probability"] == pytest.approx(score_L[one["index"]], abs=0.01)


def test_clips_share_batches_and_change_nothing(home: Path, reporter: Reporter) -> None:
    together = predict([home / "videos"], home / "tuned", reporter=reporter, device="cpu")["clips"]
    for clip in together:
        alone = load(home / "tuned", device="cpu").predict(home / "videos" / clip["clip"])
        for one, other in zip(clip["top"], alone, strict=True):
            assert one["class"] == other.name
            assert one["probability"] == pytest.approx(other.probability, abs=1e-6)
        assert clip["windows"][-1]["end"] == pytest.approx(clip["seconds"])
        assert {name for window in clip["windows"] for name in window} == {
            "start", "end", "frames", "top",
        }  # fmt: skip


def test_a_clip_that_cannot_be_read_is_named_and_the_others_go_on(
    home: Path, cli: Callable[..., Any]
) -> None:
    given = (film(home), home / "broken.mp4", film(home, "turns"))
    outcome = cli("predict", *given, "--run", home / "tuned", "--top", "2", "--json")
    assert outcome.code == 1
    result = outcome.json()
    assert [clip["clip"] for clip in result["clips"]] == [str(given[0]), str(given[2])]
    assert [len(clip["top"]) for clip in result["clips"]] == [2, 2]
    assert result["failed"][0]["clip"] == str(given[1])
    assert "does not open" in result["failed"][0]["reason"]
    assert "broken.mp4` cannot be read" in outcome.stderr
    assert result["class_names"] == NAMES
    alone = cli("predict", home / "broken.mp4", "--run", home / "tuned", "--json")
    assert (alone.code, alone.json()["clips"]) == (1, [])


def test_threads_change_nothing_and_stay_silent(
    home: Path, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    """Some files do not open while others, with holes in them, are being decoded."""
    for number in range(8):
        (tmp_path / "clips" / f"none{number}.mp4").parent.mkdir(exist_ok=True)
        (tmp_path / "clips" / f"none{number}.mp4").write_bytes(b"nothing of the kind")
        path = render(
            tmp_path / "clips" / f"hole{number}.ts",
            pan(frames=20, height=48, width=64, seed=number),
        )
        content = bytearray(path.read_bytes())
        content[len(content) // 2 :: 7] = bytes(len(content[len(content) // 2 :: 7]))
        path.write_bytes(content)
    found = []
    for workers in (0, 4):
        run = save_run(tmp_path / f"run{workers}", tiny_recipe(data={"workers": workers}), seed=1)
        outcome = cli("predict", tmp_path / "clips", "--run", run, "--json", "-q")
        assert outcome.code == 1
        lines = [line for line in outcome.stderr.splitlines() if not line.startswith("warning: ")]
        assert not lines
        found.append({key: outcome.json()[key] for key in ("clips", "failed")})
    assert found[0] == found[1]
    assert len(found[0]["failed"]) >= 8
    assert any(clip["problem"] for clip in found[0]["clips"])


def test_people_get_a_table(home: Path, cli: Callable[..., Any]) -> None:
    outcome = cli("predict", film(home), "--run", home / "tuned")
    assert outcome.code == 0
    assert all(name in outcome.stdout for name in NAMES)
    assert "0.32 to 0.96" in outcome.stdout


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (["--run", "pretrained"], "has no classifier", "tats finetune"),
        (["--run", "tuned", "--windows", "2", "--every", "1"], "exclude each other", ""),
        (["--run", "tuned", "--crops", "2"], "`--crops 2` must be 1 or 3", ""),
        (["--run", "nowhere"], "does not exist", ""),
        (["--run", "tuned", "--device", "abacus"], "`abacus` is not available", "tats env"),
        (["--run", "tuned", "--out", "drawn.gif"], "suffix must be one of .mp4", "folder"),
        (["--run", "tuned", "nothing.mp4"], "`nothing.mp4` does not exist", ""),
    ],
)
def test_what_cannot_be_done_is_one_message(
    home: Path, cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch,
    words: list[str], message: str, hint: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(home)
    outcome = cli("predict", film(home), *words)
    assert outcome.code in (1, 2)
    assert message in outcome.stderr
    assert hint in outcome.stderr
    assert outcome.stderr.startswith("error: ")
    assert "Traceback" not in outcome.stderr


def test_scores_that_are_not_finite_are_an_error(
    home: Path, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    run = save_run(tmp_path / "run", tiny_recipe(data={"std": [1e-38, 1e-38, 1e-38]}))
    outcome = cli("predict", film(home), "--run", run)
    assert outcome.code == 1
    assert "a.mp4` are not finite" in outcome.stderr


def test_the_film_has_size_rate_and_length_of_the_clip(home: Path, tmp_path: Path) -> None:
    clip = render(tmp_path / "clip.mkv", pan(frames=31, height=90, width=121), codec="ffv1", fps=12)
    out = tmp_path / "drawn.mp4"
    result = predict([clip], home / "tuned", reporter=Reporter(quiet=True), out=out, device="cpu")
    assert result["clips"][0]["out"] == str(out)
    before = [(item.time, item.frame.to_ndarray(format="rgb24")) for item in VideoReader(clip)]
    after = [(item.time, item.frame.to_ndarray(format="rgb24")) for item in VideoReader(out)]
    assert [time for time, _ in after] == pytest.approx([time for time, _ in before], abs=1e-3)
    with av.open(str(out)) as container:
        stream = container.streams.video[0]
        assert (stream.width, stream.height) == (122, 90)  # H.264 wants even sides
        assert float(stream.average_rate) == pytest.approx(12)
    for (_, was), (_, now) in zip(before, after, strict=True):
        change = np.abs(now[:, :121].astype(int) - was).mean(axis=2)
        assert change[:45].mean() > 10  # the box
        assert change[60:].mean() < 10  # and nothing below it


def test_a_film_keeps_uneven_times(home: Path, tmp_path: Path) -> None:
    pts = [0, 1, 2, 5, 6, 9, 10, 20, 21, 22]
    clip = render(tmp_path / "clip.mp4", pan(frames=10, height=48, width=64), fps=10, pts=pts)
    out = tmp_path / "drawn.mkv"
    predict([clip], home / "tuned", reporter=Reporter(quiet=True), out=out, device="cpu")
    times = [item.time for item in VideoReader(out)]
    assert times == pytest.approx([tick / 10 for tick in pts], abs=2e-3)


def test_clips_that_share_a_stem_keep_their_suffix(home: Path, tmp_path: Path) -> None:
    for name in ("a.mkv", "a.avi", "b.mp4"):
        render(tmp_path / "clips" / name, pan(frames=4, height=32, width=48), codec="mpeg4")
    predict([tmp_path / "clips"], home / "tuned", reporter=Reporter(quiet=True),
            out=tmp_path / "drawn", device="cpu")  # fmt: skip
    made = sorted(path.name for path in (tmp_path / "drawn").iterdir())
    assert made == ["a.avi.mp4", "a.mkv.mp4", "b.mp4"]


def test_several_films_go_into_a_folder(home: Path, tmp_path: Path, reporter: Reporter) -> None:
    result = predict(
        [home / "videos"], home / "tuned", reporter=reporter, out=tmp_path / "drawn", device="cpu"
    )
    made = [tmp_path / "drawn" / "val" / name / "a.mp4" for name in NAMES]
    assert [clip["out"] for clip in result["clips"]] == [str(path) for path in made]
    assert all(len(list(VideoReader(path))) == 24 + n for n, path in enumerate(made))
    assert not list((tmp_path / "drawn").rglob(".*"))
    with pytest.raises(UsageError, match="is a single video file"):
        predict([home / "videos"], home / "tuned", reporter=reporter, out=tmp_path / "a.mp4")
    clash = [film(home, name) for name in NAMES]
    with pytest.raises(UsageError, match="two clips would be written"):
        predict(clash, home / "tuned", reporter=reporter, out=tmp_path / "drawn")
    with pytest.raises(UsageError, match="the clip itself"):
        predict(clash[:1], home / "tuned", reporter=reporter, out=clash[0])


@pytest.mark.slow
def test_a_long_video_takes_no_more_memory_than_a_short_one(home: Path, tmp_path: Path) -> None:
    """Its frames would be 207 MB."""
    short, long = (
        render(
            tmp_path / f"{frames}.mp4",
            static(frames=frames, height=240, width=320),
            options={"preset": "ultrafast"},
        )
        for frames in (60, 900)
    )
    code = (
        "import resource, sys\nfrom pathlib import Path\nfrom tatscli.cli import main\n"
        "peaks = []\n"
        "for clip in sys.argv[2:]:\n"
        "    assert main(['predict', clip, '--run', sys.argv[1], '-q', '--json']) == 0\n"
        "    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
        "print(*peaks, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, home / "tuned", short, short, long],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    _, before, after = map(int, done.stderr.split())
    assert (after - before) * 1024 < 30e6
    windows = json.loads(done.stdout.splitlines()[-1])["clips"][0]["windows"]
    assert len(windows) == -(-450 // 8)
