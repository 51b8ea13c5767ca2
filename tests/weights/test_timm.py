"""Image ViTs: inflated patch embeddings against timm's own, and what is left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tatscli.errors import CheckpointError
from tatscli.nn.load import load_encoder, open_checkpoint
from tatscli.nn.vit import Encoder
from tatscli.weights.layouts import Given
from tatscli.weights.open import open_foreign

timm = pytest.importorskip("timm")


def picture_model(**changes: Any) -> nn.Module:
    torch.manual_seed(4)
    settings = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
    model = timm.models.vision_transformer.VisionTransformer(**{**settings, **changes}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def our_encoder(found: Any, *, frames: int, tubelet: int = 2) -> Encoder:
    grid = (frames // tubelet, 4, 4)
    encoder = Encoder(width=48, depth=2, heads=3, grid=grid, tubelet=tubelet, patch=8)
    load_encoder(encoder, found)
    return encoder.eval()


@pytest.mark.parametrize("tubelet", [1, 2, 4])
def test_a_still_clip_is_embedded_as_its_picture(tmp_path: Path, tubelet: int) -> None:
    model = picture_model()
    torch.save({"model": model.state_dict()}, tmp_path / "mae.pth")
    found = open_foreign(tmp_path / "mae.pth", Given(heads=3, tubelet=tubelet))
    recipe = found.meta["recipe"]
    assert (recipe["model"]["tubelet"], recipe["data"]["size"]) == (tubelet, 32)
    frames = recipe["data"]["frames"]
    encoder = our_encoder(found, frames=frames, tubelet=tubelet)
    picture = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        theirs = model.patch_embed(picture)
        clip = picture[:, :, None].expand(-1, -1, frames, -1, -1)
        ours = encoder.embed(encoder.cubes(clip))
    for tokens in ours.unflatten(1, (frames // tubelet, -1)).unbind(1):
        torch.testing.assert_close(tokens, theirs, atol=1e-5, rtol=0)
    if tubelet > 1:  # repeated without dividing, the embedding is `tubelet` times as large
        bias = model.patch_embed.proj.bias
        assert ((theirs - bias) * (tubelet - 1)).abs().max() > 0.1


def test_blocks_compute_what_timm_computes(tmp_path: Path) -> None:
    """Biases of all three in one there, without the keys' here: the same outputs."""
    model = picture_model()
    assert model.blocks[0].attn.qkv.bias.abs().min() > 0
    save_file(model.state_dict(), tmp_path / "vit.safetensors")
    encoder = our_encoder(open_foreign(tmp_path / "vit.safetensors", Given(heads=3)), frames=16)
    tokens = torch.randn(2, 7, 48)
    ours = theirs = tokens
    with torch.no_grad():
        for one, two in zip(encoder.blocks, model.blocks, strict=True):
            ours, theirs = one(ours), two(theirs)
        torch.testing.assert_close(encoder.norm(ours), model.norm(theirs), atol=1e-4, rtol=0)


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    tensors = mae_like(picture_model())
    torch.save({"model": tensors}, tmp_path / "mae.pth")
    found = open_foreign(tmp_path / "mae.pth", Given(heads=3))
    left = {reason: len(names) for reason, names in found.count.dropped.items()}
    assert left == {
        "the class token, which our encoder does not have": 1,
        "its position embeddings; ours are sine-cosine": 1,
        "its image decoder": 5,
        "its image classifier": 2,
        "the keys' third of fused biases, which the softmax ignores": 2,
    }
    assert found.count.matched + 9 == found.count.total == len(tensors)
    assert found.kind == "pretrained" and not any("head" in one for one in found.tensors("model"))
    assert any("1/2 each" in one for one in found.remarks)


def mae_like(model: nn.Module) -> dict[str, Tensor]:
    """Add a decoder's tensors as MAE's pretraining files have them."""
    names = ("decoder_pos_embed", "mask_token", "decoder_embed.weight", "decoder_norm.weight")
    return dict(model.state_dict()) | dict.fromkeys(
        (*names, "decoder_blocks.0.norm1.weight"), torch.zeros(2)
    )


def test_layer_scale_is_folded(tmp_path: Path) -> None:
    model = picture_model(init_values=0.7)
    torch.save(model.state_dict(), tmp_path / "vit.pth")
    encoder = our_encoder(open_foreign(tmp_path / "vit.pth", Given(heads=3)), frames=16)
    tokens = torch.randn(2, 7, 48)
    with torch.no_grad():
        torch.testing.assert_close(
            encoder.blocks[0](tokens), model.blocks[0](tokens), atol=1e-4, rtol=0
        )


@pytest.mark.parametrize("changes", [{"reg_tokens": 2}, {"qk_norm": True}, {"pre_norm": True}])
def test_other_image_vits_are_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    torch.save(picture_model(**changes).state_dict(), tmp_path / "vit.pth")
    with pytest.raises(CheckpointError, match="unexpected"):
        open_foreign(tmp_path / "vit.pth", Given(heads=3))


def test_pictures_under_the_names_of_videos_are_refused(tmp_path: Path) -> None:
    tensors = {f"encoder.{name}": one for name, one in picture_model().state_dict().items()}
    torch.save(tensors, tmp_path / "odd.pth")
    with pytest.raises(CheckpointError, match="has an unknown layout"):
        open_foreign(tmp_path / "odd.pth", Given(heads=3))


def test_a_folder_of_timm_says_how_pictures_were_standardised(tmp_path: Path) -> None:
    model = picture_model(embed_dim=384, num_heads=6)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    said = {"mean": [0.5, 0.5, 0.5], "std": [0.4, 0.4, 0.4], "input_size": [3, 32, 32]}
    config = {"architecture": "vit_small_patch8", "pretrained_cfg": said}
    (tmp_path / "config.json").write_text(json.dumps(config))
    recipe = open_checkpoint(tmp_path).recipe
    assert recipe.data.mean == (0.5, 0.5, 0.5) and recipe.data.std == (0.4, 0.4, 0.4)
    assert (recipe.model.heads, recipe.data.size) == (6, 32)
