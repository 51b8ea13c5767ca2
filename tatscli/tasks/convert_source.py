"""The source of a conversion: weights of a run or another program, and which classes to keep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from tatscli.engine.checkpoint import Checkpoint, find_checkpoint
from tatscli.errors import RecipeError, UsageError
from tatscli.nn.classifier import groups_of
from tatscli.nn.load import refuse_tokenizer
from tatscli.recipe.load import override_recipe
from tatscli.recipe.schema import Recipe
from tatscli.store.schema import ClassGroup
from tatscli.weights.classes import read_class_map, read_class_names, selected
from tatscli.weights.layouts import Given
from tatscli.weights.open import ForeignWeights, open_foreign
from tatscli.weights.paths import is_foreign, own_folder
from tatscli.weights.spec import shapes_of, spec_of


@dataclass(frozen=True, slots=True)
class Source:
    """Weights to convert.

    Attributes:
        checkpoint: The weights.
        recipe: Their recipe, overrides included.
        tensors: The model, with the classes to keep.
        labels: Class names of a classifier.
        groups: The groups that classes are combinations of, if any.
        chosen: Whether only some classes are kept, so that evaluations of the source do not apply.
    """

    checkpoint: Checkpoint
    recipe: Recipe
    tensors: dict[str, Tensor]
    labels: list[str] | None
    groups: dict[str, ClassGroup]
    chosen: bool = False

    @property
    def counts(self) -> dict[str, Any]:
        """Counts of the tensors that were read and of those that were not."""
        if isinstance(self.checkpoint, ForeignWeights):
            return self.checkpoint.count.facts()
        count = len(self.checkpoint.tensors("model"))
        nothing: dict[str, Any] = {"missing": [], "unexpected": [], "dropped": {}, "made": {}}
        return {"layout": "tats", "tensors": count, "matched": count, **nothing, "notes": []}


def open_source(
    path: Path | str,
    overrides: Sequence[str],
    prefer: str,
    given: Given,
    classes: Path | None,
    class_names: Path | None,
) -> Source:
    """Open the source of a conversion, and keep some of its classes if asked.

    Raises:
        TatsError: If it cannot be read, or the options do not apply to it.
    """
    path = own_folder(Path(path))
    checkpoint: Checkpoint
    if is_foreign(path):
        if prefer != "last":
            raise UsageError(f"`--checkpoint {prefer}` is for runs, and `{path}` is not a run")
        checkpoint = open_foreign(path, given)
        recipe = _described(checkpoint, overrides)
    else:
        checkpoint = find_checkpoint(path, prefer=prefer)
        refuse_tokenizer(checkpoint)
        recipe = checkpoint.recipe
        if overrides or given._replace(partial=False) != Given():
            raise UsageError(
                f"`{path}` is a run, which has its own recipe",
                hint="recipe keys, `--heads`, `--decoder-heads` and `--tubelet` are for weights "
                "from other programs",
            )
    tensors, labels = checkpoint.tensors("model"), checkpoint.meta.get("class_names")
    if checkpoint.kind != "finetuned":
        labels = None
        if classes is not None or class_names is not None:
            raise UsageError(f"`{path}` has no classifier, so it has no classes to choose from")
    named, groups = None, groups_of(checkpoint.meta)
    if labels is not None and classes is not None:
        rows, named = read_class_map(classes)
        tensors, labels, groups = selected(tensors, labels, groups, rows, called=str(classes))
    if labels is not None and class_names is not None:
        named = read_class_names(class_names)
        if len(named) != len(labels):
            raise UsageError(
                f"`--class-names {class_names}` names {len(named)} classes; the classifier has "
                f"{len(labels)}",
                hint="`--classes MAP.json` keeps some of them",
            )
    return Source(checkpoint, recipe, tensors, named or labels, groups, classes is not None)


def _described(checkpoint: Checkpoint, overrides: Sequence[str]) -> Recipe:
    """Return the recipe of weights from another program, with the user's overrides.

    Raises:
        RecipeError: If an override contradicts the weights.
    """
    before = checkpoint.recipe
    recipe = override_recipe(before, overrides, origin=checkpoint.path)
    labels = checkpoint.meta.get("class_names")
    classes = None if labels is None else len(labels)
    old, new = (spec_of(one, classes=classes) for one in (before, recipe))
    if shapes_of(old) != shapes_of(new):
        raise RecipeError(
            f"the tensors of `{checkpoint.path}` have other shapes than these recipe keys describe",
            hint="`data.frames`, `data.size`, `data.mean` and the like can be set; `model.patch` "
            "and the number of blocks are fixed by the weights",
        )
    if checkpoint.has("masker") and old.tokens != new.tokens:
        raise RecipeError(
            f"the sampler in `{checkpoint.path}` has positions for {old.tokens} tokens, and these "
            f"recipe keys give {new.tokens}"
        )
    return recipe
