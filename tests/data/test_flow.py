"""Displacements from other files: the same motion as the store's, or an error that says what."""

from __future__ import annotations

import pickle
import warnings
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import save_file

from tatscli.data import flow
from tatscli.data.flow import FlowFiles
from tatscli.errors import DataError

SHAPE = (9, 3, 4, 2)


def noise(seed: int = 0, dtype: type = np.float32) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=SHAPE).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_part_of_a_video_is_read_as_float32(tmp_path: Path, dtype: type) -> None:
    field = noise(dtype=dtype)
    save_file({"a/b.mp4/motion": field}, tmp_path / "flow.safetensors")
    got, valid = FlowFiles(tmp_path / "flow.safetensors").read("a/b.mp4", range(0, 5), SHAPE)
    np.testing.assert_array_equal(got, field[:5].astype(np.float32))
    assert got.dtype == np.float32
    assert valid.tolist() == [False, True, True, True, True]  # nothing moves into frame 0
    assert FlowFiles(tmp_path).read("a/b.mp4", range(3, 6), SHAPE)[1].all()


@pytest.mark.parametrize("dtype", [np.bool_, np.uint8])
def test_validity_may_be_given(tmp_path: Path, dtype: type) -> None:
    valid = np.array([1, 1, 0, 1, 0, 1, 1, 1, 1]).astype(dtype)
    save_file({"v/motion": noise(), "v/valid": valid}, tmp_path / "flow.safetensors")
    got = FlowFiles(tmp_path).read("v", range(1, 6), SHAPE)[1]
    assert got.dtype == bool
    assert got.tolist() == valid[1:6].astype(bool).tolist()


def test_a_folder_is_searched_through_and_a_video_may_be_absent(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    save_file({"a/motion": noise(1)}, tmp_path / "one.safetensors")
    save_file({"b/motion": noise(2)}, tmp_path / "more" / "two.safetensors")
    files = FlowFiles(tmp_path)
    np.testing.assert_array_equal(files.read("b", range(9), SHAPE)[0], noise(2))
    field, valid = files.read("c", range(2, 5), SHAPE)
    assert field.shape == (3, 3, 4, 2)
    assert not field.any()
    assert not valid.any()


def test_it_travels_to_other_processes(tmp_path: Path) -> None:
    save_file({"a/motion": noise(1)}, tmp_path / "one.safetensors")
    files = FlowFiles(tmp_path)
    files.read("a", range(9), SHAPE)
    again = pickle.loads(pickle.dumps(files))
    np.testing.assert_array_equal(again.read("a", range(9), SHAPE)[0], noise(1))


def test_paths_without_flow_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        FlowFiles(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"no \.safetensors file"):
        FlowFiles(tmp_path)
    other = tmp_path / "other.safetensors"
    save_file({"a/flow": noise()}, other)
    with pytest.raises(DataError, match="no tensor `<id>/motion`") as caught:
        FlowFiles(other)
    assert caught.value.hint is not None
    assert "frames, rows, columns, 2" in caught.value.hint
    other.write_bytes(b"no safetensors at all")
    with pytest.raises(DataError, match="cannot be read as a safetensors file"):
        FlowFiles(other)


def test_the_same_video_twice_is_refused(tmp_path: Path) -> None:
    for name in ("one", "two"):
        save_file({"a/motion": noise()}, tmp_path / f"{name}.safetensors")
    with pytest.raises(DataError, match=r"`a/motion` is in both .*one.* and .*two"):
        FlowFiles(tmp_path)


def test_a_wrong_tensor_is_named_with_what_it_is_and_should_be(tmp_path: Path) -> None:
    path = tmp_path / "flow.safetensors"
    broken = noise()
    broken[2, 1, 1, 0] = np.nan
    save_file(
        {
            "short/motion": noise()[:5],
            "whole/motion": np.zeros(SHAPE, np.int32),
            "nan/motion": broken,
            "flags/motion": noise(),
            "flags/valid": np.ones(3, bool),
        },
        path,
    )
    files = FlowFiles(path)
    with pytest.raises(DataError) as caught:
        files.read("short", range(2), SHAPE)
    for part in ("short/motion", str(path), "(5, 3, 4, 2)", str(SHAPE)):
        assert part in caught.value.message
    with pytest.raises(DataError, match="I32"):
        files.read("whole", range(2), SHAPE)
    with pytest.raises(DataError, match="not finite"):
        files.read("nan", range(4), SHAPE)
    with pytest.raises(DataError, match=r"flags/valid.*\(3,\).*\(9,\)"):
        files.read("flags", range(4), SHAPE)


@pytest.mark.parametrize("homes", [("a", "b"), ("b", "a"), ("a", "a")])
def test_flags_may_lie_in_another_file_whatever_their_names(
    tmp_path: Path, homes: tuple[str, str]
) -> None:
    valid = np.array([0, 1, 0, 1, 0, 1, 1, 1, 0], bool)
    tensors = {"v/motion": noise(), "v/valid": valid}
    for home in set(homes):
        part = {name: t for (name, t), at in zip(tensors.items(), homes, strict=True) if at == home}
        save_file(part | {f"{home}/motion": noise(1)}, tmp_path / f"{home}.safetensors")
    files = FlowFiles(tmp_path)
    field, known = files.read("v", range(9), SHAPE)
    np.testing.assert_array_equal(field, noise())
    assert known.tolist() == valid.tolist()
    assert files.check("v", SHAPE)


def test_many_files_are_each_opened_once_and_read_in_linear_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Work is counted as what is done with the names of the tensors."""
    work: Counter[str] = Counter()

    class Name(str):
        def __hash__(self) -> int:
            work["hash"] += 1
            return super().__hash__()

        def __format__(self, how: str) -> str:
            work["format"] += 1
            return super().__format__(how)

        def removesuffix(self, end: str) -> str:
            return Name(super().removesuffix(end))

    opened: Counter[str] = Counter()

    def fake(file: Path, **_: str) -> SimpleNamespace:
        opened[file.name] += 1
        return SimpleNamespace(keys=lambda: [Name(f"{file.stem}/motion")])

    count = 1500
    for number in range(count):
        (tmp_path / f"{number}.safetensors").touch()
    monkeypatch.setattr(flow, "safe_open", fake)
    files = FlowFiles(tmp_path)
    assert all(f"{number}" in files for number in range(count))
    assert len(opened) == count
    assert set(opened.values()) == {1}
    assert sum(work.values()) < 20 * count


def test_headers_are_checked_without_reading_values(tmp_path: Path) -> None:
    broken = noise()
    broken[0] = np.nan
    tensors = {
        "good/motion": noise(),
        "nan/motion": broken,
        "short/motion": noise()[:5],
        "whole/motion": np.zeros(SHAPE, np.int32),
        "flags/motion": noise(),
        "flags/valid": np.ones(9, np.float32),
        "lone/motion": noise()[:1],
        "told/motion": noise()[:1],
        "told/valid": np.ones(1, bool),
    }
    save_file(tensors, tmp_path / "flow.safetensors")
    files = FlowFiles(tmp_path)
    assert files.check("good", SHAPE)
    assert files.check("nan", SHAPE)
    assert not files.check("absent", SHAPE)
    assert not files.check("lone", (1, 3, 4, 2))  # nothing moves into frame 0 unless it is told
    assert files.check("told", (1, 3, 4, 2))
    with pytest.raises(DataError, match=r"short/motion.*\(5, 3, 4, 2\).*\(9, 3, 4, 2\)"):
        files.check("short", SHAPE)
    with pytest.raises(DataError, match=r"whole/motion.*I32"):
        files.check("whole", SHAPE)
    with pytest.raises(DataError, match=r"flags/valid.*F32"):
        files.check("flags", SHAPE)


@pytest.mark.parametrize("value", [1e300, -1e300, 3e38, -65600.0, np.inf, np.nan])
def test_what_a_store_cannot_hold_is_refused_without_a_warning(
    tmp_path: Path, value: float
) -> None:
    field = noise(dtype=np.float64)
    field[4, 1, 2, 1] = value
    save_file({"v/motion": field}, tmp_path / "flow.safetensors")
    files = FlowFiles(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(DataError, match=r"v/motion.*not finite or beyond 65504 pixels"):
            files.read("v", range(9), SHAPE)
        files.read("v", range(4), SHAPE)


def test_the_largest_that_a_store_can_hold_is_taken(tmp_path: Path) -> None:
    field = np.full(SHAPE, -65504.0, np.float16)
    save_file({"v/motion": field}, tmp_path / "flow.safetensors")
    assert (FlowFiles(tmp_path).read("v", range(9), SHAPE)[0] == -65504).all()
