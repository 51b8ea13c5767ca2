"""The number of reference frames, as a stream's parameter set tells it."""

import pytest

from tatscli.video.decode import open_video
from tatscli.video.h264 import References
from tests.clips import pan, render


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
    with open_video(path) as (_, stream):
        assert References(bytes(stream.codec_context.extradata)).most == references


@pytest.mark.parametrize("data", [b"", b"\x01", b"\x01" * 9, b"\x00\x00\x01\x67", bytes(50)])
def test_a_header_that_breaks_off_says_nothing(data):
    assert References(data).most is None
