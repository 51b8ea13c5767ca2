"""Weights from other programs as checkpoints: opened, recognised, renamed in memory, counted."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from tatscli import __version__
from tatscli.engine.checkpoint import FORMAT, Checkpoint
from tatscli.errors import CheckpointError
from tatscli.files import sha256_of
from tatscli.nn.vit import Encoder
from tatscli.recipe.schema import LearnedMask, Recipe, TubeMask
from tatscli.tensors import digest_of
from tatscli.weights.count import Count, Renaming
from tatscli.weights.layouts import Found, Given, find_layout
from tatscli.weights.paths import CONFIG, name_of
from tatscli.weights.spec import ENCODER, ModelSpec, recipe_of, shapes_of, spec_of
from tatscli.weights.videomae import sampler_of


@dataclass(frozen=True, slots=True)
class ForeignWeights(Checkpoint):
    """Weights that another program wrote, with the interface of our checkpoints.

    Attributes:
        parts: Tensors by our names: `model`, and `masker` if there is a sampler.
        files: The files they were read from.
        count: Which tensors were read and which were not.
    """

    parts: dict[str, dict[str, Tensor]]
    files: tuple[Path, ...]
    count: Count

    def has(self, part: str) -> bool:
        """Whether there are tensors of a part."""
        return part in self.parts

    def tensors(self, part: str) -> dict[str, Tensor]:
        """Return a part: `model`, or `masker`.

        Raises:
            CheckpointError: If there is none.
        """
        if part not in self.parts:
            raise CheckpointError(f"`{self.path}` has no `{part}`: another program wrote it")
        return dict(self.parts[part])

    def digest(self) -> str:
        """Return the SHA-256 of the model's tensors by our names (`digest_of`)."""
        return digest_of(self.parts["model"])

    def file_digest(self) -> str:
        """Return the SHA-256 of the file; of several, that of their digests in order of names."""
        return sha256_of(self.files)

    @property
    def remarks(self) -> tuple[str, ...]:
        """Which tensors were read, which were not, and known problems."""
        return tuple(self.count.lines())


def open_foreign(path: Path | str, given: Given | None = None) -> ForeignWeights:
    """Open a folder of `transformers`, an official VideoMAE file, or an image ViT.

    Args:
        path: The folder or file.
        given: What it does not say itself.

    Raises:
        CheckpointError: If it cannot be read, is none of these, or does not fit completely.
    """
    path, given = Path(path), given or Given()
    if not path.exists():
        raise CheckpointError(f"`{path}` does not exist")
    if path.name.startswith(("model", "pytorch_model")) and (path.parent / CONFIG).is_file():
        path = path.parent  # the file of a folder of `transformers` or timm means the folder
    found = find_layout(path, given)
    names, spec = found.names, found.spec
    sampler = sampler_of(names, spec.tokens)
    names.compare(shapes_of(spec))
    if given.partial:
        spec = _completed(names, spec)
    else:
        names.count.refuse(str(path))
    own = found.recipe is not None and spec_of(found.recipe, classes=spec.classes) == spec
    recipe = _recipe(path, found, spec, own=own, has_sampler=bool(sampler))
    meta: dict[str, Any] = {
        "format": FORMAT,
        "kind": "pretrained" if spec.classes is None else "finetuned",
        "step": 0,
        "name": name_of(path),
        "recipe": recipe.model_dump(mode="json"),
        "store": None,
        "store_fingerprint": None,
        "tats": __version__,
        "torch": torch.__version__,
        "source": str(path.resolve()),
        "layout": names.count.layout,
        "derived": found.derived or not own,
    }
    if spec.classes is not None:
        labels = found.labels or [f"LABEL_{i}" for i in range(spec.classes)]
        meta |= {"class_names": labels, "init": None}
    parts = {"model": names.tensors}
    if sampler:
        parts["masker"] = {f"weights/{name}": one for name, one in sampler.items()}
    return ForeignWeights(path.resolve(), meta, parts, tuple(found.files), names.count)


def _recipe(path: Path, found: Found, spec: ModelSpec, *, own: bool, has_sampler: bool) -> Recipe:
    """Return the recipe that we wrote beside the weights if it matches them, or derive one.

    A learned mask without its sampler is replaced by a tube mask with the same ratio.

    Raises:
        CheckpointError: If no recipe can describe the weights.
    """
    recipe = found.recipe
    if recipe is not None and own:
        mask = recipe.mask
        if spec.classes is None and isinstance(mask, LearnedMask) and not has_sampler:
            tube = TubeMask(kind="tube", ratio=mask.ratio)
            found.names.count.notes.append(
                f"`mask.kind: {mask.kind}` has no sampler here and is replaced by a tube mask"
            )
            recipe = recipe.model_copy(update={"mask": tube})
        return recipe
    try:
        return recipe_of(spec, name_of(path), mask={"kind": "adamae"} if has_sampler else None)
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise CheckpointError(f"no recipe can describe `{path}`: {reason}") from error


def _completed(names: Renaming, spec: ModelSpec) -> ModelSpec:
    """Drop what does not fit, and return the sizes of what is left.

    An incomplete decoder or classifier is dropped; missing encoder tensors get initial values.
    """
    count, wanted = names.count, shapes_of(spec)
    unknown = [name for name in names.tensors if name not in wanted]
    for name in (*count.misshapen, *unknown):
        del names.tensors[name]
    if strange := [*count.unexpected, *count.misshapen]:
        count.drop("unknown, or of another shape", strange)
    lacking = [name for name in wanted if name not in names.tensors]
    if any(not name.startswith(ENCODER) for name in lacking):
        head = [name for name in names.tensors if not name.startswith(ENCODER)]
        for name in head:
            del names.tensors[name]
        part = "decoder" if spec.classes is None else "classifier"
        count.drop(f"the {part}, which is incomplete", head)
        count.matched = max(0, count.matched - len(head))
        spec = spec.bare
    start = [name for name in lacking if name.startswith(ENCODER)]
    if start:
        fresh = _fresh_encoder(spec)
        for name in start:
            names.make(name, fresh[name], "missing in the encoder, set to initial values")
    return spec


def _fresh_encoder(spec: ModelSpec) -> dict[str, Tensor]:
    """Return initial values of an encoder, always the same."""
    vit = spec.encoder
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = Encoder(
            width=vit.width,
            depth=vit.depth,
            heads=vit.heads,
            mlp=vit.mlp,
            grid=(1, 1, 1),
            tubelet=spec.tubelet,
            patch=spec.patch,
        )
    return {f"{ENCODER}{name}": one for name, one in encoder.state_dict().items()}
