"""Files that must not be read, or cannot: one clear line each, and no code is run."""

from __future__ import annotations

import argparse
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from tatscli.errors import CheckpointError
from tatscli.nn.load import find_weights, is_tokenizer
from tatscli.weights.layouts import Given
from tatscli.weights.open import open_foreign
from tatscli.weights.paths import is_foreign, name_of
from tests.weights.models import official, save_official


class Harmful:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


def refused(path: Path) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        find_weights(path)
    assert "\n" not in caught.value.message
    assert str(path) in caught.value.message
    return caught.value


@pytest.mark.parametrize("where", ["beside", "inside", "plain"])
def test_code_in_a_file_is_not_run(tmp_path: Path, where: str) -> None:
    mark, path = tmp_path / "ran", tmp_path / "some.pth"
    tensors: dict[str, Any] = dict(official("finetuned"))
    if where == "beside":
        torch.save({"model": tensors, "args": Harmful(mark)}, path)
    elif where == "inside":
        torch.save({"model": tensors | {"head.bias": Harmful(mark)}}, path)
    else:
        path.write_bytes(pickle.dumps(Harmful(mark), protocol=2))
    error = refused(path)
    assert "could run code" in error.message and "system" in error.message
    assert "safetensors" in str(error.hint)
    assert not mark.exists()


@pytest.mark.parametrize("content", [b"hello\n", b"", b"101", b"\x80\x04X", None])
def test_what_torch_cannot_read_is_told_in_our_words(
    tmp_path: Path, content: bytes | None, recwarn: pytest.WarningsRecorder
) -> None:
    path = tmp_path / "some.pth"
    if content is None:
        torch.save(official("finetuned"), path)
        content = path.read_bytes()[:5000]
    path.write_bytes(content)
    message = refused(path).message
    assert "is damaged or not a file of weights" in message or "cut short" in message
    assert not recwarn.list


def test_only_arguments_of_a_training_are_let_through(tmp_path: Path) -> None:
    found = torch.serialization.get_safe_globals()
    path = save_official(tmp_path / "a.pth", official("finetuned"), args=argparse.Namespace(a=[1]))
    assert open_foreign(path, Given(heads=2)).kind == "finetuned"
    path = save_official(tmp_path / "b.pth", official("finetuned"), args=Path("x"))
    assert "could run code" in refused(path).message
    assert torch.serialization.get_safe_globals() == found  # nothing stays allowed


@pytest.mark.parametrize("kept", [0, 1, 0.3, 0.99])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_truncated_file_is_one_line(tmp_path: Path, kept: float, zipped: bool) -> None:
    path = tmp_path / "some.pth"
    torch.save({"model": official("finetuned")}, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    path.write_bytes(whole[: kept if kept == 1 else int(kept * len(whole))])
    refused(path)


@pytest.mark.parametrize("content", [b'{"a": 1}', b"\0" * 99, b"PK\x03\x04", b"not weights at all"])
@pytest.mark.parametrize("name", ["some.pth", "some.safetensors", "some.ckpt", "some.bin"])
def test_other_files_are_one_line(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name)


@pytest.mark.parametrize(
    "found",
    [{}, {"model": {}}, {"model": {"epoch": 3}}, [1, 2], torch.zeros(3), {"a": torch.zeros(2)}],
    ids=["empty", "empty model", "no tensors", "list", "tensor", "unknown"],
)
def test_files_of_torch_without_a_model_are_one_line(tmp_path: Path, found: Any) -> None:
    torch.save(found, tmp_path / "some.pth")
    refused(tmp_path / "some.pth")


@pytest.mark.parametrize("text", ["", "[]", "{", "{}", '{"model_type": 3}', "\xff", "null"])
def test_a_folder_with_another_config_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text, encoding="latin-1")
    refused(tmp_path)


def test_a_folder_without_weights_says_what_it_has(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "videomae"}')
    (tmp_path / "tf_model.h5").write_bytes(b"x")
    error = refused(tmp_path)
    assert "no `model.safetensors`" in error.message and "tf_model.h5" in str(error.hint)


def test_what_is_ours_stays_ours(tmp_path: Path) -> None:
    for inside in ("meta.json", "model.safetensors", "config.json"):
        (tmp_path / inside).write_text("{}")
    assert not is_foreign(tmp_path)  # a `config.json` in a checkpoint changes nothing
    assert not is_foreign(tmp_path / "model.safetensors")
    assert not is_foreign(tmp_path / "nowhere.pth") and not is_foreign(tmp_path / "meta.json")
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    (tmp_path / "run/config.json").write_text("{}")
    assert not is_foreign(tmp_path / "run")


def test_names_and_kinds_by_path(tmp_path: Path) -> None:
    path = save_official(tmp_path / "vit_b.k710.pth", official("finetuned"))
    assert name_of(path) == "vit_b.k710"
    assert name_of(tmp_path) == tmp_path.name
    assert not is_tokenizer(path)
    with pytest.raises(CheckpointError, match="it has no `best` checkpoint"):
        find_weights(path, prefer="best")
    with pytest.raises(CheckpointError, match="does not exist"):
        find_weights(tmp_path / "nowhere.pth")


def test_a_file_of_our_checkpoint_elsewhere_is_told_apart(tmp_path: Path) -> None:
    tensors = {f"head.branches.0.{name}": one for name, one in official("pretrained").items()}
    error = refused(save_official(tmp_path / "some.pth", tensors))
    assert "give the run" in str(error.hint)
