"""Tiny teachers on disk: a run of ours, folders of `transformers`, weights of torchvision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tatscli.engine.keeping import save_checkpoint
from tatscli.recipe.schema import Recipe
from tatscli.system.system import build_system

HF = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}


def recipe_of(*targets: dict[str, Any], **sections: Any) -> Recipe:
    """A student of 2 x 4 x 4 tokens, of 2 frames and 8 x 8 pixels each."""
    return Recipe.model_validate(
        {
            "data": {"store": "", "frames": 4, "size": 32},
            "model": {"width": 16, "depth": 1, "heads": 2, "patch": 8},
            "mask": {"kind": "random", "ratio": 0.75},
            "head": {"kind": "decoder", "depth": 1},
            "targets": list(targets) or [{"kind": "pixels"}],
        }
        | sections
    )


def write_run(folder: Path, *, seed: int = 1, **sections: Any) -> Recipe:
    """Save a run whose encoder is drawn at random; return its recipe."""
    recipe = recipe_of(**sections)
    torch.manual_seed(seed)
    system = build_system(recipe)
    with torch.no_grad():
        for parameter in system.encoder.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    save_checkpoint(
        folder,
        step=1,
        tensors={"model": system.autoencoder.state_dict()},
        meta={"kind": "pretrained", "recipe": recipe.model_dump(mode="json")},
        keep=1,
        best=False,
    )
    return recipe


def randomised(network: torch.nn.Module, seed: int = 1) -> torch.nn.Module:
    """Draw all weights, so that no norm or scale is that of its start."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return network


def transformers_network(kind: str, *, seed: int = 1, **changes: Any) -> Any:
    """Make a tiny network of `transformers` for that student's clips."""
    import transformers as hf

    if kind == "videomae":
        own = {"image_size": 32, "patch_size": 8, "num_frames": 4, "tubelet_size": 2}
        config = hf.VideoMAEConfig(
            **HF, intermediate_size=32, use_mean_pooling=False, **own | changes
        )
        return randomised(hf.VideoMAEModel(config).eval(), seed)
    if kind == "vjepa2":
        own = {"crop_size": 32, "patch_size": 8, "frames_per_clip": 8, "tubelet_size": 2}
        predictor = {"pred_num_attention_heads": 2, "pred_num_hidden_layers": 1}
        config = hf.VJEPA2Config(
            **HF, mlp_ratio=2, pred_hidden_size=12, **predictor, **own | changes
        )
        return randomised(hf.VJEPA2Model(config).eval(), seed)
    own = {"image_size": 64, "patch_size": 8, "num_register_tokens": 4}
    config = hf.DINOv3ViTConfig(**HF, intermediate_size=32, **own | changes)
    return randomised(hf.DINOv3ViTModel(config).eval(), seed)


def torchvision_network(name: str) -> torch.nn.Module:
    """Make a network of torchvision with weights drawn at random."""
    from torchvision.models import get_model

    torch.manual_seed(1)
    return get_model(name, weights=None).eval()
