"""Rendered content of known motion reads as its own speed, whatever codec it went through."""

from fractions import Fraction

import av
import numpy as np
import pytest

from tatscli.video.frames import read_frames, stored_frames
from tatscli.video.reader import VideoReader
from tests.clips import CLEAN_VECTORS, moving_patch, pan, render, static

ENOUGH = 20_000_000  # bits a second, so that encoders need not save on vectors
SHARP = {"crf": "16"}
X264, X265 = "libx264", {"crf": "16", "x265-params": "log-level=none"}
CLOCKWISE = (0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)


def read(path, *, short_side=256, cell=16, motion="auto", **options):
    reader = VideoReader(path, motion=motion)
    frames = list(stored_frames(reader, short_side=short_side, motion_cell=cell, **options))
    return reader.origin, frames


def errors(frames, step):
    """The distance to the true motion in each inner cell of frames with vectors."""
    field = np.stack([frame.motion for frame in frames if frame.valid])
    return np.abs(field[:, 1:-1, 1:-1] - np.asarray(step)).max(-1)


@pytest.mark.parametrize(
    ("name", "codec", "options", "bit_rate", "pix_fmt", "origin"),
    [
        ("clean.mp4", X264, CLEAN_VECTORS, None, "yuv420p", "native"),
        ("baseline.mp4", X264, {**SHARP, "profile": "baseline"}, None, "yuv420p", "reencode"),
        ("default.mp4", X264, SHARP, None, "yuv420p", "reencode"),
        (
            "open_gop.mp4",
            X264,
            {**SHARP, "bf": "8", "x264-params": "open-gop=1:keyint=12:b-adapt=0"},
            None,
            "yuv420p",
            "reencode",
        ),
        ("10_bit.mp4", X264, SHARP, None, "yuv420p10le", "reencode"),
        ("444.mp4", X264, SHARP, None, "yuv444p", "reencode"),
        (
            "interlaced.ts",
            X264,
            {**SHARP, "flags": "+ildct+ilme", "x264-params": "tff=1"},
            None,
            "yuv420p",
            "reencode",
        ),
        ("1.mpg", "mpeg1video", {"bf": "2"}, ENOUGH, "yuv420p", "native"),
        ("2.ts", "mpeg2video", {"bf": "2"}, ENOUGH, "yuv420p", "native"),
        ("2i.ts", "mpeg2video", {"flags": "+ildct+ilme"}, ENOUGH, "yuv420p", "reencode"),
        ("4.mp4", "mpeg4", {}, ENOUGH, "yuv420p", "native"),
        ("4b.mp4", "mpeg4", {"bf": "2"}, ENOUGH, "yuv420p", "reencode"),
        ("4q.mp4", "mpeg4", {"flags": "+qpel+mv4", "mbd": "rd"}, ENOUGH, "yuv420p", "native"),
        ("h263p.avi", "h263p", {}, ENOUGH, "yuv420p", "native"),
        ("1.flv", "flv", {}, ENOUGH, "yuv420p", "native"),
        ("2.wmv", "wmv2", {}, ENOUGH, "yuv420p", "native"),
        ("ms.avi", "msmpeg4", {}, ENOUGH, "yuv420p", "native"),
        ("snow.avi", "snow", {"strict": "-2"}, ENOUGH, "yuv420p", "native"),
        ("hevc.mp4", "libx265", X265, None, "yuv420p", "reencode"),
        ("9.webm", "libvpx-vp9", SHARP, None, "yuv420p", "reencode"),
        ("8.webm", "libvpx", {}, ENOUGH, "yuv420p", "reencode"),
        ("av1.mp4", "libsvtav1", SHARP, None, "yuv420p", "reencode"),
        ("m.avi", "mjpeg", {}, ENOUGH, "yuvj420p", "reencode"),
    ],
)
def test_a_pan_reads_as_its_own_speed(tmp_path, name, codec, options, bit_rate, pix_fmt, origin):
    path = render(
        tmp_path / name,
        pan((3, -2)),
        codec=codec,
        options=options,
        bit_rate=bit_rate,
        pix_fmt=pix_fmt,
    )
    chosen, frames = read(path)
    assert (chosen.kind, len(frames)) == (origin, 24), chosen.why
    assert sum(frame.valid for frame in frames) >= 21  # the others are key frames
    error = errors(frames, (3, -2))
    assert (error <= 0.25).mean() > 0.998  # now and then an encoder prefers another block
    assert error.mean() < 0.03


def test_h263_in_its_own_sizes_and_oblong_pixels(tmp_path):
    path = render(
        tmp_path / "a.3gp", pan((3, -2), height=144, width=176), codec="h263", bit_rate=ENOUGH
    )
    _, frames = read(path)
    assert (frames[0].width, frames[0].height) == (192, 144)  # pixels of 12 by 11
    assert (
        errors(frames, (3 * 12 / 11, -2)) <= 0.25
    ).mean() > 0.9  # H.263 stays inside the picture


@pytest.mark.parametrize("motion", ["native", "reencode"])
@pytest.mark.parametrize("short_side", [96, 60], ids=["half", "odd"])
def test_motion_is_in_pixels_of_the_stored_picture(tmp_path, motion, short_side):
    path = render(tmp_path / "pan.mp4", pan((6, -4)), options=CLEAN_VECTORS)
    _, frames = read(path, short_side=short_side, motion=motion)
    scale = np.array([frames[0].width / 256, frames[0].height / 192])
    error = errors(frames, scale * (6, -4))
    assert frames[0].height == short_side
    assert error.max() < (0.1 if motion == "native" else 0.3)


@pytest.mark.parametrize("motion", ["native", "reencode"])
@pytest.mark.parametrize("step", [(-4, 1), (2, 5), (0, 0)])
def test_a_pan_in_another_direction(tmp_path, step, motion):
    path = render(tmp_path / "pan.mp4", pan(step), options=CLEAN_VECTORS)
    _, frames = read(path, motion=motion)
    assert errors(frames, step).max() <= 0.25


@pytest.mark.parametrize(("motion", "cell"), [("native", 16), ("reencode", 16), ("reencode", 8)])
def test_a_moving_patch_moves_alone(tmp_path, motion, cell):
    path = render(
        tmp_path / "patch.mp4", moving_patch((4, 2), start=(32, 32)), options=CLEAN_VECTORS
    )
    _, frames = read(path, motion=motion, cell=cell)
    for index, frame in enumerate(frames):
        if frame.valid:
            left, top = 32 + 4 * index, 32 + 2 * index
            inside = frame.motion[
                -(-top // cell) + 1 : (top + 64) // cell - 1,
                -(-left // cell) + 1 : (left + 64) // cell - 1,
            ]
            assert inside.size and np.abs(inside - (4, 2)).max() <= 0.25
            right = -(-(left + 64) // cell) + 1
            assert np.abs(frame.motion[:, right:]).max(initial=0) <= 0.25


def test_native_vectors_of_h264_are_left_as_they_are(tmp_path):
    path = render(tmp_path / "pan.mp4", pan((3, -2)), options={"bf": "3", "crf": "12"})
    origin, frames = read(path, motion="native")
    means = [frame.motion[1:-1, 1:-1].mean((0, 1)) for frame in frames if frame.valid]
    assert (origin.kind, len(means)) == ("native", 23)
    for x, y in means:  # distances differ, since the reference is not always the frame before
        assert x > 2.5 and y < -1.5
        assert x / y == pytest.approx(-1.5, abs=0.15)
    assert max(x for x, _ in means) > 5


def test_frames_between_anchors_are_counted(tmp_path):
    """A P-frame behind two B-frames refers to three frames ago; its field is that of one step."""
    path = render(
        tmp_path / "a.ts", pan((3, -2)), codec="mpeg2video", options={"bf": "2"}, bit_rate=ENOUGH
    )
    items = list(VideoReader(path, motion="native"))
    assert [(item.past, item.future) for item in items[:7]] == [
        (1, 1),
        (1, 2),
        (2, 1),
        (3, 1),
        (1, 2),
        (2, 1),
        (3, 1),
    ]


@pytest.mark.parametrize("motion", ["native", "reencode"])
def test_a_still_picture_has_valid_zeros_and_the_first_frame_has_none(tmp_path, motion):
    path = render(tmp_path / "still.mp4", static(frames=8))
    _, frames = read(path, motion=motion)
    assert [frame.valid for frame in frames] == [False] + [True] * 7
    assert not any(frame.motion.any() for frame in frames)


@pytest.mark.parametrize(
    ("codec", "suffix", "options"),
    [("libx264", ".mp4", {"g": "1"}), ("mjpeg", ".avi", {}), ("libvpx-vp9", ".webm", {})],
)
@pytest.mark.parametrize("motion", ["native", "none"])
def test_without_vectors_no_frame_is_valid(tmp_path, codec, suffix, options, motion):
    pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    clip = pan(frames=4, height=64, width=64)
    path = render(tmp_path / f"clip{suffix}", clip, codec=codec, options=options, pix_fmt=pix_fmt)
    _, frames = read(path, motion=motion)
    assert len(frames) == 4
    assert not any(frame.valid or frame.motion.any() for frame in frames)


@pytest.mark.parametrize("motion", ["native", "reencode"])
def test_motion_turns_with_the_picture(tmp_path, motion):
    pytest.importorskip("av", minversion="18")
    plain = render(tmp_path / "plain.mp4", pan((3, -2)), options=CLEAN_VECTORS)
    turned = render(tmp_path / "turned.mp4", pan((3, -2)), options=CLEAN_VECTORS, matrix=CLOCKWISE)
    _, upright = read(plain, motion=motion)
    _, rotated = read(turned, motion=motion)
    for one, other in zip(upright, rotated, strict=True):
        assert (other.width, other.height) == (one.height, one.width)
        gray, turned_gray = (f.rgb().astype(float) @ (0.299, 0.587, 0.114) for f in (one, other))
        assert np.abs(np.rot90(gray, -1) - turned_gray).max() < 3
        if other.valid:
            assert np.abs(other.motion[1:-1, 1:-1] - (2, 3)).max() <= 0.25


def test_oblong_pixels_are_made_square_for_picture_and_motion(tmp_path):
    path = tmp_path / "wide.mp4"
    render(path, pan((3, -2)), options={**CLEAN_VECTORS, "x264-params": "sar=2/1"})
    for motion in ("native", "reencode"):
        _, frames = read(path, motion=motion, short_side=None)
        assert (frames[0].width, frames[0].height) == (512, 192)
        error = errors(frames, (6, -2))
        assert (error <= 0.25).mean() > 0.998 and error.max() < 0.5
    assert next(read_frames(path, short_side=96)).width == 256


def test_motion_alone_is_the_same_as_with_pictures(tmp_path):
    """Neither the loop filter nor the inverse transform is needed for native vectors."""
    path = render(tmp_path / "pan.mp4", pan((3, -2)), options=CLEAN_VECTORS)
    for motion in ("native", "reencode"):
        _, full = read(path, motion=motion)
        reader = VideoReader(path, motion=motion, pictures=False)
        bare = list(stored_frames(reader, short_side=256, motion_cell=16, pictures=False))
        assert all(frame.picture is None for frame in bare)
        for one, other in zip(full, bare, strict=True):
            np.testing.assert_array_equal(one.motion, other.motion)
            assert (one.time, one.valid, one.width) == (other.time, other.valid, other.width)


def flv_packets(pictures):
    """Encode pictures as Sorenson's H.263, one packet each."""
    encoder = av.CodecContext.create("flv", "w")
    encoder.width, encoder.height, encoder.pix_fmt = 256, 192, "yuv420p"
    encoder.time_base, encoder.gop_size, encoder.bit_rate = Fraction(1, 25), 1000, ENOUGH
    packets = []
    for index, picture in enumerate(pictures):
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
        frame.pts, frame.time_base = index, encoder.time_base
        packets += encoder.encode(frame)
    return [bytes(packet) for packet in [*packets, *encoder.encode(None)]]


def test_pictures_of_flv_that_none_refers_to(tmp_path):
    """Every other one is disposable, as Flash encoders made them; FFmpeg's makes none."""
    pictures = list(pan((3, -2), frames=12))
    kept, packets = pictures[::2], []
    for number, packet in enumerate(flv_packets(kept)):
        odd = flv_packets([*kept[: number + 1], pictures[2 * number + 1]])[-1]
        bits = f"{int.from_bytes(odd, 'big'):0{8 * len(odd)}b}"
        at = 33 + {0: 16, 1: 32}.get(int(bits[30:33], 2), 0)
        assert bits[at : at + 2] == "01"  # P
        bits = f"{bits[:at]}10{bits[at + 2 :]}"
        packets += [packet, int(bits, 2).to_bytes(len(odd), "big")]
    with av.open(str(tmp_path / "a.flv"), "w") as container:
        stream = container.add_stream("flv", rate=25)
        stream.width, stream.height, stream.pix_fmt = 256, 192, "yuv420p"
        for index, data in enumerate(packets):
            packet = av.Packet(data)
            packet.pts = packet.dts = index
            packet.time_base, packet.stream = Fraction(1, 25), stream
            packet.is_keyframe = index == 0
            container.mux(packet)
    origin, frames = read(tmp_path / "a.flv")
    assert origin.kind == "native"
    # FFmpeg drops a disposable picture right after the key frame: the next one is two steps away.
    assert [round(25 * frame.time) for frame in frames] == [0, *range(2, 12)]
    medians = [np.median(frame.motion, (0, 1)) for frame in frames[1:]]
    np.testing.assert_allclose(medians, [(6, -4), *[(3, -2)] * 9], atol=0.25)
