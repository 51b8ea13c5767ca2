"""Which files keep their own vectors: what their headers say of references."""

import pytest

from tatscli.video.decode import open_video
from tatscli.video.origin import choose_origin, h264_reference_frames
from tests.clips import pan, render


def header(path):
    with open_video(path) as (_, stream):
        return bytes(stream.codec_context.extradata), choose_origin(stream, "auto")


@pytest.mark.parametrize("references", [1, 2, 5])
@pytest.mark.parametrize(
    ("suffix", "pix_fmt", "extra"),
    [
        (".mp4", "yuv420p", {}),
        (".mp4", "yuv420p", {"profile": "baseline"}),
        (".ts", "yuv420p", {}),  # start codes instead of lengths
        (".mkv", "yuv444p10le", {"x264-params": "cqm=jvt"}),  # scaling lists in the header
        (".264", "yuv422p", {}),
    ],
)
def test_reference_frames_are_read_from_the_parameter_set(
    tmp_path, references, suffix, pix_fmt, extra
):
    params = [f"ref={references}", "bframes=0", *filter(None, [extra.get("x264-params")])]
    path = render(
        tmp_path / f"a{suffix}",
        pan(frames=8, height=64, width=96),
        options={**extra, "x264-params": ":".join(params)},
        pix_fmt=pix_fmt,
    )
    data, origin = header(path)
    assert h264_reference_frames(data) == references
    assert origin.kind == ("native" if references == 1 else "reencode")
    assert str(references) in origin.why or "one reference" in origin.why


@pytest.mark.parametrize("data", [b"", b"\x01", b"\x01" * 9, b"\x00\x00\x01\x67", bytes(50)])
def test_a_header_that_breaks_off_says_nothing(data):
    assert h264_reference_frames(data) is None
