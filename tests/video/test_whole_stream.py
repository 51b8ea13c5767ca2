"""A stream is judged by all of its packets and frames, not by its header and first frame."""

import numpy as np
import pytest

from tatscli.store.convert import Job, convert
from tatscli.store.schema import Settings
from tatscli.video.descriptions import unread_formats
from tatscli.video.frames import read_frames, stored_frames
from tatscli.video.interlace import is_combed
from tatscli.video.reader import VideoReader
from tests.clips import CLEAN_VECTORS, pan, render
from tests.mp4 import with_descriptions
from tests.streams import (
    X264_ONE_REFERENCE,
    X264_SEVERAL,
    coded_in_fields,
    encode,
    join,
    layered,
    soft_telecine,
)

SIZE = {"height": 96, "width": 128}
ENOUGH = 20_000_000


def panned(frames, step=(-3, 0)):
    return [picture.copy() for picture in pan(step, frames=frames, **SIZE)]


def woven(count, step=(4, 0)):
    """Pictures of two moments each, in the even and the odd lines."""
    moments = panned(2 * count, step)
    pictures = []
    for first, second in zip(moments[::2], moments[1::2], strict=True):
        pictures.append(first.copy())
        pictures[-1][1::2] = second[1::2]
    return pictures


def comb(picture):
    """How much each line differs from the mean of its neighbours."""
    lines = picture.astype(float)
    return np.abs(lines[1:-1] - (lines[:-2] + lines[2:]) / 2).mean()


def field(tmp_path, path, *, frames="jpeg"):
    """What a store would hold: the row's facts, the medians of x and which are known."""
    result = convert(Job(path, tmp_path / "spool", Settings(frames=frames)))
    assert result.reason is None, result.reason
    motion = np.fromfile(result.spool.motion, np.float16).reshape(result.spool.motion_shape)
    return result.facts, np.median(motion[:, 1:-1, 1:-1, 0], (1, 2)), result.spool.valid


def assert_pan(tmp_path, path, *, frames, keys=(0,), step=-3):
    """Every frame but the key frames moves by `step`, with pictures stored and without."""
    facts, x, valid = field(tmp_path, path)
    assert facts["frames"] == frames
    assert [index for index in range(frames) if not valid[index]] == [*keys]
    np.testing.assert_allclose(x[valid], step, atol=0.25)
    bare, x_bare, valid_bare = field(tmp_path, path, frames="none")
    assert (bare["motion"], bare["motion_why"]) == (facts["motion"], facts["motion_why"])
    np.testing.assert_array_equal(valid_bare, valid)
    np.testing.assert_allclose(x_bare, x, atol=0.02)
    return facts


@pytest.mark.parametrize(
    ("period", "suffix"), [(2, ".mp4"), (3, ".h264"), (4, ".mkv"), (4, ".ts"), (25, ".flv")]
)
def test_pictures_that_none_refers_to(tmp_path, period, suffix):
    """Temporal layers: the reference is not the frame before, though there is only one."""
    path = join(tmp_path / f"a{suffix}", "h264", [layered(panned(9), period)])
    facts = assert_pan(tmp_path, path, frames=9)
    assert facts["motion"] == "reencode" and "never referred to" in facts["motion_why"]


@pytest.mark.parametrize("suffix", [".h264", ".ts", ".mp4", ".mkv"])
@pytest.mark.parametrize("b_frames", [True, False])
def test_a_later_header_of_more_references(tmp_path, suffix, b_frames):
    pictures = panned(20)
    for index, picture in enumerate(pictures):  # so that older frames make better references
        if not b_frames and index % 2:
            picture[:48] = 255 - picture[:48]
    several = X264_SEVERAL if b_frames else {**X264_SEVERAL, "bf": "0"}
    parts = [encode(pictures[:8], "libx264", X264_ONE_REFERENCE)]
    parts.append(encode(pictures[8:], "libx264", several))
    facts, x, valid = field(tmp_path, join(tmp_path / f"a{suffix}", "h264", parts))
    assert facts["motion"] == "reencode"
    assert ": vectors may span several frames" in facts["motion_why"]
    assert facts["frames"] == 20 and set(np.flatnonzero(~valid)) <= {0, 8}
    if b_frames:
        np.testing.assert_allclose(x[valid], -3, atol=0.25)


def test_a_later_description_of_more_references(tmp_path):
    pictures = panned(20)
    one = render(tmp_path / "1.mp4", pictures[:8], options=CLEAN_VECTORS)
    two = render(tmp_path / "2.mp4", pictures[8:], options={"refs": "4", "bf": "0", "crf": "12"})
    path = with_descriptions(tmp_path / "both.mp4", [one, two])
    facts = assert_pan(tmp_path, path, frames=20, keys=(0, 8))
    assert facts["motion"] == "reencode" and facts["warning"] is None
    assert facts["motion_why"].startswith("4 reference frames")


def test_a_description_of_another_format_is_missed(tmp_path):
    """FFmpeg leaves such frames out in silence."""
    one = render(tmp_path / "1.mp4", panned(8), options=CLEAN_VECTORS)
    two = render(tmp_path / "2.mp4", panned(8), codec="mpeg4", bit_rate=ENOUGH)
    path = with_descriptions(tmp_path / "both.mp4", [one, two])
    facts, _, _ = field(tmp_path, path)
    assert facts["frames"] == 8
    why = "incomplete: FFmpeg reads only its frames in h264, not those in `mp4v`; 8 of 16 frames"
    assert facts["warning"] == why
    assert unread_formats(path, 2) == unread_formats(one, 1) == []
    data = path.read_bytes()
    path.write_bytes(data[: data.rindex(b"stsd") + 6])
    assert unread_formats(path, 1) == []


@pytest.mark.parametrize("suffix", [".avi", ".mp4", ".m4v"])
def test_b_frames_that_begin_midway(tmp_path, suffix):
    """FFmpeg exports only zeros for them, and gives the frame before them twice."""
    pictures = panned(20)
    parts = [
        encode(pictures[:8], "mpeg4", bit_rate=ENOUGH),
        encode(pictures[8:], "mpeg4", {"bf": "2"}, bit_rate=ENOUGH),
    ]
    path = join(tmp_path / f"a{suffix}", "m4v", parts)
    facts = assert_pan(tmp_path, path, frames=20, keys=(0, 8))
    why = "FFmpeg exports only zeros for B-frames of mpeg4, from a later frame on"
    assert facts["motion_why"] == why


@pytest.mark.parametrize("codec", ["mpeg2video", "mpeg4", "libx264"])
def test_fields_that_begin_midway(tmp_path, codec):
    options = X264_ONE_REFERENCE if codec == "libx264" else {}
    fields = {**options, "flags": "+ildct+ilme"}
    rate = None if codec == "libx264" else ENOUGH
    parts = [
        encode(panned(8), codec, options, bit_rate=rate),
        encode(woven(8), codec, fields, bit_rate=rate),
    ]
    raw = {"mpeg2video": "mpegvideo", "mpeg4": "m4v", "libx264": "h264"}[codec]
    path = join(tmp_path / "a.ts", raw, parts)
    facts, x, valid = field(tmp_path, path)
    assert (facts["frames"], facts["interlaced"]) == (16, True)
    why = "interlaced: vectors of fields, from a later frame on"
    assert (facts["motion"], facts["motion_why"]) == ("reencode", why)
    assert list(np.flatnonzero(~valid)) == [0, 8]
    np.testing.assert_allclose(x[1:8], -3, atol=0.25)
    np.testing.assert_allclose(x[9:], 8, atol=0.3)
    combs = [comb(frame.rgb()) for frame in read_frames(path)]
    assert max(combs[8:]) < 1.7 * max(combs[:8]) < comb(woven(1)[0]) / 3
    bare, x_bare, _ = field(tmp_path, path, frames="none")
    assert bare["interlaced"] and bare["motion_why"] == facts["motion_why"]
    np.testing.assert_allclose(x_bare, x, atol=0.02)


def test_progressive_frames_before_fields_stay_as_they_are(tmp_path):
    parts = [
        encode(panned(6), "mpeg2video", bit_rate=ENOUGH),
        encode(woven(6), "mpeg2video", {"flags": "+ildct+ilme"}, bit_rate=ENOUGH),
    ]
    whole = list(read_frames(join(tmp_path / "a.ts", "mpegvideo", parts)))
    first = list(read_frames(join(tmp_path / "b.ts", "mpegvideo", parts[:1])))
    for one, other in zip(first[:5], whole, strict=False):
        np.testing.assert_array_equal(one.rgb(), other.rgb())


@pytest.mark.parametrize(
    "pattern", ["1111111111", "1101001001", "0001001001", "0000000000"], ids=str
)
def test_frames_coded_whole_between_fields(tmp_path, pattern):
    """PAFF: a picture of two moments may be coded as one frame, and has no flag then."""
    pictures = [picture[..., 1] for picture in woven(10)]
    stream = coded_in_fields(pictures, [letter == "1" for letter in pattern])
    path = join(tmp_path / "a.ts", "h264", [stream])
    facts, _, _ = field(tmp_path, path)
    assert (facts["interlaced"], facts["motion"]) == (True, "reencode")
    combs = [comb(frame.rgb()[..., 1]) for frame in read_frames(path)]
    assert max(combs) < comb(pictures[0]) / 6


def test_frames_coded_whole_may_be_whole(tmp_path):
    """A stream that may hold fields need not."""
    pictures = [picture[..., 1] for picture in panned(6)]
    path = join(tmp_path / "a.ts", "h264", [coded_in_fields(pictures, [False] * 6)])
    assert field(tmp_path, path)[0]["interlaced"] is False
    with_fields = join(tmp_path / "b.ts", "h264", [coded_in_fields(pictures, [True, *[False] * 5])])
    shown = [[frame.rgb() for frame in read_frames(file)] for file in (path, with_fields)]
    np.testing.assert_array_equal(shown[0][1:], shown[1][1:])


@pytest.mark.parametrize("codec", ["mpeg2video", "libx264"])
def test_film_with_repeated_fields_is_progressive(tmp_path, codec):
    options = {"x264-params": "fake-interlaced=1:pic-struct=1", **X264_ONE_REFERENCE}
    film = encode(
        panned(12),
        codec,
        options if codec == "libx264" else None,
        bit_rate=None if codec == "libx264" else ENOUGH,
    )
    raw = "h264" if codec == "libx264" else "mpegvideo"
    path = join(tmp_path / "a.ts", raw, [soft_telecine(film)])
    keys = (0,) if codec == "libx264" else (0, 11)  # its encoder closes with one
    facts = assert_pan(tmp_path, path, frames=12, keys=keys)
    assert (facts["interlaced"], facts["motion"]) == (False, "native")
    plain = join(tmp_path / "b.ts", raw, [film])
    shown = [list(read_frames(file)) for file in (path, plain)]
    for one, other in zip(shown[0][1:], shown[1][1:], strict=True):
        np.testing.assert_array_equal(one.rgb(), other.rgb())
    # FFmpeg takes the colours of the first H.264 frame for those of fields.
    green = [frames[0].rgb()[..., 1].astype(float) for frames in shown]
    assert np.abs(green[0] - green[1]).mean() < 2


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt"),
    [("a.mkv", "mjpeg", "yuvj420p"), ("a.mov", "qtrle", "rgb24"), ("b.mov", "rawvideo", "uyvy422")],
)
def test_fields_of_which_only_the_container_tells(tmp_path, name, codec, pix_fmt):
    options = {"field_order": "tt"}
    path = render(tmp_path / name, woven(6), codec=codec, pix_fmt=pix_fmt, options=options)
    reader = VideoReader(path, motion="auto")
    frames = list(stored_frames(reader, short_side=None, motion_cell=16))
    assert reader.interlaced and len(frames) == 6
    assert max(comb(frame.rgb()) for frame in frames) < comb(woven(1)[0]) / 4


def test_fields_that_are_frames_of_their_own(tmp_path):
    """HEVC codes each field as a picture of half the height."""
    moments = [picture[index % 2 :: 2] for index, picture in enumerate(panned(12, (4, 0)))]
    options = {"x265-params": "interlace=tff:log-level=none", "crf": "12"}
    path = render(tmp_path / "a.mp4", moments, codec="libx265", fps=50, options=options)
    facts, x, _ = field(tmp_path, path)
    assert (facts["interlaced"], facts["aspect"]) == (True, 0.5)
    assert (facts["width"], facts["height"]) == (64, 48)  # the shape of the whole picture
    np.testing.assert_allclose(x[1:], 2, atol=0.25)


def test_each_reference_of_snow_counts_its_own_distance(tmp_path):
    pictures = panned(10)
    for picture in pictures[1::2]:
        picture[:48] = 255 - picture[:48]
    options = {"strict": "-2", "refs": "4"}
    path = render(tmp_path / "a.avi", pictures, codec="snow", options=options, bit_rate=ENOUGH)
    for frame in list(read_frames(path))[2:]:
        assert np.median(frame.motion[1:-1, 1:-1, 0]) == pytest.approx(-3, abs=0.25)
        assert np.median(frame.motion[1:3, 1:-1, 0]) == pytest.approx(-3, abs=0.25)


@pytest.mark.parametrize("frames", ["jpeg", "none"])
def test_a_clean_file_is_decoded_once(tmp_path, monkeypatch, frames):
    opened = []
    iterate = VideoReader.__iter__
    monkeypatch.setattr(
        VideoReader, "__iter__", lambda self: opened.append(self.path) or iterate(self)
    )
    path = render(tmp_path / "a.mp4", panned(6), options=CLEAN_VECTORS)
    assert field(tmp_path, path, frames=frames)[0]["motion"] == "native"
    assert len(opened) == 1


def test_combs_and_what_looks_like_them():
    import av

    def frame(picture):
        return av.VideoFrame.from_ndarray(picture, format="rgb24")

    noise = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    assert all(is_combed(frame(picture)) for picture in woven(3))
    assert not any(is_combed(frame(picture)) for picture in panned(3))
    assert not is_combed(frame(noise // 16))


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("h264_temporal_layers_l1t2.mp4", [(50, -3)]),
        ("h264_sps_changes_1_to_4_refs.ts", [(50, -3), (50, -3)]),
        ("mpeg2_progressive_then_interlaced.ts", [(29, -3), (30, -8)]),
    ],
)
def test_the_field_files_read_as_their_pans(shared, name, steps):
    path = shared / "clips" / "field" / name
    frames = list(read_frames(path))
    assert len(frames) == sum(count for count, _ in steps)
    expected = np.repeat([step for _, step in steps], [count for count, _ in steps])
    for frame, x in zip(frames, expected, strict=True):
        if frame.valid:
            assert np.median(frame.motion[1:-1, 1:-1, 0]) == pytest.approx(x, abs=0.25)
    assert sum(frame.valid for frame in frames) >= len(frames) - 6
    if len(steps) == 2 and steps[1][1] == -8:
        combs = [comb(frame.rgb()) for frame in frames]
        assert max(combs[29:]) < 3 * max(combs[:29])  # 14 times as much as it is coded
