"""Every file of the shared clips, whatever it is, in one run of the program."""

import json
import re
import subprocess
import sys

import pytest

from tatscli.store.reader import Store

NO_VIDEO = {
    "nasty/audio_only.ogg",
    "nasty/audio_only_aac.mp4",
    "nasty/audio_only_amr.3gp",
    "nasty/audio_only_opus.webm",
    "nasty/made_audio_only.mp4",
    "nasty/made_audio_only.wav",
    "nasty/made_m4a_with_cover_art.m4a",
    "nasty/made_mp3_with_cover_art.mp3",
    "nasty/subtitles_only.mkv",
}
DOES_NOT_OPEN = {
    "nasty/made_random_bytes.mp4",
    "nasty/made_text_named.mp4",
    "nasty/made_truncated_no_moov.mp4",
    "nasty/malformed_free_box.mp4",
    "nasty/mp4parse_chunk_out_of_range.mp4",
}
NO_FRAME = {
    "nasty/encrypted_vp9.webm",
    "nasty/made_header_only.mp4",
    "nasty/mp4parse_short-cenc.mp4",
}
OTHER_STREAM = {"real/nasa_multistream.mp4", "nasty/made_two_video_streams.mkv"}
BREAKS_OFF = {  # a player goes on where the probe of the collection stopped
    "nasty/decord_corrupted.mp4",
    "nasty/made_truncated_moov_first.mp4",
    "nasty/made_truncated_tail.mkv",
    "nasty/mp4parse_no_timescale.mp4",
}


def measured(clips):
    """Frames that decode, by the tables of the collection."""
    found, folder = {}, ""
    for line in (clips / "CLIPS.md").read_text(encoding="utf-8").splitlines():
        heading = re.match(r"## (\w+)/", line)
        folder = heading[1] if heading else folder
        fields = [field.strip() for field in line.strip("|").split("|")]
        if len(fields) >= 8 and fields[4].isdecimal():
            found[f"{folder}/{fields[0]}"] = int(fields[4])
    return found


@pytest.mark.shared
@pytest.mark.slow
def test_every_file_is_ok_or_failed_for_its_true_reason(shared, tmp_path):
    clips = shared / "clips"
    names = [
        f"{folder}/{path.name}"
        for folder in ("real", "codecs", "nasty")
        for path in (clips / folder).iterdir()
    ]
    everything = tmp_path / "all.csv"
    everything.write_text("path\n" + "".join(f'"{name}"\n' for name in names), encoding="utf-8")
    store = tmp_path / "store"
    command = ["prepare", clips, "--annotations", everything, "--out", store, "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "tatscli", *map(str, command)],
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 1, done.stderr
    summary = json.loads(done.stdout)
    reasons = {failure["id"]: failure["reason"] for failure in summary["failures"]}
    assert summary["ok"] + summary["failed"] == len(names)
    assert set(reasons) == NO_VIDEO | DOES_NOT_OPEN | NO_FRAME | {"nasty/made_empty.mp4"}
    assert all("no video stream (holds" in reasons[name] for name in NO_VIDEO)
    assert all("does not open as a video" in reasons[name] for name in DOES_NOT_OPEN)
    assert all("no frame can be decoded" in reasons[name] for name in NO_FRAME)
    assert reasons["nasty/encrypted_vp9.webm"].endswith("it is encrypted")
    assert reasons["nasty/made_empty.mp4"] == "the file is empty (0 bytes)"

    frames = measured(clips)
    rows = {row.id: row for row in Store.open(store).rows if row.status == "ok"}
    assert len(frames) > 130
    for name, row in rows.items():
        if name in BREAKS_OFF:
            assert row.warning and row.frames >= frames[name]
        elif name not in OTHER_STREAM:
            assert (row.frames, row.warning) == (frames[name], None), name
        assert (row.motion == "none") == (row.frames == 1), name
        if row.width >= 16 and row.frames > 1:
            assert row.moving >= row.frames - row.frames // 10 - 2, name
    assert rows["codecs/h264_interlaced.ts"].interlaced
    assert rows["nasty/made_anamorphic_sar.mp4"].width == 320
    assert rows["real/bbb_h264.mp4"].motion == "native"
    assert rows["codecs/vp9.webm"].motion == "reencode"
    verified = subprocess.run(
        [sys.executable, "-m", "tatscli", "store", "verify", str(store), "--decode"],
        capture_output=True,
    )
    assert verified.returncode == 0, verified.stderr
