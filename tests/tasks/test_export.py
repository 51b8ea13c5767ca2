"""`tats export`: what is in the file, and that whoever follows its metadata gets what evaluation
gets."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

from tatscli.console import Reporter
from tatscli.data.normalize import standardized
from tatscli.data.views import EvalViews
from tatscli.engine.checkpoint import find_checkpoint
from tatscli.engine.session import session as session_of
from tatscli.errors import CheckpointError, RecipeError, TatsError, UsageError
from tatscli.evaluation.features import PooledFeatures
from tatscli.evaluation.views import score_views
from tatscli.nn.load import LoadedRun
from tatscli.nn.trained import load_classifier
from tatscli.store.reader import Store
from tatscli.tasks import export as module
from tatscli.tasks.evaluate import open_subject
from tatscli.tasks.export import export_onnx
from tatscli.tasks.finetune import finetune
from tatscli.tasks.frozen import frozen_encoder
from tatscli.tasks.pretrain import pretrain

TINY = ("model={width: 32, depth: 2, heads: 2, patch: 8}",)
CLASSIFIER = (
    *TINY,
    "data.sampling={mode: dense, stride: 2}",
    "data.mean=[0.4, 0.5, 0.6]",
    "finetune.head_scale=30",
    "finetune.head={pool: attention, queries: 2}",
)
NEAR = 0.05


def view(file: Path, facts: dict[str, str]) -> np.ndarray:
    """The one view of a video that the metadata asks for, with PyAV and Pillow alone."""
    frames, sampling = int(facts["frames"]), json.loads(facts["sampling"])
    height, width = json.loads(facts["size"])
    with av.open(str(file)) as container:
        pictures = [one.to_ndarray(format="rgb24") for one in container.decode(video=0)]
    stride = sampling["stride"]
    start = stride * (max(0, -(-len(pictures) // stride) - frames) // 2)
    places = [
        min(start + stride * i, (len(pictures) - 1) // stride * stride) for i in range(frames)
    ]
    seen = []
    for place in places:
        picture = Image.fromarray(pictures[place])
        scale = min(picture.width / width, picture.height / height)
        wide, tall = round(width * scale), round(height * scale)
        left, top = (picture.width - wide) // 2, (picture.height - tall) // 2
        cut = picture.crop((left, top, left + wide, top + tall))
        seen.append(np.asarray(cut.resize((width, height), Image.Resampling.BILINEAR)))
    return np.stack(seen)


def test_a_classifier_says_of_a_file_what_evaluation_says(
    trained: Callable[..., Path], videos: Path, store: Path, cli: Callable[..., Any]
) -> None:
    run = trained(*CLASSIFIER, task=finetune)
    outcome = cli("export", run, "--json")
    assert outcome.code == 0, outcome.stderr
    result = outcome.json()
    assert result["out"] == str(run / "model.onnx") and result["files"] == [result["out"]]
    assert result["checked"] and result["max_difference"] < 1e-5
    session = onnxruntime.InferenceSession(run / "model.onnx")
    facts = session.get_modelmeta().custom_metadata_map
    assert facts == result["metadata"]
    assert facts["kind"] == "classifier" and facts["trained"] == "finetuned"
    assert json.loads(facts["classes"]) == ["down", "left", "right"]
    assert json.loads(facts["mean"]) == [0.4, 0.5, 0.6]
    assert json.loads(facts["sampling"]) == {
        "mode": "dense", "stride": 2, "short": "repeat_last", "indices": "even",
    }  # fmt: skip
    assert "with antialiasing" in facts["preprocessing"]
    assert (facts["frames"], facts["tubelet"], facts["patch"]) == ("8", "2", "8")
    assert facts["checkpoint_sha256"] == find_checkpoint(run).digest()
    (entry,) = session.get_inputs()
    assert (entry.name, entry.type) == ("video", "tensor(uint8)")
    assert entry.shape == ["batch", 8, 32, 32, 3]

    opened, subject = Store.open(store), open_subject(run, (), prefer="last", untrained=False)
    with session_of(subject.recipe.run, Reporter(quiet=True)) as here:
        model = load_classifier(LoadedRun(subject.recipe, subject.checkpoint))
        rows = range(len(opened.rows))
        data = subject.recipe.data
        views = EvalViews(opened, rows, data, sampling=data.sampling)
        scored = score_views(model, views, subject.recipe, here)
    clear = {}
    for row, wanted_L in zip(scored.row_V.tolist(), scored.score_VL.numpy(), strict=True):
        frames = view(videos / opened.rows[row].id, facts)
        (logits_1L,) = session.run(None, {"video": frames[None]})
        found_L = np.exp(logits_1L[0]) / np.exp(logits_1L[0]).sum()
        # All that is left between the two are the JPEGs of the store.
        np.testing.assert_allclose(found_L, wanted_L, rtol=0, atol=NEAR)
        if np.diff(np.sort(wanted_L)[-2:]) > 2 * NEAR:
            clear[row] = int(found_L.argmax()), int(wanted_L.argmax())
    assert all(found == wanted for found, wanted in clear.values())
    assert len(clear) > 9 and len(set(clear.values())) > 1


def test_an_encoder_gives_the_features_that_evaluation_compares(
    trained: Callable[..., Path], reporter: Reporter
) -> None:
    run = trained(*TINY, "run.max_steps=1", task=pretrain)
    layer = (
        "evaluate.layer=1",
        "data.frames=12",  # positions of another grid are interpolated
        "data.resize=videomae",
        "evaluate.sampling={mode: uniform}",
    )
    result = export_onnx(run, reporter=reporter, overrides=layer, pixels="float", out="e.onnx")
    assert result["kind"] == result["metadata"]["kind"] == "encoder"
    assert result["metadata"]["layer"] == "1" and "classes" not in result["metadata"]
    assert "without antialiasing" in result["metadata"]["preprocessing"]
    assert json.loads(result["metadata"]["sampling"])["mode"] == "uniform"
    said = reporter.stderr.getvalue()  # type: ignore[attr-defined]
    assert "has no classifier: exporting its encoder" in said and "positions of 4 x 4 x 4" in said
    subject = open_subject(run, layer, prefer="last", untrained=False)
    encoder = frozen_encoder(subject.recipe, subject.checkpoint)
    video_BCTHW = torch.randn(3, 3, 12, 32, 32)
    session = onnxruntime.InferenceSession("e.onnx")
    feature_BD, tokens_BND = session.run(["feature", "tokens"], {"video": video_BCTHW.numpy()})
    for groups, found in ((1, feature_BD), (96, tokens_BND.reshape(3, -1))):
        wanted = PooledFeatures(encoder, groups, layer=1)(video_BCTHW).numpy()
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_the_encoder_of_a_classifier(trained: Callable[..., Path], reporter: Reporter) -> None:
    run = trained(*CLASSIFIER, task=finetune)
    result = export_onnx(run, reporter=reporter, features=True)
    assert result["out"] == str(run / "encoder.onnx") and result["checked"]
    assert result["metadata"]["trained"] == "finetuned"
    frames = np.random.default_rng(0).integers(0, 256, (1, 8, 32, 32, 3), np.uint8)
    (feature_BD,) = onnxruntime.InferenceSession(result["out"]).run(["feature"], {"video": frames})
    subject = open_subject(run, (), prefer="last", untrained=False)
    model, data = (
        PooledFeatures(frozen_encoder(subject.recipe, subject.checkpoint)),
        subject.recipe.data,
    )
    video_BCTHW = torch.from_numpy(frames).permute(0, 4, 1, 2, 3)
    wanted_BD = model(standardized(video_BCTHW, data.mean, data.std)).numpy()
    np.testing.assert_allclose(feature_BD, wanted_BD, rtol=0, atol=1e-4)


def test_a_file_that_fails_the_check_is_not_written_over_an_older_one(
    trained: Callable[..., Path], reporter: Reporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained(*TINY, "run.max_steps=1", task=pretrain)

    def fails(graph: object, draft: Path, reporter: Reporter) -> float:
        draft.write_bytes(b"wrong")
        raise TatsError("differs")

    Path("old.onnx").write_bytes(b"old")
    monkeypatch.setattr(module, "write_onnx", fails)
    for out in ("old.onnx", "new.onnx"):
        with pytest.raises(TatsError, match="differs"):
            export_onnx(run, reporter=reporter, out=out, overwrite=True)
    assert Path("old.onnx").read_bytes() == b"old"
    assert [one.name for one in Path().glob("**/*.onnx*")] == ["old.onnx"]


def test_what_cannot_be_exported_is_refused_by_name(
    trained: Callable[..., Path], reporter: Reporter, tmp_path: Path
) -> None:
    run = trained(*TINY, "run.max_steps=1", task=pretrain)
    for overrides, error in (
        (["evaluate.drop={kind: tube, ratio: 0.5}"], "`evaluate.drop.kind: tube`"),
        (["evaluate.layer=9"], "`evaluate.layer: 9` is more"),
    ):
        with pytest.raises(RecipeError, match=error):
            export_onnx(run, reporter=reporter, overrides=overrides)
    with pytest.raises(UsageError, match="is a folder"):
        export_onnx(run, reporter=reporter, out=tmp_path)
    with pytest.raises(CheckpointError, match="does not exist"):
        export_onnx("runs/none", reporter=reporter)
    meta = run / "checkpoints" / "last" / "meta.json"
    meta.write_text(meta.read_text().replace('"kind": "pretrained"', '"kind": "tokenizer"', 1))
    with pytest.raises(CheckpointError, match="is a tokenizer: it has no ViT encoder"):
        export_onnx(run, reporter=reporter)
    assert not list(Path().glob("**/*.onnx*"))
