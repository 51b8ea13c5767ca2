"""Decoded frames in memory: how many, and why not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from tatscli.data import cache
from tatscli.data.cache import plan_cache
from tatscli.data.dataset import Clips
from tatscli.errors import Exit, RecipeError
from tests.data.fake_store import FakeStore
from tests.data.noisy import FRAME, data


def with_memory(monkeypatch: pytest.MonkeyPatch, free: int | None) -> None:
    monkeypatch.setattr(cache, "free_memory", lambda: free)


def reason(store: FakeStore, rows: Sequence[int], **change: Any) -> str | None:
    return plan_cache(store, rows, data(**change)).reason


def test_the_bound_counts_decoded_frames_of_the_rows_in_use() -> None:
    store = FakeStore([10, 20, 1000])
    exact = 30 * FRAME / 1e9
    plan = plan_cache(store, [0, 1, 1], data(cache_gb=exact))
    assert (plan.frames, plan.bytes, plan.kept, plan.reason) == (30, 30 * FRAME, 30 * FRAME, None)
    assert str(plan) == "0.276 MB of at most 0.276 MB, decoded once"
    assert "more than `data.cache_gb: 0.000" in (reason(store, [0, 1], cache_gb=0.99 * exact) or "")
    assert plan_cache(store, [0, 1, 2], data(cache_gb=exact)).kept == 0
    assert reason(store, [0], cache="none") == "`data.cache: none`"
    assert reason(store, [], cache="ram") == "there are no frames"
    store.rows[1].height = 0
    assert "how large the pictures of `videos/1.mp4` are" in (reason(store, [0, 1]) or "")
    assert reason(store, [0]) is None


def test_the_memory_that_is_free_bounds_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    store, size = FakeStore([10]), 10 * FRAME
    with_memory(monkeypatch, 2 * size)
    assert reason(store, [0]) is None
    with_memory(monkeypatch, 2 * size - 10)
    assert "more than 50% of the memory that is free" in (reason(store, [0]) or "")
    assert reason(store, [0], cache="ram") is None
    with_memory(monkeypatch, size)
    with pytest.raises(RecipeError, match=r"`data\.cache: ram` cannot keep .* 80% of the memory"):
        plan_cache(store, [0], data(cache="ram"))
    with_memory(monkeypatch, None)
    assert reason(store, [0]) is None


def test_ram_refuses_what_does_not_fit_and_says_what_would() -> None:
    store = FakeStore([400] * 2, size=(1000, 1000))
    with pytest.raises(RecipeError) as caught:
        Clips(store, [0, 1], data(cache="ram", cache_gb=2))
    assert caught.value.exit_code == Exit.USAGE
    assert caught.value.message == (
        "`data.cache: ram` cannot keep 800 frames: 2.4 GB of decoded frames are more than"
        " `data.cache_gb: 2`"
    )
    assert "`data.cache_gb=2.4`" in (caught.value.hint or "")
    assert "`data.cache=auto` or `none`" in (caught.value.hint or "")
    clips = Clips(store, [0, 1], data(cache_gb=2))
    assert clips.cache is None
    assert "2.4 GB of decoded frames are more" in str(clips.cache_plan)


def test_large_sizes_can_be_read() -> None:
    plan = plan_cache(FakeStore([10**9], size=(256, 340)), [0], data())
    assert str(plan).startswith(
        "none, decoded in every epoch: 261,120 GB of decoded frames are more"
    )


def test_caches_of_a_process_share_the_bound_and_give_it_back() -> None:
    store = FakeStore([10, 10])
    config: dict[str, Any] = {"cache_gb": 15 * FRAME / 1e9}
    first = Clips(store, [0], data(**config))
    second = Clips(store, [1], data(**config))
    assert first.cache is not None
    assert second.cache is None
    assert plan_cache(store, [1], data(**config)).reason is None  # on its own it would fit
    beside = plan_cache(store, [1], data(**config), beside=first.cache_plan.kept)
    assert beside.reason == second.cache_plan.reason
    del first
    third = Clips(store, [1], data(**config))
    assert third.cache is not None
    third.itself = third  # type: ignore[attr-defined]
    del third  # not freed before the collector comes by
    assert Clips(store, [0], data(**config)).cache is not None


def test_every_rank_of_the_machine_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    store, config = FakeStore([10]), data(cache_gb=35 * FRAME / 1e9)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert str(plan_cache(store, [0], config)).startswith("3 ranks x 0.0922 MB of at most 0.323 MB")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert "0.369 MB of decoded frames on 4 ranks are more" in str(plan_cache(store, [0], config))
