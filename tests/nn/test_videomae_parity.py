"""The same weights, video and mask give transformers' VideoMAE outputs and loss."""

from __future__ import annotations

import pytest
import torch

from tatscli.masking.tube import TubeMasker
from tatscli.nn.classifier import Classifier
from tatscli.nn.heads import DecoderHead
from tatscli.nn.vit import Encoder
from tatscli.recipe import schema
from tatscli.targets.pixels import PixelTarget
from tests.nn.videomae_weights import blocks, both, moved, randomize

transformers = pytest.importorskip("transformers", reason="needs the `hf` extra")

GRID, TUBELET, PATCH = (4, 4, 4), 2, 8
MEAN = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1, 1)


def config(**changes: object) -> transformers.VideoMAEConfig:
    """Make a tiny model with the published epsilon; the library's default is 1e-12."""
    return transformers.VideoMAEConfig(
        image_size=32,
        patch_size=PATCH,
        num_frames=8,
        tubelet_size=TUBELET,
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=192,
        decoder_hidden_size=24,
        decoder_num_hidden_layers=2,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=96,
        layer_norm_eps=1e-6,
        qkv_bias=True,
        **changes,
    )


def make_encoder() -> Encoder:
    return Encoder(width=48, depth=3, heads=4, grid=GRID, tubelet=TUBELET, patch=PATCH)


def unit_video() -> torch.Tensor:
    return torch.rand(2, 3, 8, 32, 32)


@pytest.mark.parametrize("normalize", [True, False])
def test_pretraining_gives_the_same_logits_and_loss(normalize: bool) -> None:
    torch.manual_seed(0)
    settings = config(norm_pix_loss=normalize, use_mean_pooling=False)
    theirs = transformers.VideoMAEForPreTraining(settings).eval()
    theirs.decoder.norm.eps = 1e-6  # transformers forgets its own setting here; published: 1e-6
    randomize(theirs)

    encoder = make_encoder()
    head = DecoderHead(
        schema.DecoderHead(depth=2), encoder=encoder, widths=[3 * TUBELET * PATCH * PATCH]
    )
    source = dict(theirs.state_dict())
    patch = both("videomae.embeddings.patch_embeddings.projection", "patch_embed.proj")
    weights = moved(source, patch | both("videomae.layernorm", "norm"))
    encoder.load_state_dict(weights | blocks(source, "videomae.encoder.layer", "blocks", 3))
    single = {"encoder_to_decoder.weight": "encoder_to_decoder.weight", "mask_token": "mask_token"}
    single |= both("decoder.norm", "decoder.norm") | both("decoder.head", "decoder.head")
    head.branches[0].load_state_dict(
        moved(source, single) | blocks(source, "decoder.decoder_layers", "decoder.blocks", 2)
    )
    assert not source

    video = unit_video()
    standard = (video - MEAN) / STD
    plan = TubeMasker(GRID, 0.75).plan(torch.zeros(2, 64, 1))
    with torch.no_grad():
        expected = theirs(standard.transpose(1, 2), bool_masked_pos=plan.hidden_BN(64))
        cubes = encoder.cubes(standard)
        index = plan.visible_BK[..., None].expand(-1, -1, cubes.shape[-1])
        latents = encoder(encoder.embed(cubes.gather(1, index)), plan.visible_BK)
        (logits,) = head(latents, plan.visible_BK, plan.predict_BM)

    target = PixelTarget(
        schema.PixelTarget(kind="pixels", normalize=normalize),
        grid=GRID,
        tubelet=TUBELET,
        patch=PATCH,
    )
    wanted = target.of(video)
    picked = plan.predict_BM[..., None].expand(-1, -1, wanted.shape[-1])
    loss = target.error(logits, wanted.gather(1, picked)).mean()
    assert expected.logits.std() > 0.1  # a comparison of something
    torch.testing.assert_close(logits, expected.logits, atol=1e-4, rtol=0)
    torch.testing.assert_close(loss, expected.loss, atol=1e-4, rtol=0)


def test_the_classifier_gives_the_same_scores() -> None:
    torch.manual_seed(0)
    theirs = transformers.VideoMAEForVideoClassification(config(num_labels=7)).eval()
    theirs.fc_norm.eps = 1e-6
    randomize(theirs)

    ours = Classifier(make_encoder(), 7).eval()
    source = dict(theirs.state_dict())
    patch = both("videomae.embeddings.patch_embeddings.projection", "encoder.patch_embed.proj")
    weights = moved(source, patch | both("fc_norm", "fc_norm") | both("classifier", "head"))
    weights |= blocks(source, "videomae.encoder.layer", "encoder.blocks", 3)
    assert not source
    missing, unexpected = ours.load_state_dict(weights, strict=False)
    # Mean pooling passes over the encoder's own norm, which the library drops.
    assert (missing, unexpected) == (["encoder.norm.weight", "encoder.norm.bias"], [])

    video = torch.randn(2, 3, 8, 32, 32)
    with torch.no_grad():
        expected = theirs(video.transpose(1, 2)).logits
        torch.testing.assert_close(ours(video), expected, atol=1e-4, rtol=0)
    assert expected.std() > 0.1
