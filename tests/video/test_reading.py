"""Files whose containers mislead: what is opened, and when frames are shown."""

from fractions import Fraction

import av
import numpy as np
import pytest

from tatscli.errors import DecodeError
from tatscli.video.decode import Segment
from tatscli.video.frames import read_frames, stored_frames
from tatscli.video.reader import VideoReader
from tests.clips import CLEAN_VECTORS, pan, render, static
from tests.movies import add_to_description, clean_aperture, refer_to

SMALL = {"height": 64, "width": 96}


def remux(source, target, change):
    """Copy packets into another container, after a change of each with its index."""
    with av.open(str(source)) as reader, av.open(str(target), "w") as writer:
        stream = writer.add_stream_from_template(reader.streams.video[0])
        for index, packet in enumerate(reader.demux(video=0)):
            if packet.dts is not None:
                change(index, packet)
                packet.stream = stream
                writer.mux(packet)
    return target


def read(path, **options):
    """Return the reader and the times of all frames."""
    reader = VideoReader(path, **options)
    return reader, np.array([item.time for item in reader])


def test_one_wrong_timestamp_moves_no_other_frame(tmp_path):
    source = render(tmp_path / "a.mp4", pan(frames=50, **SMALL), options={"bf": "0"})

    def late(index, packet):
        packet.pts += round(300 / packet.time_base) * (index == 20)

    reader, times = read(remux(source, tmp_path / "b.mkv", late))
    np.testing.assert_allclose(times, np.arange(50) / 25, atol=1e-3)
    assert reader.problem == "1 timestamp was wrong and replaced (frame 20: 300.8 s became 0.8 s)"


B_FRAMES = {"bf": "3", "b_strategy": "0", "g": "25"}


@pytest.mark.parametrize("ticks", [1, 2])
@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_avi_tells_when_frames_are_decoded_and_no_more(tmp_path, codec, ticks):
    """With two ticks a frame every second chunk is empty, and the header's rate is wrong."""
    for frames in (50, 51, 52):
        path = render(
            tmp_path / f"{frames}.avi",
            pan(frames=frames, **SMALL),
            codec=codec,
            options=B_FRAMES,
            fps=25 * ticks,
            pts=range(0, frames * ticks, ticks),
        )
        reader, times = read(path)
        assert len(times) == frames
        np.testing.assert_allclose(np.diff(times), 0.04, atol=1e-9)
        assert reader.problem is None


def test_timestamps_of_decoding_are_put_in_order(tmp_path):
    """Careless muxers write no others, in containers that could hold both."""
    source = render(tmp_path / "a.mp4", pan(frames=51, **SMALL), options=B_FRAMES)

    def forget(index, packet):
        packet.pts = packet.dts

    reader, times = read(remux(source, tmp_path / "b.mkv", forget))
    np.testing.assert_allclose(np.diff(times), 0.04, atol=2e-3)
    assert len(times) == 51
    assert reader.problem is None


@pytest.mark.parametrize("fps", [50, Fraction(30000, 1001), 12])
@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("raw.h264", "libx264", {}),
        ("raw.h265", "libx265", {"x265-params": "log-level=none"}),
        ("raw.m2v", "mpeg2video", {}),
    ],
)
def test_a_raw_stream_has_the_rate_it_tells(tmp_path, name, codec, options, fps):
    if codec == "mpeg2video" and fps == 12:
        fps = 24  # its header counts only the usual ones
    path = render(tmp_path / name, static(frames=12), codec=codec, fps=fps, options=options)
    reader, times = read(path)
    np.testing.assert_allclose(np.diff(times), 1 / float(fps), rtol=1e-4)
    assert reader.problem is None


def test_a_raw_stream_without_a_rate_says_so(tmp_path):
    path = render(tmp_path / "a.mjpeg", static(frames=3), codec="mjpeg", pix_fmt="yuvj420p", fps=50)
    reader, times = read(path)
    np.testing.assert_allclose(np.diff(times), 0.04)
    assert reader.problem == "the stream tells no frame rate, 25 fps were assumed"


def with_sound(path, frames):
    """Encode pictures, and after them two seconds of silence."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("mpeg2video", rate=25)
        video.width, video.height, video.pix_fmt = SMALL["width"], SMALL["height"], "yuv420p"
        audio = container.add_stream("mp2", rate=48000, layout="stereo")
        for picture in frames:
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(video.encode())
        for index in range(83):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 2304), np.int16), "s16", "stereo")
            frame.sample_rate, frame.pts, frame.time_base = 48000, index * 1152, Fraction(1, 48000)
            container.mux(audio.encode(frame))
        container.mux(audio.encode())
    return path


@pytest.mark.parametrize("suffix", [".mpg", ".ts"])
def test_sound_that_begins_midway_and_time_that_begins_again(tmp_path, suffix):
    silent = render(tmp_path / f"a{suffix}", pan(frames=50, **SMALL), codec="mpeg2video")
    loud = with_sound(tmp_path / f"b{suffix}", pan((2, 1), frames=50, **SMALL))
    both = tmp_path / f"both{suffix}"
    both.write_bytes(silent.read_bytes() + loud.read_bytes())
    reader, times = read(both)
    assert len(times) == 100
    np.testing.assert_allclose(np.diff(times), 0.04, atol=1e-4)
    assert reader.problem is None
    pictures = [item.frame.to_ndarray(format="gray") for item in VideoReader(both)]
    part = VideoReader(both, segment=Segment(2.4, 2.8))  # of the second half, not the first
    assert [round((item.time - part.begin - 2.4) / 0.04) for item in part] == list(range(10))
    for item, expected in zip(part, pictures[60:70], strict=True):
        np.testing.assert_array_equal(item.frame.to_ndarray(format="gray"), expected)


def test_a_counter_that_wraps_goes_on(tmp_path):
    wrap = 2**33 / 90000
    ticks = range(round((wrap - 1) * 25), round((wrap - 1) * 25) + 50)
    path = render(tmp_path / "a.ts", pan(frames=50, **SMALL), pts=ticks)
    reader, times = read(path)
    np.testing.assert_allclose(np.diff(times), 0.04, atol=1e-4)
    assert len(read(path, segment=Segment(0.5, 1.5))[1]) == 25
    assert reader.problem is None


OTHERS = {
    "list of files": b"ffconcat version 1.0\nfile 'clip.mp4'\nduration 2.0\n",
    "play list": b"#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nclip.ts\n",
    "session": b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n",
    "manifest": b'<?xml version="1.0"?>\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011"></MPD>\n',
    "subtitles": b"1\n00:00:00,000 --> 00:00:01,000\nHello\n\n",
}


@pytest.mark.parametrize("kind", OTHERS)
def test_what_names_other_files_is_not_opened(tmp_path, kind):
    for suffix in (".mp4", ".ts"):
        render(tmp_path / f"clip{suffix}", static(frames=5))
    path = tmp_path / "text.mp4"
    path.write_bytes(OTHERS[kind])
    with pytest.raises(DecodeError, match=r"not a video container|does not open as a video"):
        list(read_frames(path))


@pytest.mark.parametrize(("suffix", "codec"), [(".png", "png"), (".jpg", "mjpeg")])
def test_an_image_is_no_video(tmp_path, suffix, codec):
    path = render(
        tmp_path / f"a{suffix}",
        static(frames=1),
        codec=codec,
        pix_fmt="rgb24" if codec == "png" else "yuvj420p",
    )
    path = path.rename(tmp_path / "image.mp4")
    with pytest.raises(
        DecodeError, match=r"not a video container: FFmpeg identifies it as `[a-z]+_pipe`"
    ):
        list(read_frames(path))


@pytest.mark.parametrize(
    "name", ["concat:clip.mp4", "clip%01d.mp4", "subfile,,start,0,end,0,,:x.mp4"]
)
def test_a_name_is_only_a_name(tmp_path, name):
    content = render(tmp_path / "clip.mp4", static(frames=5))
    render(tmp_path / "clip1.mp4", static(frames=9))
    path = tmp_path / name
    with pytest.raises(DecodeError, match="cannot be read: no such file"):
        list(read_frames(path))
    path.write_bytes(content.read_bytes())
    assert len(list(read_frames(path))) == 5


def test_media_in_another_file_are_not_read(tmp_path):
    render(tmp_path / "clip.mp4", static(frames=5))
    path = refer_to("clip.mp4", tmp_path / "clip.mp4", tmp_path / "reference.mov")
    with av.open(str(path), options={"enable_drefs": "1"}) as container:
        assert sum(1 for _ in container.decode(video=0)) == 5
    with pytest.raises(DecodeError, match="no frame can be decoded: there is no picture data"):
        list(read_frames(path))


def framed(path):
    """Render a moving texture between black bars, 16 pixels above and 32 below."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options=CLEAN_VECTORS)
        stream.width, stream.height, stream.pix_fmt = 128, 144, "yuv420p"
        stream.codec_context.colorspace = 6  # Matroska has it in the place where a crop would be
        stream.codec_context.color_range = 1
        for picture in pan((3, 0), frames=8, height=96, width=128):
            bars = np.pad(picture, [(16, 32), (0, 0), (0, 0)])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(bars, format="rgb24")))
        container.mux(stream.encode())
    return path


def crop_in_matroska(path, top, bottom):
    """Write a crop over the description of the colours."""
    data = bytearray(path.read_bytes())
    at = data.index(b"\x55\xb0")
    length = 3 + (data[at + 2] & 0x7F)
    crop = b"\x54\xbb\x81" + bytes([top]) + b"\x54\xaa\x81" + bytes([bottom])
    rest = length - len(crop) - 2
    data[at : at + length] = crop + bytes([0xEC, 0x80 | rest]) + bytes(rest)
    path.write_bytes(data)


@pytest.mark.parametrize("motion", ["native", "reencode"])
@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_what_the_container_does_not_show_is_not_stored(tmp_path, suffix, motion):
    if suffix == ".mkv":
        path = framed(tmp_path / "a.mkv")
        crop_in_matroska(path, 16, 32)
    else:
        path = framed(tmp_path / "a.mp4")
        add_to_description(path, clean_aperture(128, 96, down=-8))
    reader = VideoReader(path, motion=motion)
    found = list(stored_frames(reader, short_side=None, motion_cell=16))
    assert (reader.size, reader.aspect) == ((128, 96), 1)
    assert {(frame.width, frame.height) for frame in found} == {(128, 96)}
    for frame, picture in zip(found, pan((3, 0), frames=8, height=96, width=128), strict=True):
        assert np.abs(frame.rgb().astype(int) - picture)[8:-8].mean() < 6
        if frame.valid:
            assert frame.motion.shape == (6, 8, 2)
            np.testing.assert_allclose(np.median(frame.motion, (0, 1)), (3, 0), atol=0.1)
            assert np.abs(frame.motion[:, 1:] - (3, 0)).max() < 1  # no cell of a black bar


def test_a_crop_larger_than_the_picture_is_none(tmp_path):
    path = framed(tmp_path / "a.mp4")
    add_to_description(path, clean_aperture(200, 100))
    assert next(read_frames(path)).width == 128


def test_a_turned_picture_is_cropped_as_it_is_coded(tmp_path):
    turn = (0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    path = render(tmp_path / "a.mp4", static(frames=2, height=96, width=128), matrix=turn)
    add_to_description(path, clean_aperture(100, 60))
    frame = next(read_frames(path))
    assert (frame.width, frame.height) == (60, 100)


@pytest.mark.shared
def test_files_from_the_field(shared):
    field = shared / "clips" / "field"
    right = {
        "audio_begins_midway.mpg": (750, 0.04, None),
        "h264_bframes_in_avi_rate50.avi": (50, 0.04, None),
        "one_wrong_pts.mkv": (50, 0.04, "1 timestamp was wrong and replaced"),
        "raw_vui_50fps.h264": (26, 0.02, None),
    }
    for name, (frames, step, problem) in right.items():
        reader, times = read(field / name)
        assert len(times) == frames, name
        np.testing.assert_allclose(np.diff(times), step, atol=1e-4, err_msg=name)
        assert problem is reader.problem is None or problem in reader.problem, name
    with pytest.raises(
        DecodeError, match="not a video container: FFmpeg identifies it as `concat`"
    ):
        read(field / "ffconcat_named.mp4")
    frame = next(read_frames(field / "mkv_pixelcrop.mkv"))
    assert (frame.width, frame.height) == (320, 180)
    _, times = read(shared / "clips" / "nasty" / "avi_large_length.avi")
    np.testing.assert_allclose(np.diff(times), 1 / 30, atol=1e-4)
