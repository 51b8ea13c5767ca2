"""What becomes of one video: segments, limits, joined fields, and what the row says of it."""

import io
import re

import av
import numpy as np
import pytest
from PIL import Image

from tatscli.store.convert import Job, convert
from tatscli.store.schema import Settings
from tatscli.video.decode import Limits, Segment
from tatscli.video.decoded import Decoded
from tatscli.video.interlace import deinterlaced
from tests.clips import CLEAN_VECTORS, moving_patch, pan, render, static

SMALL = {"frames": 50, "height": 64, "width": 96}


@pytest.fixture(scope="module")
def long_gop(tmp_path_factory):
    """Fifty frames at 10 a second, B-frames, a key frame every twenty; frame n has grey 5 n."""
    folder = tmp_path_factory.mktemp("clips")
    pictures = [np.full((64, 96, 3), 5 * n, np.uint8) for n in range(50)]
    return render(folder / "grey.mp4", pictures, fps=10, options={"g": "20", "bf": "2", "crf": "4"})


def converted(tmp_path, path, *, segment=None, limits=None, **settings):
    job = Job(path, tmp_path / "spool", Settings(**settings), segment, limits or Limits())
    result = convert(job)
    assert result.trouble is None
    return result


def pictures(spool):
    data = spool.jpeg.read_bytes()
    return [
        np.asarray(Image.open(io.BytesIO(data[start:end])).convert("RGB"))
        for start, end in zip(spool.offsets[:-1], spool.offsets[1:], strict=True)
    ]


def greys(spool):
    return [round(float(picture.mean()) / 5) for picture in pictures(spool)]


@pytest.mark.parametrize(
    ("segment", "frames"),
    [
        (Segment(0.0, 0.5), range(5)),
        (Segment(3.25, 3.95), range(33, 40)),
        (Segment(2.0, 2.1), [20]),
        (Segment(4.5), range(45, 50)),
        (Segment(1.5, 7.0), range(15, 50)),
        (Segment(7, 12, "frames"), range(7, 12)),
        (Segment(48, None, "frames"), [48, 49]),
    ],
    ids=str,
)
def test_a_segment_is_exactly_its_frames(tmp_path, long_gop, segment, frames):
    result = converted(tmp_path, long_gop, segment=segment)
    assert greys(result.spool) == list(frames)
    np.testing.assert_allclose(result.spool.times, np.array(list(frames)) / 10, atol=1e-6)
    assert result.facts["frames"] == len(frames)
    if segment.unit == "seconds":
        assert (result.facts["start"], result.facts["end"]) == (segment.start, segment.end)
    else:
        assert result.facts["start"] == pytest.approx(frames[0] / 10)
        assert result.facts["end"] == pytest.approx((frames[-1] + 1) / 10)


@pytest.mark.parametrize("suffix", [".ts", ".mkv", ".264", ".avi"])
def test_a_segment_in_any_container(tmp_path, suffix):
    """Whether there is an index, a wrong one or none: the frames are those of a full decode."""
    options = {"g": "15", "bf": "0", "crf": "4"}
    greys_in = [np.full((64, 96, 3), 5 * n, np.uint8) for n in range(50)]
    path = render(tmp_path / f"a{suffix}", greys_in, fps=10, options=options)
    whole = converted(tmp_path, path).spool
    start, end = float(whole.times[31]) - 0.01, float(whole.times[36]) - 0.01
    assert greys(converted(tmp_path, path, segment=Segment(start, end)).spool) == [*range(31, 36)]


def test_motion_at_the_start_of_a_segment_leads_from_the_frame_before(tmp_path):
    path = render(tmp_path / "pan.mp4", pan((3, -2), frames=40), options=CLEAN_VECTORS)
    result = converted(tmp_path, path, segment=Segment(0.8, 1.2))
    field = np.fromfile(result.spool.motion, np.float16).reshape(result.spool.motion_shape)
    assert result.spool.valid.all() and result.facts["frames"] == 10
    assert np.abs(field[0, 1:-1, 1:-1] - (3, -2)).max() < 0.1


@pytest.mark.parametrize("segment", [Segment(9.0, 10.0), Segment(90, 99, "frames")])
def test_a_segment_outside_the_video_is_a_failure(tmp_path, long_gop, segment):
    reason = converted(tmp_path, long_gop, segment=segment).reason
    assert reason == "no frame can be decoded: the segment lies outside"


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (Limits(pixels=6143), "too large: 96 x 64 pixels, more than `--max-pixels` 6143"),
        (Limits(frames=49), "too long: more than `--max-frames` 49"),
        (Limits(seconds=4.5), "too long: more than `--max-duration` 4.5 s"),
    ],
    ids=str,
)
def test_what_exceeds_a_limit_is_refused_before_decoding(
    tmp_path, long_gop, limits, reason, monkeypatch
):
    monkeypatch.setattr("tatscli.video.reader.VideoReader._decode", None)  # not even called
    assert converted(tmp_path, long_gop, limits=limits).reason == reason
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("limits", [Limits(frames=49), Limits(seconds=1.9)], ids=str)
def test_a_header_that_says_nothing_does_not_help(tmp_path, limits):
    path = render(tmp_path / "a.264", pan(**SMALL))  # neither a length nor a duration
    assert "too long" in converted(tmp_path, path, limits=limits).reason


def test_within_the_limits(tmp_path, long_gop):
    limits = Limits(pixels=6144, frames=50, seconds=5.0)
    assert converted(tmp_path, long_gop, limits=limits).facts["frames"] == 50
    long = Limits(frames=10, seconds=1.0)  # counts what is asked for, not what is in the file
    assert converted(tmp_path, long_gop, segment=Segment(2, 3), limits=long).reason is None


def test_a_picture_that_grows_beyond_the_limit_is_refused(tmp_path):
    small, large = tmp_path / "small.264", tmp_path / "large.264"
    render(small, static(frames=5, height=64, width=64))
    render(large, static(frames=5, height=256, width=256))
    both = tmp_path / "both.264"
    both.write_bytes(small.read_bytes() + large.read_bytes())
    result = converted(tmp_path, both, limits=Limits(pixels=64 * 64))
    assert result.reason == "too large: 256 x 256 pixels, more than `--max-pixels` 4096"


@pytest.fixture(scope="module")
def cut(tmp_path_factory):
    """Return a function that renders forty frames and cuts the file after a share of its bytes."""
    folder = tmp_path_factory.mktemp("cut")

    def make(suffix, share):
        pictures = pan((3, 1), frames=40, height=96, width=128)
        source = render(folder / f"whole{suffix}", pictures, fps=10, options={"g": "5"})
        path = folder / f"a {share}{suffix}"
        if suffix == ".mp4":  # with its index in front
            with (
                av.open(str(source)) as container,
                av.open(str(path), "w", options={"movflags": "faststart"}) as copy,
            ):
                stream = copy.add_stream_from_template(container.streams.video[0])
                for packet in container.demux(video=0):
                    if packet.size:
                        packet.stream = stream
                        copy.mux(packet)
        else:
            source.rename(path)
        data = path.read_bytes()
        path.write_bytes(data[: round(share * len(data))])
        return path

    return make


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi"])
def test_of_a_file_that_was_cut_it_says_how_much_is_there(tmp_path, cut, suffix):
    whole = converted(tmp_path, cut(suffix, 1))
    assert whole.facts["warning"] is None and whole.facts["frames"] == 40
    most = converted(tmp_path, cut(suffix, 0.75))
    assert f"{most.facts['frames']} of 40 frames" in most.facts["warning"]
    least = cut(suffix, 0.3)
    reason = converted(tmp_path, least).reason
    assert re.match(r"only \d+ of 40 frames; ", reason) and reason.endswith("`--min-share` is 0.5")
    assert not list(tmp_path.iterdir()) or not list(tmp_path.glob("spool.*"))
    kept = converted(tmp_path, least, limits=Limits(min_share=0))
    assert kept.reason is None and f"{kept.facts['frames']} of 40" in kept.facts["warning"]
    job = Job(least, None, Settings())
    assert convert(job).reason == reason  # `--check` says the same


@pytest.mark.parametrize(
    ("segment", "verdict"),
    [
        (Segment(1.0, 4.9), None),
        (Segment(1.0, 5.05), None),
        (Segment(3.0, 6.0), "20 of 30 frames: the video ends at 5.00 s"),
        (Segment(4.9, 9.0), "only 1 of 41 frames: the video ends at 5.00 s; `--min-share` is 0.5"),
        (Segment(45, 60, "frames"), "only 5 of 15 frames: the video ends at 5.00 s"),
    ],
    ids=str,
)
def test_of_a_segment_beyond_the_end_it_says_how_much_is_there(
    tmp_path, long_gop, segment, verdict
):
    result = converted(tmp_path, long_gop, segment=segment)
    if verdict is None:
        assert result.facts["warning"] is None
    elif verdict.startswith("only"):
        assert result.reason.startswith(verdict)
    else:
        assert result.facts["warning"] == verdict


def test_frames_that_are_far_apart_are_not_missing(tmp_path):
    """A screen recording: a frame when something changes."""
    ticks = [0, 1, 2, 3, 40, 41, 42, 80]
    path = render(
        tmp_path / "a.mp4",
        pan(frames=8, height=64, width=96),
        fps=10,
        pts=ticks,
        options={"g": "2"},
    )
    for segment in (None, Segment(0, 3), Segment(0, 1), Segment(2.5, 6)):
        result = converted(tmp_path, path, segment=segment)
        assert (result.reason, result.facts["warning"]) == (None, None), segment


def test_fields_are_joined(tmp_path):
    """A patch that moves between the fields leaves a comb in every other line; not in the store."""

    def woven(count=20):
        moments = list(moving_patch((6, 0), frames=2 * count, height=96, width=384, start=(16, 16)))
        for first, second in zip(moments[::2], moments[1::2], strict=True):
            picture = first.copy()
            picture[1::2] = second[1::2]
            yield picture

    path = render(
        tmp_path / "a.ts",
        woven(),
        options={"crf": "4", "flags": "+ildct+ilme", "x264-params": "tff=1"},
    )
    result = converted(tmp_path, path, quality=2)
    found = np.stack(pictures(result.spool)).astype(float).mean(-1)
    raw = np.stack(list(woven())).astype(float).mean(-1)

    def comb(video):
        return np.abs(video[:, 1:-1] - (video[:, :-2] + video[:, 2:]) / 2).mean()

    assert len(found) == 20 and result.facts["interlaced"]
    assert result.facts["motion"] == "reencode"
    assert comb(found) < 0.6 * comb(raw)


@pytest.mark.parametrize(("start", "end", "expected"), [(0, 1, 0), (1, 2, 10), (3, 4, 30)])
def test_segments_count_from_the_beginning_as_players_do(tmp_path, start, end, expected):
    """The clock of a transport stream begins somewhere."""
    pictures = pan((1, 1), frames=50, height=64, width=96)
    options = {"g": "20", "bf": "0"}
    path = render(tmp_path / "a.ts", pictures, fps=10, options=options, pts=range(37, 87))
    whole = converted(tmp_path, path).spool.times
    assert whole[0] > 1
    result = converted(tmp_path, path, segment=Segment(start, end))
    np.testing.assert_array_equal(result.spool.times, whole[expected : expected + 10])
    frames = Segment(expected, expected + 10, "frames")
    facts = converted(tmp_path, path, segment=frames).facts
    assert (facts["start"], facts["end"]) == pytest.approx((start, end), abs=1e-3)
    outside = converted(tmp_path, path, segment=Segment(7, 8))
    assert outside.reason == "no frame can be decoded: the segment lies outside"


@pytest.mark.parametrize("frames", ["jpeg", "none"])
def test_fields_of_which_only_the_pictures_tell(tmp_path, frames):
    """Headers of MPEG-4 part 2 do not say it."""
    options = {"flags": "+ildct+ilme"}
    path = render(tmp_path / "a.avi", pan(frames=8), codec="mpeg4", options=options)
    result = converted(tmp_path, path, frames=frames)
    assert result.facts["interlaced"] and result.facts["frames"] == 8
    assert (result.facts["motion"], result.facts["motion_why"][:10]) == ("reencode", "interlaced")
    assert converted(tmp_path, path, motion="native").facts["motion"] == "native"


@pytest.mark.parametrize("frames", ["jpeg", "none"])
def test_a_file_of_key_frames_gets_motion_by_encoding(tmp_path, frames):
    options = {"g": "1", "refs": "1", "crf": "12"}
    path = render(tmp_path / "a.mp4", pan((3, -2), frames=10), options=options)
    result = converted(tmp_path, path, frames=frames)
    assert (result.facts["motion"], result.facts["moving"]) == ("reencode", 9)
    assert converted(tmp_path, path, motion="native").facts["motion"] == "none"


def test_one_frame_has_no_motion_and_says_so(tmp_path):
    path = render(tmp_path / "a.mp4", pan(frames=1))
    facts = converted(tmp_path, path).facts
    assert (facts["frames"], facts["motion"], facts["moving"]) == (1, "none", 0)
    assert facts["motion_why"]


def test_the_row_says_what_the_picture_was(tmp_path):
    path = render(
        tmp_path / "a.mkv",
        pan(frames=6, height=60, width=80),
        fps=12,
        options={"x264-params": "sar=3/2"},
        pix_fmt="yuv422p10le",
    )
    facts = converted(tmp_path, path, short_side=30).facts
    expected = {
        "bytes": path.stat().st_size,
        "codec": "h264",
        "pixel_format": "yuv422p10le",
        "interlaced": False,
        "aspect": 1.5,
        "fps": pytest.approx(12, rel=0.01),
        "frames": 6,
        "source_width": 80,
        "source_height": 60,
        "width": 60,
        "height": 30,
        "warning": None,
    }
    assert {key: facts[key] for key in expected} == expected
    assert len(facts["checksum"]) == 32


def test_camera_motion_is_taken_out_before_it_is_stored(tmp_path):
    path = render(tmp_path / "pan.mp4", pan((3, -2), frames=10), options=CLEAN_VECTORS)
    spool = converted(tmp_path, path, camera="median").spool
    field = np.fromfile(spool.motion, np.float16).reshape(spool.motion_shape)
    assert np.abs(field[:, 1:-1, 1:-1]).max() < 0.2 and spool.valid.sum() == 9


def test_cover_art_does_not_hide_the_video(tmp_path):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("mjpeg", rate=25), container.add_stream("libx264", rate=25)]
        for stream, side, pix_fmt in zip(streams, (256, 64), ("yuvj420p", "yuv420p"), strict=True):
            stream.width = stream.height = side
            stream.pix_fmt = pix_fmt
        streams[0].disposition = av.stream.Disposition.attached_pic
        for stream, count in zip(streams, (1, 8), strict=True):
            for index in range(count):
                image = np.full((stream.height, stream.width, 3), 100, np.uint8)
                frame = av.VideoFrame.from_ndarray(image, format="rgb24")
                frame.pts = index
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
    facts = converted(tmp_path, path).facts
    assert (facts["codec"], facts["frames"], facts["width"]) == ("h264", 8, 64)


def test_pictures_too_small_for_fields_pass_through():
    items = [
        Decoded(0.0, av.VideoFrame(2, 2, "yuv420p")),
        Decoded(1.0, av.VideoFrame(8, 3, "gray")),
    ]
    assert [picture for _, picture in deinterlaced(items)] == [item.frame for item in items]
