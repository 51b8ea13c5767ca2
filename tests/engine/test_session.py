"""Who speaks in a training of several processes."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tatscli.console import Reporter
from tatscli.engine import joining
from tatscli.engine.distributed import World
from tatscli.engine.session import session
from tatscli.recipe.schema import Run


@pytest.mark.parametrize("rank", [0, 1])
def test_what_all_processes_notice_is_said_by_rank_0(
    rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def joined(*_: object, **__: object) -> Iterator[World]:
        yield World(rank, 2, rank, 2)

    monkeypatch.setattr(joining, "joined", joined)
    reporter = Reporter(quiet=rank > 0, stdout=io.StringIO(), stderr=io.StringIO())
    with session(Run(device="cpu", precision="fp16"), reporter) as here:
        here.reporter.warn("all notice this")
        here.own.warn("`a.mp4` cannot be read")
    said = reporter.stderr.getvalue()
    assert said.count("many times slower") == said.count("all notice this") == (rank == 0)
    assert said.count("warning: `a.mp4` cannot be read") == 1
