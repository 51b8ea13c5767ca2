"""Damaged files through `prepare`: a row each, and nothing else happens."""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from tatscli.store.reader import Store
from tatscli.store.verify import verify
from tests.store.stores import QUIET
from tests.store.tampering import render_seeds, write_tampered

PARENT_MIB, WORKER_MIB = 250, 1000
SCRIPT = """
import json, multiprocessing, resource, sys
from functools import partial
from pathlib import Path

from tatscli.console import Reporter
from tatscli.store import prepare as pipeline
from tatscli.store.pool import run_in_order
from tatscli.store.schema import Settings
from tatscli.store.sources import find_sources

if __name__ == "__main__":
    report = pipeline.prepare(
        find_sources(Path(sys.argv[1])), Path(sys.argv[2]), Settings(short_side=48),
        run=partial(run_in_order, workers=2, timeout=20), reporter=Reporter(quiet=True),
    )
    # Not ru_maxrss: a process inherits that of the one that started it.
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    peak = {
        "parent": int(status["VmHWM"].split()[0]) / 1024,
        "workers": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024,
        "left": len(multiprocessing.active_children()),
        "seconds": report.seconds,
    }
    print(json.dumps(peak))
"""


def nobody_left(group: int) -> bool:
    """Whether a process group is empty, at once or soon: Python's resource tracker goes last."""
    for _ in range(500):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.02)
    return False


def survive(folder: Path, count: int, seed: int) -> None:
    seeds = render_seeds(folder / "seeds")
    write_tampered(folder / "videos", seeds, count, seed=seed)
    script = folder / "run.py"
    script.write_text(SCRIPT)
    process = subprocess.Popen(
        [sys.executable, str(script), str(folder / "videos"), str(folder / "store")],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    stdout, stderr = process.communicate()
    assert process.returncode == 0, stderr.decode()
    assert stderr == b""
    assert nobody_left(process.pid)
    told = json.loads(stdout)
    store = Store.open(folder / "store")
    assert len(store.rows) == count
    failed = Counter(row.reason for row in store.rows if row.status == "failed")
    assert all(failed) and 0 < failed.total() < count
    assert [reason for reason in failed if reason.startswith("unexpected")] == []
    assert all(row.frames > 0 for row in store.rows if row.status == "ok")
    assert verify(store, reporter=QUIET, decode=True).findings == []
    assert told["left"] == 0
    assert told["parent"] < PARENT_MIB and told["workers"] < WORKER_MIB


def test_sixty_damaged_files(tmp_path):
    survive(tmp_path, 60, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_thousand_damaged_files(tmp_path):
    survive(tmp_path, 1000, seed=2)
