"""Windows over videos against plain loops: which frames, when, and that every frame is seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tatscli.data.footage import (
    ArrayFootage,
    FileFootage,
    Footage,
    Frame,
    StoreFootage,
    find_videos,
)
from tatscli.data.sampling import eval_indices, shown_at_rate
from tatscli.data.view import spatial_crop
from tatscli.data.windows import Window, Windows
from tatscli.errors import DataError, DecodeError, UsageError
from tatscli.recipe.schema import Sampling
from tests.clips import pan, render
from tests.data.fake_store import FakeStore

DENSE = Sampling(stride=2)
UNIFORM = Sampling(mode="uniform")


class Numbered(Footage):
    """Pictures that show their own number, at any times."""

    name = "numbered"

    def __init__(self, times: list[float]) -> None:
        self.shown = times
        self.asked: list[int] = []

    def frames(self, short_side: int | None):
        for index, time in enumerate(self.shown):
            yield Frame(time, lambda index=index: self._picture(index))

    def _picture(self, index: int) -> Tensor:
        self.asked.append(index)
        return torch.full((1, 3, 4, 6), index % 256, dtype=torch.uint8)


def steady(frames: int, fps: float = 25.0, begin: float = 0.0) -> Numbered:
    return Numbered([begin + index / fps for index in range(frames)])


def cut(sampling: Sampling = DENSE, frames: int = 4, **more) -> Windows:
    return Windows(frames, (4, 4), sampling, **more)


def frames_of(windows: list[Window]) -> list[list[int]]:
    for window in windows:  # what they say is what they show
        assert window.views_VCTHW[0, 0, :, 0, 0].tolist() == [n % 256 for n in window.span.frames]
    return [window.span.frames for window in windows]


def test_windows_follow_each_other_and_the_last_ends_with_the_video() -> None:
    windows = list(cut().of(steady(21)))
    assert frames_of(windows) == [[0, 2, 4, 6], [8, 10, 12, 14], [14, 16, 18, 20]]
    spans = [(round(25 * one.span.start), round(25 * one.span.end)) for one in windows]
    assert spans == [(0, 8), (8, 16), (14, 21)]


@given(
    length=st.integers(1, 90), stride=st.integers(1, 5), frames=st.integers(1, 7),
    begin=st.sampled_from([0.0, 3.7]),
)  # fmt: skip
@settings(max_examples=60)
def test_dense_windows_cover_every_frame(
    length: int, stride: int, frames: int, begin: float
) -> None:
    footage = steady(length, begin=begin)
    windows = list(cut(Sampling(stride=stride), frames).of(footage))
    assert all(len(one) == frames for one in frames_of(windows))
    covered = {
        source
        for one in windows
        for frame in one.span.frames
        for source in range(frame, min(frame + stride, length))
    }
    assert covered == set(range(length))
    assert windows[0].span.start == pytest.approx(0)
    assert windows[-1].span.end == pytest.approx((length if length > 1 else 0) / 25)
    assert footage.asked == list(range(0, length, stride))  # each once, and no other


@given(length=st.integers(1, 80), count=st.integers(1, 5), stride=st.integers(1, 4))
@settings(max_examples=40)
def test_a_number_of_windows_is_that_of_evaluation(length: int, count: int, stride: int) -> None:
    for sampling in (Sampling(stride=stride), UNIFORM):
        windows = list(cut(sampling, count=count).of(steady(length)))
        assert frames_of(windows) == eval_indices(length, sampling, 4, count)


@given(
    gaps=st.lists(st.floats(0.01, 0.5), min_size=1, max_size=30), fps=st.sampled_from([3.0, 8, 25])
)
@settings(max_examples=60)
def test_by_the_clock_ticks_are_those_of_the_sampler(gaps: list[float], fps: float) -> None:
    times = np.cumsum([1.3, *gaps]).tolist()
    shown = shown_at_rate(np.array(times), fps)
    windows = frames_of(list(cut(Sampling(fps=fps), 1).of(Numbered(times))))
    assert windows == [[frame] for frame in shown]
    (whole,) = cut(Sampling(fps=fps), len(shown)).of(Numbered(times))
    assert whole.span.frames == shown


@pytest.mark.parametrize("fps", [8.0, 25.0, 29.97, 30.0])
def test_by_the_clock_steady_videos_too(fps: float) -> None:
    for rate in (23.976, 25, 30):
        footage = steady(70, rate)
        shown = shown_at_rate(np.array(footage.shown), fps)
        (whole,) = cut(Sampling(fps=fps), len(shown)).of(footage)
        assert whole.span.frames == shown


def test_windows_every_so_many_seconds() -> None:
    windows = list(cut(every=0.2).of(steady(25)))  # five frames: three ticks apart, at most
    assert frames_of(windows)[:3] == [[0, 2, 4, 6], [6, 8, 10, 12], [10, 12, 14, 16]]
    assert windows[-1].span.frames[-1] == 24
    apart = list(cut(every=0.8).of(steady(50)))
    assert [one[0] for one in frames_of(apart)] == [0, 20, 40]


@pytest.mark.parametrize("short", ["repeat_last", "loop"])
@pytest.mark.parametrize("length", [1, 3, 7])
def test_a_short_video_is_filled_as_in_evaluation(short: str, length: int) -> None:
    sampling = Sampling(stride=2, short=short)
    (window,) = cut(sampling).of(steady(length))
    assert frames_of([window]) == eval_indices(length, sampling, 4, 1)


def test_a_short_video_may_be_an_error() -> None:
    with pytest.raises(DataError, match="too short"):
        list(cut(Sampling(stride=2, short="error")).of(steady(6)))


def test_a_uniform_window_is_the_whole_video() -> None:
    (window,) = cut(UNIFORM).of(steady(50, begin=2))
    assert (window.span.start, window.span.end) == (0, pytest.approx(2))


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(UsageError, match="exclude each other"):
        cut(count=2, every=1.0)
    with pytest.raises(UsageError, match="samples uniformly"):
        cut(UNIFORM, every=1.0)
    with pytest.raises(UsageError, match="at least 1"):
        cut(count=0)


def test_a_film_that_shrinks_between_two_passes_is_an_error() -> None:
    class Shrinking(Numbered):
        def times(self) -> list[float]:
            return [*self.shown, self.shown[-1] + 1]

    with pytest.raises(DecodeError, match="fewer"):
        list(cut(Sampling(stride=1), 2, count=4).of(Shrinking([0, 1, 2])))


@pytest.mark.parametrize("antialias", [True, False])
def test_views_are_those_of_evaluation(antialias: bool) -> None:
    video_THWC = np.random.default_rng(0).integers(0, 256, (9, 20, 30, 3), np.uint8)
    windows = Windows(9, (12, 16), Sampling(stride=1), crops=3, antialias=antialias)
    (window,) = windows.of(ArrayFootage(video_THWC, 25))
    video_TCHW = torch.from_numpy(video_THWC).permute(0, 3, 1, 2)
    for crop, view_CTHW in enumerate(window.views_VCTHW):
        view = spatial_crop(20, 30, (12, 16), crop=crop, crops=3, antialias=antialias)
        assert torch.equal(view_CTHW.transpose(0, 1), view.frames(video_TCHW))


def test_footage_of_a_file_a_store_and_memory(tmp_path: Path) -> None:
    path = render(tmp_path / "a.mkv", pan(frames=10, height=48, width=64), fps=10)
    film = FileFootage(path)
    assert film.times() == pytest.approx([n / 10 for n in range(10)])
    frame = next(film.frames(24))
    assert frame.picture().shape == (1, 3, 24, 32)
    store = FakeStore([6, 3])
    store.dataset = None
    stored = StoreFootage.__new__(StoreFootage)
    stored.row, stored.name = 1, "b"
    stored._copies = type("Copies", (), {"store": store})()
    picture_1CHW = [one.picture() for one in stored.frames(None)][2]
    assert picture_1CHW[0, :, 0, 0].tolist() == pytest.approx([20, 10, 0], abs=6)
    store.broken = {1}
    with pytest.raises(DecodeError):
        next(stored.frames(None)).picture()
    for wrong in (np.zeros((2, 4, 4, 3)), np.zeros((2, 4, 4), np.uint8), []):
        with pytest.raises(UsageError, match="not a video"):
            ArrayFootage(wrong, 25)


def test_videos_are_found_by_name(tmp_path: Path) -> None:
    for name in ("b.mp4", "sub/a.webm", "notes.txt", "odd"):
        path = tmp_path / "films" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    folder = tmp_path / "films"
    found, _ = find_videos([folder])
    assert [one.name for one in found] == ["b.mp4", "sub/a.webm"]
    found, _ = find_videos([folder / "odd", folder, folder / "b.mp4"])
    assert [one.path.name for one in found] == ["odd", "b.mp4", "a.webm"]
    assert found[1].name == str(folder / "b.mp4")
    with pytest.raises(UsageError, match="does not exist"):
        find_videos([folder / "nothing.mp4"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="holds no video"):
        find_videos([tmp_path / "empty"])
