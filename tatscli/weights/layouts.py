"""Recognising the layout of weights by tensor names and `config.json`, and renaming them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from tatscli.console import warn_once
from tatscli.errors import CheckpointError
from tatscli.recipe.schema import Recipe
from tatscli.recipe.stored import read_stored
from tatscli.weights import hf, timm
from tatscli.weights.count import Renaming
from tatscli.weights.hf_config import (
    checked,
    known_heads,
    labels_in,
    normalisation,
    refuse_other_sizes,
)
from tatscli.weights.paths import CONFIG
from tatscli.weights.read import bare_names, read_file, read_folder, read_json, tensors_in
from tatscli.weights.spec import BRANCH, ENCODER, IMAGENET, ModelSpec, measured
from tatscli.weights.videomae import from_videomae


class Given(NamedTuple):
    """What the user says about weights that do not say it themselves.

    Attributes:
        heads: Attention heads of the encoder.
        decoder_heads: Those of the decoder.
        tubelet: Frames in a token, for image weights.
        partial: Read what fits, instead of failing.
    """

    heads: int | None = None
    decoder_heads: int | None = None
    tubelet: int = 2
    partial: bool = False


class Found(NamedTuple):
    """Weights as read from a path.

    Attributes:
        names: Tensors under our names.
        spec: Sizes of the model, from the tensors and the files beside them.
        files: The files that were read.
        labels: Class names.
        recipe: The recipe that we wrote beside them, if any.
        derived: Whether that recipe was itself derived from weights with unknown training.
    """

    names: Renaming
    spec: ModelSpec
    files: list[Path]
    labels: list[str] | None = None
    recipe: Recipe | None = None
    derived: bool = False


class _Pictures(NamedTuple):
    """Size and normalisation of an image ViT's input."""

    size: int | None = None
    mean: tuple[float, ...] = IMAGENET[0]
    std: tuple[float, ...] = IMAGENET[1]


def find_layout(path: Path, given: Given) -> Found:
    """Read weights from another program and rename their tensors; nothing is compared yet.

    Raises:
        CheckpointError: If they cannot be read, or their layout is unknown.
    """
    return _from_folder(path, given) if path.is_dir() else _from_file(path, given)


def _from_file(path: Path, given: Given) -> Found:
    """Read a file: an official one or an image ViT, as its patch embedding shows."""
    called = str(path)
    source = bare_names(tensors_in(read_file(path, called=called), called=called), called=called)
    layout = _layout_of(source)
    if layout == "image":
        return _from_pictures(source, given, [path], called, _Pictures())
    if layout == "transformers":
        raise CheckpointError(
            f"`{called}` has tensors of `transformers`, but no `{CONFIG}` beside it",
            hint="give the whole folder, with the `config.json` that has heads and frames",
        )
    if layout != "video":
        raise _unknown(called, source)
    names = from_videomae(source, called=called)
    spec = measured(
        names.tensors, called=called, heads=given.heads, decoder_heads=given.decoder_heads
    )
    names.count.notes.append(
        f"the file does not say frames and size: {spec.frames} frames of {spec.size} pixels are "
        "assumed, as published (`tats convert` accepts `data.frames` and `data.size`)"
    )
    return Found(names, spec, [path])


def _from_folder(folder: Path, given: Given) -> Found:
    """Read a folder of `transformers` or timm, by its `config.json`."""
    called, settings = str(folder), read_json(folder / CONFIG)
    kind = settings.get("model_type")
    if kind != "videomae" and "architecture" not in settings:
        raise CheckpointError(
            f"`{called}` is a `{kind}` of `transformers`; only VideoMAE is supported"
            if kind
            else f"the `{CONFIG}` of `{called}` has neither `model_type` nor `architecture`",
            hint="other models can be teachers: `targets` with `kind: teacher`",
        )
    source, files = read_folder(folder)
    if kind != "videomae":
        source = bare_names(source, called=called)
        if _layout_of(source) != "image":
            raise _unknown(called, source)
        return _from_pictures(source, given, files, called, _timm_pictures(settings))
    settings = checked(settings, called=called)
    names = hf.from_hf(source, settings, called=called)
    heads, decoder_heads = known_heads(
        settings,
        called=called,
        heads=given.heads,
        decoder_heads=given.decoder_heads,
        decodes=any(name.startswith(BRANCH) for name in names.tensors),
    )
    spec = measured(names.tensors, called=called, heads=heads, decoder_heads=decoder_heads)
    refuse_other_sizes(spec, settings, called=called)
    mean, std, note = normalisation(folder)
    names.count.notes += [note] if note else []
    spec = replace(
        spec,
        frames=settings["num_frames"],
        size=settings["image_size"],
        mean=mean,
        std=std,
        normalize=bool(settings.get("norm_pix_loss", True)),
    )
    labels = None if spec.classes is None else labels_in(settings, spec.classes)
    tats = settings.get("tats")
    derived = isinstance(tats, dict) and bool(tats.get("derived"))
    return Found(names, spec, files, labels, _own_recipe(tats, folder / CONFIG), derived)


def _from_pictures(
    source: dict[str, Tensor], given: Given, files: list[Path], called: str, pictures: _Pictures
) -> Found:
    """Read the encoder of an image ViT; clips have the size of its images."""
    size = timm.picture_size(source) or pictures.size
    names = timm.from_timm(source, tubelet=given.tubelet)
    spec = measured(names.tensors, called=called, heads=given.heads)
    spec = replace(spec, mean=pictures.mean, std=pictures.std, size=size or spec.size)
    return Found(names, spec, files)


def _timm_pictures(settings: dict[str, Any]) -> _Pictures:
    """Read mean, standard deviation and size from timm's `config.json`."""
    said = settings.get("pretrained_cfg")
    said = said if isinstance(said, dict) else {}
    size = said.get("input_size")
    pictures = _Pictures(size[-1] if isinstance(size, list) and size else None)
    if len(said.get("mean") or ()) == len(said.get("std") or ()) == 3:
        pictures = pictures._replace(mean=tuple(said["mean"]), std=tuple(said["std"]))
    return pictures


def _layout_of(source: dict[str, Tensor]) -> str | None:
    """Recognise the layout by tensor names, and video or image by the patch embedding."""
    if any(name.startswith(("videomae.", "embeddings.patch_embeddings.")) for name in source):
        return "transformers"
    if any(name.startswith(BRANCH) for name in source):
        return None
    plain = source.get("patch_embed.proj.weight")
    if plain is not None and plain.ndim == 4:
        return "image"
    patches = source.get(f"{ENCODER}patch_embed.proj.weight", plain)
    return "video" if patches is not None and patches.ndim == 5 else None


def _unknown(called: str, source: dict[str, Tensor]) -> CheckpointError:
    first = ", ".join(f"`{name}`" for name in list(source)[:3])
    if any(name.startswith((BRANCH, "encoder.positions.")) for name in source):
        hint = "it is a file of a tats run: give the run or its checkpoint folder"
    else:
        hint = (
            "supported are official files of VideoMAE, VideoMAE V2 and AdaMAE, folders of "
            "`transformers` with a VideoMAE, and image ViTs of MAE or timm"
        )
    return CheckpointError(
        f"`{called}` has an unknown layout: its {len(source)} tensors begin with {first}",
        hint=hint,
    )


def _own_recipe(said: Any, file: Path) -> Recipe | None:
    """Return the recipe that we wrote into a `config.json`, if this version can read it."""
    if not isinstance(said, dict):
        return None
    try:
        return read_stored(said.get("recipe"), file=file, wrote=said.get("version"), warn=warn_once)
    except CheckpointError:
        return None
