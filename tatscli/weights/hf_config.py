"""The files beside the weights in a folder of `transformers`: `config.json` and processors."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from tatscli.errors import CheckpointError
from tatscli.nn.vit import NORM_EPS, SIZES
from tatscli.weights.read import read_json
from tatscli.weights.spec import DECODER_HEADS, IMAGENET, PUBLISHED, ModelSpec, Vit

DEFAULTS: dict[str, Any] = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "num_frames": 16,
    "image_size": 224,
    "tubelet_size": 2,
    "patch_size": 16,
    "decoder_hidden_size": 384,
    "decoder_num_hidden_layers": 4,
    "decoder_num_attention_heads": 6,
    "decoder_intermediate_size": 1536,
}
"""Defaults of `VideoMAEConfig` for keys that a `config.json` leaves out."""


class Normalisation(NamedTuple):
    """Mean and standard deviation of the input, and a remark for the user."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    note: str = ""


def normalisation(folder: Path) -> Normalisation:
    """Return mean and standard deviation from a folder's processor files.

    Without any file they are ImageNet's, as for published weights. A file that leaves them out
    means 0.5, the default of `transformers`.

    Raises:
        CheckpointError: If a file is not a JSON object, or has anything but three numbers.
    """
    files = {
        "video_preprocessor_config.json": "",
        "preprocessor_config.json": "",
        "processor_config.json": "video_processor",
    }
    for name, inner in files.items():
        if not (folder / name).is_file():
            continue
        said = read_json(folder / name)
        said = said.get(inner, said.get("image_processor", {})) if inner else said
        if not isinstance(said, dict) or (inner and not said):
            continue
        if said.get("do_normalize") is False:
            return Normalisation((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
        if "image_mean" not in said and "image_std" not in said:
            half = (0.5, 0.5, 0.5)
            return Normalisation(
                half, half, f"`{name}` has no mean and standard deviation: transformers uses 0.5"
            )
        three = [_three(folder / name, said, key) for key in ("image_mean", "image_std")]
        return Normalisation(three[0], three[1])
    return Normalisation(*IMAGENET, "no processor file: mean and standard deviation are ImageNet's")


def _three(path: Path, said: dict[str, Any], key: str) -> tuple[float, ...]:
    value = said.get(key, [0.5, 0.5, 0.5])
    right = isinstance(value, list) and len(value) == 3
    if not right or not all(isinstance(one, int | float) for one in value):
        raise CheckpointError(f"`{path}` has `{key}: {value}`, where three numbers are needed")
    return tuple(float(one) for one in value)


def checked(settings: dict[str, Any], *, called: str) -> dict[str, Any]:
    """Return a `config.json` with all sizes, defaults included.

    Raises:
        CheckpointError: If one is not a whole number above 0; image sizes may be pairs.
    """
    found = DEFAULTS | settings
    for key in DEFAULTS:
        value = found[key]
        pair = key in ("image_size", "patch_size") and isinstance(value, list) and len(value) == 2
        sides = tuple(value) if pair else (value,)
        if not all(type(side) is int and side > 0 for side in sides):
            raise CheckpointError(
                f"`{called}` says `{key}: {value}` in its `config.json`, where a whole number "
                "above 0 is needed"
            )
        found[key] = sides[0] if len(set(sides)) == 1 else sides
    if found.get("num_channels", 3) != 3:
        raise CheckpointError(
            f"`{called}` has `num_channels: {found['num_channels']}`; it must be 3"
        )
    return found


def known_heads(
    settings: dict[str, Any],
    *,
    called: str,
    heads: int | None,
    decoder_heads: int | None,
    decodes: bool,
) -> tuple[int, int]:
    """Return the heads of encoder and decoder: those given, or those of a `config.json`.

    A published width with another number of heads is refused: some converted files say 16 for
    models that were trained with 6, which no shape shows.

    Args:
        settings: The `config.json`, checked.
        called: Name of the folder in messages.
        heads: Heads of the encoder, if the user gave them.
        decoder_heads: Heads of the decoder, likewise.
        decodes: Whether there is a decoder.

    Raises:
        CheckpointError: If so.
    """
    published = {SIZES[one][0]: SIZES[one][2] for one in PUBLISHED}
    sure = "tats" in settings  # then they are what the weights were trained with here
    found = []
    for prefix, given, table, option in (
        ("", heads, published, "--heads"),
        ("decoder_", decoder_heads, DECODER_HEADS, "--decoder-heads"),
    ):
        key = f"{prefix}num_attention_heads"
        said, width = settings[key], settings[f"{prefix}hidden_size"]
        usual = table.get(width)
        asked = decodes or not prefix
        if asked and given is None and not sure and usual not in (None, said):
            raise CheckpointError(
                f"`{called}` says `{key}: {said}` for a width of {width}, which is published with "
                f"{usual} heads; the weights fit both numbers, and only one is right",
                hint=f"`tats convert {called} {option} {usual}` uses {usual}; give another "
                "number if you know it",
            )
        found.append(given or said)
    return found[0], found[1]


def refuse_other_sizes(spec: ModelSpec, settings: dict[str, Any], *, called: str) -> None:
    """Refuse weights that do not match the sizes in their `config.json`.

    Raises:
        CheckpointError: If so.
    """
    encoder, decoder = spec.encoder, spec.decoder
    found = {
        "hidden_size": encoder.width,
        "num_hidden_layers": encoder.depth,
        "intermediate_size": encoder.mlp,
        "tubelet_size": spec.tubelet,
        "patch_size": spec.patch,
    }
    if decoder is not None:
        found |= {
            "decoder_hidden_size": decoder.width,
            "decoder_num_hidden_layers": decoder.depth,
            "decoder_intermediate_size": decoder.mlp,
        }
    for key, value in found.items():
        if (said := settings[key]) != value:
            raise CheckpointError(
                f"`{called}` says `{key}: {said}` in its `config.json`, and its weights have "
                f"{value}",
                hint="files of two models were mixed, or the download is incomplete",
            )


def labels_in(settings: dict[str, Any], classes: int) -> list[str]:
    """Return the class names in `id2label`, or `LABEL_i` where there is none."""
    given = settings.get("id2label") or {}
    return [str(given.get(str(i), given.get(i, f"LABEL_{i}"))) for i in range(classes)]


def config_of(
    spec: ModelSpec, architecture: str, *, labels: list[str] | None, tats: dict[str, Any]
) -> dict[str, Any]:
    """Return the `config.json` of a model.

    Args:
        spec: The model.
        architecture: Class of `transformers` that loads it.
        labels: Class names of a classifier.
        tats: What converting back needs and `transformers` has no key for.
    """
    encoder, size = spec.encoder, spec.size
    config: dict[str, Any] = {
        "architectures": [architecture],
        "model_type": "videomae",
        "image_size": size if isinstance(size, int) else list(size),
        "patch_size": spec.patch,
        "num_channels": 3,
        "num_frames": spec.frames,
        "tubelet_size": spec.tubelet,
        **_vit_keys(encoder, ""),
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.02,
        "layer_norm_eps": NORM_EPS,
        "qkv_bias": True,
        "use_mean_pooling": labels is not None,
        "dtype": "float32",
    }
    if spec.decoder is not None:
        config |= _vit_keys(spec.decoder, "decoder_") | {"norm_pix_loss": spec.normalize}
    if labels is not None:
        config["id2label"] = {str(i): name for i, name in enumerate(labels)}
        config["label2id"] = {name: i for i, name in enumerate(labels)}
    return config | {"tats": tats}


def processors_of(spec: ModelSpec) -> dict[str, dict[str, Any]]:
    """Return the two processor files by name, with mean and standard deviation, which would be 0.5
    by default."""
    height, width = (spec.size, spec.size) if isinstance(spec.size, int) else spec.size
    square = height == width
    shared: dict[str, Any] = {
        "do_resize": True,
        "size": {"shortest_edge": height} if square else {"height": height, "width": width},
        "resample": 2,
        "do_center_crop": True,
        "crop_size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(spec.mean),
        "image_std": list(spec.std),
    }
    video = {"do_convert_rgb": True, "do_sample_frames": False}
    return {
        "preprocessor_config.json": {"image_processor_type": "VideoMAEImageProcessor", **shared},
        "video_preprocessor_config.json": {
            "video_processor_type": "VideoMAEVideoProcessor",
            **shared,
            **video,
        },
    }


def _vit_keys(vit: Vit, prefix: str) -> dict[str, int]:
    return {
        f"{prefix}hidden_size": vit.width,
        f"{prefix}num_hidden_layers": vit.depth,
        f"{prefix}num_attention_heads": vit.heads,
        f"{prefix}intermediate_size": vit.mlp,
    }
