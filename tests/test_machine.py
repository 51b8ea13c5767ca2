"""Free memory and usable cores: the machine's, and what control groups of both versions leave."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tatscli.machine import free_memory, usable_cores

GROUPS = "sys/fs/cgroup"


def system(root: Path, *, group: str = "", **files: object) -> Path:
    """Write the files of a system; two underscores stand for a slash."""
    texts = {"proc/meminfo": "MemTotal: 9000 kB\nMemFree: 10 kB\nMemAvailable: 8000 kB\n"}
    texts |= {"proc/self/cgroup": group} if group else {}
    texts |= {f"{GROUPS}/{name.replace('__', '/')}": f"{text}\n" for name, text in files.items()}
    for name, text in texts.items():
        path = root / name
        # A stand-in for names with a dot, which cannot be keywords.
        path = path.with_name(path.name.replace("memory_", "memory.", 1))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_without_limits_it_is_what_the_machine_has_available(tmp_path: Path) -> None:
    assert free_memory(system(tmp_path)) == 8000 * 1024
    assert free_memory(system(tmp_path, group="0::/a\n", a__memory_max="max")) == 8000 * 1024


def test_nothing_is_known_where_nothing_says_it(tmp_path: Path) -> None:
    assert free_memory(tmp_path) is None


@pytest.mark.parametrize("limit", ["memory_max", "memory_high"])
def test_a_group_of_version_2_leaves_its_limit_less_what_cannot_be_dropped(
    tmp_path: Path, limit: str
) -> None:
    files = {limit: 1000, "memory_current": 700, "memory_stat": "anon 1\ninactive_file 300"}
    files = {f"a__{name}": text for name, text in files.items()}
    assert free_memory(system(tmp_path, group="0::/a\n", **files)) == 600


def test_the_tightest_of_the_groups_above_counts(tmp_path: Path) -> None:
    files = {
        "a__b__memory_max": 5000,
        "a__b__memory_current": 100,
        "a__memory_max": 900,
        "a__memory_current": 500,
    }
    assert free_memory(system(tmp_path, group="0::/a/b\n", **files)) == 400
    (tmp_path / GROUPS / "a" / "memory.current").write_text("901")
    assert free_memory(tmp_path) == 0


def test_version_1_and_a_container_that_sees_its_own_group_at_the_root(tmp_path: Path) -> None:
    files = {
        "memory__memory_limit_in_bytes": 4000,
        "memory__memory_usage_in_bytes": 3000,
        "memory__memory_stat": "inactive_file 9\ntotal_inactive_file 500",
    }
    group = "3:cpu,cpuacct:/docker/1\n4:memory:/docker/1\n0::/\n"
    assert free_memory(system(tmp_path, group=group, **files)) == 1500
    unlimited = {**files, "memory__memory_limit_in_bytes": 2**63 - 4096}
    assert free_memory(system(tmp_path, group=group, **unlimited)) == 8000 * 1024


def test_this_machine_says_something_plausible() -> None:
    if not Path("/proc/meminfo").exists():
        pytest.skip("needs /proc")
    free = free_memory()
    assert free is not None
    assert 0 < free < 2**50


def cores(root: Path, group: str, **files: str) -> int:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(group)
    for name, text in files.items():
        path = root / GROUPS / name.replace("__", "/").replace("cpu_", "cpu.", 1)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return usable_cores(root)


def test_cores_are_those_this_process_is_bound_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    assert usable_cores(tmp_path) == 6
    assert cores(tmp_path / "v2", "0::/a\n", a__cpu_max="max 100000") == 6
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_cores(tmp_path) == 1


def test_a_container_may_have_less_processor_time_than_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    assert (
        cores(tmp_path / "2", "0::/a/b\n", a__b__cpu_max="max 1", a__cpu_max="250000 100000") == 3
    )
    assert cores(tmp_path / "low", "0::/\n", cpu_max="5000 100000") == 1
    root = tmp_path / "1"
    group = root / GROUPS / "cpu"
    group.mkdir(parents=True)
    for name, text in (("quota", "400000"), ("period", "100000")):
        (group / f"cpu.cfs_{name}_us").write_text(text)
    assert cores(root, "3:cpuset:/\n1:cpu:/docker/xyz\n") == 4
    (group / "cpu.cfs_quota_us").write_text("-1")  # no limit
    assert usable_cores(root) == 64
