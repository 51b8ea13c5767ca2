"""Writing pictures: what is written reads back, and nothing half-written is left."""

import errno
import os

import av
import numpy as np
import pytest
from PIL import Image

from tatscli.errors import UsageError
from tatscli.video.encode import write_timed, write_video
from tests.clips import pan, texture


def decoded(path):
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return [f.to_ndarray(format="rgb24") for f in container.decode(stream)], stream.average_rate


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov", ".MP4"])
def test_h264_round_trip(tmp_path, suffix):
    clip = list(pan(frames=6, height=64, width=96))
    path = write_video(tmp_path / "new" / f"clip{suffix}", clip, fps=12.5)
    frames, rate = decoded(path)
    assert len(frames) == 6 and rate == 12.5
    assert np.abs(np.stack(frames).astype(int) - np.stack(clip)).mean() < 6
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_odd_pictures_gain_a_repeated_line(tmp_path):
    frames, _ = decoded(write_video(tmp_path / "odd.mp4", [texture(33, 65)] * 3, fps=25))
    assert frames[0].shape == (34, 66, 3)
    assert np.abs(frames[0][33].astype(int) - frames[0][32]).mean() < 8


def test_gif_round_trip(tmp_path):
    clip = list(pan(frames=5, height=48, width=64))
    path = write_video(tmp_path / "clip.gif", clip, fps=10)
    with Image.open(path) as image:
        assert image.n_frames == 5
        assert image.info["duration"] == 100
        for index, expected in enumerate(clip):
            image.seek(index)
            shown = np.asarray(image.convert("RGB")).astype(int)
            assert np.abs(shown - expected).mean() < 12


def test_png_is_exact(tmp_path):
    picture = texture(31, 47)
    path = write_video(tmp_path / "grid.png", [picture], fps=1)
    assert np.array_equal(np.asarray(Image.open(path)), picture)


def test_options_reach_the_encoder(tmp_path):
    small, large = (
        write_video(tmp_path / f"{crf}.mp4", pan(frames=6), fps=25, options={"crf": crf})
        for crf in ("45", "10")
    )
    assert small.stat().st_size < large.stat().st_size / 3


@pytest.mark.parametrize(
    ("name", "frames", "message"),
    [
        ("clip.txt", 1, "its suffix must be one of .mp4"),
        ("clip.png", 2, "one picture, not several"),
        ("clip.mp4", 0, "no frames to write"),
    ],
)
def test_what_cannot_be_written_leaves_nothing(tmp_path, name, frames, message):
    with pytest.raises(UsageError, match=message):
        write_video(tmp_path / name, [texture(16, 16)] * frames, fps=25)
    assert not list(tmp_path.iterdir())


def test_a_failing_source_leaves_the_old_file(tmp_path):
    path = write_video(tmp_path / "clip.mp4", pan(frames=3), fps=25)
    before = path.read_bytes()

    def breaking():
        yield from pan(frames=3)
        raise RuntimeError("the model failed")

    with pytest.raises(RuntimeError, match="the model failed"):
        write_video(path, breaking(), fps=25)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["clip.mp4"]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
def test_frames_keep_their_times(tmp_path, suffix):
    times = [7.0, 7.04, 7.5, 7.5, 7.52, 9.0]  # two at once follow each other all the same
    path = tmp_path / f"a{suffix}"
    write_timed(path, zip(times, pan(frames=6, height=32, width=48), strict=True), fps=25)
    with av.open(str(path)) as container:
        written = [frame.time for frame in container.decode(video=0)]
    assert written == pytest.approx([time - 7 for time in times], abs=2e-3)
    assert written == sorted(set(written))


def test_only_films_hold_times(tmp_path):
    for name, frames, message in (
        ("a.gif", [(0.0, texture(8, 8))], "suffix"),
        ("a.mp4", [], "no f"),
    ):
        with pytest.raises(UsageError, match=message):
            write_timed(tmp_path / name, frames, fps=25)
    assert not list(tmp_path.iterdir())


def test_a_disk_that_is_full_is_an_error_that_names_the_file(tmp_path):
    def frames():
        yield np.zeros((16, 16, 3), np.uint8)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # as FFmpeg's: without a name

    with pytest.raises(OSError, match="No space") as caught:
        write_video(tmp_path / "new.mp4", frames(), fps=5)
    assert caught.value.filename == str(tmp_path / "new.mp4")
    assert not list(tmp_path.iterdir())
