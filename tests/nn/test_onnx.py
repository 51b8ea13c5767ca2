"""ONNX files against torch: every head form, other batches than the example's, and files that are
wrong."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from tatscli.console import Reporter
from tatscli.errors import TatsError, UsageError
from tatscli.nn import onnx as module
from tatscli.nn.classifier import Classifier
from tatscli.nn.onnx import Graph, compare, need_onnx, publish_onnx, write_onnx
from tatscli.nn.vit import SIZES, Encoder
from tatscli.recipe.schema import ClassHead

SHAPE = (3, 8, 32, 32)


def classifier(form: ClassHead, size: tuple[int, int, int, int] = (32, 2, 2, 64)) -> Classifier:
    """A classifier whose weights and running means are all of some size."""
    torch.manual_seed(0)
    width, depth, heads, mlp = size
    encoder = Encoder(
        width=width, depth=depth, heads=heads, mlp=mlp, grid=(4, 4, 4), tubelet=2, patch=8
    )
    model = Classifier(encoder, 5, form=form, head_scale=1.0, dropout=0.5)
    for parameter in [*model.parameters(), *model.buffers()]:
        if parameter.dim() == 1:
            parameter.data.uniform_(0.5, 1.5)
    return model.eval().requires_grad_(False)


def noise(batch: int) -> Tensor:
    return torch.randn(batch, *SHAPE, generator=torch.Generator().manual_seed(batch))


def graph(network: nn.Module, opset: int = 18) -> Graph:
    return Graph(network, lambda x: (network(x),), noise, "video", ["logits"], {"a": "1"}, opset)


def reporter() -> Reporter:
    return Reporter(stdout=io.StringIO(), stderr=io.StringIO())


def run(file: Path, video: Tensor) -> np.ndarray:
    return onnxruntime.InferenceSession(file).run(["logits"], {"video": video.numpy()})[0]


@pytest.mark.parametrize(
    ("form", "opset"),
    [
        ({"pool": "cls", "norm": "batch"}, 18),
        *(
            pytest.param(form, opset, marks=pytest.mark.slow)
            for form, opset in (
                ({}, 18),
                ({}, 23),
                ({"norm": "batch"}, 18),
                ({"pool": "cls"}, 23),
                ({"pool": "attention", "queries": 4}, 18),
                ({"pool": "attention", "queries": 1, "norm": "batch"}, 20),
            )
        ),
    ],
    ids=str,
)
def test_every_head_computes_the_same_at_any_batch(
    tmp_path: Path, form: dict[str, object], opset: int
) -> None:
    network, file = classifier(ClassHead.model_validate(form)), tmp_path / "m.onnx"
    difference = write_onnx(graph(network, opset), file, reporter())
    assert difference is not None and difference < 1e-5
    for batch in (1, 3, 7):
        video = noise(100 + batch)[:batch]
        found, wanted = run(file, video), network(video).numpy()
        assert found.shape == (batch, 5)
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4)
        assert np.ptp(wanted) > 0.1
    session = onnxruntime.InferenceSession(file)
    assert session.get_inputs()[0].shape == ["batch", *SHAPE]
    assert session.get_modelmeta().custom_metadata_map == {"a": "1"}
    assert publish_onnx(file, tmp_path / "there.onnx") == [tmp_path / "there.onnx"]


@pytest.mark.slow
def test_a_model_of_published_size_computes_the_same(tmp_path: Path) -> None:
    network, file = classifier(ClassHead(), SIZES["small"]), tmp_path / "m.onnx"
    write_onnx(graph(network), file, reporter())
    for batch in (1, 3):
        np.testing.assert_allclose(run(file, noise(batch)), network(noise(batch)), atol=1e-4)


class Scaled(nn.Module):
    """As cheap to export as a network can be."""

    def forward(self, video: Tensor) -> Tensor:
        return 3 * video.mean(dim=(2, 3, 4)) + 1


def test_a_file_that_differs_is_tried_without_optimisation_and_then_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried, plain = [], torch.onnx.export

    def spy(*args: object, **options: object) -> object:
        tried.append(options["optimize"])
        return plain(*args, **options)

    monkeypatch.setattr(torch.onnx, "export", spy)
    say, network = reporter(), Scaled()
    wrong = replace(graph(network), reference=lambda x: (network(x) + 0.01,))
    with pytest.raises(TatsError, match=r"differs from torch by 0\.0\d+, more than 0\.0001"):
        write_onnx(wrong, tmp_path / "m.onnx", say)
    assert tried == [True, False]
    assert "the optimised graph differs from torch by 0.0" in say.stderr.getvalue()
    other = replace(graph(network), reference=lambda x: (network(x)[:, :2],))
    with pytest.raises(TatsError, match=r"shape \(1, 3\) instead of \(1, 2\)"):
        compare(other, tmp_path / "m.onnx")
    unknown = replace(graph(network), reference=lambda x: (network(x) * torch.nan,))
    assert compare(unknown, tmp_path / "m.onnx") > 1


@pytest.mark.slow
def test_a_plain_graph_is_kept_where_only_the_optimised_one_differs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = module.compare
    answers = iter([0.5])
    monkeypatch.setattr(module, "compare", lambda *given: next(answers, None) or plain(*given))
    assert write_onnx(graph(Scaled()), tmp_path / "m.onnx", reporter()) < 1e-5  # type: ignore[operator]
    assert (tmp_path / "m.onnx").exists()


def test_large_weights_lie_in_a_file_beside_that_never_belongs_to_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LARGE", 0)
    torch.manual_seed(0)
    network = (
        nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 32 * 32, 5)).eval().requires_grad_(False)
    )
    draft, target = tmp_path / "part" / "m.onnx", tmp_path / "m.onnx"
    draft.parent.mkdir()
    assert write_onnx(graph(network), draft, reporter()) is not None
    assert publish_onnx(draft, target) == [target, tmp_path / "m.onnx.data"]
    assert target.stat().st_size < 20_000 < (tmp_path / "m.onnx.data").stat().st_size
    np.testing.assert_allclose(run(target, noise(3)), network(noise(3)), atol=1e-4)
    draft.write_bytes(b"small")  # a smaller one takes its place, and leaves no weights behind
    assert publish_onnx(draft, target) == [target]
    assert sorted(one.name for one in tmp_path.iterdir()) == ["m.onnx", "part"]


@pytest.mark.slow
def test_an_opset_that_torch_cannot_write_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot write `--opset 99`"):
        write_onnx(graph(Scaled(), opset=99), tmp_path / "m.onnx", reporter())


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without(*missing: str) -> Callable[[str], object]:
        return lambda name: None if name in missing else sys

    monkeypatch.setattr(module, "find_spec", without("onnxscript"))
    with pytest.raises(UsageError, match="not installed: onnxscript") as refused:
        need_onnx()
    assert refused.value.hint == "pip install 'tats[onnx]'"
    monkeypatch.setattr(module, "find_spec", without("onnxruntime"))
    say = reporter()
    assert write_onnx(graph(Scaled()), tmp_path / "m.onnx", say) is None
    assert "not checked, since onnxruntime is not installed" in say.stderr.getvalue()
    assert run(tmp_path / "m.onnx", noise(3)).shape == (3, 3)
