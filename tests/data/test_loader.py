"""Batches: the same from any workers and from any step on; bad clips; workers that fail."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tatscli.data import loader
from tatscli.data.batch import Batch
from tatscli.data.dataset import Clips, PretrainClips
from tatscli.data.labelled import FinetuneClips
from tatscli.data.loader import evaluation_batches, training_batches, worker_count
from tatscli.data.view import spatial_crop
from tatscli.data.views import EvalViews
from tatscli.errors import DataError
from tatscli.recipe.derive import Schedule, derive_schedule
from tatscli.recipe.schema import Data, Finetune, Optim, Sampling
from tests.data.fake_store import FakeStore, jpeg

DATA = Data(store="x", frames=4, size=32, sampling=Sampling(stride=2), flip=0.5, repeats=2)


def schedule(videos: int, *, total: int = 4, per_device: int = 2, world: int = 1) -> Schedule:
    optim = Optim(total_batch=total, batch_per_device=per_device, epochs=10, warmup_epochs=0)
    return derive_schedule(optim, videos=videos, repeats=2, world=world)


def clips(store: FakeStore, data: Data = DATA) -> PretrainClips:
    return PretrainClips(store, range(len(store.rows)), data, patch=8, seed=0)


def batches(dataset: Clips, count: int, **options: Any) -> list[Batch]:
    plan = schedule(len(dataset.rows), world=options.get("world", 1))
    return list(islice(training_batches(dataset, plan, seed=0, **options), count))


def views(store: FakeStore, rows: Sequence[int], **change: Any) -> EvalViews:
    options = {"sampling": Sampling(stride=2), "segments": 2, "crops": 3, **change}
    return EvalViews(store, rows, DATA, **options)


def same(one: Batch, other: Batch) -> bool:
    assert (one.motion is None) == (other.motion is None)
    pairs = [(getattr(one, name), getattr(other, name)) for name in ("label_B", "row_B", "view_B")]
    pairs.append((one.video_BCTHW, other.video_BCTHW))
    if one.motion is not None and other.motion is not None:
        pairs.append((one.motion.field_BThw2, other.motion.field_BThw2))
        pairs.append((one.motion.valid_BT, other.motion.valid_BT))
    return all(torch.equal(a, b) for a, b in pairs) and one.bad == other.bad


def test_a_batch_holds_the_views_of_its_videos_side_by_side() -> None:
    first = batches(clips(FakeStore([30] * 6)), 1)[0]
    assert first.video_BCTHW.shape == (4, 3, 4, 32, 32)
    assert first.video_BCTHW.dtype == torch.uint8
    assert first.video_BCTHW.is_contiguous()
    assert first.motion is not None
    assert first.motion.field_BThw2.shape == (4, 4, 4, 4, 2)
    assert first.motion.valid_BT.dtype == torch.bool
    assert first.row_B.dtype == first.label_B.dtype == first.view_B.dtype == torch.int64
    assert first.view_B.tolist() == [0, 1, 0, 1]
    assert torch.equal(first.row_B, first.label_B)  # so the fake labels them
    assert first.row_B[0] == first.row_B[1] != first.row_B[2] == first.row_B[3]
    assert (first.video_BCTHW[:, 0].float().mean((1, 2, 3)) / 20).round().tolist() == [
        float(row) for row in first.row_B
    ]
    assert same(first.to("cpu"), first)


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(workers: int) -> None:
    store = FakeStore([20, 30, 40, 50, 60, 70, 80], broken=[2])
    options: dict[str, Any] = {"max_bad_share": 1.0}
    alone = batches(clips(store), 8, **options)
    together = batches(clips(store), 8, workers=workers, **options)
    assert all(same(a, b) for a, b in zip(alone, together, strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_training_starts_at_any_step_and_reads_nothing_before_it(workers: int) -> None:
    store = FakeStore([30] * 9)
    straight = batches(clips(store), 16)
    store.read.clear()
    resumed = batches(clips(store), 4, start_step=6, workers=workers)
    assert all(same(a, b) for a, b in zip(straight[12:], resumed, strict=True))
    rows = {int(row) for batch in resumed for row in batch.row_B}
    assert {row for row, _ in store.read} <= rows


def test_ranks_share_the_step_of_one_process() -> None:
    store = FakeStore([30] * 8)
    alone = batches(clips(store), 4)
    ranks = [batches(clips(store), 2, rank=rank, world=2) for rank in range(2)]
    dealt = [batch for pair in zip(*ranks, strict=True) for batch in pair]
    assert all(same(a, b) for a, b in zip(alone, dealt, strict=True))


def test_a_schedule_of_another_data_set_is_a_bug() -> None:
    with pytest.raises(ValueError, match="for 9 videos on 1 ranks, not for 8 on 1"):
        next(training_batches(clips(FakeStore([9] * 8)), schedule(9), seed=0))


def test_loading_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    batches(clips(FakeStore([20] * 4)), 2, workers=2)
    batches(FinetuneClips(FakeStore([20] * 4), range(4), DATA, Finetune(), seed=0), 2)
    assert torch.equal(torch.get_rng_state(), before)


def test_bad_clips_give_way_to_the_next_row_and_are_counted_and_told_once() -> None:
    store = FakeStore([30] * 8, broken=[3, 4, 7])
    told: list[tuple[int, str]] = []
    dataset = clips(store)
    found = batches(
        dataset, 12, max_bad_share=0.5, on_bad=lambda row, reason: told.append((row, reason))
    )
    healthy = batches(clips(FakeStore([30] * 8)), 12)
    instead = {3: 5, 4: 5, 7: 0}
    for got, wanted in zip(found, healthy, strict=True):
        rows = [int(row) for row in wanted.row_B]
        assert [int(row) for row in got.row_B] == [instead.get(row, row) for row in rows]
        tries = {3: 2, 4: 1, 7: 1}
        assert got.replaced == sum(tries.get(row, 0) for row in rows[::2])
    assert sum(batch.replaced for batch in found) > 4
    assert sorted(row for row, _ in told) == [3, 4, 7]
    assert all(f"`videos/{row}.mp4` cannot be read" in reason for row, reason in told)


@pytest.mark.parametrize(
    ("videos", "broken", "share", "stops"),
    [
        (50, 1, 0.01, False),  # a single one in a small set
        (50, 2, 0.01, True),
        (50, 1, 0.0, True),
        (50, 5, 0.1, False),
        (50, 6, 0.1, True),
        (50, 20, 1.0, False),
    ],
)
def test_too_many_bad_clips_stop_training(
    videos: int, broken: int, share: float, stops: bool
) -> None:
    store = FakeStore([9] * videos, size=(16, 16), broken=range(0, 2 * broken, 2))
    dataset = clips(store, Data(store="x", frames=1, size=8, sampling=Sampling(stride=1)))
    epochs = 3 * videos // 2
    if not stops:
        assert len(batches(dataset, epochs, max_bad_share=share)) == epochs
        return
    with pytest.raises(DataError, match="cannot be read, more than") as caught:
        batches(dataset, epochs, max_bad_share=share)
    assert "data.max_bad_share" in (caught.value.hint or "")


def test_a_large_set_is_not_stopped_by_early_bad_luck() -> None:
    """Ten of the first thousand may come at once; what follows is measured by the share."""
    check = loader._check_share
    check(10, seen=10, videos=100_000, limit=0.01)
    with pytest.raises(DataError, match="11 of the 50 videos"):
        check(11, seen=50, videos=100_000, limit=0.01)
    check(50, seen=5000, videos=100_000, limit=0.01)
    with pytest.raises(DataError):
        check(51, seen=5000, videos=100_000, limit=0.01)
    with pytest.raises(DataError, match="2 of the 100 videos"):
        check(2, seen=10_000, videos=100, limit=0.01)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_store_that_is_gone_stops_at_once_with_its_reason(workers: int) -> None:
    store = FakeStore([9] * 20, broken=range(20))
    with pytest.raises(DataError, match=r"10 videos in a row .*`videos/\d+\.mp4` cannot") as caught:
        batches(clips(store), 1, max_bad_share=1.0, workers=workers)
    assert "disk" in (caught.value.hint or "")


@pytest.mark.parametrize("workers", [0, 2])
def test_short_error_stops_training_with_message_and_hint(workers: int) -> None:
    strict = Data(store="x", frames=4, size=32, sampling=Sampling(stride=9, short="error"))
    with pytest.raises(DataError, match=r"`videos/\d\.mp4`: a video of `9` frames") as caught:
        batches(clips(FakeStore([9] * 4), strict), 1, max_bad_share=1.0, workers=workers)
    assert "repeat_last" in (caught.value.hint or "")
    assert "Traceback" not in caught.value.message


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("size", [1, 4, 100])
def test_evaluation_gives_every_view_once_and_in_order(workers: int, size: int) -> None:
    store = FakeStore([20, 30, 40, 50, 60])
    found = list(evaluation_batches(views(store, [4, 0, 2]), batch=size, workers=workers))
    rows = torch.cat([batch.row_B for batch in found]).tolist()
    numbers = torch.cat([batch.view_B for batch in found]).tolist()
    assert rows == [4] * 6 + [0] * 6 + [2] * 6
    assert numbers == list(range(6)) * 3
    assert [len(batch.row_B) for batch in found[:-1]] == [size] * (len(found) - 1)
    assert all(batch.motion is None and batch.replaced == 0 for batch in found)


def test_ranks_divide_evaluation_without_repeats() -> None:
    dataset = views(FakeStore([20] * 5), range(5))
    parts = [
        [
            int(row)
            for batch in evaluation_batches(dataset, batch=4, rank=r, world=3)
            for row in batch.row_B
        ]
        for r in range(3)
    ]
    assert parts == [[0] * 6 + [3] * 6, [1] * 6 + [4] * 6, [2] * 6]
    assert list(evaluation_batches(views(FakeStore([20]), [0]), batch=4, rank=1, world=2)) == []


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_never_replaces(workers: int) -> None:
    dataset = views(FakeStore([20] * 4, broken=[2]), range(4))
    with pytest.raises(DataError, match=r"`videos/2\.mp4` cannot be read"):
        list(evaluation_batches(dataset, batch=4, workers=workers))


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_leaves_bad_videos_out_where_somebody_is_told(workers: int) -> None:
    dataset = views(FakeStore([20] * 5, broken=[1, 2]), range(5))
    told: list[tuple[int, str]] = []
    found = list(
        evaluation_batches(dataset, batch=4, workers=workers, on_bad=lambda *bad: told.append(bad))
    )
    assert torch.cat([batch.row_B for batch in found]).tolist() == [0] * 6 + [3] * 6 + [4] * 6
    assert [row for row, _ in told] == [1] * 6 + [2] * 6
    assert all("cannot be read" in reason for _, reason in told)
    nothing = views(FakeStore([20], broken=[0]), [0])
    assert list(evaluation_batches(nothing, batch=4, on_bad=lambda *_: None)) == []


@pytest.mark.parametrize("size", [(32, 32), (48, 64), (64, 48), (33, 40)])
@pytest.mark.parametrize(("mode", "stride"), [("dense", 1), ("dense", 4), ("uniform", None)])
def test_views_called_alike_are_the_same_pixels(
    size: tuple[int, int], mode: str, stride: int | None
) -> None:
    store = FakeStore([3, 8, 16, 17, 40], size=size)
    data = Data(store="x", frames=4, size=32, sampling=Sampling(mode=mode, stride=stride))
    dataset = EvalViews(store, range(5), data, sampling=data.sampling, segments=3, crops=3)
    for place, row in enumerate(dataset.rows):
        first = dataset.alike(row)
        for number, other in enumerate(first):
            shown = [
                (
                    dataset.frames(row, one // 3),
                    spatial_crop(*size, (32, 32), crop=one % 3, crops=3),
                )
                for one in (number, other)
            ]
            assert shown[0] == shown[1] and first[other] == other <= number
            items = (dataset[place * 9 + one][0] for one in (number, other))
            assert torch.equal(*(one.video_CTHW for one in items))
        kinds = {
            (tuple(dataset.frames(row, s)), spatial_crop(*size, (32, 32), crop=c, crops=3))
            for s in range(3)
            for c in range(3)
        }
        assert len(set(first)) == len(kinds)
    assert dataset.items(distinct=True, rank=1, world=2) == [
        9 * place + number for place in (1, 3) for number in sorted(set(dataset.alike(place)))
    ]


def test_workers_end_with_the_iterator_and_keep_out_of_the_terminal() -> None:
    before = {*multiprocessing.active_children()}
    stream = training_batches(clips(FakeStore([20] * 4)), schedule(4), seed=0, workers=2)
    next(stream)
    children = {*multiprocessing.active_children()} - before
    assert len(children) == 2
    started = time.monotonic()
    while any(os.getpgid(child.pid or 0) == os.getpgid(0) for child in children):
        assert time.monotonic() - started < 300  # the second worker may still be starting
        time.sleep(0.05)
    stream.close()
    assert not {*multiprocessing.active_children()} - before


def test_forked_workers_compute_after_the_parent_used_its_threads() -> None:
    """A fork leaves thread pools behind; one thread per worker must do without them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        torch.nn.functional.conv2d(torch.randn(8, 16, 64, 64), torch.randn(16, 16, 3, 3))
        (torch.randn(500, 500) @ torch.randn(500, 500)).exp().sum()
        dataset = FinetuneClips(FakeStore([20] * 8), range(8), DATA, Finetune(), seed=0)
        alone = batches(dataset, 8)
        together = batches(dataset, 8, workers=2)
    finally:
        torch.set_num_threads(threads)
    assert all(same(a, b) for a, b in zip(alone, together, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("start", ["forkserver", "spawn"])
def test_other_ways_to_start_workers_give_the_same(
    start: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = batches(clips(FakeStore([20] * 8)), 4)
    context = multiprocessing.get_context(start)
    monkeypatch.setattr(loader, "_context", lambda *, on_cuda: context)
    together = batches(clips(FakeStore([20] * 8)), 4, workers=2)
    assert all(same(a, b) for a, b in zip(alone, together, strict=True))


def test_the_start_method_follows_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader.sys, "platform", "linux")
    assert loader._context(on_cuda=False).get_start_method() == "fork"
    assert loader._context(on_cuda=True).get_start_method() == "forkserver"
    monkeypatch.setattr(loader.sys, "platform", "darwin")
    assert loader._context(on_cuda=True) is None


def test_worker_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)), raising=False)
    assert worker_count("auto") == 8
    assert worker_count("auto", local_ranks=4) == 3
    assert worker_count("auto", local_ranks=100) == 1
    assert worker_count(0) == 0
    assert worker_count(31, local_ranks=4) == 31
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert worker_count("auto") == 2


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_reading_hundreds_of_clips_does_not_grow_memory() -> None:
    """A clip is 4 MB decoded: keeping one in twenty would pass the limit."""
    store = FakeStore([40] * 10, size=(256, 340))
    picture = jpeg(np.zeros((256, 340, 3), np.uint8))
    store._picture = lambda row, frame: picture  # type: ignore[method-assign]
    data = Data(store="x", frames=16, size=224, sampling=Sampling(stride=2), cache="none")
    stream = training_batches(clips(store, data), schedule(10), seed=0)

    def resident() -> float:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

    for _ in islice(stream, 20):
        pass
    before = resident()
    for _ in islice(stream, 100):  # 200 clips, 800 MB decoded
        pass
    assert resident() - before < 40


@pytest.mark.needs_cuda
def test_pinned_batches_reach_the_device() -> None:
    torch.zeros(1, device="cuda")
    store = FakeStore([20] * 8)
    alone = [batch.to("cpu") for batch in batches(clips(store), 4)]
    pinned = batches(clips(store), 4, workers=2)
    assert all(batch.video_BCTHW.is_pinned() for batch in pinned)
    assert all(
        batch.motion is not None and batch.motion.field_BThw2.is_pinned() for batch in pinned
    )
    moved = [batch.to("cuda") for batch in pinned]
    torch.cuda.synchronize()
    assert all(batch.video_BCTHW.is_cuda and batch.row_B.is_cuda for batch in moved)
    assert all(same(a, b.to("cpu")) for a, b in zip(alone, moved, strict=True))
