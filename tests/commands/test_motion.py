"""`tats motion`: files that hold what the library yields, and wrong command lines."""

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from tatscli.video.frames import read_frames
from tatscli.video.motion import read_vectors
from tests.clips import CLEAN_VECTORS, pan, render


@pytest.fixture
def clip(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return render(tmp_path / "clip.mp4", pan((3, -2), frames=12), options=CLEAN_VECTORS)


def test_raw_rows_are_those_of_every_frame_in_order(cli, clip):
    outcome = cli("motion", clip, "-o", "rows.safetensors", "--raw", "--json")
    assert outcome.code == 0, outcome.stderr
    frames = list(read_vectors(clip))
    found = load_file("rows.safetensors")
    assert (found["rows"].dtype, found["frame"].dtype) == (np.int32, np.int32)
    np.testing.assert_array_equal(found["rows"], np.concatenate([f.rows for f in frames]))
    expected = [index for index, frame in enumerate(frames) for _ in frame.rows]
    np.testing.assert_array_equal(found["frame"], expected)
    assert bytes(found["types"]).decode() == "I" + "P" * 11
    np.testing.assert_allclose(found["times"], np.arange(12) / 25, atol=1e-6)
    summary = outcome.json()
    assert (summary["frames"], summary["moving"], summary["rows"]) == (12, 11, len(expected))


def test_the_field_is_that_of_a_store(cli, clip):
    options = ["--motion-cell", "8", "--short-side", "96", "--camera", "median"]
    assert cli("motion", clip, *options).code == 0
    frames = list(read_frames(clip, short_side=96, motion_cell=8, camera="median"))
    with safe_open("clip.motion.safetensors", "numpy") as file:
        np.testing.assert_array_equal(file.get_tensor("motion"), [f.motion for f in frames])
        np.testing.assert_array_equal(file.get_tensor("valid"), [f.valid for f in frames])
        expected = {"width": "128", "height": "96", "motion_cell": "8", "origin": "native"}
        assert expected.items() <= file.metadata().items()


def test_a_codec_without_vectors_is_encoded_or_refused(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    clip = render(tmp_path / "a.webm", pan((3, -2), frames=6), codec="libvpx-vp9")
    outcome = cli("motion", clip, "--json")
    assert (outcome.code, outcome.json()["origin"], outcome.json()["moving"]) == (0, "reencode", 5)
    outcome = cli("motion", clip, "--raw", "-o", "rows.safetensors")
    assert outcome.code == 1 and "vp9 exports no motion vectors" in outcome.stderr
    assert [path.name for path in tmp_path.glob("*.safetensors")] == ["a.motion.safetensors"]


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["-o", "rows.npy"], 2, "suffix must be .safetensors"),
        (["-o", "no/rows.safetensors"], 2, "there is no folder `no`"),
        (["-o", "folder.safetensors"], 2, "`folder.safetensors` is a folder"),
        (["--raw", "--camera", "affine", "--motion-cell", "8"], 2, "`--motion-cell`, `--camera`"),
        (["--motion", "none"], 2, "none"),
    ],
)
def test_wrong_command_lines(cli, clip, options, code, words):
    (clip.parent / "folder.safetensors").mkdir()
    outcome = cli("motion", clip, *options)
    assert outcome.code == code and words in outcome.stderr
    assert not [path for path in clip.parent.glob("*.safetensors") if path.is_file()]


def test_a_file_that_does_not_decode(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "noise.mp4").write_bytes(bytes(range(256)) * 20)
    outcome = cli("motion", "noise.mp4")
    assert outcome.code == 1 and "`noise.mp4`: does not open as a video" in outcome.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["noise.mp4"]


@pytest.mark.parametrize(("frames", "told"), [(5, ("reencode", 4)), (1, ("none", 0))])
def test_a_file_of_key_frames_gets_what_a_store_would_hold(
    cli, tmp_path, monkeypatch, frames, told
):
    monkeypatch.chdir(tmp_path)
    clip = pan((3, -2), frames=frames)
    render(tmp_path / "a.mpg", clip, codec="mpeg2video", options={"g": "1"})
    outcome = cli("motion", "a.mpg", "--json").json()
    assert (outcome["origin"], outcome["moving"]) == told
    assert outcome["why"] == ("key frames only" if frames > 1 else "a single frame")
    field = load_file("a.motion.safetensors")["motion"]
    expected = (3, -2) if frames > 1 else (0, 0)
    np.testing.assert_allclose(np.median(field[-1], (0, 1)), expected, atol=0.25)
