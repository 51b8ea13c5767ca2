"""How many threads a CPU computes with: named, told by the environment, or one for small steps."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tatscli.engine.threads import SMALL, use_threads

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def three(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let torch's own choice be three threads."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    assert torch.get_num_threads() == 3, "the threads were not given back"
    torch.set_num_threads(before)


@pytest.mark.parametrize("flops", [1e6, 1e15])
@pytest.mark.parametrize("device", [CPU, GPU])
def test_a_number_is_taken_as_it_is(device: torch.device, flops: float) -> None:
    with use_threads(2, flops, device) as reason:
        assert torch.get_num_threads() == 2
        assert reason == "2: set in the recipe"


@pytest.mark.parametrize(
    ("flops", "device", "threads", "words"),
    [
        (0.9 * SMALL, CPU, 1, "1: a step is only 18 GFLOP"),
        (SMALL, CPU, 3, "3: torch's default"),
        (1e6, GPU, 3, "3: torch's default"),
    ],
)
def test_small_steps_on_a_cpu_take_one(
    flops: float, device: torch.device, threads: int, words: str
) -> None:
    with use_threads("auto", flops, device) as reason:
        assert torch.get_num_threads() == threads
        assert reason == words


def test_the_environment_goes_before_auto_and_after_a_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    with use_threads("auto", 1e6, CPU) as reason:
        assert torch.get_num_threads() == 3
        assert reason == "3: set by OMP_NUM_THREADS"
    with use_threads(2, 1e6, CPU):
        assert torch.get_num_threads() == 2


def test_threads_are_given_back_after_a_failure() -> None:
    with pytest.raises(ValueError, match="inside"), use_threads(1, 1e6, CPU):
        raise ValueError("inside")
    assert torch.get_num_threads() == 3
