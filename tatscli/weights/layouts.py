"""What lies at a path: told by names and `config.json`, renamed by the rules of its layout."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError
from torch import Tensor

from tatscli.errors import CheckpointError
from tatscli.recipe.schema import Recipe
from tatscli.weights import hf, timm
from tatscli.weights.count import Renaming
from tatscli.weights.form import BRANCH, ENCODER, IMAGENET, Form, measured
from tatscli.weights.hf_config import (
    checked,
    known_heads,
    labels_in,
    normalisation,
    refuse_other_sizes,
)
from tatscli.weights.paths import CONFIG
from tatscli.weights.read import bare_names, read_file, read_folder, read_json, tensors_in
from tatscli.weights.videomae import from_videomae


class Given(NamedTuple):
    """What a user says of weights that do not say it themselves.

    Attributes:
        heads: Attention heads of the encoder.
        decoder_heads: Those of the decoder.
        tubelet: Frames in a token, for weights of pictures.
        partial: Take what fits, instead of refusing the whole.
    """

    heads: int | None = None
    decoder_heads: int | None = None
    tubelet: int = 2
    partial: bool = False


class Found(NamedTuple):
    """What a layout makes of a path.

    Attributes:
        names: Tensors under our names.
        form: What they are by their shapes, and by what lies beside them.
        files: What was read.
        labels: Names of the classes.
        recipe: The recipe that we wrote beside them.
        derived: Whether that, in turn, was derived from weights whose training is not known.
    """

    names: Renaming
    form: Form
    files: list[Path]
    labels: list[str] | None = None
    recipe: Recipe | None = None
    derived: bool = False


class _Pictures(NamedTuple):
    """How an image ViT's pictures were made."""

    size: int | None = None
    mean: tuple[float, ...] = IMAGENET[0]
    std: tuple[float, ...] = IMAGENET[1]


def find_layout(path: Path, given: Given) -> Found:
    """Read weights of others and give their tensors our names; nothing is compared yet.

    Raises:
        CheckpointError: If they cannot be read, or have the layout of no model known here.
    """
    return _from_folder(path, given) if path.is_dir() else _from_file(path, given)


def _from_file(path: Path, given: Given) -> Found:
    """Read a file, and tell official ones from image ViTs by their patch embedding."""
    called = str(path)
    source = bare_names(tensors_in(read_file(path, called=called), called=called), called=called)
    layout = _layout_of(source)
    if layout == "image":
        return _from_pictures(source, given, [path], called, _Pictures())
    if layout == "transformers":
        raise CheckpointError(
            f"`{called}` has tensors of `transformers` and no `{CONFIG}` beside it",
            hint="name its whole folder, with the `config.json` that says its heads and frames",
        )
    if layout != "video":
        raise _unknown(called, source)
    names = from_videomae(source, called=called)
    form = measured(
        names.tensors, called=called, heads=given.heads, decoder_heads=given.decoder_heads
    )
    names.count.notes.append(
        f"the file does not say its frames and size: {form.frames} of {form.size} pixels are "
        "assumed, as published (`tats convert` takes `data.frames` and `data.size`)"
    )
    return Found(names, form, [path])


def _from_folder(folder: Path, given: Given) -> Found:
    """Read a folder by its `config.json`: of `transformers`, or of timm."""
    called, settings = str(folder), read_json(folder / CONFIG)
    kind = settings.get("model_type")
    if kind != "videomae" and "architecture" not in settings:
        raise CheckpointError(
            f"`{called}` is a `{kind}` of `transformers`; of its models VideoMAE is read"
            if kind
            else f"the `{CONFIG}` of `{called}` names neither `model_type` nor `architecture`",
            hint="others can be teachers: `targets` with `kind: teacher`",
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
    form = measured(names.tensors, called=called, heads=heads, decoder_heads=decoder_heads)
    refuse_other_sizes(form, settings, called=called)
    mean, std, note = normalisation(folder)
    names.count.notes += [note] if note else []
    form = replace(
        form,
        frames=settings["num_frames"],
        size=settings["image_size"],
        mean=mean,
        std=std,
        normalize=bool(settings.get("norm_pix_loss", True)),
    )
    labels = None if form.classes is None else labels_in(settings, form.classes)
    tats = settings.get("tats")
    derived = isinstance(tats, dict) and bool(tats.get("derived"))
    return Found(names, form, files, labels, _own_recipe(tats), derived)


def _from_pictures(
    source: dict[str, Tensor], given: Given, files: list[Path], called: str, pictures: _Pictures
) -> Found:
    """Take the encoder of an image ViT; its clips are of the size of its pictures."""
    size = timm.picture_size(source) or pictures.size
    names = timm.from_timm(source, tubelet=given.tubelet)
    form = measured(names.tensors, called=called, heads=given.heads)
    form = replace(form, mean=pictures.mean, std=pictures.std, size=size or form.size)
    return Found(names, form, files)


def _timm_pictures(settings: dict[str, Any]) -> _Pictures:
    """Read mean, deviation and size in timm's `config.json`."""
    said = settings.get("pretrained_cfg")
    said = said if isinstance(said, dict) else {}
    size = said.get("input_size")
    pictures = _Pictures(size[-1] if isinstance(size, list) and size else None)
    if len(said.get("mean") or ()) == len(said.get("std") or ()) == 3:
        pictures = pictures._replace(mean=tuple(said["mean"]), std=tuple(said["std"]))
    return pictures


def _layout_of(source: dict[str, Tensor]) -> str | None:
    """Tell layouts apart by their names, and videos from pictures by the patch embedding."""
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
        hint = "it is the file of a run of ours: name the run or its checkpoint folder"
    else:
        hint = (
            "these are read: official files of VideoMAE, VideoMAE V2 and AdaMAE, folders of "
            "`transformers` with a VideoMAE, and image ViTs of MAE or timm"
        )
    return CheckpointError(
        f"`{called}` has the layout of no model known here: its {len(source)} tensors begin with "
        f"{first}",
        hint=hint,
    )


def _own_recipe(said: Any) -> Recipe | None:
    """Return the recipe that we wrote into a `config.json`, if this version can read it."""
    if not isinstance(said, dict):
        return None
    try:
        return Recipe.model_validate(said.get("recipe"))
    except ValidationError:
        return None
