"""Stored frames: size, colour, times, and that a video is never read whole."""

import ctypes
import gc
import io
import os
import platform
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from tatscli.errors import DecodeError
from tatscli.video import frames as frames_module
from tatscli.video.decode import open_video
from tatscli.video.frames import read_frames, stored_frames
from tatscli.video.picture import stored_size
from tatscli.video.reader import VideoReader
from tests.clips import pan, render, static, texture

EXACT = 0x2 | 0x2000 | 0x40000  # SWS_BILINEAR, SWS_FULL_CHR_H_INT, SWS_ACCURATE_RND


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    return 10 * np.log10(255**2 / max(1e-9, np.mean((one.astype(float) - other) ** 2)))


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((1280, 720), (455, 256)),
        ((720, 1280), (256, 455)),
        ((320, 240), (320, 240)),
        ((640, 16), (640, 16)),
        ((257, 257), (256, 256)),
        ((1, 1), (1, 1)),
    ],
)
def test_size_keeps_the_shape_and_never_grows(size, expected):
    assert stored_size(*size, 256) == expected
    assert stored_size(*size, None) == size


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuvj420p", "yuv444p", "yuv420p10le", "gray"])
def test_colours_are_those_of_ffmpeg(tmp_path, pix_fmt):
    path = render(tmp_path / "clip.mp4", static(frames=2), options={"crf": "5"}, pix_fmt=pix_fmt)
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
    expected = frame.to_ndarray(format="rgb24", interpolation=EXACT)
    frame = next(read_frames(path))
    decoded = np.asarray(Image.open(io.BytesIO(frame.jpeg(2))).convert("RGB"))
    assert psnr(expected, frame.rgb()) > 33
    assert psnr(expected, decoded) > 33
    assert abs(expected.mean((0, 1)) - decoded.mean((0, 1))).max() < 2.5


def test_bt709_is_converted_to_what_jpeg_means(tmp_path):
    flat = np.zeros((64, 64, 3), np.uint8)
    flat[:] = (200, 40, 60)
    path = tmp_path / "hd.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(
            "libx264", rate=25, options={"crf": "1", "colorspace": "bt709"}
        )
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv444p"
        frame = av.VideoFrame.from_ndarray(flat, format="rgb24")
        frame = frame.reformat(format="yuv444p", dst_colorspace="ITU709", dst_color_range="MPEG")
        stream.codec_context.colorspace = 1
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with Image.open(io.BytesIO(next(read_frames(path)).jpeg(2))) as image:
        mean = np.asarray(image.convert("RGB")).mean((0, 1))
    np.testing.assert_allclose(mean, (200, 40, 60), atol=3)


@pytest.mark.parametrize("size", [(321, 179), (65, 33), (1, 1), (2, 3)])
def test_odd_sizes_stay_and_every_jpeg_reader_agrees(tmp_path, size):
    import torch
    from torchvision.io import decode_jpeg

    width, height = size
    clip = (texture(height, width) for _ in range(2))
    path = render(tmp_path / "odd.mkv", clip, codec="ffv1", pix_fmt="yuv444p")
    frame = next(read_frames(path))
    assert (frame.width, frame.height) == size
    data = frame.jpeg()
    assert Image.open(io.BytesIO(data)).size == size
    image = decode_jpeg(torch.from_numpy(np.frombuffer(data, np.uint8).copy()))
    assert image.shape == (3, height, width)


def test_scaling_matches_antialiased_resizing(tmp_path):
    path = render(tmp_path / "big.mkv", [texture(360, 480)], codec="ffv1", pix_fmt="yuv444p")
    frame = next(read_frames(path, short_side=120))
    expected = Image.fromarray(texture(360, 480)).resize((160, 120), Image.Resampling.BILINEAR)
    shown = Image.fromarray(frame.rgb())  # brightness only: colours are stored at half the size
    assert psnr(np.asarray(expected.convert("L")), np.asarray(shown.convert("L"))) > 40


def test_quality_trades_bytes_for_fidelity(tmp_path):
    frame = next(read_frames(render(tmp_path / "a.mp4", static(frames=1), options={"crf": "5"})))
    sizes = [len(frame.jpeg(quality)) for quality in (2, 3, 8, 31)]
    assert sizes == sorted(sizes, reverse=True)
    assert frame.jpeg(3) == frame.jpeg(3)


def test_presentation_times_are_kept(tmp_path):
    ticks = [10, 11, 13, 17, 18]
    path = render(tmp_path / "vfr.mkv", static(frames=5), fps=25, pts=ticks)
    times = [frame.time for frame in read_frames(path)]
    np.testing.assert_allclose(
        times, np.array(ticks) / 25, atol=2e-3
    )  # Matroska counts milliseconds


def test_streams_without_times_get_them_from_their_rate(tmp_path):
    path = render(tmp_path / "raw.h264", static(frames=5), fps=Fraction(25), options={"bf": "0"})
    np.testing.assert_allclose([f.time for f in read_frames(path)], np.arange(5) / 25, atol=1e-9)


def test_a_clip_is_read_as_it_is_asked_for(tmp_path, monkeypatch):
    path = render(tmp_path / "long.mp4", pan((1, 0), frames=60, height=64, width=64))
    scaled = []

    class Counted(frames_module.Scaler):
        def __call__(self, frame):
            scaled.append(frame)
            return super().__call__(frame)

    monkeypatch.setattr(frames_module, "Scaler", Counted)
    reading = read_frames(path)
    next(reading), next(reading)
    assert len(scaled) == 2
    reading.close()


def test_decoding_is_single_threaded(tmp_path):
    path = render(tmp_path / "clip.mp4", static(frames=2))
    with open_video(path) as (container, stream):
        next(container.decode(stream))
        assert stream.codec_context.thread_count == 1
        assert stream.codec_context.thread_type.name == "SLICE"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="measures memory as glibc gives it")
def test_leaving_early_many_times_neither_hangs_nor_leaks(tmp_path):
    path = render(tmp_path / "clip.mp4", pan((1, 0), frames=4, height=240, width=320))

    def resident() -> int:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    for index in range(140):
        reading = read_frames(path)
        next(reading).jpeg()
        if index % 2:
            assert len([frame.jpeg() for frame in reading]) == 3
        if index == 40:
            before = resident()
    assert resident() - before < 4 << 20  # a picture for each would be 11 MB, a decoder far more


def test_a_damaged_file_gives_what_decodes_and_says_so(tmp_path):
    path = render(tmp_path / "clip.mkv", pan(frames=24), options={"g": "8"})
    data = bytearray(path.read_bytes())
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(data[: len(data) * 2 // 3])
    reader = VideoReader(cut)
    frames = list(stored_frames(reader, short_side=64, motion_cell=16))
    assert 8 <= len(frames) < 24
    times = [frame.time for frame in frames]
    assert times == sorted(set(times))


def test_a_pipe_is_refused_before_anyone_waits_for_it(tmp_path):
    os.mkfifo(tmp_path / "a.mp4")
    with pytest.raises(DecodeError, match="it is a pipe or device, not a regular file"):
        next(read_frames(tmp_path / "a.mp4"))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", r"the file is empty \(0 bytes\)"),
        (bytes(range(256)) * 40, "does not open as a video: Invalid data found"),
        (b"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nclip.mp4\n", "does not open as a video"),
    ],
    ids=["empty", "noise", "play list"],
)
def test_what_is_no_video_says_why(tmp_path, content, reason):
    render(tmp_path / "clip.mp4", static(frames=2))
    path = tmp_path / "wrong.mp4"
    path.write_bytes(content)
    for _ in range(2):  # the second time as well: PyAV drops messages that repeat
        with pytest.raises(DecodeError, match=reason):
            list(read_frames(path))


def test_a_cut_mp4_names_the_missing_index(tmp_path):
    path = render(tmp_path / "clip.mp4", pan(frames=8))
    path.write_bytes(path.read_bytes()[:2000])
    for _ in range(2):
        with pytest.raises(DecodeError, match="moov atom not found"):
            list(read_frames(path))


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(DecodeError, match="cannot be read: no such file"):
        list(read_frames(tmp_path / "none.mp4"))
    with pytest.raises(DecodeError, match="cannot be read: is a directory"):
        list(read_frames(tmp_path))


def test_sound_alone_is_no_video(tmp_path):
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(DecodeError, match=r"no video stream \(holds 1 audio\)"):
        list(read_frames(path))


@pytest.mark.shared
def test_shared_clips_give_as_many_frames_and_vectors_as_measured(shared):
    measured = {
        "codecs/h264_rgb.mp4": (48, 47, 320, 180),
        "codecs/hevc_10bit.mkv": (48, 0, 320, 180),
        "codecs/mpeg4_asp_bframes.avi": (48, 12, 320, 180),  # B-frames hold zeros
        "nasty/made_anamorphic_sar.mp4": (48, 47, 320, 180),
        "nasty/made_size_changes_midway.ts": (40, 38, 320, 180),
        "nasty/made_two_video_streams.mkv": (50, 49, 160, 120),  # the default stream
        "nasty/mp4parse_metadata.mp4": (1, 0, 320, 240),  # beside cover art
        "nasty/made_rotate_90.mp4": (48, 47, 180, 320),
        "nasty/h264_rotate_and_reflect.mp4": (30, 29, 256, 384),
        "real/webcam_mjpeg.avi": (68, 0, 160, 120),
    }
    for name, expected in measured.items():
        found = list(read_frames(shared / "clips" / name, motion="native"))
        sizes = {(frame.width, frame.height) for frame in found}
        assert (len(found), sum(frame.valid for frame in found)) == expected[:2], name
        assert sizes == {expected[2:]}, name


@pytest.mark.shared
def test_cover_art_is_no_video(shared):
    with pytest.raises(DecodeError, match=r"no video stream \(holds only cover art; 1 audio\)"):
        list(read_frames(shared / "clips" / "nasty" / "made_m4a_with_cover_art.m4a"))
