"""Decoded frames in memory: the same clips bit for bit, each frame decoded once."""

from __future__ import annotations

import errno
import os
from typing import Any

import pytest
import torch

from tatscli.data.dataset import PretrainClips
from tatscli.data.labelled import FinetuneClips
from tatscli.errors import DecodeError, TatsError
from tatscli.recipe.schema import Finetune
from tests.data.noisy import Noisy, data, equal, evaluated, plain, training, views


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("size", [(48, 64), (32, 32)])  # resized, and taken as it is
def test_clips_are_the_same_bit_for_bit(workers: int, size: tuple[int, int]) -> None:
    def read(kind: str) -> list[list[Any]]:
        store, config = Noisy([5, 12, 9, 20], size=size), data(cache=kind, repeats=2)
        rows = range(4)
        pretraining = PretrainClips(store, rows, config, patch=8, seed=0)
        finetuning = FinetuneClips(store, rows, config, Finetune(repeats=2), seed=0)
        scored = views(store, cache=kind)
        assert all(
            (one.cache is None) == (kind == "none") for one in (pretraining, finetuning, scored)
        )
        return [
            training(pretraining, repeats=2, workers=workers),
            training(finetuning, repeats=2, workers=workers),
            evaluated(scored, workers=workers) + evaluated(scored, workers=workers),
        ]

    for kept, decoded in zip(read("ram"), read("none"), strict=True):
        assert equal(kept, decoded)


@pytest.mark.parametrize("frames", [[0], [2, 3, 4], [4, 1, 4, 0], list(range(9)), [8, 8]])
def test_pictures_lie_in_memory_as_if_decoded(frames: list[int]) -> None:
    """Resizing is faster channels last, and may round otherwise."""
    store = Noisy([9])
    wanted = plain(store, cache="none").pictures(0, frames)
    clips = plain(store, cache="ram")
    clips.pictures(0, [3, 8])  # so that some are there and some are not
    for _ in range(2):
        found = clips.pictures(0, frames)
        assert torch.equal(found, wanted)
        assert found.stride() == wanted.stride()
        found.zero_()  # a copy: the next one is not touched


def test_a_frame_is_decoded_once_whatever_is_asked_for() -> None:
    store = Noisy([30] * 3)
    clips = PretrainClips(store, range(3), data(), patch=8, seed=0)
    for epoch in range(30):
        for position in range(3):
            clips[epoch, position]
    assert max(store.read.values()) == 1
    assert len(store.read) > 60
    store.read.clear()
    bare = PretrainClips(store, range(3), data(cache="none"), patch=8, seed=0)
    for epoch in range(30):
        bare[epoch, 0]
    assert max(store.read.values()) > 1


class Killed(BaseException):
    """Stands for a SIGKILL: nothing after it is done."""


@pytest.mark.parametrize("writes", [0, 1, 2])
def test_what_was_not_finished_is_not_there(writes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in the first frame, in the second, and before the flags are set."""
    store = Noisy([9])
    clips, real, left = plain(store, cache="ram"), os.pwrite, [writes]

    def dying(descriptor: int, content: memoryview, at: int) -> int:
        if not left[0]:
            real(descriptor, content[: len(content) // 2 if writes < 2 else 0], at)
            raise Killed
        left[0] -= 1
        return real(descriptor, content, at)

    monkeypatch.setattr(os, "pwrite", dying)
    with pytest.raises(Killed):
        clips.pictures(0, [2, 5])
    monkeypatch.setattr(os, "pwrite", real)
    store.read.clear()
    found = clips.pictures(0, [2, 5])
    assert store.read == {(0, 2): 1, (0, 5): 1}
    assert torch.equal(found, plain(store, cache="none").pictures(0, [2, 5]))


def test_writes_that_stop_half_way_are_continued(monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, content, at: real(file, content[:1000], at))
    store = Noisy([5])
    clips = plain(store, cache="ram")
    first = clips.pictures(0, [0, 3])
    store.lose()
    assert torch.equal(clips.pictures(0, [0, 3]), first)


def test_no_room_left_stops_the_run_and_replaces_no_video(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, content: memoryview, at: int) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    clips = PretrainClips(Noisy([9] * 4), range(4), data(cache="ram"), patch=8, seed=0)
    with pytest.raises(TatsError, match="No space left on device") as caught:
        training(clips, repeats=1, workers=0)
    assert not isinstance(caught.value, DecodeError)
    assert "data.cache=none" in (caught.value.hint or "")


def test_pictures_of_another_size_than_the_manifest_says_are_unreadable() -> None:
    store = Noisy([9])
    store.rows[0].width += 1
    with pytest.raises(DecodeError, match=r"`videos/0\.mp4` .* 64 x 48 .* manifest says 65 x 48"):
        plain(store, cache="ram").pictures(0, [0])


def test_unreadable_videos_are_as_without_a_cache() -> None:
    clips = plain(Noisy([9, 9], broken=[1]), cache="ram")
    clips.pictures(0, [1, 2])
    for _ in range(2):
        with pytest.raises(DecodeError, match=r"`videos/1\.mp4` cannot be read"):
            clips.pictures(1, [1, 2])
