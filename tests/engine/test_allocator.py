"""Memory kept between steps."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from tatscli.engine.allocator import _glibc, kept_memory

_FAULTS = """
import json, resource, sys
import torch
from tatscli.engine.allocator import kept_memory

def faults(rounds=8):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(rounds):
        torch.ones(16, 1 << 20)  # 64 MiB, 16,384 pages
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

usual = faults()
with kept_memory(torch.device("cpu")) as done:
    faults()
    kept = faults()
    held = resident()
print(json.dumps([done, usual, kept, held - resident()]))
"""


@pytest.mark.skipif(_glibc() is None, reason="glibc alone has these options")
@pytest.mark.parametrize("own", [None, "MALLOC_TRIM_THRESHOLD_"])
def test_pages_are_filled_with_zeros_once(own: str | None) -> None:
    environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": ":".join(sys.path)}
    if own is not None:
        environment[own] = "131072"
    answer = subprocess.run(
        [sys.executable, "-c", _FAULTS], env=environment, capture_output=True, text=True, check=True
    )
    done, usual, kept, given_back = json.loads(answer.stdout)
    assert usual > 100  # of 4 KiB or of 2 MiB
    if own is None:
        assert done and kept < usual / 4  # one block of eight may still be new
        assert given_back > 32 << 20
    else:  # whoever has set an option of malloc keeps it
        assert not done and kept > usual / 2


def test_a_gpu_has_an_allocator_of_its_own() -> None:
    with kept_memory(torch.device("cuda")) as done:
        assert not done
