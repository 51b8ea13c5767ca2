"""Teachers in the format of `transformers`: a folder with `config.json` and safetensors.

Nothing is downloaded, and weights in pickles are refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tatscli.errors import DataError, RecipeError
from tatscli.files import sha256_of
from tatscli.jsonfiles import read_object
from tatscli.nn.teachers.base import (
    IMAGENET,
    ByFrame,
    Given,
    Source,
    Teacher,
    first_blocks,
)
from tatscli.recipe import schema


@dataclass(frozen=True, slots=True)
class Architecture:
    """What must be known of a kind of network.

    Attributes:
        model: The class of `transformers` that has its weights.
        encoder: Where in it the encoder is; empty where it is all of it.
        norm: The encoder's final norm.
    """

    model: str
    encoder: str
    norm: str


KNOWN = {
    "videomae": Architecture("VideoMAEModel", "", "layernorm"),
    "vjepa2": Architecture("VJEPA2Model", "encoder", "layernorm"),
    "dinov3_vit": Architecture("DINOv3ViTModel", "", "norm"),
}
"""By the `model_type` of a `config.json`."""


class TransformersTeacher(Teacher):
    """A network of `transformers` that sees whole clips, or their frames one by one.

    Class and register tokens, which belong to no place, are dropped.

    Raises:
        RecipeError: If its patches do not fill the pictures it is given.
    """

    def __init__(
        self,
        folder: Path,
        given: Given,
        config: schema.TeacherTarget,
        settings: Any,
        network: nn.Module,
    ) -> None:
        mean, std = _normalisation(folder)
        super().__init__(str(folder), given, mean=config.mean or mean, std=config.std or std)
        self.network = network
        self.width = int(settings.hidden_size)
        self.by_frame: ByFrame | None = None
        self.extra = 0
        patch = _pair(settings.patch_size)
        (frames, height, width), t = given.clip, given.grid[0]
        if settings.model_type == "dinov3_vit":
            self.by_frame = ByFrame(given.tubelet, config.frames)
            self.extra = 1 + int(settings.num_register_tokens)
            self.sees = (0, 0, 0)  # its positions are worked out for any size
            if height % patch[0] or width % patch[1]:
                raise RecipeError(
                    f"`targets`: the teacher `{folder}` cuts pictures into patches of "
                    f"{patch[0]} x {patch[1]} pixels, which do not fill {height} x {width}",
                    hint="`size` resizes the clip for the teacher",
                )
        elif settings.model_type == "vjepa2":
            t = frames // int(settings.tubelet_size)
            self.sees = (0, *_pair(settings.crop_size))
        else:
            t = int(settings.num_frames) // int(settings.tubelet_size)
            self.sees = (int(settings.num_frames), *_pair(settings.image_size))
        height, width = self.sees[1] or height, self.sees[2] or width
        self.grid = (t, height // patch[0], width // patch[1])

    def features(self, video_BCTHW: Tensor) -> Tensor:
        """Return the last hidden state, without class and register tokens."""
        if self.by_frame is None:
            found: Tensor = self.network(video_BCTHW.transpose(1, 2)).last_hidden_state
            return found
        pictures_XCHW = self.by_frame.pictures(video_BCTHW)
        features_XSD = self.network(pictures_XCHW).last_hidden_state[:, self.extra :]
        return self.by_frame.tokens(features_XSD, len(video_BCTHW))


def open_transformers(config: schema.TeacherTarget, given: Given) -> Source:
    """Open a folder of `transformers`.

    Raises:
        RecipeError: If the extra is not installed, or the folder has no network known here, no
            safetensors, or weights that do not fit.
    """
    assert config.transformers is not None
    folder = Path(config.transformers)
    files = _files(folder, need_weights=not given.meta)
    try:
        import transformers
    except ImportError as error:
        raise RecipeError(
            "`targets`: a `teacher` with `transformers` needs the package of that name, which is "
            "not installed",
            hint="pip install 'tats[hf]'",
        ) from error
    kind = (_object(folder / "config.json") or {}).get("model_type")
    if kind not in KNOWN:
        known = ", ".join(f"`{name}` ({one.model})" for name, one in KNOWN.items())
        raise RecipeError(f"`targets`: the teacher `{folder}` is a `{kind}`; supported are {known}")
    architecture = KNOWN[kind]
    model_class = getattr(transformers, architecture.model)
    settings = model_class.config_class.from_pretrained(folder, local_files_only=True)
    with _quiet(transformers):
        model = model_class(settings) if given.meta else _loaded(model_class, folder)
    network = model.get_submodule(architecture.encoder)
    if isinstance(config.layer, int):
        _cut(network, architecture, config.layer, str(folder))
    if kind == "videomae":
        # A plain tensor there, which would be copied to the device in every step.
        places: Any = network.get_submodule("embeddings")
        table = places.position_embeddings
        del places.position_embeddings
        places.register_buffer("position_embeddings", table, persistent=False)
    teacher = TransformersTeacher(folder, given, config, settings, network)
    return Source(teacher, str(folder), "" if given.meta else sha256_of(files))


def _files(folder: Path, *, need_weights: bool) -> list[Path]:
    """Return the files of weights in a folder.

    Raises:
        RecipeError: If there are none that may be read.
    """
    if not (folder / "config.json").is_file():
        what = "does not exist" if not folder.exists() else "has no `config.json`"
        raise RecipeError(
            f"`targets`: the teacher's folder `{folder}` {what}",
            hint="give a local folder as `save_pretrained` writes it; nothing is downloaded",
        )
    files = sorted(folder.glob("*.safetensors"))
    if need_weights and not files:
        pickles = [*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")]
        instead = f", only `{pickles[0].name}`, a pickle, which is not read" if pickles else ""
        raise RecipeError(
            f"`targets`: the teacher's folder `{folder}` has no `*.safetensors`{instead}",
            hint="`save_pretrained(folder, safe_serialization=True)` writes them",
        )
    return files


def _loaded(model_class: Any, folder: Path) -> nn.Module:
    """Load a model, every weight of it.

    Raises:
        RecipeError: If weights are missing or of other shapes, or a file is damaged.
    """
    from safetensors import SafetensorError

    try:
        model, said = model_class.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise RecipeError(
            f"`targets`: the teacher `{folder}` cannot be loaded: {reason}"
        ) from error
    missing = sorted(said["missing_keys"])
    if missing:
        raise RecipeError(
            f"`targets`: the teacher `{folder}` lacks {len(missing)} tensors of a "
            f"`{model_class.__name__}`, first `{missing[0]}`"
        )
    loaded: nn.Module = model
    return loaded


def _cut(network: nn.Module, architecture: Architecture, layer: int, name: str) -> None:
    """Let a network end after a block, without its final norm."""
    # Releases differ in where the blocks are; a stack of them is called `layer` in all.
    (path,) = (
        path
        for path, one in network.named_modules()
        if isinstance(one, nn.ModuleList) and path.rsplit(".", 1)[-1] == "layer"
    )
    parent, _, last = path.rpartition(".")
    blocks = network.get_submodule(path)
    assert isinstance(blocks, nn.ModuleList)
    setattr(network.get_submodule(parent), last, first_blocks(blocks, layer, name))
    setattr(network, architecture.norm, nn.Identity())


def _normalisation(folder: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and deviation from the folder's preprocessor, ImageNet's without one."""
    for name in ("video_preprocessor_config.json", "preprocessor_config.json"):
        if (folder / name).is_file():
            said = _object(folder / name) or {}
            if "image_mean" in said and "image_std" in said:
                return tuple(said["image_mean"]), tuple(said["image_std"])
    return IMAGENET


def _object(path: Path) -> dict[str, Any] | None:
    try:
        return read_object(path)
    except DataError as error:
        raise RecipeError(f"`targets`: a `teacher`: {error.message}") from error


def _pair(size: Any) -> tuple[int, int]:
    """Read a side, or height and width."""
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    return int(height), int(width)


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Keep progress bars of the library off the screen."""
    logging = transformers.utils.logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
