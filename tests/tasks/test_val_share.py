"""`finetune.val_share`: a store of plain class folders is fine-tuned, validated and evaluated."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tatscli.console import Reporter
from tatscli.errors import DataError, RecipeError, UsageError
from tatscli.recipe.load import LoadedRecipe
from tatscli.store.reader import Store
from tatscli.tasks.dry_run import plan_finetuning
from tatscli.tasks.evaluate import evaluate
from tatscli.tasks.finetune import Finetuning, finetune
from tests.store.stores import prepare

Load = Callable[..., LoadedRecipe]

NANO = ("model={width: 32, depth: 1, heads: 2, patch: 8}", "finetune.optim.epochs=1")


@pytest.fixture(scope="module")
def unsplit(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of twelve videos in three class folders, without splits."""
    out = tmp_path_factory.mktemp("unsplit") / "store"
    prepare(videos / "train", out)
    return out


def test_plain_class_folders_are_trained_validated_and_evaluated(
    load: Load, unsplit: Path, reporter: Reporter
) -> None:
    words = (*NANO, f"data.store={unsplit}", "finetune.val_share=0.25")
    result = finetune(load(*words), reporter=reporter, init=None, out="runs/x")
    assert "val_top1" in result and result["steps"] == 1  # nine videos, six in a step
    scored = evaluate(Path("runs/x"), reporter=reporter, protocol="finetuned")
    assert scored["videos"] == 3 and scored["split"] == "val"
    stage = Finetuning(load(*words), Store.open(unsplit), None)
    again = Finetuning(load(*words, "run.seed=7"), Store.open(unsplit), None)
    assert (stage.rows, stage.val_rows) == (again.rows, again.val_rows)
    assert not {*stage.rows} & {*stage.val_rows} and len(stage.rows) == 9
    labels = Counter(stage.store.rows[row].label for row in stage.val_rows)
    assert labels == {0: 1, 1: 1, 2: 1}


def test_a_dry_run_plans_with_what_is_left(load: Load, unsplit: Path) -> None:
    words = (*NANO, f"data.store={unsplit}")
    plan = plan_finetuning(load(*words, "finetune.val_share=0.25"), Path("runs/x"))
    assert plan["videos"] == 9
    with pytest.raises(DataError, match="no split `train`"):
        plan_finetuning(load(*words), Path("runs/x"))


def test_without_it_the_message_names_both_ways(load: Load, unsplit: Path) -> None:
    with pytest.raises(DataError, match="has no split `train`; it has none") as raised:
        Finetuning(load(*NANO, f"data.store={unsplit}"), Store.open(unsplit), None)
    assert "--val-share" in str(raised.value.hint) and "finetune.val_share" in str(
        raised.value.hint
    )


def test_a_store_with_its_own_val_is_not_divided(load: Load, store: Path) -> None:
    with pytest.raises(UsageError, match="there is a split `val` already"):
        Finetuning(load(*NANO, "finetune.val_share=0.25"), Store.open(store), None)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["finetune.val_share=1.0"], "less than 1"),
        (["finetune.val_group=x"], "needs `val_share`"),
        (["finetune.val_share=0.2", "finetune.val_group='('"], "not a regular expression"),
        (["finetune.val_share=0.2", "finetune.val_split=null"], "needs `val_split`"),
    ],
)
def test_wrong_keys_are_named(load: Load, words: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load(*words)
