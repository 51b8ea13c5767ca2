"""Windows cover a video of any length, show the crop of evaluation, and hold one window at most."""

import io
from itertools import islice

import numpy as np
import pytest
import torch

from tatscli.console import Reporter
from tatscli.data.motion_source import MotionSource
from tatscli.data.sampling import eval_indices
from tatscli.data.view import spatial_crop
from tatscli.errors import DataError, DecodeError, UsageError
from tatscli.recipe.schema import Motion, Sampling
from tatscli.store.prepare import prepare
from tatscli.store.reader import Store
from tatscli.store.schema import Settings
from tatscli.store.sources import find_sources
from tatscli.visualize import windows as module
from tatscli.visualize.windows import read_windows
from tests.clips import CLEAN_VECTORS, moving_patch, pan, render, static
from tests.store.stores import here


@pytest.fixture
def film(tmp_path):
    """Make a film of so many frames, each a little brighter than the one before."""

    def make(frames: int, *, height: int = 48, width: int = 64):
        pictures = (np.full((height, width, 3), 10 + 4 * k, np.uint8) for k in range(frames))
        return render(tmp_path / f"{frames}x{height}x{width}.mp4", pictures, options={"crf": "1"})

    return make


def read(path, *, frames=4, stride=2, size=(32, 32), sites=(2, 2)):
    return list(read_windows(path, frames=frames, stride=stride, size=size, sites=sites))


@pytest.mark.parametrize(
    ("length", "expected", "held"),
    [
        (1, [[0, 0, 0, 0]], [3]),
        (2, [[0, 0, 0, 0]], [3]),
        (3, [[0, 2, 2, 2]], [2]),
        (7, [[0, 2, 4, 6]], [0]),
        (8, [[0, 2, 4, 6]], [0]),
        (9, [[0, 2, 4, 6], [8, 8, 8, 8]], [0, 3]),
        (12, [[0, 2, 4, 6], [8, 10, 10, 10]], [0, 2]),
        (16, [[0, 2, 4, 6], [8, 10, 12, 14]], [0, 0]),
    ],
)
def test_windows_follow_each_other_and_the_last_frame_fills_the_last(film, length, expected, held):
    found = read(film(length))
    assert [window.frames for window in found] == expected
    assert [window.held for window in found] == held
    assert [window.number for window in found] == list(range(len(found)))
    assert [window.more for window in found] == [True] * (len(found) - 1) + [False]


def test_pictures_and_times_are_those_of_the_frames_named(film):
    for window in read(film(13)):
        brightness = window.video_TCHW.float().mean(dim=(1, 2, 3))
        expected = torch.tensor([10.0 + 4 * frame for frame in window.frames])
        assert torch.allclose(brightness, expected, atol=1.9)  # 4 a frame: no other is as near
        assert window.times == pytest.approx([frame / 25 for frame in window.frames])


@pytest.mark.parametrize(("height", "width"), [(48, 64), (64, 48), (33, 97), (16, 16)])
def test_any_size_becomes_the_square_in_the_middle(film, tmp_path, height, width):
    picture = np.zeros((height, width, 3), np.uint8)
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    picture[top : top + side, left : left + side] = 200
    path = render(tmp_path / "middle.mkv", [picture] * 2, codec="ffv1", pix_fmt="bgr0")
    (window,) = read(path, frames=2, stride=1)
    assert window.video_TCHW.shape == (2, 3, 32, 32)
    # Resizing and odd margins blur a line at the rim.
    assert window.video_TCHW[..., 3:-3, 3:-3].float().sub(200).abs().max() < 6


@pytest.mark.parametrize("size", [(32, 64), (64, 32), (24, 64)])
@pytest.mark.parametrize(("height", "width"), [(48, 64), (64, 48), (33, 97)])
def test_any_picture_becomes_the_oblong_in_the_middle(tmp_path, height, width, size):
    """A disc stays a disc: pixels are square again in the view."""
    tall, wide = size
    scale = min(height / tall, width / wide)  # of the largest crop
    y, x = np.mgrid[:height, :width] - np.array([height, width])[:, None, None] / 2 + 0.5
    picture = np.where(np.hypot(y, x) < 10 * scale, 200, 20).astype(np.uint8)
    picture = picture[..., None].repeat(3, axis=-1)
    path = render(tmp_path / "disc.mkv", [picture] * 2, codec="ffv1", pix_fmt="bgr0")
    (window,) = read(path, frames=2, stride=1, size=size, sites=(tall // 8, wide // 8))
    assert window.video_TCHW.shape == (2, 3, *size)
    assert window.motion.field_BThw2.shape == (1, 2, tall // 8, wide // 8, 2)
    bright = window.video_TCHW[0, 0] > 110
    places = bright.nonzero().float()
    spread = places.std(dim=0)  # of a disc: half its radius along each axis
    assert spread.tolist() == pytest.approx([5, 5], abs=0.4)
    assert places.mean(dim=0).tolist() == pytest.approx([tall / 2, wide / 2], abs=1)


def test_motion_of_an_oblong_view_is_that_of_the_pan(tmp_path):
    path = render(tmp_path / "pan.mp4", pan((4, -2), frames=4), options=CLEAN_VECTORS)
    (window,) = read(path, frames=4, stride=1, size=(64, 128), sites=(4, 8))
    # 256 columns become 128: half a pixel for each, in both directions.
    inner = window.motion.field_BThw2[0, 1:, 1:-1, 1:-1]
    assert (inner - torch.tensor([2.0, -1.0])).abs().max() < 0.1


def test_motion_is_in_pixels_of_the_view_and_held_frames_stand_still(tmp_path):
    path = render(tmp_path / "pan.mp4", pan((4, -2), frames=6), options=CLEAN_VECTORS)
    (window,) = read(path, frames=8, stride=1, size=(96, 96), sites=(6, 6))
    valid_T, field_Thw2 = window.motion.valid_BT[0], window.motion.field_BThw2[0]
    assert valid_T.tolist() == [False, True, True, True, True, True, False, False]
    # 192 lines become 96: half a pixel for each.
    for time in (0, 1, 3):  # the key frame takes what the next one has
        assert torch.allclose(
            field_Thw2[time].mean(dim=(0, 1)), torch.tensor([2.0, -1.0]), atol=0.1
        )
    assert not field_Thw2[6:].any()
    assert not window.motion.speed_BThw[0, 6:].any()


def test_a_short_video_is_filled_as_in_training(film):
    sampling = Sampling(stride=2, short="repeat_last")
    for length in (1, 3, 5):
        (window,) = read(film(length))
        assert window.frames == eval_indices(length, sampling, frames=4, segments=1)[0]


def test_only_frames_of_one_window_are_alive(tmp_path, monkeypatch):
    """A thousand frames pass through; what is read ahead of the consumer is one window."""
    read_frames, drawn = module.read_frames, 0

    def counting(*args, **kwargs):
        nonlocal drawn
        for frame in read_frames(*args, **kwargs):
            drawn += 1
            yield frame

    make_motion, held = module._motion, []

    def measuring(path, shown, field_Fyx2, *more):
        held.append(len(field_Fyx2))
        return make_motion(path, shown, field_Fyx2, *more)

    monkeypatch.setattr(module, "read_frames", counting)
    monkeypatch.setattr(module, "_motion", measuring)
    path = render(tmp_path / "long.mp4", static(frames=200, height=32, width=32))
    stream = read_windows(path, frames=4, stride=2, size=(16, 16), sites=(1, 1))
    for number, _ in enumerate(islice(stream, 20)):
        assert drawn <= (number + 1) * 8 + 1  # the first frame of the next window
    stream.close()
    # A window of 8 frames, the stride into it, and that frame of the next one.
    assert len(held) == 20 and max(held) <= 8 + 2


def test_a_file_that_is_no_video_says_so(tmp_path):
    path = tmp_path / "noise.mp4"
    path.write_bytes(bytes(range(256)) * 9)
    with pytest.raises(DecodeError):
        read(path)


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize(
    "motion", [Motion(), Motion(scaling="robust", camera="affine"), Motion(source="framediff")]
)
def test_a_window_has_the_motion_of_a_training_clip(tmp_path, stride, motion):
    """Every window, held ones too, against the same frames drawn from a store."""
    check_against_a_store(tmp_path, stride, motion, Settings(short_side=96))


@pytest.mark.parametrize("scaling", ["auto", "none"])
@pytest.mark.parametrize(
    "settings",
    [
        Settings(short_side=96, motion="native", motion_cell=8, camera="median"),
        Settings(short_side=96, motion="reencode", motion_cell=24),
        Settings(short_side=96, motion="none"),
    ],
)
def test_a_window_has_the_motion_of_the_store_trained_on(tmp_path, settings, scaling):
    check_against_a_store(tmp_path, 2, Motion(scaling=scaling), settings)


def test_a_window_is_freed_of_the_camera_as_the_store_trained_on(tmp_path):
    settings = Settings(short_side=96, camera="median")
    pictures = pan((4, 0), frames=10, height=96, width=256)
    seen = check_against_a_store(tmp_path, 2, Motion(), settings, pictures)
    assert all(window.motion.speed_BThw.median() < 0.5 for window in seen)  # not 8


def check_against_a_store(tmp_path, stride, motion, settings, pictures=None):
    """Compare every window of a clip, and return them."""
    options = {**CLEAN_VECTORS, "g": "7", "sc_threshold": "0"}
    pictures = pictures or moving_patch((3, 1), frames=23, height=96, side=32)
    path = render(tmp_path / "v" / "patch.mp4", pictures, options=options)
    out, reporter = tmp_path / "s", Reporter(stdout=io.StringIO(), stderr=io.StringIO())
    prepare(find_sources(path.parent), out, settings, run=here, reporter=reporter)
    source = MotionSource(Store.open(out), motion)
    seen = list(
        read_windows(
            path,
            frames=4,
            stride=stride,
            size=(96, 96),
            sites=(6, 6),
            motion=motion,
            prepared=settings,
        )
    )
    for window in seen:
        view = spatial_crop(96, 256, (96, 96), crop=0, crops=1)
        found = source.track(0, window.frames)
        wanted = source.seen(view, window.video_TCHW, found, window.frames, 16, name="a")
        # The store keeps motion in half precision.
        for name in ("field_BThw2", "speed_BThw"):
            got, expected = getattr(window.motion, name), getattr(wanted, name)
            assert torch.allclose(got, expected, atol=0.02), name
        assert torch.equal(window.motion.valid_BT, wanted.valid_BT)
        assert torch.equal(window.motion.missing_B, wanted.missing_B)
        assert torch.equal(window.motion.fallback_B, wanted.fallback_B)
        assert window.motion.patch == 16
    return seen


def test_flow_made_elsewhere_cannot_belong_to_a_lone_file(film):
    stream = read_windows(
        film(3),
        frames=2,
        stride=1,
        size=(32, 32),
        sites=(2, 2),
        motion=Motion(source="flow", path="x"),
    )
    with pytest.raises(UsageError, match="source: flow"):
        next(stream)


def test_a_window_without_motion_takes_the_fallback_or_stops(tmp_path):
    path = render(tmp_path / "one.mp4", static(frames=1))
    options = {"frames": 2, "stride": 1, "size": (32, 32), "sites": (2, 2)}
    (window,) = read_windows(path, **options)
    assert window.motion.missing_B.all()
    with pytest.raises(DataError, match=r"one\.mp4` has no motion"):
        list(read_windows(path, **options, motion=Motion(fallback="error")))
