"""Items: the right frames, views and motion, from nothing but (seed, epoch, row, repeat)."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from tatscli.data.dataset import PretrainClips, Sample
from tatscli.data.labelled import FinetuneClips
from tatscli.data.randaugment import rand_augment_pictures
from tatscli.data.view import random_resized_crop
from tatscli.data.views import EvalViews
from tatscli.errors import DataError, DecodeError
from tatscli.recipe.schema import Augment, Data, Finetune, Sampling
from tatscli.seeding import random_of
from tatscli.store.schema import Settings
from tests.data.fake_store import FakeStore, jpeg


def data(**change: object) -> Data:
    values = {"store": "x", "frames": 4, "size": 32, "sampling": Sampling(stride=2), **change}
    return Data(**values)


def finetune(**change: object) -> Finetune:
    return Finetune(augment=Augment(erasing=0.0, rand_augment=0), **change)


class Still(FakeStore):
    """One video that shows the same picture all the time."""

    def __init__(self, picture: np.ndarray, *, frames: int) -> None:
        super().__init__([frames], size=picture.shape[:2])
        self.file = jpeg(np.ascontiguousarray(picture))

    def _picture(self, row: int, frame: int) -> np.ndarray:
        return self.file


def frames_of(sample: Sample) -> list[int]:
    """Read the frame numbers off the green of the picture."""
    green = sample.video_CTHW[1].float().mean((1, 2)) / 5
    return green.round().int().tolist()


def same(one: Sample, other: Sample) -> bool:
    tensors = [(one.video_CTHW, other.video_CTHW)]
    if one.motion is not None and other.motion is not None:
        tensors += [
            (one.motion.field_BThw2, other.motion.field_BThw2),
            (one.motion.speed_BThw, other.motion.speed_BThw),
            (one.motion.valid_BT, other.motion.valid_BT),
        ]
    return all(torch.equal(a, b) for a, b in tensors) and one.row == other.row


def test_pretraining_item_holds_frames_their_own_motion_and_origin() -> None:
    store = FakeStore([30, 40, 50], labels=[None, 3, None])
    clips = PretrainClips(store, [0, 1], data(), patch=8, seed=0)
    (sample,) = clips[0, 1]
    assert sample.video_CTHW.shape == (3, 4, 32, 32)
    assert sample.video_CTHW.dtype == torch.uint8
    assert (sample.row, sample.label, sample.view) == (1, 3, 0)
    assert clips[0, 0][0].label == -1
    frames = frames_of(sample)
    assert [b - a for a, b in pairwise(frames)] == [2, 2, 2]
    assert (sample.video_CTHW[0].float() - 20).abs().max() <= 3  # red says row 1

    assert sample.motion is not None
    assert sample.motion.field_BThw2.shape == (1, 4, 4, 4, 2)
    assert sample.motion.valid_BT[0].tolist() == [frame % 12 != 0 for frame in frames]
    # The fake's motion is (row, frame) in stored pixels, and two stored frames lead to each of the
    # clip: y over x is their mean, up to the aspect. Each twelfth takes the next one's.
    speed = sample.motion.field_BThw2[0, :, 0, 0]
    ratio = (speed[:, 1] / speed[:, 0]).tolist()
    known = [[step + (step % 12 == 0) for step in (frame - 1, frame)] for frame in frames]
    expected = [sum(pair) / sum(known[0]) for pair in known]
    assert [value / ratio[0] for value in ratio] == pytest.approx(expected)


def test_items_depend_on_seed_epoch_row_and_repeat_only() -> None:
    store = FakeStore([60] * 4)
    config = data(repeats=2, flip=0.5)
    clips = PretrainClips(store, [0, 1, 2, 3], config, patch=8, seed=0)
    first = clips[3, 2]
    clips[0, 0], clips[7, 1]
    assert all(same(a, b) for a, b in zip(first, clips[3, 2], strict=True))
    # The row of the store counts, not its place among the rows.
    subset = PretrainClips(store, [2], config, patch=8, seed=0)
    assert all(same(a, b) for a, b in zip(first, subset[3, 0], strict=True))

    drawn = {tuple(frames_of(clips[epoch, 2][0])) for epoch in range(20)}
    assert len(drawn) > 8
    other = PretrainClips(store, [2], config, patch=8, seed=1)
    assert any(not same(clips[e, 2][0], other[e, 0][0]) for e in range(3))


@pytest.mark.parametrize("repeats", [1, 3])
def test_repeats_decode_once(repeats: int) -> None:
    store = FakeStore([60], size=(64, 96))
    for clips in (
        PretrainClips(store, [0], data(repeats=repeats), patch=8, seed=0),
        FinetuneClips(store, [0], data(), finetune(repeats=repeats), seed=0),
    ):
        store.read.clear()
        samples = clips[0, 0]
        assert [sample.view for sample in samples] == list(range(repeats))
        assert sorted(store.read.values()) == [1, 1, 1, 1]
        assert {tuple(frames_of(sample)) for sample in samples} == {tuple(frames_of(samples[0]))}


def test_repeats_are_different_views() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    store = Still(noise, frames=9)
    for clips in (
        PretrainClips(store, [0], data(repeats=3), patch=8, seed=0),
        FinetuneClips(store, [0], data(), finetune(repeats=3), seed=0),
    ):
        a, b, c = clips[0, 0]
        assert not same(a, b)
        assert not same(b, c)


def test_a_held_frame_is_decoded_once() -> None:
    store = FakeStore([5])
    (sample,) = PretrainClips(store, [0], data(), patch=8, seed=0)[0, 0]
    assert frames_of(sample) == [0, 2, 4, 4]
    assert store.read == {(0, 0): 1, (0, 2): 1, (0, 4): 1}
    looped = data(sampling=Sampling(stride=2, short="loop"))
    assert frames_of(PretrainClips(store, [0], looped, patch=8, seed=0)[0, 0][0]) == [0, 2, 4, 1]


def test_short_error_names_the_video_and_is_no_bad_clip() -> None:
    strict = data(sampling=Sampling(stride=2, short="error"))
    clips = PretrainClips(FakeStore([5]), [0], strict, patch=8, seed=0)
    with pytest.raises(DataError, match=r"`videos/0\.mp4`: a video of `5` frames") as caught:
        clips[0, 0]
    assert not isinstance(caught.value, DecodeError)
    assert caught.value.hint


def test_broken_bytes_are_a_decode_error_with_the_name() -> None:
    clips = PretrainClips(FakeStore([20, 20], broken=[1]), [0, 1], data(), patch=8, seed=0)
    with pytest.raises(DecodeError, match=r"`videos/1\.mp4` cannot be read: "):
        clips[0, 1]


def test_finetuning_needs_labels() -> None:
    store = FakeStore([9, 9, 9], labels=[0, None, None])
    with pytest.raises(DataError, match=r"2 of 3 videos .* first `videos/1\.mp4`"):
        FinetuneClips(store, [0, 1, 2], data(), finetune(), seed=0)
    assert len(FinetuneClips(store, [0], data(), finetune(), seed=0)) == 1


def test_finetuning_uses_its_own_sampling_and_all_its_augmentation() -> None:
    store = FakeStore([40])
    uniform = finetune(sampling=Sampling(mode="uniform"))
    frames = frames_of(FinetuneClips(store, [0], data(), uniform, seed=0)[0, 0][0])
    assert [frame // 10 for frame in frames] == [0, 1, 2, 3]

    clean = FinetuneClips(store, [0], data(), finetune(), seed=0)
    erased = FinetuneClips(
        store, [0], data(), Finetune(augment=Augment(erasing=1.0, rand_augment=0)), seed=0
    )
    changed = FinetuneClips(
        store, [0], data(), Finetune(augment=Augment(erasing=0.0, rand_augment=9)), seed=0
    )
    assert erased[0, 0][0].video_CTHW.shape == (3, 4, 32, 32)
    for other in (erased, changed):
        assert any(not same(clean[e, 0][0], other[e, 0][0]) for e in range(5))
        assert same(other[2, 0][0], other[2, 0][0])


def test_evaluation_lists_every_segment_and_crop_of_every_row() -> None:
    store = FakeStore([40, 60, 80])
    views = EvalViews(store, [2, 0], data(), sampling=Sampling(stride=2), segments=2, crops=3)
    assert (views.views, len(views)) == (6, 12)
    items = [views[item][0] for item in range(len(views))]
    assert [item.row for item in items] == [2] * 6 + [0] * 6
    assert [item.view for item in items] == [0, 1, 2, 3, 4, 5] * 2
    first, last = [0, 2, 4, 6], [32, 34, 36, 38]
    assert [frames_of(item) for item in items[6:]] == [first] * 3 + [last] * 3
    assert items[0].motion is None


def test_crops_of_a_segment_are_decoded_once_and_lie_apart() -> None:
    ramp = np.broadcast_to(2 * np.arange(96, dtype=np.uint8)[None, :, None], (32, 96, 3))
    store = Still(ramp, frames=10)
    bare = data(cache="none")
    views = EvalViews(store, [0], bare, sampling=Sampling(stride=2), segments=2, crops=3)
    means = [views[item][0].video_CTHW.float().mean().item() for item in range(6)]
    assert means == pytest.approx([31, 95, 159] * 2, abs=1.5)
    assert sum(store.read.values()) == 8  # two segments of four frames, whatever the crops


def test_views_and_their_motion_need_not_be_square() -> None:
    store = FakeStore([40], size=(60, 64), labels=[0])
    oblong = data(size=(32, 48), repeats=2)
    for sample in PretrainClips(store, [0], oblong, patch=8, seed=0)[0, 0]:
        assert sample.video_CTHW.shape == (3, 4, 32, 48)
        assert sample.motion is not None
        assert sample.motion.field_BThw2.shape == (1, 4, 4, 6, 2)
        assert sample.motion.speed_BThw.shape == (1, 4, 4, 6)
    both = Finetune(augment=Augment(erasing=1.0, rand_augment=9, flip=1.0))
    for epoch in range(5):
        (sample,) = FinetuneClips(store, [0], oblong, both, seed=0)[epoch, 0]
        assert sample.video_CTHW.shape == (3, 4, 32, 48)


def test_crops_of_a_wide_view_lie_under_each_other() -> None:
    ramp = np.broadcast_to(2 * np.arange(96, dtype=np.uint8)[:, None, None], (96, 96, 3))
    config = data(size=(16, 48))
    views = EvalViews(Still(ramp, frames=10), [0], config, sampling=Sampling(stride=2), crops=3)
    videos = [views[item][0].video_CTHW.float() for item in range(3)]
    assert {video.shape for video in videos} == {(3, 4, 16, 48)}
    assert [video.mean().item() for video in videos] == pytest.approx([31, 95, 159], abs=1.5)


def test_a_rate_takes_frames_by_their_times() -> None:
    store = FakeStore([9])
    store.times = lambda row: np.array([0, 1, 2, 3, 3.1, 3.2, 3.3, 3.4, 3.5])  # slow, then fast
    (sample,) = EvalViews(store, [0], data(), sampling=Sampling(fps=2))[0]
    assert frames_of(sample) == [1, 1, 2, 2]  # the middle of 0 0 1 1 2 2 3 8


def test_a_store_without_pictures_cannot_be_trained_on() -> None:
    store = FakeStore([8])
    store.settings = Settings(frames="none")
    with pytest.raises(DataError, match="only motion"):
        EvalViews(store, [0], data(), sampling=Sampling(stride=1))


NOISE = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)


def test_labelled_clips_take_the_frames_and_the_resize_of_videomae() -> None:
    """8 x 4 of 50 frames divide a window from end to end; pretraining keeps its stride."""
    config = data(
        frames=8, sampling=Sampling(stride=4, indices="videomae"), resize="videomae", crop="centre"
    )
    store = FakeStore([50], labels=[0])
    (trained,) = PretrainClips(store, [0], config, patch=8, seed=0)[0, 0]
    (tuned,) = FinetuneClips(store, [0], config, finetune(), seed=0)[0, 0]
    assert {b - a for a, b in pairwise(frames_of(trained))} == {4}
    steps = [frame - frames_of(tuned)[0] for frame in frames_of(tuned)]
    assert steps == [0, 4, 9, 13, 18, 22, 27, 31]

    still = Still(NOISE, frames=20)
    both = [config, config.model_copy(update={"resize": "antialias"})]
    plain, smooth = (FinetuneClips(still, [0], one, finetune(), seed=0)[0, 0][0] for one in both)
    assert not same(plain, smooth)
    plain, smooth = (EvalViews(still, [0], one, sampling=one.sampling)[0][0] for one in both)
    assert not same(plain, smooth)
    plain, smooth = (PretrainClips(still, [0], one, patch=8, seed=0)[0, 0][0] for one in both)
    assert same(plain, smooth)


def test_rand_augment_of_videomae_comes_before_the_crop() -> None:
    store, changed = Still(NOISE, frames=9), 0
    with_it, without = (
        Finetune(augment=Augment(erasing=0, rand_augment=m, rand_augment_form="videomae"))
        for m in (7, 0)
    )
    clips = FinetuneClips(store, [0], data(), with_it, seed=0)
    bare = FinetuneClips(store, [0], data(), without, seed=0)
    video = clips.pictures(0, [0, 2, 4, 6])
    for epoch in range(4):
        rng = random_of("view", 0, epoch, 0, 0)
        view = random_resized_crop(
            64, 96, (32, 32), scale=(0.08, 1.0), ratio=(0.75, 4 / 3), flip=0.5, rng=rng
        )
        augmented = rand_augment_pictures(video, magnitude=7, operations=4, rng=rng)
        expected = view.frames(augmented).transpose(0, 1)
        assert torch.equal(clips[epoch, 0][0].video_CTHW, expected)
        assert torch.equal(bare[epoch, 0][0].video_CTHW, view.frames(video).transpose(0, 1))
        changed += not torch.equal(augmented, video)
    assert changed >= 2
