"""What `probe` says about a file."""

import pytest

from tatscli.errors import DecodeError
from tatscli.video.probe import probe
from tests.clips import pan, render


def test_facts_of_a_clip(tmp_path):
    path = render(tmp_path / "clip.mp4", pan(frames=10, height=64, width=96), fps=20)
    info = probe(path)
    assert (info.codec, info.width, info.height, info.pix_fmt) == ("h264", 96, 64, "yuv420p")
    assert (info.fps, info.frames, info.duration) == (20, 10, pytest.approx(0.5))
    assert (info.rotation, info.mirrored, info.size_bytes) == (0, False, path.stat().st_size)


def test_a_file_without_frames_is_an_error(tmp_path):
    path = tmp_path / "noise.mp4"
    path.write_bytes(b"noise" * 100)
    with pytest.raises(DecodeError, match="does not open"):
        probe(path)


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "rotation"),
    [("made_rotate_90.mp4", 270), ("made_rotate_180.mp4", 180), ("decord_video_90.mov", 90)],
)
def test_rotation_is_clockwise(shared, name, rotation):
    assert probe(shared / "clips" / "nasty" / name).rotation == rotation


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("encrypted_vp9.webm", "no frame can be decoded: Invalid data"),
        ("made_header_only.mp4", "no frame can be decoded: there is no picture data"),
        ("subtitles_only.mkv", r"no video stream \(holds 1 subtitle\)"),
    ],
)
def test_reasons_are_true(shared, name, reason):
    with pytest.raises(DecodeError, match=reason):
        probe(shared / "clips" / "nasty" / name)
