"""Windows cover a video of any length, show the crop of evaluation, and hold one window at most."""

import io
from itertools import islice

import numpy as np
import pytest
import torch

from tatscli.console import Reporter
from tatscli.data.dataset import PretrainClips
from tatscli.data.footage import FileFootage
from tatscli.data.motion_source import MotionSource
from tatscli.data.sampling import eval_indices
from tatscli.data.tracks import FURTHEST
from tatscli.data.view import spatial_crop
from tatscli.data.views import EvalViews
from tatscli.data.windows import Windows
from tatscli.errors import DataError, DecodeError, UsageError
from tatscli.recipe.schema import Data, Motion, Sampling
from tatscli.store.prepare import prepare
from tatscli.store.reader import Store
from tatscli.store.schema import Settings
from tatscli.store.sources import find_sources
from tatscli.visualize import windows as module
from tatscli.visualize.windows import WindowReader
from tests.clips import CLEAN_VECTORS, moving_patch, pan, render, static
from tests.store.stores import here


@pytest.fixture
def film(tmp_path):
    """Make a film of so many frames, each a little brighter than the one before."""

    def make(frames: int, *, height: int = 48, width: int = 64):
        pictures = (np.full((height, width, 3), 10 + 4 * k, np.uint8) for k in range(frames))
        return render(tmp_path / f"{frames}x{height}x{width}.mp4", pictures, options={"crf": "1"})

    return make


def shape(*, frames=4, size=(32, 32), motion=None, sampling=None, **more):
    return Data(
        store="",
        frames=frames,
        size=size,
        sampling=sampling or Sampling(stride=2),
        motion=motion or Motion(),
        **more,
    )


def read(path, *, frames=4, stride=2, size=(32, 32), grid=(2, 2)):
    data = shape(frames=frames, size=size, sampling=Sampling(stride=stride))
    return list(WindowReader(data).read(path, grid=grid))


@pytest.mark.parametrize(
    ("length", "expected", "held"),
    [
        (1, [[0, 0, 0, 0]], [3]),
        (2, [[0, 0, 0, 0]], [3]),
        (3, [[0, 2, 2, 2]], [2]),
        (7, [[0, 2, 4, 6]], [0]),
        (8, [[0, 2, 4, 6]], [0]),
        (9, [[0, 2, 4, 6], [2, 4, 6, 8]], [0, 0]),
        (12, [[0, 2, 4, 6], [4, 6, 8, 10]], [0, 0]),
        (16, [[0, 2, 4, 6], [8, 10, 12, 14]], [0, 0]),
    ],
)
def test_windows_follow_each_other_and_the_last_ends_with_the_video(film, length, expected, held):
    """As those of `tats predict`: no window holds a frame unless the video is shorter than it."""
    found = read(film(length))
    assert [window.frames for window in found] == expected
    assert [window.held for window in found] == held
    assert [window.number for window in found] == list(range(len(found)))
    assert [window.follows for window in found] == [False] + [length == 16] * (len(found) - 1)
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
    (window,) = read(path, frames=2, stride=1, size=size, grid=(tall // 8, wide // 8))
    assert window.video_TCHW.shape == (2, 3, *size)
    assert window.motion.field_BThw2.shape == (1, 2, tall // 8, wide // 8, 2)
    bright = window.video_TCHW[0, 0] > 110
    places = bright.nonzero().float()
    spread = places.std(dim=0)  # of a disc: half its radius along each axis
    assert spread.tolist() == pytest.approx([5, 5], abs=0.4)
    assert places.mean(dim=0).tolist() == pytest.approx([tall / 2, wide / 2], abs=1)


def test_motion_of_an_oblong_view_is_that_of_the_pan(tmp_path):
    path = render(tmp_path / "pan.mp4", pan((4, -2), frames=4), options=CLEAN_VECTORS)
    (window,) = read(path, frames=4, stride=1, size=(64, 128), grid=(4, 8))
    # 256 columns become 128: half a pixel for each, in both directions.
    inner = window.motion.field_BThw2[0, 1:, 1:-1, 1:-1]
    assert (inner - torch.tensor([2.0, -1.0])).abs().max() < 0.1


def test_motion_is_in_pixels_of_the_view_and_held_frames_stand_still(tmp_path):
    path = render(tmp_path / "pan.mp4", pan((4, -2), frames=6), options=CLEAN_VECTORS)
    (window,) = read(path, frames=8, stride=1, size=(96, 96), grid=(6, 6))
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
    forget, held = module._MotionFootage.forget, []

    def counting(*args, **kwargs):
        nonlocal drawn
        for frame in read_frames(*args, **kwargs):
            drawn += 1
            yield frame

    def measuring(footage, *, before):
        held.append(len(footage.fields))
        forget(footage, before=before)

    monkeypatch.setattr(module, "read_frames", counting)
    monkeypatch.setattr(module._MotionFootage, "forget", measuring)
    path = render(tmp_path / "long.mp4", static(frames=200, height=32, width=32))
    stream = WindowReader(shape(size=(16, 16))).read(path, grid=(1, 1))
    for number, _ in enumerate(islice(stream, 20)):
        assert drawn <= (number + 1) * 8 + 2  # the first frame of the next window, and one ahead
    stream.close()
    # Two windows of 8 frames, what may lead into them, and the frames of the next one.
    assert len(held) == 19 and max(held) <= 2 * 8 + FURTHEST + 2


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
    data = shape(size=(96, 96), sampling=Sampling(stride=stride), motion=motion)
    options = {**CLEAN_VECTORS, "g": "7", "sc_threshold": "0"}
    pictures = pictures or moving_patch((3, 1), frames=23, height=96, side=32)
    path = render(tmp_path / "v" / "patch.mp4", pictures, options=options)
    out, reporter = tmp_path / "s", Reporter(stdout=io.StringIO(), stderr=io.StringIO())
    prepare(find_sources(path.parent), out, settings, run=here, reporter=reporter)
    source = MotionSource(Store.open(out), motion)
    seen = list(WindowReader(data, prepared=settings).read(path, grid=(6, 6)))
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
    data = shape(motion=Motion(source="flow", path="x"))
    stream = WindowReader(data).read(film(3), grid=(2, 2))
    with pytest.raises(UsageError, match="source: flow"):
        next(stream)


def test_a_window_without_motion_takes_the_fallback_or_stops(tmp_path):
    path = render(tmp_path / "one.mp4", static(frames=1))
    (window,) = read(path)
    assert window.motion.missing_B.all()
    strict = WindowReader(shape(motion=Motion(fallback="error")))
    with pytest.raises(DataError, match=r"one\.mp4` has no motion"):
        list(strict.read(path, grid=(2, 2)))


SAMPLINGS = {
    "dense": Sampling(stride=2),
    "loop": Sampling(stride=8, short="loop"),
    "uniform": Sampling(mode="uniform"),
    "videomae": Sampling(mode="uniform", indices="videomae"),
    "clock": Sampling(fps=10),
    "fixed": Sampling(mode="uniform", clips=3),
}


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A clip of 23 frames, and a store of it alone."""
    folder = tmp_path_factory.mktemp("stored")
    pictures = moving_patch((3, 1), frames=23, height=96, side=32)
    options = {**CLEAN_VECTORS, "g": "7", "sc_threshold": "0"}
    path = render(folder / "v" / "patch.mp4", pictures, options=options)
    reporter = Reporter(stdout=io.StringIO(), stderr=io.StringIO())
    settings = Settings(short_side=80, quality=2)
    prepare(find_sources(path.parent), folder / "s", settings, run=here, reporter=reporter)
    return path, Store.open(folder / "s")


def same(window, sample, times):
    """A window shows what a sample of the store holds; JPEG and half precision blur it."""
    difference = window.video_TCHW.float() - sample.video_CTHW.transpose(0, 1)
    assert difference.abs().mean() < 6  # another frame or crop of this noise is 20 away
    assert window.times == pytest.approx(times[window.frames].tolist())
    for name in ("field_BThw2", "speed_BThw"):
        got, wanted = getattr(window.motion, name), getattr(sample.motion, name)
        assert torch.allclose(got, wanted, atol=0.02), name
    assert torch.equal(window.motion.valid_BT, sample.motion.valid_BT)


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
def test_windows_are_the_clips_that_a_store_gives(stored, sampling):
    """As `train` those that pretraining draws in each epoch, as `test` those of evaluation."""
    path, store = stored
    data, times = shape(size=(64, 64), sampling=sampling, cache="none"), store.times(0)
    read = {
        phase: list(WindowReader(data, phase, 5, store.settings).read(path, grid=(4, 4), count=3))
        for phase in ("train", "test")
    }
    clips = PretrainClips(store, [0], data, patch=16, seed=5)
    assert [window.number for window in read["train"]] == [0, 1, 2]
    for epoch, window in enumerate(read["train"]):
        (sample,) = clips[epoch, 0]
        same(window, sample, times)
    assert not torch.equal(read["train"][0].video_TCHW, read["train"][1].video_TCHW)
    if sampling.mode == "uniform":
        source = MotionSource(store, data.motion)
        views = EvalViews(store, [0], data, sampling=sampling, segments=3, motion=source)
        for segment, window in enumerate(read["test"]):
            assert window.frames == views.frames(0, segment)
            (sample,) = views[segment]
            same(window, sample, times)
    else:
        predicted = Windows(data.frames, data.view_size, sampling).of(FileFootage(path))
        assert [window.frames for window in read["test"]] == [one.span.frames for one in predicted]


@pytest.mark.parametrize(("length", "frames"), [(23, [2, 8, 14, 20]), (3, [0, 1, 2, 2])])
def test_a_uniform_window_spans_the_whole_video(film, length, frames):
    reader = WindowReader(shape(sampling=Sampling(mode="uniform")))
    (window,) = reader.read(film(length), grid=(2, 2))
    assert window.frames == frames and not window.more
    assert window.held == (length == 3)
    brightness = window.video_TCHW.float().mean(dim=(1, 2, 3))
    assert torch.allclose(brightness, torch.tensor([10.0 + 4 * one for one in frames]), atol=1.9)


def test_motion_over_a_long_video_takes_little_memory(tmp_path):
    """A uniform window needs the motion near its frames, not that of the whole video."""
    path = render(tmp_path / "long.mp4", static(frames=700, height=32, width=32))
    reader = WindowReader(shape(frames=2, size=(16, 16), sampling=Sampling(mode="uniform")))
    source, make = [], module._Source.window

    def spy(self, *args):
        source.append(len(self.footage.fields))
        return make(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module._Source, "window", spy)
        (window,) = reader.read(path, grid=(1, 1))
    assert window.frames == [175, 525] and source[0] <= 2 * (FURTHEST + 2)


def test_a_video_that_the_recipe_finds_too_short_is_refused(film):
    reader = WindowReader(shape(sampling=Sampling(stride=2, short="error")), "train")
    with pytest.raises(DataError, match="of `3` frames is too short"):
        list(reader.read(film(3), grid=(2, 2)))
