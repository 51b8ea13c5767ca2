"""Whose motion a clip gets: sources, scaling and fallbacks as the recipe says, and nothing else."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from tatscli.data.dataset import PretrainClips
from tatscli.data.framediff import frame_difference
from tatscli.data.loader import training_batches
from tatscli.data.motion import MotionField
from tatscli.data.tracks import FURTHEST, track
from tatscli.errors import DataError, DecodeError
from tatscli.recipe.derive import derive_schedule
from tatscli.recipe.schema import Data, Motion, Optim, Sampling
from tatscli.store.schema import Settings
from tests.data.fake_store import FakeStore

TENSORS = ("field_BThw2", "speed_BThw", "valid_BT", "missing_B", "fallback_B")


class Moving(FakeStore):
    """Every video has its own field of noise, a key frame every ten, and some have none at all.

    Args:
        lengths: Frames of each video.
        without: Rows without motion.
    """

    def __init__(
        self, lengths: Sequence[int], *, without: Sequence[int] = (), **kwargs: Any
    ) -> None:
        super().__init__(lengths, **kwargs)
        self.without = set(without)
        for row, record in enumerate(self.rows):
            record.moving = int(self.whole(row)[1].sum())

    def whole(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        length = self.rows[row].frames
        shape = (length, -(-self.size[0] // 16), -(-self.size[1] // 16), 2)
        field = np.random.default_rng(row).normal(0, 4, shape).astype(np.float16)
        valid = np.arange(length) % 10 != 0
        if row in self.without:
            valid[:] = False
        field[~valid] = 0
        return field.astype(np.float32), valid

    def motion(self, row: int, frames: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        field, valid = self.whole(row)
        return field[list(frames)], valid[list(frames)]


def clips(store: FakeStore, *, follows: bool = True, **motion: Any) -> PretrainClips:
    data = Data(
        store="x", frames=4, size=32, sampling=Sampling(stride=3), flip=0.5, motion=Motion(**motion)
    )
    return PretrainClips(
        store, range(len(store.rows)), data, patch=8, seed=0, follows_motion=follows
    )


def motion_of(dataset: PretrainClips, row: int, epoch: int = 0) -> MotionField:
    motion = dataset[epoch, row][0].motion
    assert motion is not None
    return motion


def equal(one: MotionField, other: MotionField) -> bool:
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in TENSORS)


def flags(motion: MotionField) -> tuple[bool, bool]:
    return bool(motion.missing_B), bool(motion.fallback_B)


def save_flow(store: Moving, folder: Path, rows: Sequence[int], *, valid: bool = True) -> Path:
    """Write the store's own fields as flow, a file a video."""
    for row in rows:
        name = store.rows[row].id
        field, known = store.whole(row)
        tensors = {f"{name}/motion": field} | ({f"{name}/valid": known} if valid else {})
        save_file(tensors, folder / f"{row}.safetensors")
    return folder


def test_a_mixed_store_falls_back_where_it_has_to_and_says_so() -> None:
    store = Moving([30, 30], without=[1])
    tube = clips(store)
    assert flags(motion_of(tube, 0)) == (False, False)
    lost = motion_of(tube, 1)
    assert flags(lost) == (True, True)
    assert not lost.field_BThw2.any()
    assert not lost.speed_BThw.any()
    assert not lost.valid_BT.any()


def test_framediff_as_fallback_is_the_change_of_the_views_frames() -> None:
    store = Moving([30, 30], without=[1])
    dataset = clips(store, fallback="framediff")
    (sample,) = dataset[2, 1]
    assert sample.motion is not None
    assert flags(sample.motion) == (False, True)
    assert not sample.motion.field_BThw2.any()
    change, valid = frame_difference(sample.video_CTHW.transpose(0, 1), [0, 3, 6, 9], (4, 4))
    assert torch.equal(sample.motion.speed_BThw[0], change)
    assert torch.equal(sample.motion.valid_BT[0], valid)
    assert change.min() > 2  # green rises by 15 in three frames: 5 a channel
    # A clip with motion is not touched by it.
    assert equal(motion_of(dataset, 0), motion_of(clips(store), 0))


def test_framediff_as_source_is_no_fallback() -> None:
    store = Moving([30, 30], without=[1])
    for row in (0, 1):
        motion = motion_of(clips(store, source="framediff"), row)
        assert flags(motion) == (False, False)
        assert not motion.field_BThw2.any()
        assert motion.speed_BThw.min() > 2
        assert motion.valid_BT[0].tolist() == [False, True, True, True]


def test_one_frame_has_no_difference_either() -> None:
    for motion in ({"source": "framediff"}, {"fallback": "framediff"}):
        found = motion_of(clips(Moving([1], without=[0]), **motion), 0)
        assert flags(found) == (True, True)


def test_the_fallback_may_be_an_error_which_replaces_no_video() -> None:
    store = Moving([30, 30], without=[1])
    dataset = clips(store, fallback="error")
    assert flags(motion_of(dataset, 0)) == (False, False)
    with pytest.raises(DataError, match=r"`videos/1\.mp4` has no motion") as caught:
        dataset[0, 1]
    assert not isinstance(caught.value, DecodeError)
    assert caught.value.hint is not None
    assert "data.motion.fallback" in caught.value.hint
    plan = derive_schedule(
        Optim(total_batch=2, batch_per_device=2, epochs=1, warmup_epochs=0),
        videos=2,
        repeats=1,
        world=1,
    )
    with pytest.raises(DataError, match="has no motion"):
        list(islice(training_batches(dataset, plan, seed=0), 1))


def test_a_store_that_cannot_be_read_is_an_unreadable_video() -> None:
    store = Moving([30])

    def broken(row: int, frames: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        raise DataError("the shard is damaged", "verify it")

    store.motion = broken  # type: ignore[method-assign]
    with pytest.raises(DecodeError, match=r"`videos/0\.mp4` cannot be read: the shard") as caught:
        clips(store)[0, 0]
    assert caught.value.hint == "verify it"


def test_flow_equal_to_the_codecs_vectors_gives_the_very_same_motion(tmp_path: Path) -> None:
    store = Moving([30, 41, 25], without=[2])
    save_flow(store, tmp_path, [0, 1])
    flow, codec = clips(store, source="flow", path=str(tmp_path)), clips(store)
    for epoch in range(5):
        for row in range(3):  # the last has neither
            assert equal(motion_of(flow, row, epoch), motion_of(codec, row, epoch))
    assert flags(motion_of(flow, 2)) == (True, True)


def test_flow_without_flags_is_known_everywhere_but_in_the_first_frame(tmp_path: Path) -> None:
    store = Moving([10])
    save_flow(store, tmp_path, [0], valid=False)
    found = motion_of(clips(store, source="flow", path=str(tmp_path)), 0)
    assert found.valid_BT[0].tolist() == [False, True, True, True]  # frames 0, 3, 6 and 9


def test_flow_of_another_size_names_both_shapes(tmp_path: Path) -> None:
    store = Moving([30])
    save_file(
        {"videos/0.mp4/motion": np.zeros((30, 6, 8, 2), np.float32)}, tmp_path / "a.safetensors"
    )
    dataset = clips(store, source="flow", path=str(tmp_path))
    with pytest.raises(
        DataError, match=r"videos/0\.mp4.*\(30, 6, 8, 2\).*\(30, 3, 4, 2\)"
    ) as caught:
        dataset[0, 0]
    assert not isinstance(caught.value, DecodeError)


def test_flow_that_is_not_there_is_found_out_at_once(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        clips(Moving([30]), source="flow", path=str(tmp_path / "none"))


def test_flow_reaches_loader_workers(tmp_path: Path) -> None:
    store = Moving([30] * 4)
    save_flow(store, tmp_path, range(4))
    dataset = clips(store, source="flow", path=str(tmp_path))
    dataset[0, 0]  # files are open before the workers start
    plan = derive_schedule(
        Optim(total_batch=2, batch_per_device=2, epochs=2, warmup_epochs=0),
        videos=4,
        repeats=1,
        world=1,
    )
    alone = list(islice(training_batches(dataset, plan, seed=0, workers=0), 4))
    shared = list(islice(training_batches(dataset, plan, seed=0, workers=2), 4))
    for one, other in zip(alone, shared, strict=True):
        assert one.motion is not None
        assert other.motion is not None
        assert equal(one.motion, other.motion)
    again = pickle.loads(pickle.dumps(dataset.motion_source))
    first, second = again.track(1, [1, 4, 7]), dataset.motion_source.track(1, [1, 4, 7])
    assert torch.equal(first.steps_JT2yx, second.steps_JT2yx)


@pytest.mark.parametrize(
    ("prepared", "origin", "scaling", "robust"),
    [
        ("native", "native", "auto", True),
        ("auto", "native", "auto", False),
        ("reencode", "reencode", "auto", False),
        ("native", "native", "none", False),
        ("auto", "reencode", "robust", True),
    ],
)
def test_vectors_as_they_are_come_to_one_scale(
    prepared: str, origin: str, scaling: str, robust: bool
) -> None:
    store = Moving([30])
    store.settings = Settings(motion=prepared)  # type: ignore[arg-type]
    store.rows[0].motion = origin
    found = motion_of(clips(store, scaling=scaling), 0)
    plain, scaled = (motion_of(clips(store, scaling=kind), 0) for kind in ("none", "robust"))
    assert not equal(plain, scaled)
    assert equal(found, scaled if robust else plain)


def test_flow_is_not_scaled_unasked(tmp_path: Path) -> None:
    store = Moving([30])
    store.settings = Settings(motion="native")
    path = str(save_flow(store, tmp_path, [0]))
    found = motion_of(clips(store, source="flow", path=path), 0)
    assert equal(found, motion_of(clips(store, scaling="none"), 0))


def test_the_camera_is_taken_out_at_load() -> None:
    class Panned(Moving):
        def whole(self, row: int) -> tuple[np.ndarray, np.ndarray]:
            field, valid = super().whole(row)
            field[:] = (3, 1)
            field[:, 1, 1] += (6, 0)
            field[~valid] = 0
            return field, valid

    store = Panned([30])
    still = motion_of(clips(store, camera="median"), 0)
    moving = motion_of(clips(store), 0)
    assert moving.speed_BThw.min() > 3
    assert (still.speed_BThw < 1e-3).float().mean() > 0.4
    assert still.speed_BThw.max() > 6


@pytest.mark.parametrize("fallback", ["tube", "framediff"])
def test_what_cannot_be_known_is_known_before_a_clip_is_drawn(
    tmp_path: Path, fallback: str
) -> None:
    store = Moving([30, 30, 1, 25], without=[1])
    store.rows[3].motion = "none"
    rows = range(4)

    def unknown(**motion: Any) -> list[int]:
        return clips(store, fallback=fallback, **motion).motion_source.unknown(rows)

    assert unknown() == [1, 2, 3]
    assert unknown(source="framediff") == [2]
    path = str(save_flow(store, tmp_path, [0, 2], valid=False))
    assert unknown(source="flow", path=path) == [1, 2, 3]
    assert clips(store).motion_source.unknown([0]) == []
    assert clips(store).motion_source.unknown([]) == []


@pytest.mark.parametrize("fallback", ["tube", "framediff"])
def test_nothing_is_read_of_a_video_without_motion(
    monkeypatch: pytest.MonkeyPatch, fallback: str
) -> None:
    """What comes of it is what comes of reading that nothing is known."""
    read = motion_of(clips(Moving([30], without=[0]), fallback=fallback), 0)
    store = Moving([30])
    store.rows[0].motion = "none"
    monkeypatch.setattr(Moving, "motion", None)
    assert equal(motion_of(clips(store, fallback=fallback), 0), read)


def test_what_cannot_be_known_is_an_error_if_the_recipe_says_so(tmp_path: Path) -> None:
    store = Moving([30, 30, 1], without=[1])
    path = str(save_flow(store, tmp_path, [0]))
    for motion, count, first in (
        ({}, 2, 1),
        ({"source": "framediff"}, 1, 2),
        ({"source": "flow", "path": path}, 2, 1),
    ):
        message = (
            rf"^{count} of 3 videos have no motion, first `videos/{first}\.mp4`.*fallback: error"
        )
        with pytest.raises(DataError, match=message) as caught:
            clips(store, fallback="error", **motion).motion_source.unknown([0, 1, 2])
        assert caught.value.hint is not None
        assert "data.motion.fallback=tube" in caught.value.hint
        lenient = clips(store, follows=False, fallback="error", **motion).motion_source
        assert len(lenient.unknown([0, 1, 2])) == count
    assert clips(store, fallback="error").motion_source.unknown([0]) == []


def test_flow_of_another_shape_is_found_out_before_a_clip_is_drawn(tmp_path: Path) -> None:
    store = Moving([30, 30])
    save_flow(store, tmp_path, [0])
    save_file(
        {"videos/1.mp4/motion": np.zeros((29, 3, 4, 2), np.float32)}, tmp_path / "a.safetensors"
    )
    source = clips(store, source="flow", path=str(tmp_path)).motion_source
    with pytest.raises(DataError, match=r"videos/1\.mp4.*\(29, 3, 4, 2\).*\(30, 3, 4, 2\)"):
        source.unknown([0, 1])


def test_flow_of_other_ids_shows_both(tmp_path: Path) -> None:
    save_file({"0/motion": np.zeros((30, 3, 4, 2), np.float32)}, tmp_path / "a.safetensors")
    source = clips(Moving([30, 30]), source="flow", path=str(tmp_path)).motion_source
    with pytest.raises(DataError, match=r"it has `0`, the store `videos/0\.mp4`") as caught:
        source.unknown([0, 1])
    assert caught.value.hint is not None
    assert "manifest.jsonl" in caught.value.hint


def test_nobody_is_refused_motion_that_nobody_follows() -> None:
    store = Moving([30, 1], without=[0])
    for motion, row in (({}, 0), ({"source": "framediff"}, 1)):
        dataset = clips(store, follows=False, fallback="error", **motion)
        assert equal(motion_of(dataset, row), motion_of(clips(store, **motion), row))
        assert flags(motion_of(dataset, row)) == (True, True)


def test_one_frame_without_a_difference_is_an_error_if_the_recipe_says_so() -> None:
    dataset = clips(Moving([30, 1]), source="framediff", fallback="error")
    assert flags(motion_of(dataset, 0)) == (False, False)
    with pytest.raises(DataError, match=r"`videos/1\.mp4` has no motion") as caught:
        dataset[0, 1]
    assert caught.value.hint is not None
    assert "prepare" not in caught.value.hint


@pytest.mark.parametrize("source", ["codec", "flow"])
def test_of_a_long_video_no_more_is_read_than_is_followed(
    tmp_path: Path, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Moving([3000])
    motion = (
        {"source": "flow", "path": str(save_flow(store, tmp_path, [0]))} if source == "flow" else {}
    )
    made = clips(store, **motion).motion_source
    frames, read = [700, 1400, 2100, 2990], []
    original = made._read

    def counting(row: int, part: range) -> tuple[np.ndarray, np.ndarray]:
        read.extend(part)
        return original(row, part)

    monkeypatch.setattr(made, "_read", counting)
    found = made.track(0, frames)
    assert found is not None
    assert read == [n for frame in frames for n in range(frame - FURTHEST + 1, frame + 2)]
    field, valid = store.whole(0)
    whole = track(field, valid, frames, 0, cell=16)
    assert torch.equal(found.steps_JT2yx, whole.steps_JT2yx)
    assert torch.equal(found.valid_T, whole.valid_T)


def test_a_clip_of_one_picture_stands_still() -> None:
    found = clips(Moving([30])).motion_source.track(0, [7, 7, 7, 7])
    assert found is not None
    assert not found.missing
    assert not found.steps_JT2yx.any()
