"""Tokenizers of diffusers and taming-transformers: codes equal the libraries' own."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from diffusers import AutoencoderVidTok, VQModel
from safetensors.torch import save_file

from tatscli.errors import CheckpointError
from tatscli.tokenizer.diffusers import open_diffusers
from tatscli.tokenizer.fsq import FiniteScalar
from tatscli.tokenizer.taming import open_taming
from tests.tokenizer.vqgan import Vqgan


@pytest.fixture(scope="module")
def frames() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.rand(2, 3, 8, 32, 48)


def spread(codes: torch.nn.Embedding) -> None:
    """Random codes that are all chosen: the library draws them within 1 / size of 0."""
    torch.nn.init.normal_(codes.weight, std=0.5)


@pytest.fixture(scope="module")
def vq(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vq")
    torch.manual_seed(1)
    model = VQModel(
        block_out_channels=(32, 32, 64),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=6,
        num_vq_embeddings=50,
        vq_embed_dim=4,
    )
    spread(model.quantize.embedding)
    model.save_pretrained(folder)
    return folder


def test_a_vqmodel_gives_its_own_codes(vq: Path, frames: torch.Tensor) -> None:
    tokenizer, digest = open_diffusers(vq)
    model = VQModel.from_pretrained(vq)
    assert (tokenizer.codebook_size, tokenizer.width, tokenizer.stride) == (50, 4, 4)
    codes = tokenizer.encode(frames)
    assert codes.shape == (2, 8, 8, 12)
    with torch.no_grad():
        for clip, frame in ((0, 0), (1, 5)):
            latents = model.encode(2 * frames[clip, :, frame][None] - 1).latents
            quantised, _, (_, _, indices) = model.quantize(latents)
            assert torch.equal(codes[clip, frame].flatten(), indices)
            vectors = tokenizer.latents(frames)[clip, frame]
            torch.testing.assert_close(vectors.permute(2, 0, 1), quantised[0])
            decoded = (model.decode(latents).sample[0] + 1) / 2
            own = tokenizer.decode(codes)[clip, :, frame]
            torch.testing.assert_close(own, decoded.clamp(0, 1), atol=1e-5, rtol=0)
    assert len(codes.unique()) > 5
    assert len(digest) == 64


@pytest.mark.parametrize("causal", [False, True])
def test_a_vidtok_gives_its_own_codes(tmp_path: Path, frames: torch.Tensor, causal: bool) -> None:
    torch.manual_seed(2)
    model = AutoencoderVidTok(
        ch=32,
        ch_mult=[1, 1, 1],
        z_channels=2,
        double_z=False,
        num_res_blocks=1,
        spatial_ds=[0, 1],
        spatial_us=[1, 2],
        tempo_ds=[0, 1],
        tempo_us=[1, 2],
        regularizer="fsq",
        codebook_size=64,
        is_causal=causal,
    ).eval()
    model.save_pretrained(tmp_path)
    video = torch.cat([frames, frames], dim=2)  # its decoder takes no fewer than 16 frames
    tokenizer, _ = open_diffusers(tmp_path)
    assert (tokenizer.codebook_size, tokenizer.width) == (64, 2)
    assert (tokenizer.stride, tokenizer.frames) == (4, 4)
    codes = tokenizer.encode(video)
    with torch.no_grad():
        vectors, indices = model.encode(2 * video - 1)
    assert torch.equal(codes, indices.long())
    assert tokenizer.levels == [8, 8]
    every = torch.arange(64).view(1, 1, 8, 8)
    own = FiniteScalar(tokenizer.levels).vectors(every)  # the same digits, in the same order
    assert torch.equal(tokenizer.vectors(every), own)
    torch.testing.assert_close(tokenizer.latents(video).movedim(-1, 1), vectors)
    decoded = tokenizer.decode(codes)
    assert decoded.shape == video.shape
    with torch.no_grad():
        own = ((model.decode(vectors) + 1) / 2).clamp(0, 1)
    torch.testing.assert_close(decoded[:, :, -own.shape[2] :], own)


@pytest.fixture(scope="module")
def vqgan() -> Vqgan:
    torch.manual_seed(3)
    model = Vqgan([32, 32, 64], blocks=2, codes=40, width=8)
    spread(model.quantize.embedding)
    return model.eval()


def test_a_taming_checkpoint_gives_the_codes_of_its_network(
    vqgan: Vqgan, frames: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Lightning wrote them: a class among the keys, and a loss with tensors of its own."""
    callbacks = ModuleType("pytorch_lightning.callbacks.model_checkpoint")
    exec("class ModelCheckpoint: pass", callbacks.__dict__)
    for name in ("pytorch_lightning", "pytorch_lightning.callbacks", callbacks.__name__):
        monkeypatch.setitem(sys.modules, name, callbacks)
    state = vqgan.state_dict() | {"loss.logvar": torch.zeros(())}
    path = tmp_path / "last.ckpt"
    torch.save(
        {"state_dict": state, "callbacks": {callbacks.ModelCheckpoint: {}}, "epoch": 3}, path
    )
    for name in ("pytorch_lightning", "pytorch_lightning.callbacks", callbacks.__name__):
        monkeypatch.delitem(sys.modules, name)
    tokenizer, _ = open_taming(path)
    assert (tokenizer.codebook_size, tokenizer.width, tokenizer.stride) == (40, 8, 4)
    codes = tokenizer.encode(frames)
    pictures = frames.transpose(1, 2).flatten(0, 1)
    assert torch.equal(codes.flatten(0, 1), vqgan.encode(2 * pictures - 1))
    decoded = tokenizer.decode(codes).transpose(1, 2).flatten(0, 1)
    wanted = ((vqgan.decode(codes.flatten(0, 1)) + 1) / 2).clamp(0, 1)
    torch.testing.assert_close(decoded, wanted, atol=1e-5, rtol=0)
    assert len(codes.unique()) > 5


def test_it_reads_safetensors_as_well(vqgan: Vqgan, tmp_path: Path) -> None:
    save_file(vqgan.state_dict(), tmp_path / "vqgan.safetensors")
    assert open_taming(tmp_path / "vqgan.safetensors")[0].codebook_size == 40


def test_tensors_that_are_missing_or_unknown_are_counted(vqgan: Vqgan, tmp_path: Path) -> None:
    state = dict(vqgan.state_dict())
    del state["encoder.mid.block_1.conv1.bias"]
    state["encoder.extra"] = torch.zeros(1)
    torch.save(state, tmp_path / "odd.ckpt")
    total = len(vqgan.state_dict())
    with pytest.raises(CheckpointError, match=f"{total - 1} of {total} tensors match, 1 more are"):
        open_taming(tmp_path / "odd.ckpt")


class Harmful:
    def __reduce__(self) -> object:
        return (exec, ("raise SystemExit('code of the file was run')",))


def test_pickled_code_is_not_run(tmp_path: Path) -> None:
    path = tmp_path / "bad.ckpt"
    with path.open("wb") as file:
        pickle.dump({"state_dict": Harmful()}, file)
    with pytest.raises(CheckpointError, match=r"torch cannot read it|holds more than tensors"):
        open_taming(path)
    torch.save({"state_dict": Harmful()}, path)
    with pytest.raises(CheckpointError, match="holds more than tensors"):
        open_taming(path)


def test_what_is_no_tokenizer_is_refused(tmp_path: Path, vq: Path) -> None:
    with pytest.raises(CheckpointError, match="not a diffusers folder"):
        open_diffusers(tmp_path / "nowhere")
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.ckpt")
    with pytest.raises(CheckpointError, match="not a VQGAN"):
        open_taming(tmp_path / "other.ckpt")
    with pytest.raises(CheckpointError, match="cannot be read"):
        open_taming(tmp_path / "nowhere.ckpt")
    config = json.loads((vq / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"_class_name": "UNet2DModel"}))
    save_file({"a": torch.zeros(1)}, tmp_path / "diffusion_pytorch_model.safetensors")
    with pytest.raises(CheckpointError, match="holds a `UNet2DModel`"):
        open_diffusers(tmp_path)
