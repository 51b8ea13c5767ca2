"""Weights of others as checkpoints: opened, told apart, renamed in memory, counted."""

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
from tatscli.weights.form import ENCODER, Form, form_of, recipe_of, shapes_of
from tatscli.weights.layouts import Found, Given, find_layout
from tatscli.weights.paths import CONFIG, name_of
from tatscli.weights.videomae import sampler_of


@dataclass(frozen=True, slots=True)
class ForeignWeights(Checkpoint):
    """Weights that another program wrote, with everything that a checkpoint of ours has.

    Attributes:
        parts: Tensors by our names, of `model`, and of `masker` where a sampler came along.
        files: What they were read from.
        count: What was taken and what was not.
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
        """What was taken, what was not, and what else is known to go wrong."""
        return tuple(self.count.lines())


def open_foreign(path: Path | str, given: Given | None = None) -> ForeignWeights:
    """Open a folder of `transformers`, an official file of VideoMAE's family, or an image ViT.

    Args:
        path: The folder or file.
        given: What is known of it that it does not say.

    Raises:
        CheckpointError: If it cannot be read, is none of these, or does not fit whole.
    """
    path, given = Path(path), given or Given()
    if not path.exists():
        raise CheckpointError(f"`{path}` does not exist")
    if path.name.startswith(("model", "pytorch_model")) and (path.parent / CONFIG).is_file():
        path = path.parent  # the file of a folder of `transformers` or timm means the folder
    found = find_layout(path, given)
    names, form = found.names, found.form
    sampler = sampler_of(names, form.tokens)
    names.compare(shapes_of(form))
    if given.partial:
        form = _completed(names, form)
    else:
        names.count.refuse(str(path))
    own = found.recipe is not None and form_of(found.recipe, classes=form.classes) == form
    recipe = _recipe(path, found, form, own=own, has_sampler=bool(sampler))
    meta: dict[str, Any] = {
        "format": FORMAT,
        "kind": "pretrained" if form.classes is None else "finetuned",
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
    if form.classes is not None:
        labels = found.labels or [f"LABEL_{i}" for i in range(form.classes)]
        meta |= {"class_names": labels, "init": None}
    parts = {"model": names.tensors}
    if sampler:
        parts["masker"] = {f"weights/{name}": one for name, one in sampler.items()}
    return ForeignWeights(path.resolve(), meta, parts, tuple(found.files), names.count)


def _recipe(path: Path, found: Found, form: Form, *, own: bool, has_sampler: bool) -> Recipe:
    """Return the recipe that we wrote beside weights where it is theirs, or derive one.

    A learned mask whose sampler is not there becomes a tube mask of its ratio.

    Raises:
        CheckpointError: If no recipe can describe the weights.
    """
    recipe = found.recipe
    if recipe is not None and own:
        mask = recipe.mask
        if form.classes is None and isinstance(mask, LearnedMask) and not has_sampler:
            tube = TubeMask(kind="tube", ratio=mask.ratio)
            found.names.count.notes.append(
                f"`mask.kind: {mask.kind}` without its sampler: a tube mask stands in its place"
            )
            recipe = recipe.model_copy(update={"mask": tube})
        return recipe
    try:
        return recipe_of(form, name_of(path), mask={"kind": "adamae"} if has_sampler else None)
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise CheckpointError(f"no recipe can describe `{path}`: {reason}") from error


def _completed(names: Renaming, form: Form) -> Form:
    """Leave out what does not fit, and return the form of what is left.

    A decoder or classifier that is not whole goes; tensors of the encoder that are missing get the
    values that a training begins with.
    """
    count, wanted = names.count, shapes_of(form)
    unknown = [name for name in names.tensors if name not in wanted]
    for name in (*count.misshapen, *unknown):
        del names.tensors[name]
    if strange := [*count.unexpected, *count.misshapen]:
        count.drop("what no rule knows, or of another shape", strange)
    lacking = [name for name in wanted if name not in names.tensors]
    if any(not name.startswith(ENCODER) for name in lacking):
        head = [name for name in names.tensors if not name.startswith(ENCODER)]
        for name in head:
            del names.tensors[name]
        part = "decoder" if form.classes is None else "classifier"
        count.drop(f"the {part}, which is not whole", head)
        count.matched = max(0, count.matched - len(head))
        form = form.bare
    start = [name for name in lacking if name.startswith(ENCODER)]
    if start:
        fresh = _fresh_encoder(form)
        for name in start:
            names.make(name, fresh[name], "missing in the encoder: values a training begins with")
    return form


def _fresh_encoder(form: Form) -> dict[str, Tensor]:
    """Return an encoder's start values, always the same."""
    vit = form.encoder
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = Encoder(
            width=vit.width,
            depth=vit.depth,
            heads=vit.heads,
            mlp=vit.mlp,
            grid=(1, 1, 1),
            tubelet=form.tubelet,
            patch=form.patch,
        )
    return {f"{ENCODER}{name}": one for name, one in encoder.state_dict().items()}
