"""The same weights, video and mask give transformers' VideoMAE outputs and loss."""

from __future__ import annotations

import pytest
import torch

from tatscli.data.clip import ClipForm
from tatscli.data.normalize import standardized
from tatscli.draws import Draws
from tatscli.heads import build_head
from tatscli.masking import build_masker
from tatscli.masking.predict import build_predict
from tatscli.nn.classifier import Classifier
from tatscli.nn.vit import Encoder
from tatscli.recipe import schema
from tatscli.system.autoencoder import MaskedAutoencoder
from tatscli.system.system import System
from tatscli.targets import build_target
from tests.nn.videomae_weights import blocks, both, moved, randomize

transformers = pytest.importorskip("transformers", reason="needs the `hf` extra")

GRID, TUBELET, PATCH = (4, 4, 4), 2, 8
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


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


def make_system(*, normalize: bool) -> System:
    """Every part as a recipe builds it."""
    form, encoder = ClipForm(GRID, TUBELET, PATCH, mean=MEAN, std=STD), make_encoder()
    target = build_target(schema.PixelTarget(kind="pixels", normalize=normalize), form=form)
    head = build_head(schema.DecoderHead(depth=2), encoder=encoder, predicts=[target.predicts])
    masker = build_masker(schema.TubeMask(kind="tube", ratio=0.75), grid=GRID, width=48)
    selection = build_predict(schema.PredictAll(), form=form, predicted=masker.predicted)
    autoencoder = MaskedAutoencoder(encoder, head)
    return System(form, autoencoder, masker, selection, {"pixels": target})


@pytest.mark.parametrize("normalize", [True, False])
def test_pretraining_gives_the_same_logits_and_loss(normalize: bool) -> None:
    torch.manual_seed(0)
    settings = config(norm_pix_loss=normalize, use_mean_pooling=False)
    theirs = transformers.VideoMAEForPreTraining(settings).eval()
    theirs.decoder.norm.eps = 1e-6  # transformers forgets its own setting here; published: 1e-6
    randomize(theirs)

    system = make_system(normalize=normalize)
    encoder, head = system.encoder, system.autoencoder.head
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

    video = torch.randint(0, 256, (2, 3, 8, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        found = system.errors(system.clip(video), Draws(0))
        expected = theirs(
            standardized(video, MEAN, STD).transpose(1, 2), bool_masked_pos=found.plan.hidden_BN(64)
        )
    (logits,) = found.predictions
    assert expected.logits.std() > 0.1  # a comparison of something
    torch.testing.assert_close(logits, expected.logits, atol=1e-4, rtol=0)
    torch.testing.assert_close(found.loss, expected.loss, atol=1e-4, rtol=0)


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
