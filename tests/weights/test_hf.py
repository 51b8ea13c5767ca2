"""Folders of transformers, read and written: its outputs, its spellings, its traps."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tatscli.console import Reporter
from tatscli.errors import CheckpointError
from tatscli.nn.load import open_checkpoint
from tatscli.tasks.convert import convert
from tatscli.weights.export import exported, write_hf
from tatscli.weights.layouts import Given
from tatscli.weights.open import open_foreign
from tests.weights.models import (
    LABELS,
    both_guesses,
    equal,
    hf_model,
    hf_scores,
    our_scores,
    random_video,
    with_our_eps,
)

transformers = pytest.importorskip("transformers", reason="needs the `hf` extra")
transformers.utils.logging.disable_progress_bar()

QUIET = Reporter(quiet=True)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders as this release of transformers saves them."""
    root = tmp_path_factory.mktemp("hf")
    for kind in ("pretrained", "finetuned", "bare"):
        hf_model(kind).save_pretrained(root / kind)
    return root


@pytest.fixture
def folder(kept: Path, tmp_path: Path) -> Callable[..., Path]:
    """Copy a folder, with changes to its tensors and its `config.json`."""

    def copy(
        kind: str, change: Callable[[dict[str, Tensor]], Any] | None = None, **settings: Any
    ) -> Path:
        path = Path(shutil.copytree(kept / kind, tmp_path / kind))
        tensors = load_file(path / "model.safetensors")
        if change is not None:
            change(tensors)
            save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
        config = json.loads((path / "config.json").read_text()) | settings
        (path / "config.json").write_text(json.dumps(config))
        return path

    return copy


def opened(model_class: Any, path: Path) -> Any:
    """Open a folder with transformers, every tensor of both."""
    model, said = model_class.from_pretrained(path, output_loading_info=True)
    assert not any(said.values()), said
    return model.eval()


def test_a_classifier_of_theirs_scores_alike(kept: Path) -> None:
    model, run = hf_model("finetuned"), open_checkpoint(kept / "finetuned")
    video = random_video(run)
    scores = our_scores(run, video)
    assert scores.std() > 0.1
    torch.testing.assert_close(scores, hf_scores(model, video, run), atol=1e-3, rtol=0)
    exact = hf_scores(with_our_eps(model), video, run)
    torch.testing.assert_close(scores, exact, atol=1e-5, rtol=0)
    assert run.checkpoint.kind == "finetuned"
    assert run.checkpoint.meta["class_names"] == LABELS
    assert (run.recipe.data.frames, run.recipe.data.size, run.recipe.model.heads) == (8, 32, 2)


def test_a_pretraining_of_theirs_guesses_alike(kept: Path) -> None:
    model, run = hf_model("pretrained"), open_checkpoint(kept / "pretrained")
    ours, theirs = both_guesses(with_our_eps(model), run, random_video(run))
    assert ours[0].std() > 0.1
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["pretrained", "finetuned", "bare"])
def test_what_is_written_opens_whole_and_computes_the_same(
    kept: Path, tmp_path: Path, kind: str
) -> None:
    result = convert(kept / kind, to="hf", out=tmp_path / "out", reporter=QUIET)
    assert result["matched"] == result["tensors"] == len(load_file(_weights(kept / kind)))
    equal(load_file(_weights(kept / kind)), load_file(_weights(tmp_path / "out")))
    auto = {
        "pretrained": transformers.AutoModelForPreTraining,
        "finetuned": transformers.AutoModelForVideoClassification,
        "bare": transformers.AutoModel,
    }[kind]
    model, run = opened(auto, tmp_path / "out"), open_checkpoint(tmp_path / "out")
    before, video = hf_model(kind), random_video(run)
    assert type(model) is type(before)
    pixels = video.float().transpose(1, 2) / 255
    hidden = torch.arange(64).expand(2, 64) % 4 > 0
    more = {} if kind != "pretrained" else {"bool_masked_pos": hidden}
    with torch.no_grad():
        one, two = before(pixels, **more), model(pixels, **more)
    name = "last_hidden_state" if kind == "bare" else "logits"
    assert torch.equal(one[name], two[name])
    if kind == "finetuned":
        assert model.config.id2label == dict(enumerate(LABELS))
        assert model.config.use_mean_pooling is True
    else:
        assert model.config.use_mean_pooling is False
    assert model.config.layer_norm_eps == 1e-6


def test_processors_say_imagenet_where_their_defaults_are_a_half(
    kept: Path, tmp_path: Path
) -> None:
    assert list(transformers.VideoMAEImageProcessor().image_mean) == [0.5] * 3  # the trap
    convert(kept / "finetuned", to="hf", out=tmp_path / "out", reporter=QUIET)
    images = transformers.AutoImageProcessor.from_pretrained(tmp_path / "out")
    videos = transformers.AutoVideoProcessor.from_pretrained(tmp_path / "out")
    for one in (images, videos):
        assert list(one.image_mean) == [0.485, 0.456, 0.406]
        assert list(one.image_std) == [0.229, 0.224, 0.225]
        assert (one.crop_size["height"], one.size["shortest_edge"]) == (32, 32)
    video = random_video(open_checkpoint(tmp_path / "out"), 1)[0].transpose(0, 1)
    pixels = videos(list(video.numpy()), return_tensors="pt")["pixel_values"]
    mean, std = (torch.tensor(one).view(3, 1, 1) for one in (images.image_mean, images.image_std))
    torch.testing.assert_close(pixels[0], (video / 255 - mean) / std, atol=1e-5, rtol=0)


def respell(tensors: dict[str, Tensor], *, key: float | None) -> None:
    """Name biases as 5.0 to 5.17 did (with a key's), or as models since 5.18 do inside."""
    for name in list(tensors):
        for short, long in (("q_bias", "query.bias"), ("v_bias", "value.bias")):
            if name.endswith(short):
                stem = name.removesuffix(short)
                tensors[stem + long] = tensors.pop(name)
                if key is not None:
                    tensors[stem + "key.bias"] = torch.full_like(tensors[stem + long], key)


@pytest.mark.parametrize("key", [None, 0.0, 0.7], ids=["since 5.18", "zero keys", "keys"])
@pytest.mark.parametrize("kind", ["pretrained", "finetuned", "bare"])
def test_all_spellings_of_biases_are_one(
    kept: Path, folder: Callable[..., Path], kind: str, key: float | None
) -> None:
    path = folder(kind, lambda tensors: respell(tensors, key=key))
    plain, spelled = open_foreign(kept / kind), open_foreign(path)
    equal(plain.tensors("model"), spelled.tensors("model"))
    assert any(one.any() for name, one in spelled.tensors("model").items() if "q_bias" in name)
    dropped = {reason: len(names) for reason, names in spelled.count.dropped.items()}
    blocks = {"pretrained": 3, "finetuned": 2, "bare": 2}[kind]
    assert dropped == ({} if key is None else {"biases of keys, which the softmax ignores": blocks})


def test_a_key_bias_changes_nothing(kept: Path) -> None:
    """What is dropped as exact is: checked in attention itself."""
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 4, 9, 8, dtype=torch.float64)
    shifted = key + torch.randn(8, dtype=torch.float64)
    attend = torch.nn.functional.scaled_dot_product_attention
    torch.testing.assert_close(attend(query, key, value), attend(query, shifted, value))


def test_biases_that_a_release_lost_are_told(folder: Callable[..., Path]) -> None:
    def lose(tensors: dict[str, Tensor]) -> None:
        respell(tensors, key=0.0)
        for name in tensors:
            if name.endswith(("query.bias", "value.bias")):
                tensors[name].zero_()

    told = " ".join(open_foreign(folder("pretrained", lose)).remarks)
    assert "5.0 to 5.17" in told and "most likely lost" in told


def test_a_model_without_biases_gets_zeros_and_they_are_counted(tmp_path: Path) -> None:
    model = hf_model("finetuned", qv_bias=False)
    model.save_pretrained(tmp_path / "plain")
    run = open_checkpoint(tmp_path / "plain")
    assert [len(names) for names in run.checkpoint.count.made.values()] == [2, 4]
    video = random_video(run)
    exact = hf_scores(with_our_eps(model), video, run)
    torch.testing.assert_close(our_scores(run, video), exact, atol=1e-5, rtol=0)


def test_mean_pooling_costs_a_pretraining_no_norm(
    kept: Path, folder: Callable[..., Path], tmp_path: Path
) -> None:
    # transformers itself leaves the norm out where the config says so, without an error.
    path = folder("pretrained", use_mean_pooling=True)
    assert transformers.VideoMAEForPreTraining.from_pretrained(path).videomae.layernorm is None
    run = open_checkpoint(path)
    equal(run.checkpoint.tensors("model"), open_foreign(kept / "pretrained").tensors("model"))
    assert any("use_mean_pooling" in one for one in run.checkpoint.remarks)


def test_a_pretraining_that_lost_its_norm_is_refused(folder: Callable[..., Path]) -> None:
    def lose(tensors: dict[str, Tensor]) -> None:
        for part in ("weight", "bias"):
            del tensors[f"videomae.layernorm.{part}"]

    path = folder("pretrained", lose, use_mean_pooling=True)
    with pytest.raises(CheckpointError, match=r"2 missing, first `encoder\.norm\.weight`"):
        open_checkpoint(path)


def test_a_classifier_of_the_first_token_is_refused(tmp_path: Path) -> None:
    hf_model("finetuned", use_mean_pooling=False).save_pretrained(tmp_path / "first")
    with pytest.raises(CheckpointError, match="classifies from its first token"):
        open_checkpoint(tmp_path / "first")


@pytest.mark.parametrize(
    ("part", "sizes", "said", "right"),
    [
        ("", {"hidden_size": 384, "num_attention_heads": 16, "intermediate_size": 64}, 16, 6),
        ("decoder_", {"decoder_hidden_size": 192, "decoder_num_attention_heads": 6}, 6, 3),
    ],
)
def test_heads_that_a_conversion_got_wrong_are_refused(
    tmp_path: Path, part: str, sizes: dict[str, int], said: int, right: int
) -> None:
    hf_model("pretrained", **sizes).save_pretrained(tmp_path / "wrong")
    with pytest.raises(CheckpointError, match=f"`{part}num_attention_heads: {said}`") as caught:
        open_checkpoint(tmp_path / "wrong")
    option = "--decoder-heads" if part else "--heads"
    assert f"{option} {right}" in str(caught.value.hint)
    asked = {"decoder_heads": right} if part else {"heads": right}
    assert open_foreign(tmp_path / "wrong", Given(**asked)).meta["recipe"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"hidden_size": 48}, "`hidden_size: 48`"),
        ({"num_hidden_layers": 3}, "`num_hidden_layers: 3`"),
        ({"intermediate_size": 64}, "`intermediate_size: 64`"),
        ({"tubelet_size": 4}, "`tubelet_size: 4`"),
        ({"decoder_num_hidden_layers": 2}, "`decoder_num_hidden_layers: 2`"),
        ({"num_frames": "8"}, "`num_frames: 8`"),
        ({"image_size": [32]}, "`image_size: [32]`"),
        ({"num_channels": 1}, "`num_channels: 1`"),
        ({"num_attention_heads": 5}, "5 heads do not divide the width 32"),
        ({"image_size": 30}, "no recipe can describe"),
        ({"hidden_act": "relu"}, "`hidden_act: relu`"),
        ({"model_type": "vit"}, "is a `vit` of `transformers`"),
        ({"model_type": None}, "has neither `model_type`"),
    ],
)
def test_a_config_that_does_not_fit_is_one_clear_line(
    folder: Callable[..., Path], settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder("pretrained", **settings))
    assert words in caught.value.message
    assert "\n" not in caught.value.message


def test_mean_and_deviation_come_from_the_processor(folder: Callable[..., Path]) -> None:
    path = folder("finetuned")
    assert open_checkpoint(path).recipe.data.mean == (0.485, 0.456, 0.406)
    (path / "preprocessor_config.json").write_text("{}")  # the class's own defaults
    assert open_checkpoint(path).recipe.data.mean == (0.5, 0.5, 0.5)
    said = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (path / "video_preprocessor_config.json").write_text(json.dumps(said))
    data = open_checkpoint(path).recipe.data
    assert (data.mean, data.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    (path / "video_preprocessor_config.json").write_text('{"do_normalize": false}')
    data = open_checkpoint(path).recipe.data
    assert (data.mean, data.std) == ((0, 0, 0), (1, 1, 1))
    for wrong in ('{"image_mean": [1]}', "[]", "{"):
        (path / "video_preprocessor_config.json").write_text(wrong)
        with pytest.raises(CheckpointError, match=r"video_preprocessor_config\.json"):
            open_checkpoint(path)


def test_an_epsilon_of_their_own_is_told(folder: Callable[..., Path]) -> None:
    assert not any("eps" in one for one in open_foreign(folder("bare")).remarks)
    other = folder("finetuned", layer_norm_eps=1e-12)
    assert any("1e-12" in one and "1e-06" in one for one in open_foreign(other).remarks)


def test_large_weights_come_in_shards(kept: Path, tmp_path: Path) -> None:
    run = open_checkpoint(kept / "pretrained")
    model = run.checkpoint.tensors("model")
    export = exported(run.checkpoint, run.recipe, model, None, partial=False)
    path = tmp_path / "shards"
    path.mkdir()
    files = write_hf(path, export, tats={}, card="", limit=60_000)
    shards = [name for name in files if name.endswith(".safetensors")]
    assert len(shards) > 3 and f"model-00001-of-{len(shards):05d}.safetensors" in shards
    assert all((path / name).stat().st_size < 65_000 for name in shards)
    equal(open_foreign(path).tensors("model"), model)
    opened(transformers.VideoMAEForPreTraining, path)
    (path / shards[1]).unlink()
    with pytest.raises(CheckpointError, match=f"lacks `{shards[1]}`, one of {len(shards)} files"):
        open_checkpoint(path)
    index = path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../../elsewhere.safetensors"}}))
    with pytest.raises(CheckpointError, match="not a file beside it"):
        open_checkpoint(path)


def test_a_folder_of_pickles_is_read_without_running_code(kept: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(kept / "pretrained", tmp_path / "bin"))
    tensors = load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no `model\.safetensors`"):
        open_checkpoint(path)
    torch.save(tensors, path / "pytorch_model.bin")
    found = open_foreign(path).tensors("model")
    equal(found, open_foreign(kept / "pretrained").tensors("model"))


def test_a_file_of_a_folder_means_the_folder_and_alone_is_refused(
    kept: Path, tmp_path: Path
) -> None:
    assert open_foreign(_weights(kept / "bare")).path == (kept / "bare").resolve()
    shutil.copy(_weights(kept / "bare"), tmp_path / "alone.safetensors")
    with pytest.raises(CheckpointError, match=r"no `config\.json` beside it"):
        open_foreign(tmp_path / "alone.safetensors")


def _weights(folder: Path) -> Path:
    return folder / "model.safetensors"
