"""Writing a checkpoint in other layouts, as far as they can hold it.

Shapes: D width, L classes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tatscli.engine.checkpoint import Checkpoint
from tatscli.errors import CheckpointError
from tatscli.nn.batch_norm import EPS as BATCH_EPS
from tatscli.recipe.schema import Recipe
from tatscli.tensors import save_tensors
from tatscli.weights.hf import BASE, to_hf
from tatscli.weights.hf_config import config_of, processors_of
from tatscli.weights.spec import ENCODER, POSITIONS, ModelSpec, shapes_of, spec_of
from tatscli.weights.videomae import to_videomae

SHARD_BYTES = 5_000_000_000
"""Maximum size of a file of weights for `transformers`; larger weights are split."""

_STEM = "model"


@dataclass(frozen=True, slots=True)
class Export:
    """The part of a checkpoint that VideoMAE's layouts can hold.

    Attributes:
        kind: `pretrained` or `finetuned`.
        spec: Sizes of the model.
        tensors: Its tensors, by our names.
        recipe: The recipe that describes them.
        labels: Class names of a classifier.
        left_out: Tensors that are not written, by our names, for each reason.
        notes: Further remarks for the user.
    """

    kind: str
    spec: ModelSpec
    tensors: dict[str, Tensor]
    recipe: Recipe
    labels: list[str] | None = None
    left_out: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def encoder_only(self) -> bool:
        """Whether there is neither a decoder nor a classifier."""
        return self.spec == self.spec.bare

    @property
    def architecture(self) -> str:
        """The class of `transformers` that loads it."""
        if self.spec.classes is not None:
            return "VideoMAEForVideoClassification"
        return "VideoMAEModel" if self.encoder_only else "VideoMAEForPreTraining"


def exported(
    checkpoint: Checkpoint,
    recipe: Recipe,
    tensors: dict[str, Tensor],
    labels: list[str] | None,
    *,
    partial: bool,
) -> Export:
    """Determine what can be written of a checkpoint.

    If head or targets of a pretraining are not VideoMAE's, only the encoder is written. A
    classifier that is not VideoMAE's is refused; with `partial` its encoder is written.

    Args:
        checkpoint: The checkpoint.
        recipe: Its recipe.
        tensors: Its model.
        labels: Class names, for a classifier.
        partial: Whether the encoder of a classifier is enough.

    Raises:
        CheckpointError: If positions were interpolated from another grid, or a classifier or an
            encoder is not VideoMAE's.
    """
    left_out: dict[str, list[str]] = {}
    moved = [name for name in tensors if name.startswith(ENCODER) and name.endswith(POSITIONS)]
    if moved:
        raise CheckpointError(
            f"`{checkpoint.path}` has position embeddings interpolated from another grid: other "
            "layouts cannot store them, and without them the weights are wrong",
            hint="`--to tats` keeps them; or convert the run that it started from",
        )
    for part in ("masker", "targets", "head"):
        if checkpoint.has(part):
            left_out[f"the file `{part}` of the checkpoint"] = list(checkpoint.tensors(part))
    spec = spec_of(recipe, classes=None if labels is None else len(labels))
    notes: list[str] = []
    if checkpoint.kind == "finetuned":
        tensors, recipe = _without_batch_norm(tensors, recipe, notes)
        names = [name for name in tensors if name.startswith(f"{ENCODER}norm.")]
        kept = {name: one for name, one in tensors.items() if name not in names}
        wanted = {name: one for name, one in shapes_of(spec).items() if name not in names}
        if _same_shapes(kept, wanted):
            if names:
                left_out["the encoder's last norm, which the classifier does not use"] = names
            return Export("finetuned", spec, kept, recipe, labels, left_out, notes)
        if not partial:
            finetune = recipe.finetune
            key = f"finetune.head.pool: {finetune.head.pool}"
            if finetune.heads is not None:
                key = f"finetune.heads: [{', '.join(finetune.heads)}]"
            extra = sorted((kept.keys() ^ wanted.keys()) or kept.keys())
            raise CheckpointError(
                f"the classifier of `{checkpoint.path}` is not VideoMAE's (`{key}`): other layouts "
                f"cannot store {len(extra)} of its tensors, first `{extra[0]}`",
                hint="`--to tats` keeps it; `--partial` writes only its encoder",
            )
    elif _same_shapes(tensors, shapes_of(spec)):
        return Export("pretrained", spec, tensors, recipe, None, left_out)
    rest = [name for name in tensors if not name.startswith(ENCODER)]
    if rest:
        left_out[_reason(recipe, checkpoint.kind)] = rest
    encoder = {name: one for name, one in tensors.items() if name.startswith(ENCODER)}
    if not _same_shapes(encoder, shapes_of(spec.bare)):
        raise CheckpointError(f"the encoder of `{checkpoint.path}` does not fit its recipe")
    return Export("pretrained", spec.bare, encoder, recipe, None, left_out)


def write_hf(
    folder: Path, export: Export, *, tats: dict[str, Any], card: str, limit: int = SHARD_BYTES
) -> list[str]:
    """Write a folder that `transformers` can load, and return the names of its files.

    Args:
        folder: An empty folder.
        export: The model.
        tats: What converting back to a run needs.
        card: The model card.
        limit: Maximum bytes in a file of weights.
    """
    renamed = to_hf(export.tensors, prefix="" if export.encoder_only else BASE)
    names = _write_shards(folder, renamed, limit)
    config = config_of(export.spec, export.architecture, labels=export.labels, tats=tats)
    for name, content in {"config.json": config, **processors_of(export.spec)}.items():
        (folder / name).write_text(_text(content), encoding="utf-8")
        names.append(name)
    (folder / "README.md").write_text(card, encoding="utf-8")
    return [*names, "README.md"]


def write_videomae(path: Path, export: Export) -> None:
    """Write a file in the official layout, which holds only tensors."""
    renamed = to_videomae(export.tensors, kind=export.kind)
    with path.open("wb") as file:  # given a path, torch turns OSErrors into RuntimeErrors
        torch.save({"model": {name: one.clone() for name, one in renamed.items()}}, file)


def _write_shards(folder: Path, tensors: Mapping[str, Tensor], limit: int) -> list[str]:
    """Write one file of weights, or several with an index."""
    shards: list[dict[str, Tensor]] = [{}]
    sizes = [0]
    for name, tensor in tensors.items():
        if shards[-1] and sizes[-1] + tensor.nbytes > limit:
            shards.append({})
            sizes.append(0)
        shards[-1][name] = tensor.contiguous()
        sizes[-1] += tensor.nbytes
    count = len(shards)
    names = [f"{_STEM}-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    names = names if count > 1 else [f"{_STEM}.safetensors"]
    for name, shard in zip(names, shards, strict=True):
        save_tensors(folder / name, shard, {"format": "pt"})
    if count == 1:
        return names
    places = {one: name for name, shard in zip(names, shards, strict=True) for one in shard}
    index = {"metadata": {"total_size": sum(sizes)}, "weight_map": places}
    (folder / f"{_STEM}.safetensors.index.json").write_text(_text(index), encoding="utf-8")
    return [*names, f"{_STEM}.safetensors.index.json"]


def _same_shapes(tensors: Mapping[str, Tensor], wanted: Mapping[str, tuple[int, ...]]) -> bool:
    return {name: tuple(one.shape) for name, one in tensors.items()} == dict(wanted)


def _without_batch_norm(
    tensors: dict[str, Tensor], recipe: Recipe, notes: list[str]
) -> tuple[dict[str, Tensor], Recipe]:
    """Fold a classifier's BatchNorm, which has no weights, into its linear layer."""
    mean_D, var_D = (tensors.get(f"batch_norm.running_{one}_D") for one in ("mean", "var"))
    if mean_D is None or var_D is None or "head.weight" not in tensors:
        return tensors, recipe
    weight_LD = tensors["head.weight"].double() * (var_D.double() + BATCH_EPS).rsqrt()
    bias_L = tensors["head.bias"].double() - weight_LD @ mean_D.double()
    kept = {name: one for name, one in tensors.items() if not name.startswith("batch_norm.")}
    kept |= {"head.weight": weight_LD.float(), "head.bias": bias_L.float()}
    head = recipe.finetune.head.model_copy(update={"norm": "layer"})
    finetune = recipe.finetune.model_copy(update={"head": head})
    notes.append("the classifier's BatchNorm is folded into its linear layer")
    return kept, recipe.model_copy(update={"finetune": finetune})


def _reason(recipe: Recipe, kind: str) -> str:
    if kind == "finetuned":
        return "a classifier that is not VideoMAE's"
    targets = ", ".join(f"`{one.kind}`" for one in recipe.targets)
    return f"the `{recipe.head.kind}` for {targets}, which is not VideoMAE's pixel decoder"


def _text(content: Any) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
