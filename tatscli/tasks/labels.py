"""The labels that a classifier is trained on: which videos, how classes weigh, what is missing.

Shapes: L classes, G members of a group of classes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Literal

from tatscli.data.augment import Mix
from tatscli.errors import DataError, RecipeError
from tatscli.evaluation.shots import draw_shots
from tatscli.nn.class_loss import ClassLoss
from tatscli.nn.classifier import ONE_HEAD, chosen_groups
from tatscli.recipe.schema import Recipe
from tatscli.store.holdout import Holdout, split_store
from tatscli.store.reader import Store
from tatscli.store.schema import ClassGroup

NAMED = 10
"""Classes that a message names before it only counts them."""


def divided(recipe: Recipe, store: Store) -> Store:
    """Return a store as fine-tuning sees it: with `finetune.val_share`, that of every class is held
    out as `finetune.val_split`.

    Raises:
        TatsError: If the store has such a split already, or nothing can be held out.
    """
    settings = recipe.finetune
    if settings.val_share is None or settings.val_split is None:
        return store
    holdout = Holdout(settings.val_share, settings.val_group)
    return split_store(store, holdout, train=settings.split, val=settings.val_split)


def labelled(store: Store, split: str) -> list[int]:
    """Return the manifest rows of a split, all of which must carry a class.

    Raises:
        DataError: If the store has no classes, or a row of the split no label or a wrong one.
    """
    rows = store.part(split)
    classes = len(store.class_names)
    bare = [row for row in rows if store.rows[row].label is None]
    hint = "labels come from class sub-folders, or from `tats prepare --annotations FILE`"
    if bare:
        raise DataError(
            f"{len(bare)} of {len(rows)} videos of split `{split}` in `{store.path}` "
            f"have no label, `{store.rows[bare[0]].id}` for one",
            hint=hint,
        )
    if classes < 2:
        raise DataError(
            f"`{store.path}` has {classes} class{'' if classes == 1 else 'es'}; classification "
            "needs at least two classes",
            hint=hint,
        )
    for row in rows:
        label = store.rows[row].label
        if label is not None and not 0 <= label < classes:
            raise DataError(
                f"`{store.rows[row].id}` in `{store.path}` has label {label}, and the store has "
                f"{classes} classes, 0 to {classes - 1}",
                hint="`tats store verify` lists every such row; prepare the store again with the "
                "right labels",
            )
    return rows


def training_rows(recipe: Recipe, store: Store) -> list[int]:
    """Return the rows that a fine-tuning trains on: its split, or `data.shots` of each class.

    A class that has no video in the split at all takes no part in the draw; others must have
    enough.

    Raises:
        DataError: If labels are missing, or a class has too few videos.
    """
    rows, shots = labelled(store, recipe.finetune.split), recipe.data.shots
    if shots is None:
        return rows
    return draw_shots(
        rows,
        labels_of(store, rows),
        shots,
        seed=recipe.run.seed,
        names=store.class_names,
        key="data.shots",
        skips_empty=True,
    )


def labels_of(store: Store, rows: Sequence[int]) -> list[int]:
    """Return the classes of labelled rows."""
    return [label for row in rows if (label := store.rows[row].label) is not None]


def build_loss(
    recipe: Recipe, store: Store, rows: Sequence[int]
) -> tuple[Mix, ClassLoss, dict[str, list[float]]]:
    """Return what makes soft labels, what compares scores with them, and the weights it goes by.

    With several heads labels are smoothed over the members of each, not over the classes.

    Raises:
        RecipeError: If the recipe names groups or classes that there are not.
    """
    settings, names = recipe.finetune, store.class_names
    groups = chosen_groups(settings.heads, store.class_groups)
    weights = class_weights(settings.class_weights, labels_of(store, rows), names, groups)
    augment, smoothing = settings.augment, settings.augment.label_smoothing
    if groups:
        augment = augment.model_copy(update={"label_smoothing": 0.0})
    loss = ClassLoss(groups, weights, smoothing=smoothing)
    return Mix(augment, classes=len(names)), loss, weights


def class_weights(
    settings: Literal["balanced"] | Mapping[str, float] | None,
    labels: Sequence[int],
    names: Sequence[str],
    groups: Mapping[str, ClassGroup],
) -> dict[str, list[float]]:
    """Work out `finetune.class_weights` for every head.

    `balanced` gives a class of n videos the weight N / (C n), of N videos in C classes that have
    any: 1 on the average video. A class without training videos keeps 1.

    Args:
        settings: The recipe's.
        labels: Classes of the training videos.
        names: Of the classes.
        groups: Of the classifier's heads; none for one head over the classes.

    Returns:
        By head, or of `ONE_HEAD`, the weight of each of its classes; empty where all weigh alike.

    Raises:
        RecipeError: If a class is named that there is not.
    """
    if settings is None:
        return {}
    heads: dict[str, tuple[Sequence[str], Sequence[int]]] = {ONE_HEAD: (names, labels)}
    if groups:
        heads = {
            name: (group.names, [group.of[label] for label in labels])
            for name, group in groups.items()
        }
    if settings == "balanced":
        return {head: _balanced(own, len(known)) for head, (known, own) in heads.items()}
    assert not isinstance(settings, str)
    places = {
        f"{head}/{name}" if groups else name: (head, index)
        for head, (known, _) in heads.items()
        for index, name in enumerate(known)
    }
    weights = {head: [1.0] * len(known) for head, (known, _) in heads.items()}
    for name, weight in settings.items():
        if name not in places:
            near = get_close_matches(name, places, n=1)
            raise RecipeError(
                f"`finetune.class_weights` names `{name}`, and there is no such class"
                + (f"; did you mean `{near[0]}`?" if near else ""),
                hint="with `finetune.heads`, write `<group>/<name>`, such as "
                f"`{next(iter(places))}`"
                if groups
                else "`tats store info STORE` shows the classes",
            )
        head, index = places[name]
        weights[head][index] = weight
    return weights


def _balanced(labels: Sequence[int], classes: int) -> list[float]:
    counts = Counter(labels)
    share = len(labels) / len(counts)
    return [share / counts[label] if label in counts else 1.0 for label in range(classes)]


def untrained_classes(
    recipe: Recipe, store: Store, rows: Sequence[int], val_rows: Sequence[int]
) -> str | None:
    """Say which classes have no training video, and how many validation videos are of these.

    Args:
        recipe: Says which splits these are, and which groups have heads.
        store: The data.
        rows: The training videos.
        val_rows: The validation videos.

    Returns:
        A sentence; None where every class has a training video.
    """
    names = store.class_names
    trained = set(labels_of(store, rows))
    missing = [label for label in range(len(names)) if label not in trained]
    if not missing:
        return None
    text = f"{len(missing)} of {len(names)} classes have no training video: "
    text += _listed([names[label] for label in missing])
    if val_rows:
        lost = sum(label not in trained for label in labels_of(store, val_rows))
        split = recipe.finetune.val_split
        text += f"; {lost} of {len(val_rows)} videos of split `{split}` are of these classes"
    for name, group in chosen_groups(recipe.finetune.heads, store.class_groups).items():
        members = {group.of[label] for label in missing} - {group.of[label] for label in trained}
        if members:
            listed = _listed([group.names[member] for member in sorted(members)])
            text += f"; no training video has the {name} {listed}"
    return text


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(f"`{name}`" for name in names[:NAMED])
    return f"{shown} and {len(names) - NAMED} more" if len(names) > NAMED else shown
