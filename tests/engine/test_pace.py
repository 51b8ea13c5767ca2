"""Clips a second, MFU and memory in the log lines."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tatscli.engine import ceiling, pace
from tatscli.engine.ceiling import PEAKS, peak_of
from tatscli.engine.loop import train
from tatscli.engine.pace import Pace
from tatscli.engine.part import Lesson
from tatscli.engine.training import Training
from tests.engine.toy import toy_training


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """A clock that stands still until it is set."""
    hands = SimpleNamespace(now=100.0)
    monkeypatch.setattr(pace.time, "perf_counter", lambda: hands.now)
    yield hands


def known(monkeypatch: pytest.MonkeyPatch, peak: float | None) -> None:
    monkeypatch.setattr(pace, "known_peak", lambda device, dtype: peak)


def test_the_rate_counts_views_of_all_processes_over_the_time_of_a_line(
    tmp_path: Path, clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    known(monkeypatch, 1e12)
    training = toy_training(tmp_path)
    training.flops = 2e9
    training.world = SimpleNamespace(size=4)  # type: ignore[assignment]
    object.__setattr__(training.schedule, "repeats", 3)
    speed = Pace(training)
    training.done += 5
    clock.now += 2.0
    found = speed.read()
    rate = 5 * 8 * 3 / 2.0  # steps x videos of a step x views of each, by seconds
    assert found["clips_per_second"] == pytest.approx(rate)
    assert found["mfu"] == pytest.approx(rate * 2e9 / (4 * 1e12))
    training.done += 1
    clock.now += 0.5
    assert speed.read()["clips_per_second"] == pytest.approx(8 * 3 / 0.5)


def test_scoring_is_left_out(
    tmp_path: Path, clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = toy_training(tmp_path)
    speed = Pace(training)
    training.done += 1
    clock.now += 1.0
    with speed.aside():
        clock.now += 50.0
    clock.now += 1.0
    assert speed.read()["clips_per_second"] == pytest.approx(8 / 2.0)


def test_scoring_that_a_signal_had_cut_short_is_left_out(
    tmp_path: Path, clock: SimpleNamespace
) -> None:
    """It is done as the training is resumed, before the first step."""
    training = toy_training(tmp_path, max_steps=1)
    plain = training.step

    def step(*given: Any) -> Lesson:
        clock.now += 2.0
        return plain(*given)

    def score(epoch: int) -> tuple[float, dict[str, float]]:
        clock.now += 50.0
        return 0.5, {}

    training.step, training.score, training.unscored = step, score, True
    assert train(training)["clips_per_second"] == pytest.approx(8 / 2.0)


@pytest.mark.parametrize(("flops", "peak"), [(None, 1e12), (1e9, None), (None, None)])
def test_without_operations_or_a_known_peak_there_is_no_mfu(
    flops: float | None, peak: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known(monkeypatch, peak)
    training = toy_training(tmp_path, max_steps=1)
    training.flops = flops
    train(training)
    line = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    assert line["mfu"] is None
    assert line["clips_per_second"] > 0
    assert 0.05 < line["peak_memory_gb"] < 64


def test_a_training_writes_the_rate_that_its_clock_shows(
    tmp_path: Path, clock: SimpleNamespace
) -> None:
    """Slow scoring after each pass of two steps makes no line slower."""

    def training() -> Training:
        made = toy_training(tmp_path, log_every=2, save_every=100)
        plain = made.step

        def step(batch: object, generator: torch.Generator) -> object:
            clock.now += 0.02
            return plain(batch, generator)

        def score(epoch: int) -> tuple[None, dict[str, float]]:
            clock.now += 0.5
            return None, {"looked": 1.0}

        made.step, made.score = step, score  # type: ignore[assignment]
        return made

    train(training())
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    rates = [line["clips_per_second"] for line in lines if "clips_per_second" in line]
    assert rates == [pytest.approx(16 / 0.04)] * 5  # 16 clips of a line in two steps


@pytest.mark.parametrize(
    ("name", "dtype", "wanted"),
    [
        ("NVIDIA H100 80GB HBM3", torch.bfloat16, 989e12),
        ("NVIDIA H100 PCIe", torch.bfloat16, 756e12),
        ("NVIDIA H200", torch.bfloat16, 989e12),
        ("NVIDIA A100-SXM4-80GB", torch.bfloat16, 312e12),
        ("NVIDIA A100-SXM4-80GB", torch.float32, 156e12),
        ("NVIDIA GeForce RTX 4090", torch.bfloat16, 165.2e12),
        ("NVIDIA L40S", torch.float16, 362e12),
        ("NVIDIA L4", torch.float16, 121e12),
        ("NVIDIA A10G", torch.bfloat16, 70e12),
        ("NVIDIA A10", torch.bfloat16, 125e12),
        ("Tesla V100-SXM2-16GB", torch.float16, 125e12),
        ("Tesla V100-SXM2-16GB", torch.float32, 15.7e12),
        ("Tesla V100-SXM2-16GB", torch.bfloat16, None),
        ("NVIDIA GeForce GTX 1080", torch.float32, None),
        ("NVIDIA RTX A4000", torch.bfloat16, None),
    ],
)
def test_peaks_go_by_the_words_of_a_name(
    name: str, dtype: torch.dtype, wanted: float | None
) -> None:
    assert peak_of(name, dtype) == wanted


def test_without_tensor_cores_float32_is_slower() -> None:
    assert peak_of("NVIDIA H100 80GB HBM3", torch.float32, tf32=False) == 67e12
    for name, peak in PEAKS.items():
        assert peak.fp32 <= (peak.tf32 or peak.fp32) <= peak.fp16, name


def test_a_cpu_is_in_no_table() -> None:
    assert ceiling.known_peak(torch.device("cpu"), torch.float32) is None


def test_a_large_product_is_faster_than_a_thousandth_of_it() -> None:
    """The ceiling is a rate: of the order of what numpy's own product reaches."""
    import numpy as np

    threads = torch.get_num_threads()
    speed = ceiling.product_speed(torch.device("cpu"), torch.float32, seconds=0.1)
    assert torch.get_num_threads() == threads
    left = np.random.default_rng(0).random((1024, 1024), dtype=np.float32)
    best = min(_taken(left) for _ in range(3))
    assert 0.05 < speed / (2 * 1024**3 / best) < 20


def _taken(left: object) -> float:
    began = time.perf_counter()
    left @ left  # type: ignore[operator]
    return time.perf_counter() - began
