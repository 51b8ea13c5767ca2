"""Streamed safetensors files: the library reads what was written piece by piece."""

import os
import stat

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file

from tatscli.tensors import Tensor, digest_of, digest_of_file, save_tensors, write_tensors

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


def _weights():
    import torch

    return {
        "b/ü": torch.arange(6).reshape(2, 3).bfloat16(),
        "a": torch.tensor([True, False, True]),
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "empty": torch.zeros(0, 4),
        "turned": torch.arange(6.0).reshape(2, 3).T,
    }


def test_torch_tensors_are_read_back_by_the_library(tmp_path):
    import torch
    from safetensors.torch import load_file

    save_tensors(tmp_path / "a.safetensors", _weights(), {"step": "1"})
    found = load_file(tmp_path / "a.safetensors")
    assert found.keys() == _weights().keys()
    for name, one in _weights().items():
        assert found[name].dtype == one.dtype
        assert torch.equal(found[name], one)


def test_equal_tensors_are_equal_bytes_in_files_that_follow_the_umask(tmp_path):
    metadata = {f"key {number}": "value" for number in range(20)}
    before = os.umask(0o027)
    try:
        save_tensors(tmp_path / "a.safetensors", _weights(), metadata)
        turned = dict(reversed(_weights().items())), dict(reversed(metadata.items()))
        save_tensors(tmp_path / "b.safetensors", *turned)
    finally:
        os.umask(before)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert stat.S_IMODE((tmp_path / "a.safetensors").stat().st_mode) == 0o640


def test_a_digest_is_of_the_tensors_and_not_of_the_file(tmp_path):
    from safetensors.torch import save_file

    tensors = {name: one.contiguous() for name, one in _weights().items()}
    wanted = digest_of(tensors)
    for number in range(3):  # the library orders the metadata by chance
        metadata = {f"key {place}": str(number) for place in range(9)}
        save_file(tensors, tmp_path / f"{number}.safetensors", metadata)
        assert digest_of_file(tmp_path / f"{number}.safetensors") == wanted
    changed = {
        "a value": tensors | {"scalar": tensors["scalar"] + 1},
        "a shape": tensors | {"turned": tensors["turned"].reshape(2, 3)},
        "a type": tensors | {"b/ü": tensors["b/ü"].half()},
        "a name": {name.replace("a", "A"): one for name, one in tensors.items()},
    }
    for what, others in changed.items():
        assert digest_of(others) != wanted, what
