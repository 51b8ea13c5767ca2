"""`read_vectors`: every row, as the decoder exports it, at full speed and by another extractor."""

import av
import numpy as np
import pytest

from tatscli.video.motion import COLUMNS, read_vectors
from tests.clips import CLEAN_VECTORS, pan, render

CODECS = [
    ("clean.mp4", "libx264", CLEAN_VECTORS, None),
    ("default.mp4", "libx264", {"crf": "20"}, None),
    ("pyramid.mkv", "libx264", {"bf": "8", "x264-params": "b-pyramid=normal:b-adapt=0"}, None),
    ("cavlc.mp4", "libx264", {"profile": "baseline"}, None),
    ("interlaced.ts", "libx264", {"flags": "+ildct+ilme"}, None),
    ("1.mpg", "mpeg1video", {"bf": "2"}, 2_000_000),
    ("2.ts", "mpeg2video", {"bf": "2"}, 2_000_000),
    ("4.avi", "mpeg4", {"flags": "+qpel+mv4", "mbd": "rd"}, 2_000_000),
    ("1.flv", "flv", {}, 2_000_000),
    ("2.wmv", "wmv2", {}, 2_000_000),
    ("9.webm", "libvpx-vp9", {}, None),
]


def decoded(path):
    """Every row of every frame by an ordinary decode, with the loop filter and all."""
    found = []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type, stream.thread_count = "SLICE", 1
        stream.codec_context.options = {"flags2": "+export_mvs"}
        for frame in container.decode(stream):
            vectors = frame.side_data.get("MOTION_VECTORS")
            rows = [] if vectors is None else vectors.to_ndarray()[list(COLUMNS)].tolist()
            found.append((av.video.frame.PictureType(frame.pict_type).name, rows))
    return found


@pytest.mark.parametrize(("name", "codec", "options", "bit_rate"), CODECS)
def test_the_fast_way_finds_the_same_rows(tmp_path, name, codec, options, bit_rate):
    clip = pan((5, 3), frames=20, height=96, width=128)
    path = render(tmp_path / name, clip, codec=codec, options=options, bit_rate=bit_rate)
    expected = decoded(path)
    found = list(read_vectors(path))
    assert [frame.type for frame in found] == [kind for kind, _ in expected]
    for frame, (_, rows) in zip(found, expected, strict=True):
        assert frame.rows.dtype == np.int32 and frame.rows.shape == (len(rows), 10)
        assert frame.rows.tolist() == [list(row) for row in rows]
    assert (sum(len(rows) for _, rows in expected) > 0) == (codec != "libvpx-vp9")


def test_times_rise_from_the_first_presentation_time(tmp_path):
    path = render(tmp_path / "a.mp4", pan(frames=5, height=64, width=64), pts=[4, 5, 9, 10, 20])
    times = [frame.time for frame in read_vectors(path)]
    np.testing.assert_allclose(np.diff(times), np.array([1, 4, 1, 10]) / 25, atol=1e-6)


@pytest.mark.shared
@pytest.mark.parametrize("name", ["bbb_h264.mp4", "bbb_mpeg4_part2.mp4", "bbb_annexb.264"])
def test_rows_agree_with_another_extractor(shared, name):
    extractor = pytest.importorskip("mvextractor.videocap", reason="no motion-vector-extractor")
    capture = extractor.VideoCap()
    assert capture.open(str(shared / "clips" / "real" / name))
    for ours in read_vectors(shared / "clips" / "real" / name):
        got, _, rows, kind, *_ = capture.read()
        assert got and kind == ours.type
        np.testing.assert_array_equal(ours.rows, np.asarray(rows).reshape(-1, 10))
    assert not capture.read()[0]
