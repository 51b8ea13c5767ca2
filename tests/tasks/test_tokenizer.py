"""A tokenizer from training to the codes that a masked autoencoder predicts."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision import models

from tatscli.console import Reporter
from tatscli.engine.checkpoint import find_checkpoint
from tatscli.errors import CheckpointError, DataError, RecipeError, TatsError, UsageError
from tatscli.recipe.load import LoadedRecipe, load_recipe
from tatscli.recipe.schema import RunTokenizer
from tatscli.system.load import load_system
from tatscli.tasks.dry_run import plan_pretraining
from tatscli.tasks.encode import encode_store
from tatscli.tasks.evaluate import evaluate
from tatscli.tasks.evaluate_tokenizer import evaluate_tokenizer
from tatscli.tasks.finetune import finetune
from tatscli.tasks.mask_setup import Overrides
from tatscli.tasks.pretrain import pretrain
from tatscli.tasks.visualize_tokenizer import visualize_tokenizer
from tatscli.tokenizer.load import open_run
from tests.clips import pan, render
from tests.tasks.runs import assert_equal, metrics, weights

Load = Callable[..., LoadedRecipe]
RECIPE = """
data:
  {{store: {store}, split: train, frames: 2, size: 32, sampling: {{mode: uniform}}, workers: 0}}
tokenizer: {{kind: vq, stride: 8, patch: 4, widths: [16, 16], blocks: 1, codes: 16, code_width: 4}}
optim: {{epochs: 5, total_batch: 6, batch_per_device: 6, base_lr: 0.2, warmup_epochs: 0}}
run: {{log_every: 1, save_every: 1, device: cpu}}
"""
GAN = "tokenizer.discriminator={start: 3, width: 8, layers: 2}"


@pytest.fixture(scope="module")
def coder(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained tokenizer that every test may read."""
    folder = tmp_path_factory.mktemp("coder")
    write_recipe(folder / "coder.yaml", store)
    say = Reporter()
    say.quiet = True
    pretrain(load_recipe(folder / "coder.yaml"), reporter=say, out=folder / "run")
    return folder / "run"


def write_recipe(path: Path, store: Path) -> Path:
    path.write_text(RECIPE.format(store=store))
    return path


@pytest.fixture
def load_coder(tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    monkeypatch.chdir(tmp_path)
    path = write_recipe(tmp_path / "coder.yaml", store)
    return lambda *overrides: load_recipe(path, overrides)


def test_it_learns_and_tells_how_well(coder: Path) -> None:
    lines = metrics(coder)
    assert len(lines) == 10
    assert lines[-1]["psnr"] > lines[0]["psnr"] + 1
    for line in lines:
        assert 0 < line["code_use"] <= 1
        assert 1 <= line["perplexity"] <= 16
        assert -1 <= line["ssim"] <= 1
        parts = line["loss/reconstruction"] + line["loss/commitment"]
        assert line["loss"] == pytest.approx(parts, rel=1e-5)
    meta = find_checkpoint(coder).meta
    assert meta["kind"] == "tokenizer"


@pytest.mark.parametrize(
    "changes",
    [
        (GAN,),
        ("tokenizer={kind: fsq, stride: 8, widths: [16, 16], blocks: 1, levels: [4, 4]}", GAN),
    ],
    ids=["vq", "fsq"],
)
def test_stopped_and_resumed_it_is_bit_equal(
    load_coder: Load, reporter: Reporter, changes: tuple[str, ...]
) -> None:
    straight, halves = Path("runs/straight"), Path("runs/halves")
    pretrain(load_coder(*changes), reporter=reporter, out=straight)
    pretrain(load_coder(*changes, "run.max_steps=5"), reporter=reporter, out=halves)
    pretrain(load_coder(*changes), reporter=reporter, out=halves, resume=True)
    parts = ("model", "optimizer", "discriminator", "discriminator_optimizer")
    assert_equal(straight, halves, *parts)
    lines = metrics(straight)
    assert "loss/adversarial" not in lines[2]
    assert "loss/discriminator" in lines[3]
    assert lines[3]["discriminator_grad_norm"] > 0


def test_a_discriminator_that_never_starts_changes_nothing(
    load_coder: Load, reporter: Reporter
) -> None:
    pretrain(load_coder("run.max_steps=3"), reporter=reporter, out="runs/without")
    pretrain(load_coder("run.max_steps=3", GAN), reporter=reporter, out="runs/with")
    one, two = weights(Path("runs/without")), weights(Path("runs/with"))
    assert all(torch.equal(value, two[name]) for name, value in one.items())


def test_a_perceptual_loss_takes_local_weights_alone(
    load_coder: Load, reporter: Reporter, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    torch.save(models.squeezenet1_1(weights=None).state_dict(), "squeeze.pth")
    perceptual = "tokenizer.perceptual={network: squeezenet1_1, weights: squeeze.pth}"
    loaded = load_coder(perceptual, "run.max_steps=2")
    pretrain(loaded, reporter=reporter, out="runs/seen")
    assert metrics(Path("runs/seen"))[0]["loss/perceptual"] > 0
    assert not [name for name in weights(Path("runs/seen")) if "network" in name]
    torch.manual_seed(1)
    torch.save(models.squeezenet1_1(weights=None).state_dict(), "squeeze.pth")
    with pytest.raises(CheckpointError, match=r"different `tokenizer\.perceptual\.weights`"):
        pretrain(load_coder(perceptual), reporter=reporter, out="runs/seen", resume=True)
    for network, path, words in (
        ("vgg16", "squeeze.pth", "does not fit torchvision's `vgg16`: 2 of 26 tensors match"),
        ("vgg16", "nowhere.pth", "cannot be read"),
    ):
        wrong = f"tokenizer.perceptual={{network: {network}, weights: {path}}}"
        with pytest.raises(CheckpointError, match=words):
            pretrain(load_coder(wrong), reporter=reporter, out="runs/wrong")


def test_evaluation_tells_of_every_video_and_of_all(
    coder: Path, reporter: Reporter, tmp_path: Path
) -> None:
    result = evaluate_tokenizer(
        coder, reporter=reporter, overrides=["evaluate.segments=2"], out=tmp_path / "result.json"
    )
    assert result["protocol"] == "reconstruction"
    assert (result["videos"], result["views"], result["pictures"]) == (6, 12, 24)
    videos = result["per_video"]
    assert len({one["id"] for one in videos}) == 6
    assert result["psnr"] == pytest.approx(sum(one["psnr"] for one in videos) / 6)
    assert result["code_use"] * 16 >= max(one["codes"] for one in videos)
    assert max(one["perplexity"] for one in videos) <= 16
    assert json.loads((tmp_path / "result.json").read_text()) == result


def test_a_store_without_splits_is_scored_whole(
    coder: Path, store: Path, reporter: Reporter, tmp_path: Path
) -> None:
    copy = tmp_path / "store"
    shutil.copytree(store, copy)
    rows = [json.loads(line) for line in (copy / "manifest.jsonl").read_text().splitlines()]
    lines = [json.dumps(row | {"split": None}) for row in rows]
    (copy / "manifest.jsonl").write_text("\n".join(lines) + "\n")
    result = evaluate_tokenizer(
        coder, reporter=reporter, overrides=[f"data.store={copy}"], out=tmp_path / "result.json"
    )
    assert (result["split"], result["videos"]) == (None, 18)
    assert "has no splits" in reporter.stderr.getvalue()


def test_it_is_drawn_with_its_codes(coder: Path, reporter: Reporter, tmp_path: Path) -> None:
    clip = tmp_path / "clip.mp4"
    render(clip, pan((1, 0), frames=8, height=48, width=64, seed=3))
    out = tmp_path / "codes.png"
    result = visualize_tokenizer(
        clip, coder, reporter=reporter, overrides=Overrides(stride=2), out=out
    )
    assert out.is_file()
    assert result["grid"] == [2, 4, 4]
    window = result["windows"][0]
    assert window["frames"] == [0, 2]
    assert torch.tensor(window["codes"]).shape == (2, 4, 4)
    with pytest.raises(UsageError, match="is a tokenizer: `--mask` cannot be set"):
        visualize_tokenizer(clip, coder, reporter=reporter, overrides=Overrides(mask="tube"))


def codes(coder: Path, **keys: object) -> str:
    more = "".join(f", {key}: {value}" for key, value in keys.items())
    return f"targets=[{{kind: codes, tokenizer: {{kind: run, path: {coder}}}{more}}}]"


def test_a_masked_autoencoder_predicts_its_codes(
    coder: Path, load: Load, reporter: Reporter
) -> None:
    loaded = load("mask.kind=tube", codes(coder), "optim.base_lr=0.05")
    pretrain(loaded, reporter=reporter, out="runs/straight")
    lines = metrics(Path("runs/straight"))
    assert lines[0]["loss/codes"] == pytest.approx(math.log(16), rel=0.35)
    assert lines[-1]["loss/codes"] < lines[0]["loss/codes"]
    meta = find_checkpoint(Path("runs/straight")).meta
    assert [one["sha256"] for one in meta["frozen"]] == [find_checkpoint(coder).file_digest()]
    # Neither in the weights nor in what is resumed: the folder alone is named.
    assert not [name for name in weights(Path("runs/straight")) if "quantizer" in name]
    halves = load("mask.kind=tube", codes(coder), "optim.base_lr=0.05", "run.max_steps=4")
    pretrain(halves, reporter=reporter, out="runs/halves")
    pretrain(loaded, reporter=reporter, out="runs/halves", resume=True)
    assert_equal(Path("runs/straight"), Path("runs/halves"), "model", "optimizer")
    moved = Path("moved").resolve()
    shutil.copytree(coder, moved, symlinks=True)
    more = load("mask.kind=tube", codes(moved), "optim.base_lr=0.05", "run.max_steps=4")
    pretrain(halves, reporter=reporter, out="runs/moved")
    pretrain(more, reporter=reporter, out="runs/moved", resume=True)
    other = load("mask.kind=tube", codes(coder, frames="first"), "optim.base_lr=0.05")
    with pytest.raises(UsageError, match=r"`targets\.0\.frames: first` \(the run has `all`\)"):
        pretrain(other, reporter=reporter, out="runs/moved", resume=True)
    _, system = load_system("runs/straight")
    tokenizer, _, _ = open_run(coder)
    video = torch.randint(0, 256, (1, 3, 8, 32, 32), dtype=torch.uint8)
    seen = system.targets["codes"].of(system.clip(video), torch.arange(64)[None])
    own = tokenizer.eval().encode(video.float() / 255)  # (1, 8, 4, 4)
    assert torch.equal(seen[0, 16 + 5], own[0, 2:4, 1, 1])


@pytest.fixture(scope="module")
def encoded(coder: Path, store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the store with the tokenizer's codes in it."""
    copy = tmp_path_factory.mktemp("encoded") / "store"
    shutil.copytree(store, copy)
    encode(copy, coder)
    return copy


def encode(store: Path, coder: Path, **keys: Any) -> dict[str, Any]:
    say = Reporter()
    say.quiet = True
    source = RunTokenizer(kind="run", path=str(coder))
    return encode_store(store, source, reporter=say, **({"size": (32, 32)} | keys))


CENTRE = ("data.crop=centre", "mask.kind=tube", "run.max_steps=3")


@pytest.mark.parametrize("kind, frames", [("codes", "all"), ("latents", "middle")])
def test_codes_of_the_store_train_as_those_made_on_the_way(
    coder: Path, encoded: Path, load: Load, reporter: Reporter, kind: str, frames: str
) -> None:
    for out, cached in (("runs/asked", "false"), ("runs/read", "true")):
        target = codes(coder, cached=cached, frames=frames).replace("kind: codes", f"kind: {kind}")
        loaded = load(*CENTRE, target, f"data.store={encoded}", "data.sampling.stride=2")
        pretrain(loaded, reporter=reporter, out=out)
    assert_equal(Path("runs/asked"), Path("runs/read"), "model", "optimizer")
    asked, read = metrics(Path("runs/asked")), metrics(Path("runs/read"))
    assert [one[f"loss/{kind}"] for one in asked] == [one[f"loss/{kind}"] for one in read]


def test_encoding_goes_on_where_it_was_stopped(coder: Path, store: Path, tmp_path: Path) -> None:
    copy = tmp_path / "store"
    shutil.copytree(store, copy)
    first = encode(copy, coder)
    assert first["videos"] == 18
    assert first["frames"] == 18 * 12
    folder = Path(first["codes"])
    files = {file.name: file.read_bytes() for file in folder.iterdir()}
    (folder / "index.json").unlink()  # the last thing that is written
    again = encode(copy, coder)
    assert again["shards"] == 0
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == files
    lost = next(folder.glob("*.safetensors"))
    lost.unlink()
    assert encode(copy, coder)["shards"] == 1
    assert lost.read_bytes() == files[lost.name]


def test_codes_of_videos_that_have_changed_are_made_anew(
    coder: Path, store: Path, tmp_path: Path
) -> None:
    """As where `tats prepare --overwrite` has made another store of the same names."""
    copy = tmp_path / "store"
    shutil.copytree(store, copy)
    shards = encode(copy, coder)["shards"]
    manifest = copy / "manifest.jsonl"
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    for row in rows:
        row["label"] = 0  # no matter for codes
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert encode(copy, coder)["shards"] == 0
    for row in rows:
        row["checksum"] = row["checksum"][::-1]
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert encode(copy, coder)["shards"] == shards


def test_codes_that_are_not_there_or_cannot_be_are_told(
    coder: Path, encoded: Path, store: Path, load: Load, reporter: Reporter, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="has no codes of this tokenizer for this view"):
        pretrain(load(*CENTRE, codes(coder, cached="true")), reporter=reporter, out="runs/wrong")
    with pytest.raises(DataError, match="has no codes of this tokenizer for this view"):
        plan_pretraining(load(*CENTRE, codes(coder, cached="true")), Path("runs/wrong"))
    for changed in ("data.crop=corners", "data.flip=0.5"):
        with pytest.raises(RecipeError, match="`cached: true` of a target reads precomputed codes"):
            load(*CENTRE, codes(coder, cached="true"), changed)
    with pytest.raises(UsageError, match="is not a multiple of the tokenizer's stride, 8"):
        encode(encoded, coder, size=(30, 32))
    other = tmp_path / "store"
    shutil.copytree(encoded, other)
    text = (other / "manifest.jsonl").read_text().splitlines()
    (other / "manifest.jsonl").write_text("\n".join(text[1:]) + "\n")
    changed = load(*CENTRE, codes(coder, cached="true"), f"data.store={other}")
    with pytest.raises(DataError, match="belong to other videos"):
        pretrain(changed, reporter=reporter, out="runs/wrong")


def test_wrong_tokenizers_are_named(
    coder: Path, load: Load, load_coder: Load, reporter: Reporter
) -> None:
    cases: list[tuple[type[TatsError], str, str]] = [
        (CheckpointError, "there is no tokenizer at `runs/nowhere`", codes(Path("runs/nowhere"))),
        (RecipeError, "does not have a whole number of codes", codes(coder, scale=0.25)),
        (
            CheckpointError,
            "not a diffusers folder",
            codes(coder).replace("kind: run", "kind: diffusers"),
        ),
        (CheckpointError, "cannot be read", codes(coder).replace("kind: run", "kind: taming")),
    ]
    for error, words, targets in cases:
        with pytest.raises(error, match=words):
            pretrain(load("mask.kind=tube", targets), reporter=reporter, out="runs/wrong")
    pretrain(load("mask.kind=tube", "run.max_steps=1"), reporter=reporter, out="runs/masked")
    masked = load("mask.kind=tube", codes(Path("runs/masked")))
    with pytest.raises(CheckpointError, match="is a pretrained run, not a tokenizer"):
        pretrain(masked, reporter=reporter, out="runs/wrong")
    with pytest.raises(CheckpointError, match="is a pretrained run, not a tokenizer"):
        pretrain(load_coder(), reporter=reporter, init="runs/masked", out="runs/wrong")


def test_a_tokenizers_recipe_has_no_untrained_encoder(load_coder: Load, reporter: Reporter) -> None:
    with pytest.raises(RecipeError, match="it has no encoder to evaluate"):
        evaluate(load_coder().source, reporter=reporter, protocol="knn", untrained=True)


def test_a_tokenizer_is_no_encoder_to_start_from_or_to_be_taught_by(
    coder: Path, load: Load, reporter: Reporter
) -> None:
    plain = load("mask.kind=tube")
    with pytest.raises(CheckpointError, match="is a tokenizer: it has no ViT encoder"):
        pretrain(plain, reporter=reporter, init=coder, out="runs/wrong")
    with pytest.raises(CheckpointError, match="is a tokenizer: it has no ViT encoder"):
        finetune(plain, reporter=reporter, init=coder, out="runs/wrong")
    taught = load("mask.kind=tube", f"targets=[{{kind: teacher, run: {coder}}}]")
    with pytest.raises(RecipeError, match=r"a `teacher`: .* is a tokenizer"):
        plan_pretraining(taught, Path("runs/wrong"))
    assert not Path("runs/wrong").exists()


@pytest.mark.parametrize(
    "override, words",
    [
        ("mask={kind: random}", "`tokenizer` and `mask` cannot be combined"),
        ("data.size=36", "`data.size: 36` is not a multiple of `tokenizer.stride: 8`"),
        ("tokenizer.widths=[8]", "there are 2 resolutions, but `widths: \\[8\\]` gives 1"),
        ("tokenizer.kind=vae", "must be one of `vq`, `fsq`"),
        ("run.watch={}", "`run.watch` only works for masked autoencoders"),
        ("tokenizer.discriminator={layers: 4}", "needs images of at least 48 pixels a side"),
    ],
)
def test_recipes_that_cannot_be_are_refused(load_coder: Load, override: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        load_coder(override)


def test_it_starts_from_another_tokenizer(
    coder: Path, load_coder: Load, reporter: Reporter
) -> None:
    first = load_coder("run.max_steps=1", "optim.base_lr=1e-9", "optim.min_lr=0")
    pretrain(first, reporter=reporter, init=coder, out="runs/again")
    one, two = weights(coder), weights(Path("runs/again"))
    assert torch.allclose(one["encoder.stem.weight"], two["encoder.stem.weight"])
    other = load_coder("tokenizer.widths=[8, 16]")
    with pytest.raises(CheckpointError, match="28 of 52 tensors match") as raised:
        pretrain(other, reporter=reporter, init=coder, out="runs/other")
    assert "`tokenizer` in the recipe must be that of the run" in str(raised.value.hint)


@pytest.mark.slow
def test_two_ranks_keep_one_codebook(
    load_coder: Load, tmp_path: Path, tats: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    load_coder()
    launch = ("-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=29671", "-m")
    words = ("pretrain", "coder.yaml", GAN, "optim.batch_per_device=3", "tokenizer.restart=0.3")
    both = tats(*words, "--out", "runs/two", launch=launch)
    assert both.returncode == 0, both.stderr
    first = tats(*words, "--out", "runs/halves", "--max-steps", 5, launch=launch)
    assert first.returncode == 0, first.stderr
    second = tats(*words, "--out", "runs/halves", "--resume", launch=launch)
    assert second.returncode == 0, second.stderr
    assert_equal(Path("runs/two"), Path("runs/halves"), "model", "discriminator")
    # Alone and with a fixed first codebook, one process over the same videos learns the same.
    fixed = ("tokenizer.kmeans=0", "tokenizer.restart=0", "optim.clip_grad=null")
    plain = ("pretrain", "coder.yaml", *fixed, "optim.base_lr=1e-3")
    assert tats(*plain, "--out", "runs/one").returncode == 0
    two = tats(*plain, "optim.batch_per_device=3", "--out", "runs/both", launch=launch)
    assert two.returncode == 0, two.stderr
    one, other = weights(Path("runs/one")), weights(Path("runs/both"))
    torch.testing.assert_close(
        one["quantizer.count_K"], other["quantizer.count_K"] * 2, rtol=0.5, atol=30
    )
