"""Which videos a classifier is trained on, how its classes weigh, what is said of the rest."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.utils.class_weight import compute_class_weight

from tatscli.errors import DataError, RecipeError
from tatscli.nn.classifier import ONE_HEAD
from tatscli.recipe.load import LoadedRecipe
from tatscli.store.reader import Store
from tatscli.store.schema import ClassGroup
from tatscli.tasks.frozen import reference_rows
from tatscli.tasks.labels import class_weights, labelled, training_rows, untrained_classes

Load = Callable[..., LoadedRecipe]

GROUPS = {
    "verb": ClassGroup(names=("take", "put"), of=(0, 0, 1)),
    "noun": ClassGroup(names=("cup", "pan"), of=(0, 1, 0)),
}


@pytest.fixture
def relabelled(store: Path, tmp_path: Path) -> Callable[..., Path]:
    """Copy the store's tables, with other labels by row and perhaps other class names."""

    def copy(change: Callable[[dict[str, Any]], Any], **facts: Any) -> Path:
        out = tmp_path / "relabelled"
        shutil.copytree(store, out)
        rows = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
        text = "".join(json.dumps(row | {"label": change(row)}) + "\n" for row in rows)
        (out / "manifest.jsonl").write_text(text)
        dataset = json.loads((out / "dataset.json").read_text()) | facts
        (out / "dataset.json").write_text(json.dumps(dataset))
        return out

    return copy


def test_shots_are_exact_nested_and_those_of_frozen_features(load: Load, store: Path) -> None:
    opened, chosen = Store.open(store), {}
    for shots in (1, 2, 4):
        recipe = load(f"data.shots={shots}", f"evaluate.shots={shots}").recipe
        rows = training_rows(recipe, opened)
        assert Counter(opened.rows[row].label for row in rows) == {n: shots for n in range(3)}
        assert all(opened.rows[row].split == "train" for row in rows)
        assert rows == reference_rows(recipe, opened, "train")
        chosen[shots] = set(rows)
    assert chosen[1] < chosen[2] < chosen[4]
    other = training_rows(load("data.shots=2", "run.seed=5").recipe, opened)
    assert set(other) != chosen[2]
    with pytest.raises(DataError, match=r"`data\.shots: 5` .* 3 of 3 classes; `down` has 4"):
        training_rows(load("data.shots=5").recipe, opened)


def test_a_class_without_training_videos_takes_no_part_in_the_draw(
    load: Load, relabelled: Callable[..., Path]
) -> None:
    path = relabelled(lambda row: row["label"], class_names=["down", "left", "right", "up"])
    rows = training_rows(load("data.shots=2").recipe, Store.open(path))
    assert len(rows) == 6


def test_balanced_weights_are_scikit_learns() -> None:
    labels = [0] * 7 + [1] * 2 + [2]
    found = class_weights("balanced", labels, ["a", "b", "c"], {})
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    assert found == {ONE_HEAD: pytest.approx(expected.tolist())}
    assert sum(found[ONE_HEAD][label] for label in labels) == pytest.approx(len(labels))
    # Of what nobody has seen nothing is known.
    assert class_weights("balanced", labels, ["a", "b", "c", "d"], {})[ONE_HEAD][3] == 1
    by_head = class_weights("balanced", labels, ["a", "b", "c"], GROUPS)
    members = [GROUPS["verb"].of[label] for label in labels]
    assert by_head["verb"] == pytest.approx(
        compute_class_weight("balanced", classes=np.arange(2), y=members).tolist()
    )
    assert by_head["noun"] == pytest.approx([10 / (2 * 8), 10 / (2 * 2)])


def test_weights_by_name_leave_the_others_at_one() -> None:
    assert class_weights({"b": 3}, [0], ["a", "b"], {}) == {ONE_HEAD: [1, 3]}
    assert class_weights(None, [0], ["a", "b"], {}) == {}
    found = class_weights({"verb/put": 3, "noun/pan": 2}, [0], list("abc"), GROUPS)
    assert found == {"verb": [1, 3], "noun": [1, 2]}
    with pytest.raises(RecipeError, match=r"names `jmp`, .* did you mean `jump`"):
        class_weights({"jmp": 3}, [0], ["run", "jump"], {})
    with pytest.raises(RecipeError, match="names `put`") as error:
        class_weights({"put": 3}, [0], list("abc"), GROUPS)
    assert "`verb/take`" in str(error.value.hint)


def test_classes_that_nobody_trains_are_named_and_their_videos_counted(
    load: Load, relabelled: Callable[..., Path]
) -> None:
    names = ["down", "left", "right", *(f"new {number}" for number in range(12))]

    def later(row: dict[str, Any]) -> int:
        return 3 if row["split"] == "val" and row["id"].endswith("0.mp4") else row["label"]

    groups = {
        "move": {"names": ["pan", "turn"], "of": [0] * 3 + [1] * 12},
        "number": {"names": list("abcdefghijklmno"), "of": list(range(15))},
    }
    store = Store.open(relabelled(later, class_names=names, class_groups=groups))
    rows, val_rows = store.part("train"), store.part("val")
    recipe = load().recipe
    said = untrained_classes(recipe, store, rows, val_rows)
    assert said is not None
    assert said.startswith("12 of 15 classes have no training video: `new 0`, `new 1`")
    assert "`new 9` and 2 more; 3 of 6 videos of split `val` belong to them" in said
    assert "`new 10`" not in said and "move" not in said
    several = untrained_classes(load("finetune.heads=[move,number]").recipe, store, rows, val_rows)
    assert several is not None and "no training video has the move `turn`" in several
    assert untrained_classes(recipe, store, rows, []) == said.partition("; ")[0]


def test_nothing_is_said_where_every_class_is_trained(load: Load, store: Path) -> None:
    opened = Store.open(store)
    assert untrained_classes(load().recipe, opened, opened.part("train"), []) is None


def test_labels_outside_of_the_classes_are_found_before_the_first_step(
    relabelled: Callable[..., Path],
) -> None:
    path = relabelled(lambda row: 7 if row["id"].endswith("left/2.mp4") else row["label"])
    with pytest.raises(DataError, match=r"`train/left/2\.mp4` in .* has label 7, .* 0 to 2"):
        labelled(Store.open(path), "train")


@pytest.mark.parametrize(("names", "said"), [(["one"], "has 1 class;"), ([], "has 0 classes;")])
def test_one_class_is_not_enough(
    relabelled: Callable[..., Path], names: list[str], said: str
) -> None:
    path = relabelled(lambda row: 0, class_names=names)
    with pytest.raises(DataError, match=f"{said} classification needs at least two classes"):
        labelled(Store.open(path), "train")
