"""`teacher`: the library's own features at the tokens, without gradient, of a grid that fits."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tatscli.data.clip import Clip
from tatscli.draws import Draws
from tatscli.engine.checkpoint import Checkpoint
from tatscli.errors import RecipeError
from tatscli.nn.vit import Encoder, build_encoder
from tatscli.system.cost import system_cost
from tatscli.system.system import System, build_system
from tatscli.targets.teacher import TeacherTarget
from tests.teaching import recipe_of, torchvision_network, transformers_network, write_run

INDEX = torch.tensor([[0, 7, 20, 31], [3, 4, 16, 25]])
IMAGENET = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])


def make(**target: Any) -> System:
    return build_system(recipe_of({"kind": "teacher"} | target))


def video() -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randint(0, 256, (2, 3, 4, 32, 32), dtype=torch.uint8, generator=generator)


def clip_of(system: System) -> Clip:
    return system.clip(video())


def standardised_video(mean: Any = None, std: Any = None, size: int | None = None) -> Tensor:
    """The clip as a library is given it, by its own arithmetic: (B, T, C, H, W)."""
    frames = video().transpose(1, 2).float() / 255
    if size is not None:
        flat = torch.nn.functional.interpolate(
            frames.flatten(0, 1), (size, size), mode="bilinear", antialias=True
        )
        frames = flat.unflatten(0, (2, 4))
    mean = IMAGENET[0] if mean is None else torch.tensor(mean)
    std = IMAGENET[1] if std is None else torch.tensor(std)
    return (frames - mean[:, None, None]) / std[:, None, None]


def assert_values(system: System, expected_BND: Tensor) -> None:
    """The target's values are these features at the tokens, each with mean 0 and deviation 1."""
    target = system.targets["teacher"]
    assert target.predicts == expected_BND.shape[-1]
    centred = expected_BND - expected_BND.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    index = INDEX[..., None].expand(-1, -1, expected_BND.shape[-1])
    values = target.of(clip_of(system), INDEX)
    assert values.dtype == torch.float32 and not values.requires_grad
    assert expected_BND.std(dim=1).mean() > 1e-3  # tokens differ: a comparison of something
    torch.testing.assert_close(values, scaled.gather(1, index), atol=2e-3, rtol=0)


def run_encoder(folder: Path, recipe: Any) -> Encoder:
    encoder = build_encoder(recipe.model, recipe.grid).eval()
    names = load_file(folder / "checkpoints/last/model.safetensors")
    encoder.load_state_dict(
        {n.removeprefix("encoder."): v for n, v in names.items() if n.startswith("encoder.")}
    )
    return encoder


MODEL = {"width": 24, "depth": 3, "heads": 2, "patch": 8, "drop_path": 0.5}


@pytest.mark.parametrize("layer", [None, 1, 3])
@torch.no_grad()
def test_a_run_of_ours_teaches_what_its_encoder_sees(tmp_path: Path, layer: int | None) -> None:
    colours = {"mean": [0.4, 0.5, 0.6], "std": [0.3, 0.2, 0.1]}
    data = {"store": "", "frames": 4, "size": 32} | colours
    recipe = write_run(tmp_path / "run", model=MODEL, data=data)
    system = make(run=str(tmp_path / "run"), layer=layer).train()
    encoder = run_encoder(tmp_path / "run", recipe)
    pixels = standardised_video(**colours).transpose(1, 2)
    tokens = encoder.embed(encoder.cubes(pixels))
    blocks = list(encoder.by_block(tokens))
    assert_values(system, encoder(tokens) if layer is None else blocks[layer - 1])


@pytest.mark.parametrize("layer", [None, 2])
@torch.no_grad()
def test_a_run_with_another_resolution_is_given_its_own(tmp_path: Path, layer: int | None) -> None:
    data = {"store": "", "frames": 4, "size": 64}
    recipe = write_run(tmp_path / "run", model=MODEL | {"patch": 16}, data=data)
    encoder = run_encoder(tmp_path / "run", recipe)
    system = make(run=str(tmp_path / "run"), size=64)
    pixels = standardised_video(size=64).transpose(1, 2)
    assert_values(system, encoder(encoder.embed(encoder.cubes(pixels))))


def hidden(network: Any, layer: int | None, **inputs: Tensor) -> Tensor:
    """The library's features: the last hidden state, or what it calls hidden state number k."""
    output = network(**inputs, output_hidden_states=True)
    return output.last_hidden_state if layer is None else output.hidden_states[layer]


@pytest.mark.parametrize("layer", [None, 2])
@torch.no_grad()
def test_a_videomae_of_transformers(tmp_path: Path, layer: int | None) -> None:
    network = transformers_network("videomae")
    network.save_pretrained(tmp_path / "hf")
    system = make(transformers=str(tmp_path / "hf"), layer=layer)
    assert_values(system, hidden(network, layer, pixel_values=standardised_video()))


@pytest.mark.parametrize("layer", [None, 1])
@torch.no_grad()
def test_the_encoder_of_a_v_jepa_2(tmp_path: Path, layer: int | None) -> None:
    network = transformers_network("vjepa2")
    network.save_pretrained(tmp_path / "hf")
    system = make(transformers=str(tmp_path / "hf"), layer=layer)
    (frozen,) = system.frozen()
    assert not [name for name, _ in frozen._network[0].named_modules() if "predictor" in name]
    inputs = {"pixel_values_videos": standardised_video(), "skip_predictor": True}
    assert_values(system, hidden(network, layer, **inputs))  # type: ignore[arg-type]


@pytest.mark.parametrize(("layer", "frames"), [(None, "mean"), (2, "mean"), (None, "first")])
@torch.no_grad()
def test_a_dinov3_sees_the_frames_one_by_one(
    tmp_path: Path, layer: int | None, frames: str
) -> None:
    network = transformers_network("dinov3_vit")
    network.save_pretrained(tmp_path / "hf")
    says = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (tmp_path / "hf/preprocessor_config.json").write_text(json.dumps(says))
    system = make(transformers=str(tmp_path / "hf"), layer=layer, frames=frames)
    pictures = standardised_video(*says.values()).flatten(0, 1)
    features = hidden(network, layer, pixel_values=pictures)[:, 5:]  # class and registers
    by_cube = features.unflatten(0, (2, 2, 2))
    cubes = by_cube.mean(dim=2) if frames == "mean" else by_cube[:, :, 0]
    assert_values(system, cubes.flatten(1, 2))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@torch.no_grad()
def test_a_network_for_pictures_of_torchvision(tmp_path: Path, suffix: str) -> None:
    network = torchvision_network("resnet18")
    path = tmp_path / f"weights{suffix}"
    save = torch.save if suffix == ".pth" else save_file
    save(network.state_dict(), path)
    system = make(torchvision="resnet18", weights=str(path), layer="layer2", frames="first")
    found: list[Tensor] = []
    network.layer2.register_forward_hook(lambda _, inputs, output: found.append(output))
    network(standardised_video()[:, ::2].flatten(0, 1))
    assert_values(system, found[0].flatten(2).transpose(1, 2).unflatten(0, (2, 2)).flatten(1, 2))


@pytest.mark.slow
@torch.no_grad()
def test_the_last_layer_with_places_is_taken(tmp_path: Path) -> None:
    network = torchvision_network("resnet18")
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    system = make(torchvision="resnet18", weights=str(tmp_path / "weights.pth"), size=128)
    found: list[Tensor] = []
    network.layer4.register_forward_hook(lambda _, inputs, output: found.append(output))
    network(standardised_video(size=128).flatten(0, 1))
    by_cube = found[0].flatten(2).transpose(1, 2).unflatten(0, (2, 2, 2)).mean(dim=2)
    assert_values(system, by_cube.flatten(1, 2))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["r3d_18", "swin3d_t"])
@torch.no_grad()
def test_networks_for_videos_of_torchvision(tmp_path: Path, name: str) -> None:
    network = torchvision_network(name)
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    # Layers that halve time once, and 16 pixels to 4 places.
    layer, size = {"r3d_18": ("layer2", 16), "swin3d_t": ("features.0", 16)}[name]
    system = make(torchvision=name, weights=str(tmp_path / "weights.pth"), layer=layer, size=size)
    found: list[Tensor] = []
    hook = network.get_submodule(layer)
    hook.register_forward_hook(lambda _, inputs, output: found.append(output))
    from torchvision.models import get_model_weights

    transforms = get_model_weights(name).DEFAULT.transforms()
    network(standardised_video(transforms.mean, transforms.std, size).transpose(1, 2))
    channels_last = name == "swin3d_t"
    features = found[0] if channels_last else found[0].movedim(1, -1)
    assert features.shape[1:4] == (2, 4, 4)
    assert_values(system, features.flatten(1, 3))


def test_it_teaches_and_learns_nothing(tmp_path: Path) -> None:
    write_run(tmp_path / "run", model=MODEL)
    system = make(run=str(tmp_path / "run"), beta=0.0).train()
    found = system.errors(clip_of(system), Draws(0))
    assert found.predictions[0].shape == (2, 24, 24)
    values = system.targets["teacher"].of(clip_of(system), found.plan.predict_BM)
    expected = (found.predictions[0] - values).abs().mean(-1)
    torch.testing.assert_close(found.by_target["teacher"], expected)
    found.loss.backward()
    assert system.encoder.patch_embed.proj.weight.grad is not None
    (frozen,) = system.frozen()
    assert all(one.grad is None for one in frozen._network[0].parameters())
    assert not list(system.targets["teacher"].parameters())
    assert not any(part.training for part in frozen._network[0].modules())
    system.to("meta")
    assert {one.device.type for one in frozen._network[0].parameters()} == {"meta"}


def test_it_may_compute_in_half_precision(tmp_path: Path) -> None:
    write_run(tmp_path / "run", model=MODEL)
    exact, rounded = (
        make(run=str(tmp_path / "run"), precision=precision, size=32).targets["teacher"]
        for precision in ("fp32", "bf16")
    )
    clip = clip_of(make(run=str(tmp_path / "run")))
    one, other = exact.of(clip, INDEX), rounded.of(clip, INDEX)
    assert other.dtype == torch.float32
    assert 0 < (one - other).abs().max() < 0.2


def test_the_student_starts_alike_with_any_teacher(tmp_path: Path) -> None:
    starts = []
    for width in (24, 32):
        write_run(tmp_path / str(width), model=MODEL | {"width": width})
        torch.manual_seed(3)
        system = build_system(
            recipe_of({"kind": "pixels"}, {"kind": "teacher", "run": str(tmp_path / str(width))})
        )
        starts.append(system.autoencoder.state_dict())
    for name, value in starts[0].items():
        if "branches.1" not in name:  # whose output is as wide as the teacher
            assert torch.equal(value, starts[1][name]), name


def test_a_dry_run_counts_it_and_reads_no_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path / "run", model=MODEL)

    def refuse(self: Checkpoint, part: str) -> None:
        raise AssertionError(part)

    monkeypatch.setattr(Checkpoint, "tensors", refuse)
    system, flops = system_cost(recipe_of({"kind": "teacher", "run": str(tmp_path / "run")}))
    teacher = system.targets["teacher"]
    assert isinstance(teacher, TeacherTarget) and teacher.teacher.digest == ""
    assert flops["targets"] > 2 * flops["encoder"]


@pytest.mark.parametrize("kind", ["videomae", "vjepa2", "dinov3_vit"])
def test_a_dry_run_needs_no_weights_of_transformers(tmp_path: Path, kind: str) -> None:
    transformers_network(kind).save_pretrained(tmp_path / "hf")
    (tmp_path / "hf/model.safetensors").unlink()
    recipe = recipe_of({"kind": "teacher", "transformers": str(tmp_path / "hf")})
    assert system_cost(recipe)[1]["targets"] > 0
    with pytest.raises(RecipeError, match=r"has no `\*\.safetensors`"):
        build_system(recipe)


def refused(**target: Any) -> RecipeError:
    with pytest.raises(RecipeError) as found:
        make(**target)
    return found.value


def test_another_grid_is_refused_and_both_are_named(tmp_path: Path) -> None:
    write_run(tmp_path / "run", data={"store": "", "frames": 8, "size": 32})
    message = refused(run=str(tmp_path / "run")).message
    assert "has a grid of 4 x 4 x 4 tokens" in message and "the recipe one of 2 x 4 x 4" in message
    # The same grid of larger pixels is one for the asking.
    data = {"store": "", "frames": 4, "size": 64}
    write_run(tmp_path / "fine", data=data, model=MODEL | {"patch": 16})
    error = refused(run=str(tmp_path / "fine"))
    assert "clips of 4 frames of 64 x 64 pixels" in error.message
    assert error.hint == "`size: 64` resizes the clip for the teacher"
    make(run=str(tmp_path / "fine"), size=64)


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        ("videomae", {"num_frames": 8}, "a grid of 4 x 4 x 4 tokens"),
        ("videomae", {"image_size": 64}, "`size: 64` resizes"),
        ("vjepa2", {"crop_size": 64}, "`size: 64` resizes"),
        ("vjepa2", {"tubelet_size": 4}, "a grid of 1 x 4 x 4 tokens"),
        ("dinov3_vit", {"patch_size": 16}, "a grid of 2 x 2 x 2 tokens"),
    ],
)
def test_networks_of_transformers_that_see_other_clips_are_refused(
    tmp_path: Path, kind: str, changes: dict[str, int], words: str
) -> None:
    transformers_network(kind, **changes).save_pretrained(tmp_path / "hf")
    error = refused(transformers=str(tmp_path / "hf"))
    assert words in f"{error.message} {error.hint}"
    assert "the recipe one of 2 x 4 x 4" in error.message


def test_patches_must_fill_the_picture(tmp_path: Path) -> None:
    transformers_network("dinov3_vit").save_pretrained(tmp_path / "hf")
    error = refused(transformers=str(tmp_path / "hf"), size=36)
    assert "patches of 8 x 8 pixels, which do not fill 36 x 36" in error.message


def test_what_is_not_there_is_one_message(tmp_path: Path) -> None:
    assert "`nowhere` does not exist" in refused(run="nowhere").message
    assert "folder `nowhere` does not exist" in refused(transformers="nowhere").message
    assert "has no `config.json`" in refused(transformers=str(tmp_path)).message
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "model.safetensors").touch()
    message = refused(transformers=str(tmp_path)).message
    assert "is a `bert`" in message and "`videomae` (VideoMAEModel)" in message
    absent = refused(torchvision="resnet18", weights="nowhere.pth")
    assert "`weights: nowhere.pth` do not exist" in absent.message
    error = refused(torchvision="resnet19", weights="nowhere.pth")
    assert error.hint == "did you mean `resnet18`?"
    # Its backbone would be fetched from the network.
    assert "no classifier" in refused(torchvision="fcn_resnet50", weights="x.pth").message


def test_blocks_and_nodes_that_are_not_there(tmp_path: Path) -> None:
    write_run(tmp_path / "run", model=MODEL)
    assert "has 3 blocks, and `layer: 4`" in refused(run=str(tmp_path / "run"), layer=4).message
    transformers_network("videomae").save_pretrained(tmp_path / "hf")
    assert "has 3 blocks" in refused(transformers=str(tmp_path / "hf"), layer=9).message
    weights = tmp_path / "weights.pth"
    torch.save(torchvision_network("resnet18").state_dict(), weights)
    given = {"torchvision": "resnet18", "weights": str(weights)}
    error = refused(**given, layer="layer22")
    assert "has no `layer: layer22`" in error.message and "layer2" in str(error.hint)
    assert "gives [1000], without places for tokens" in refused(**given, layer="fc").message
    assert "a grid of 2 x 8 x 8 tokens" in refused(**given, layer="layer1").message


def test_pickles_and_other_weights_are_not_read(tmp_path: Path) -> None:
    transformers_network("videomae").save_pretrained(tmp_path / "hf")
    weights = tmp_path / "hf/model.safetensors"
    torch.save(load_file(weights), tmp_path / "hf/pytorch_model.bin")
    lacking = load_file(weights)
    lacking.pop("layernorm.weight")
    save_file(lacking, weights, metadata={"format": "pt"})
    message = refused(transformers=str(tmp_path / "hf")).message
    assert "lacks 1 tensors of a `VideoMAEModel`, first `layernorm.weight`" in message
    weights.write_bytes(b"broken")
    assert "cannot be loaded" in refused(transformers=str(tmp_path / "hf")).message
    weights.unlink()
    message = refused(transformers=str(tmp_path / "hf")).message
    assert "only `pytorch_model.bin`, a pickle, which is not read" in message

    path = tmp_path / "weights.pth"
    given = {"torchvision": "resnet18", "weights": str(path), "layer": "layer2"}
    path.write_bytes(pickle.dumps(Path("anything"), protocol=2))
    assert "hold more than tensors" in refused(**given).message
    torch.save({"weights": Path("anything")}, path)
    assert "hold more than tensors" in refused(**given).message
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, path)
    message = refused(**given).message
    assert "1 of 122 tensors match; the first that does not is `bn1.weight`" in message


def test_without_the_library_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transformers_network("videomae").save_pretrained(tmp_path / "hf")
    monkeypatch.setitem(sys.modules, "transformers", None)
    error = refused(transformers=str(tmp_path / "hf"))
    assert "needs the package of that name" in error.message
    assert error.hint == "pip install 'tats[hf]'"


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ({}, "needs exactly one of `run`, `transformers` and `torchvision`, not none of them"),
        ({"run": "a", "transformers": "b"}, "not `run` and `transformers`"),
        ({"torchvision": "resnet18"}, "`torchvision` needs `weights`, a local file"),
        ({"run": "a", "weights": "b"}, "`torchvision` needs `weights`, a local file"),
        ({"run": "a", "layer": "blocks.1"}, "must be the number of a block"),
        ({"torchvision": "a", "weights": "b", "layer": 3}, "must be the name of a node"),
    ],
)
def test_sections_that_say_too_little_or_too_much(target: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        recipe_of({"kind": "teacher"} | target)
