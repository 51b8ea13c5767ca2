"""Streamed safetensors files: the library reads what was written piece by piece."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file

from tatscli.tensors import Tensor, write_tensors

TYPES = st.sampled_from(["f8", "i8", "f4", "i4", "f2", "u1", "?"])


@given(st.lists(st.tuples(TYPES, st.lists(st.integers(0, 5), max_size=3)), max_size=5))
def test_the_library_reads_every_tensor(tmp_path_factory, kinds):
    path = tmp_path_factory.mktemp("t") / "a.safetensors"
    rng = np.random.default_rng(0)
    arrays = {
        f"video {n}/ü": rng.integers(0, 2, shape).astype(kind)
        for n, (kind, shape) in enumerate(kinds)
    }
    write_tensors(path, [Tensor.of(name, array) for name, array in arrays.items()])
    found = load_file(path)
    assert set(found) == set(arrays)
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def test_content_may_come_in_pieces(tmp_path):
    rows = np.arange(30, dtype=np.float32).reshape(-1, 3)
    content = lambda: (part.tobytes() for part in np.split(rows, 5))  # noqa: E731
    tensor = Tensor("rows", rows.dtype, rows.shape, content)
    write_tensors(tmp_path / "a.safetensors", [tensor, Tensor.of("b", rows[:1])])
    np.testing.assert_array_equal(load_file(tmp_path / "a.safetensors")["rows"], rows)


def test_content_of_a_file_and_metadata(tmp_path):
    rows = np.arange(3_000_000, dtype=np.int32).reshape(-1, 10)
    (tmp_path / "rows").write_bytes(rows.tobytes())
    tensor = Tensor("rows", np.dtype("<i4"), rows.shape, tmp_path / "rows")
    write_tensors(tmp_path / "a.safetensors", [tensor], {"codec": "h264"})
    with safe_open(tmp_path / "a.safetensors", "numpy") as file:
        assert file.metadata() == {"codec": "h264"}
        np.testing.assert_array_equal(file.get_tensor("rows"), rows)


def test_a_file_of_the_wrong_length_leaves_what_was_there(tmp_path):
    target = tmp_path / "a.safetensors"
    target.write_bytes(b"before")
    (tmp_path / "rows").write_bytes(b"short")
    with pytest.raises(RuntimeError, match="bytes written"):
        write_tensors(target, [Tensor("rows", np.dtype("u1"), (9,), tmp_path / "rows")])
    assert target.read_bytes() == b"before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "rows"]
