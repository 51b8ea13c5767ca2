"""Small models in the layouts of others, with weights that are nowhere zero, and their outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tatscli.data.normalize import standardized
from tatscli.draws import Draws
from tatscli.engine.checkpoint import restore_part
from tatscli.engine.part import Weights
from tatscli.nn.load import LoadedRun
from tatscli.nn.trained import load_classifier
from tatscli.system.system import build_system
from tests.nn.videomae_weights import randomize

LABELS = ["left", "right", "down"]

NANO: dict[str, Any] = {
    "image_size": 32,
    "patch_size": 8,
    "num_frames": 8,
    "tubelet_size": 2,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 128,
    "decoder_hidden_size": 16,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 1,
    "decoder_intermediate_size": 64,
}
SMALL: dict[str, Any] = {
    "hidden_size": 384,
    "num_attention_heads": 6,
    "intermediate_size": 1536,
    "decoder_hidden_size": 192,
    "decoder_num_attention_heads": 3,
    "decoder_intermediate_size": 768,
}
BASE: dict[str, Any] = {}  # the library's own defaults


def hf_model(kind: str, sizes: dict[str, Any] = NANO, **changes: Any) -> Any:
    """Make a VideoMAE of transformers with random weights: `pretrained`, `finetuned` or `bare`."""
    import transformers

    torch.manual_seed(1)
    settings = {**sizes, "layer_norm_eps": 1e-6, **changes}
    if kind == "finetuned":
        settings |= {"id2label": dict(enumerate(LABELS))}
        settings |= {"label2id": {name: i for i, name in enumerate(LABELS)}}
    else:
        settings = {"use_mean_pooling": False, **settings}
    model_class = {
        "pretrained": transformers.VideoMAEForPreTraining,
        "finetuned": transformers.VideoMAEForVideoClassification,
        "bare": transformers.VideoMAEModel,
    }[kind]
    model = model_class(transformers.VideoMAEConfig(**settings)).eval()
    randomize(model)
    return model


def with_our_eps(model: Any) -> Any:
    """Give the norms that `config.json` does not reach the epsilon that models are trained with."""
    for name in ("fc_norm", "decoder.norm"):
        try:
            model.get_submodule(name).eps = 1e-6
        except AttributeError:
            continue
    return model


def hf_scores(model: nn.Module, video_BCTHW: Tensor, run: LoadedRun) -> Tensor:
    """Classify a uint8 video with a model of transformers."""
    data = run.recipe.data
    pixels = standardized(video_BCTHW, data.mean, data.std).transpose(1, 2)
    with torch.no_grad():
        return model(pixels).logits


def our_scores(run: LoadedRun, video_BCTHW: Tensor) -> Tensor:
    """Classify a uint8 video with ours."""
    data = run.recipe.data
    with torch.no_grad():
        return load_classifier(run).eval()(standardized(video_BCTHW, data.mean, data.std))


def both_guesses(model: nn.Module, run: LoadedRun, video_BCTHW: Tensor) -> tuple[Any, Any]:
    """Guess the hidden tokens of a uint8 video with ours and theirs, under one mask.

    Returns:
        Logits and loss of ours, and of theirs.
    """
    system = build_system(run.recipe)
    restore_part("model", Weights(system.autoencoder), run.checkpoint)
    system.eval()
    data = run.recipe.data
    with torch.no_grad():
        found = system.errors(system.clip(video_BCTHW), Draws(0))
        theirs = model(
            standardized(video_BCTHW, data.mean, data.std).transpose(1, 2),
            bool_masked_pos=found.plan.hidden_BN(system.form.tokens),
        )
    return (found.predictions[0], found.loss), (theirs.logits, theirs.loss)


def random_video(run: LoadedRun, clips: int = 2) -> Tensor:
    """A uint8 video of the size that a run takes."""
    height, width = run.recipe.data.view_size
    generator = torch.Generator().manual_seed(3)
    shape = (clips, 3, run.recipe.data.frames, height, width)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def official(
    kind: str,
    *,
    width: int = 32,
    depth: int = 2,
    mlp: int = 128,
    patch: int = 8,
    decoder: tuple[int, int, int] = (16, 1, 64),
    classes: int = 3,
    seed: int = 2,
) -> dict[str, Tensor]:
    """Tensors as an official file names them: `pretrained` or `finetuned`."""
    generator = torch.Generator().manual_seed(seed)

    def some(*shape: int) -> Tensor:
        return 0.1 * torch.randn(shape, generator=generator)

    def stack(prefix: str, width: int, depth: int, mlp: int) -> dict[str, Tensor]:
        found = {}
        for i in range(depth):
            at = f"{prefix}blocks.{i}."
            found |= {f"{at}{norm}.weight": 1 + some(width) for norm in ("norm1", "norm2")}
            found |= {f"{at}{norm}.bias": some(width) for norm in ("norm1", "norm2")}
            found |= {f"{at}attn.{one}": some(width) for one in ("q_bias", "v_bias", "proj.bias")}
            found |= {
                f"{at}attn.qkv.weight": some(3 * width, width),
                f"{at}attn.proj.weight": some(width, width),
                f"{at}mlp.fc1.weight": some(mlp, width),
                f"{at}mlp.fc1.bias": some(mlp),
                f"{at}mlp.fc2.weight": some(width, mlp),
                f"{at}mlp.fc2.bias": some(width),
            }
        return found

    prefix = "encoder." if kind == "pretrained" else ""
    tensors = {
        f"{prefix}patch_embed.proj.weight": some(width, 3, 2, patch, patch),
        f"{prefix}patch_embed.proj.bias": some(width),
        **stack(prefix, width, depth, mlp),
    }
    if kind == "finetuned":
        head = {"head.weight": some(classes, width), "head.bias": some(classes)}
        return tensors | {"fc_norm.weight": 1 + some(width), "fc_norm.bias": some(width), **head}
    inner, blocks, inner_mlp = decoder
    pixels = 3 * 2 * patch * patch
    tensors |= {"encoder.norm.weight": 1 + some(width), "encoder.norm.bias": some(width)}
    tensors |= {"mask_token": some(1, 1, inner), "encoder_to_decoder.weight": some(inner, width)}
    tensors |= stack("decoder.", inner, blocks, inner_mlp)
    tensors |= {"decoder.norm.weight": 1 + some(inner), "decoder.norm.bias": some(inner)}
    tensors |= {"decoder.head.weight": some(pixels, inner), "decoder.head.bias": some(pixels)}
    return tensors


def save_official(path: Path, tensors: dict[str, Tensor], **beside: Any) -> Path:
    """Write a file as VideoMAE's training does."""
    torch.save({"model": tensors, **beside}, path)
    return path


def equal(one: dict[str, Tensor], two: dict[str, Tensor]) -> None:
    """Compare two dicts of tensors, bit by bit."""
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert torch.equal(value, two[name]), name
