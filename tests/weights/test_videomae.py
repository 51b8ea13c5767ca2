"""Official files: wrappers, prefixes, VideoMAE V2's additions, AdaMAE's sampler, the way back."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tatscli.console import Reporter
from tatscli.data.clip import Clip
from tatscli.engine.checkpoint import restore_part
from tatscli.errors import CheckpointError
from tatscli.nn.load import open_checkpoint
from tatscli.nn.vit import build_encoder
from tatscli.system.system import build_system
from tatscli.tasks.convert import convert
from tatscli.weights.layouts import Given
from tatscli.weights.open import ForeignWeights, open_foreign
from tatscli.weights.spec import ModelSpec, Vit
from tests.weights.models import equal, official, save_official

QUIET = Reporter(quiet=True)
NANO = Given(heads=2, decoder_heads=1)
SIZES = ["data.frames=8", "data.size=32"]


def opened(path: Path, tensors: dict[str, Tensor]) -> ForeignWeights:
    return open_foreign(save_official(path / "some.pth", tensors), NANO)


def renamed(kind: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our names, written down by hand."""
    ours = {}
    for name, one in tensors.items():
        if kind == "finetuned":
            ours[name if name.startswith(("head.", "fc_norm.")) else f"encoder.{name}"] = one
        else:
            ours[name if name.startswith("encoder.") else f"head.branches.0.{name}"] = one
    return ours


@pytest.mark.parametrize("kind", ["pretrained", "finetuned"])
@pytest.mark.parametrize("wrapper", ["model", "module", "state_dict", None])
@pytest.mark.parametrize(
    "prefix", ["", "module.", "backbone.", "_orig_mod.", "module._orig_mod.module.backbone."]
)
def test_wrappers_and_prefixes_come_off(
    tmp_path: Path, kind: str, wrapper: str | None, prefix: str
) -> None:
    tensors = official(kind)
    named: dict[str, Any] = {prefix + name: one for name, one in tensors.items()}
    beside = {"epoch": 3, "args": argparse.Namespace(lr=1e-3), "optimizer": {"state": {0: [1.0]}}}
    torch.save({wrapper: named, **beside} if wrapper else named, tmp_path / "some.pth")
    found = open_foreign(tmp_path / "some.pth", NANO)
    model = found.tensors("model")
    wanted = renamed(kind, tensors)
    equal({name: model[name] for name in wanted}, wanted)
    assert found.kind == kind
    assert found.count.matched == found.count.total == len(tensors)
    made = sorted(model.keys() - wanted.keys())
    assert made == ([] if kind == "pretrained" else ["encoder.norm.bias", "encoder.norm.weight"])


def test_two_models_in_one_file_are_refused(tmp_path: Path) -> None:
    tensors = official("finetuned")
    both = tensors | {f"module.{name}": one for name, one in tensors.items()}
    with pytest.raises(CheckpointError, match="two tensors called"):
        opened(tmp_path, both)


@pytest.mark.parametrize("kind", ["pretrained", "finetuned"])
def test_the_way_there_and_back_changes_no_bit(tmp_path: Path, kind: str) -> None:
    tensors = official(kind)
    first = save_official(tmp_path / "first.pth", tensors)
    convert(first, to="tats", out=tmp_path / "run", reporter=QUIET, given=NANO, overrides=SIZES)
    convert(tmp_path / "run", to="videomae", out=tmp_path / "second.pth", reporter=QUIET)
    with_namespace = torch.load(tmp_path / "second.pth", weights_only=True)
    assert list(with_namespace) == ["model"]
    equal(with_namespace["model"], tensors)


def test_deepspeed_saves_halves(tmp_path: Path) -> None:
    tensors = official("finetuned")
    halves = {name: one.half() for name, one in tensors.items()}
    torch.save({"module": halves, "ds_version": "0.5.8"}, tmp_path / "some.pth")
    model = open_foreign(tmp_path / "some.pth", NANO).tensors("model")
    assert {one.dtype for one in model.values()} == {torch.float32}
    assert torch.equal(model["head.weight"], tensors["head.weight"].half().float())


def run_blocks(tensors: dict[str, Tensor], tokens: Tensor, heads: int) -> Tensor:
    """The blocks of VideoMAE V2 with `init_values`, in plain formulas."""
    depth = 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("blocks."))
    for i in range(depth):
        part = {k.removeprefix(f"blocks.{i}."): v for k, v in tensors.items()}
        norm = F.layer_norm(
            tokens, tokens.shape[-1:], part["norm1.weight"], part["norm1.bias"], 1e-6
        )
        bias = torch.cat(
            [part["attn.q_bias"], torch.zeros_like(part["attn.q_bias"]), part["attn.v_bias"]]
        )
        q, k, v = (
            one.unflatten(-1, (heads, -1)).transpose(1, 2)
            for one in (norm @ part["attn.qkv.weight"].T + bias).chunk(3, dim=-1)
        )
        scores = (q @ k.mT / q.shape[-1] ** 0.5).softmax(dim=-1)
        mixed = (scores @ v).transpose(1, 2).flatten(2)
        tokens = tokens + part["gamma_1"] * (
            mixed @ part["attn.proj.weight"].T + part["attn.proj.bias"]
        )
        norm = F.layer_norm(
            tokens, tokens.shape[-1:], part["norm2.weight"], part["norm2.bias"], 1e-6
        )
        inner = F.gelu(norm @ part["mlp.fc1.weight"].T + part["mlp.fc1.bias"])
        tokens = tokens + part["gamma_2"] * (
            inner @ part["mlp.fc2.weight"].T + part["mlp.fc2.bias"]
        )
    return tokens


def test_factors_of_branches_are_folded_exactly(tmp_path: Path) -> None:
    tensors = official("finetuned")
    generator = torch.Generator().manual_seed(5)
    for i in range(2):
        for name in ("gamma_1", "gamma_2"):
            tensors[f"blocks.{i}.{name}"] = 0.5 + torch.rand(32, generator=generator)
    found = opened(tmp_path, tensors)
    assert any("4 LayerScale factors" in one for one in found.remarks)
    run = open_checkpoint(_run(tmp_path))
    encoder = build_encoder(run.recipe.model, run.recipe.grid)
    encoder.load_state_dict(
        {k.removeprefix("encoder."): v for k, v in found.tensors("model").items() if "encoder" in k}
    )
    tokens = torch.randn(2, 10, 32, generator=generator)
    with torch.no_grad():
        ours = tokens
        for block in encoder.eval().blocks:
            ours = block(ours)
        theirs = run_blocks(tensors, tokens, heads=2)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    naive = {name: one for name, one in tensors.items()}  # factors ignored are another model
    naive |= {name: torch.ones(32) for name in naive if "gamma" in name}
    assert (run_blocks(naive, tokens, heads=2) - theirs).abs().max() > 0.1


def _run(tmp_path: Path) -> Path:
    out = tmp_path / "run"
    convert(tmp_path / "some.pth", to="tats", out=out, reporter=QUIET, given=NANO, overrides=SIZES)
    return out


def test_attention_by_cosine_is_refused(tmp_path: Path) -> None:
    tensors = official("finetuned") | {"blocks.0.attn.scale": torch.ones(2, 1, 1)}
    with pytest.raises(CheckpointError, match="cosine"):
        opened(tmp_path, tensors)


def test_a_classifier_of_the_first_token_is_refused(tmp_path: Path) -> None:
    tensors = official("finetuned")
    for part in ("weight", "bias"):
        tensors[f"norm.{part}"] = tensors.pop(f"fc_norm.{part}")
    with pytest.raises(CheckpointError, match="first token"):
        opened(tmp_path, tensors)


def test_the_giant_of_v2_has_the_form_it_is_published_with(tmp_path: Path) -> None:
    """Patches of 14, an MLP of 6144, and a decoder whose MLP is 48/11 of 512: nothing is 4 x."""
    tensors = official(
        "pretrained", width=1408, depth=1, mlp=6144, patch=14, decoder=(512, 4, 2234)
    )
    found = open_foreign(save_official(tmp_path / "vit_g.pth", tensors))
    run = open_checkpoint(tmp_path / "vit_g.pth")
    model, head = run.recipe.model, run.recipe.head
    assert (model.width, model.heads, model.mlp, model.patch) == (1408, 16, 6144, 14)
    assert (head.width, head.depth, head.heads, head.mlp) == (512, 4, 8, 2234)
    assert run.recipe.grid == (8, 16, 16)  # 2,048 tokens
    with torch.device("meta"):
        wanted = build_system(run.recipe).autoencoder.state_dict()
    assert {name: one.shape for name, one in found.tensors("model").items()} == {
        name: one.shape for name, one in wanted.items()
    }


@pytest.mark.parametrize("spec", ["list", "numbers", "names"])
def test_a_label_map_selects_rows_in_its_order(tmp_path: Path, spec: str) -> None:
    """As VideoMAE V2 does for its 710 classes: `head.weight[label_map]`."""
    tensors = official("finetuned", classes=710)
    path = save_official(tmp_path / "vit_s_k710.pth", tensors)
    rows = [700, 3, 412, 0]
    said: Any = rows
    if spec == "numbers":
        said = {str(i): row for i, row in reversed(list(enumerate(rows)))}
    elif spec == "names":
        said = {f"class {row}": row for row in rows}
    (tmp_path / "map.json").write_text(json.dumps(said))
    result = convert(
        path,
        to="tats",
        out=tmp_path / "run",
        reporter=QUIET,
        given=NANO,
        classes=tmp_path / "map.json",
    )
    assert result["classes"] == 4
    checkpoint = open_checkpoint(tmp_path / "run").checkpoint
    model = checkpoint.tensors("model")
    assert torch.equal(model["head.weight"], tensors["head.weight"][rows])
    assert torch.equal(model["head.bias"], tensors["head.bias"][rows])
    stem = "class " if spec == "names" else "LABEL_"
    assert checkpoint.meta["class_names"] == [f"{stem}{row}" for row in rows]


def with_sampler(
    tensors: dict[str, Tensor], width: int = 32, tokens: int = 64
) -> dict[str, Tensor]:
    """Add what AdaMAE's files have beside VideoMAE's: a block, a linear layer, positions."""
    generator = torch.Generator().manual_seed(9)

    def some(*shape: int) -> Tensor:
        return 0.2 * torch.randn(shape, generator=generator)

    at = "encoder.get_token_probs."
    return tensors | {
        "encoder.pos_embed_probs": some(1, tokens, width),
        f"{at}0.norm1.weight": 1 + some(width),
        f"{at}0.norm1.bias": some(width),
        f"{at}0.attn.qkv.weight": some(3 * width, width),
        f"{at}0.attn.proj.weight": some(width, width),
        f"{at}0.attn.proj.bias": some(width),
        f"{at}0.norm2.weight": 1 + some(width),
        f"{at}0.norm2.bias": some(width),
        f"{at}0.mlp.fc1.weight": some(4 * width, width),
        f"{at}0.mlp.fc1.bias": some(4 * width),
        f"{at}0.mlp.fc2.weight": some(width, 4 * width),
        f"{at}0.mlp.fc2.bias": some(width),
        f"{at}1.weight": some(1, width),
        f"{at}1.bias": some(1),
    }


def test_adamae_brings_its_sampler(tmp_path: Path) -> None:
    """The probabilities of our mask are those of AdaMAE's own formulas."""
    tensors = with_sampler(official("pretrained", patch=16), tokens=1568)
    path = save_official(tmp_path / "adamae.pth", tensors)
    found = open_foreign(path, NANO)
    assert found.meta["recipe"]["mask"]["kind"] == "adamae"
    assert found.count.matched == len(tensors) - 1  # the bias that a softmax ignores
    convert(path, to="tats", out=tmp_path / "run", reporter=QUIET, given=NANO)
    run = open_checkpoint(tmp_path / "run")
    system = build_system(run.recipe)
    restore_part("masker", system.masker, run.checkpoint)
    system.autoencoder.load_state_dict(run.checkpoint.tensors("model"))
    video = torch.randint(0, 256, (1, 3, 16, 224, 224), dtype=torch.uint8)
    clip: Clip = system.clip(video)
    with torch.no_grad():
        entry = clip.tokens_BND + tensors["encoder.pos_embed_probs"]
        theirs = sampler_scores(tensors, entry).softmax(dim=-1)
        ours = system.eval().masker.scores_BN(clip)
    assert theirs.std() > 1e-5
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-3)


def sampler_scores(tensors: dict[str, Tensor], tokens: Tensor) -> Tensor:
    """AdaMAE's network of probabilities (models/pretrain/vit.py): 8 heads, no biases of qkv."""
    part = {name.removeprefix("encoder.get_token_probs.0."): one for name, one in tensors.items()}
    at = tokens.shape[-1:]
    norm = F.layer_norm(tokens, at, part["norm1.weight"], part["norm1.bias"], 1e-5)
    q, k, v = (
        one.unflatten(-1, (8, -1)).transpose(1, 2)
        for one in (norm @ part["attn.qkv.weight"].T).chunk(3, dim=-1)
    )
    mixed = ((q @ k.mT / q.shape[-1] ** 0.5).softmax(dim=-1) @ v).transpose(1, 2).flatten(2)
    tokens = tokens + mixed @ part["attn.proj.weight"].T + part["attn.proj.bias"]
    norm = F.layer_norm(tokens, at, part["norm2.weight"], part["norm2.bias"], 1e-5)
    inner = F.gelu(norm @ part["mlp.fc1.weight"].T + part["mlp.fc1.bias"])
    tokens = tokens + inner @ part["mlp.fc2.weight"].T + part["mlp.fc2.bias"]
    last = "encoder.get_token_probs.1"
    return (tokens @ tensors[f"{last}.weight"].T + tensors[f"{last}.bias"]).squeeze(-1)


def test_a_sampler_of_other_tokens_is_left_out_and_counted(tmp_path: Path) -> None:
    tensors = with_sampler(official("pretrained"), tokens=64)  # 16 x 224 in patches of 8: 6,272
    found = opened(tmp_path, tensors)
    assert not found.has("masker")
    assert found.meta["recipe"]["mask"]["kind"] == "tube"
    assert [len(names) for names in found.count.dropped.values()] == [14]
    assert found.count.whole


def test_an_encoder_alone_is_enough(tmp_path: Path) -> None:
    tensors = official("pretrained")
    alone = {name: one for name, one in tensors.items() if name.startswith("encoder.")}
    equal(opened(tmp_path, alone).tensors("model"), alone)
    bare = {name.removeprefix("encoder."): one for name, one in alone.items()}
    found = opened(tmp_path, bare)
    equal(found.tensors("model"), alone)
    assert found.kind == "pretrained"


def test_biases_in_one_are_split_and_none_are_zeros(tmp_path: Path) -> None:
    tensors, key = official("finetuned"), torch.randn(32)
    plain = opened(tmp_path, tensors).tensors("model")
    fused = dict(tensors)
    for i in range(2):
        q, v = (fused.pop(f"blocks.{i}.attn.{one}_bias") for one in "qv")
        fused[f"blocks.{i}.attn.qkv.bias"] = torch.cat([q, key, v])
    found = opened(tmp_path, fused)
    equal(found.tensors("model"), plain)
    assert found.count.matched == found.count.total == len(fused)
    assert "keys" in " ".join(found.count.dropped)
    none = {k: v for k, v in tensors.items() if not k.endswith(("q_bias", "v_bias"))}
    model = opened(tmp_path, none).tensors("model")
    assert not model["encoder.blocks.1.attn.q_bias"].any()


@pytest.mark.parametrize("kind", ["pretrained", "finetuned"])
@pytest.mark.parametrize("fault", ["missing", "unexpected", "misshapen", "two of many"])
def test_less_than_all_is_refused_with_counts_and_names(
    tmp_path: Path, kind: str, fault: str
) -> None:
    tensors = official(kind)
    count, prefix = len(tensors), "encoder." if kind == "pretrained" else ""
    if fault == "missing":
        del tensors[f"{prefix}blocks.1.mlp.fc1.weight"]
        words = f"{count - 1} of {count - 1} tensors match; 1 missing, first `encoder.blocks.1.mlp"
    elif fault == "unexpected":
        tensors["strange.weight"] = torch.zeros(3)
        words = f"{count} of {count + 1} tensors match; 1 unexpected, first `strange.weight`"
    elif fault == "misshapen":
        tensors[f"{prefix}blocks.0.norm1.bias"] = torch.zeros(5)
        words = "1 of another shape, first `encoder.blocks.0.norm1.bias (5, not 32)`"
    else:  # what others load without a word
        names = [f"{prefix}patch_embed.proj.weight", f"{prefix}blocks.1.norm2.bias"]
        tensors = {name: tensors[name] for name in names}
        words = "2 of 2 tensors match; "
    with pytest.raises(CheckpointError) as caught:
        opened(tmp_path, tensors)
    assert words in caught.value.message
    assert "--partial" in str(caught.value.hint)


def test_partial_takes_what_fits_and_says_what_it_leaves(tmp_path: Path) -> None:
    tensors = official("pretrained")
    del tensors["decoder.norm.bias"], tensors["encoder.blocks.1.mlp.fc1.weight"]
    tensors["strange.weight"] = torch.zeros(3)
    path = save_official(tmp_path / "some.pth", tensors)
    found = open_foreign(path, NANO._replace(partial=True))
    model = found.tensors("model")
    spec = ModelSpec(Vit(32, 2, 2, 128), 2, 8)
    assert model.keys() == {name for name in _names(spec)}
    assert torch.equal(model["encoder.norm.bias"], tensors["encoder.norm.bias"])
    made = [name for names in found.count.made.values() for name in names]
    assert made == ["encoder.blocks.1.mlp.fc1.weight"]
    assert model[made[0]].std() > 0
    assert {"strange.weight"} <= {one for names in found.count.dropped.values() for one in names}
    equal(model, open_foreign(path, NANO._replace(partial=True)).tensors("model"))


def _names(spec: ModelSpec) -> list[str]:
    from tatscli.weights.spec import shapes_of

    return list(shapes_of(spec))


def test_partial_without_the_classifier_is_an_encoder(tmp_path: Path) -> None:
    tensors = official("finetuned")
    del tensors["fc_norm.bias"]
    path = save_official(tmp_path / "some.pth", tensors)
    found = open_foreign(path, NANO._replace(partial=True))
    assert found.kind == "pretrained"
    assert all(name.startswith("encoder.") for name in found.tensors("model"))
