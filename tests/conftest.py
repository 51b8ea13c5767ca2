"""What every test may use: markers, restored random states, the shared clips, `tats` in-process."""

from __future__ import annotations

import contextlib
import gc
import io
import json
import os
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import settings

# These machines are noisy: what a test takes says nothing about the code.
settings.register_profile("tats", deadline=None)
settings.load_profile("tats")


def pytest_configure() -> None:
    """Let programs that tests start run the package under test, whatever folder they start in."""
    paths = [str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))


def pytest_collection_finish() -> None:
    """Keep what importing and collecting made out of every sweep for garbage: half a second."""
    gc.freeze()


def pytest_sessionfinish() -> None:
    """Let the interpreter clear away at its end what it made."""
    gc.unfreeze()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip `needs_cuda` without a GPU, but fail where this machine is said to have one."""
    if item.get_closest_marker("needs_cuda") is None:
        return
    import torch

    if not torch.cuda.is_available():
        if os.environ.get("TATS_EXPECT_CUDA"):
            pytest.fail("TATS_EXPECT_CUDA is set, but torch sees no CUDA device")
        pytest.skip("needs a CUDA device")


@pytest.fixture(autouse=True, scope="session")
def _wait_for_no_disk() -> Iterator[None]:
    """Tests kill processes, which loses nothing that was written; none cuts the power."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(autouse=True)
def _restore_random_states() -> Iterator[None]:
    """Leave the global generators as they were, without importing libraries for it."""
    python = random.getstate()
    numpy, torch = sys.modules.get("numpy"), sys.modules.get("torch")
    numpy_state = numpy.random.get_state() if numpy else None
    torch_state = torch.get_rng_state() if torch else None
    yield
    random.setstate(python)
    if numpy and numpy_state is not None:
        numpy.random.set_state(numpy_state)
    if torch and torch_state is not None:
        torch.set_rng_state(torch_state)


@pytest.fixture(autouse=True)
def _sweep_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare trainings of a few steps the sweep that pays in long ones; `test_loop.py` has it."""
    loop = sys.modules.get("tatscli.engine.loop")
    if loop is not None:
        nothing = dict.fromkeys(("collect", "freeze", "unfreeze"), lambda: None)
        monkeypatch.setattr(loop, "gc", SimpleNamespace(**nothing))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of shared clips and data sets; tests that use it carry `@pytest.mark.shared`."""
    named = os.environ.get("TATS_SHARED")
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / "shared"
    if not (folder / "clips").is_dir():
        pytest.skip(f"no shared clips in {folder}; set TATS_SHARED")
    return folder


@dataclass(frozen=True)
class Outcome:
    """What a `tats` command line left behind."""

    code: int
    stdout: str
    stderr: str

    def json(self) -> dict[str, Any]:
        """The single JSON object on stdout."""
        return json.loads(self.stdout)


@pytest.fixture
def cli() -> Callable[..., Outcome]:
    """Run `tats ARGS...` in this process, through the console script's exception boundary."""

    def run(*args: object) -> Outcome:
        from tatscli.cli import main

        stdout, stderr = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
            code = main([str(arg) for arg in args])
        return Outcome(int(code), stdout.getvalue(), stderr.getvalue())

    return run
