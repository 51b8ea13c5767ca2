"""EPIC-KITCHENS-100 from its tables to accuracy of verb, noun and action, by the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tatscli.data.normalize import standardized
from tatscli.data.views import EvalViews
from tatscli.engine.checkpoint import find_checkpoint
from tatscli.nn.classifier import build_classifier, groups_of
from tatscli.recipe.schema import Recipe
from tatscli.store.reader import Store
from tests.clips import pan, render
from tests.tasks.runs import metrics, weights

HEADER = (
    "narration_id,participant_id,video_id,start_timestamp,stop_timestamp,verb,verb_class,noun,"
    "noun_class\n"
)
NOUNS = {"cup": 1, "lid": 2}
MOVES = {("take", 0): (2, 0), ("put", 3): (-2, 0)}
SMALL = (
    *("model={width: 32, depth: 2, heads: 2, patch: 8}", "mask={kind: tube, ratio: 0.75}"),
    *("data.frames=4", "data.size=32", "data.sampling={mode: dense, stride: 1}", "data.workers=0"),
    *("finetune.heads=[verb,noun]", "finetune.optim.total_batch=2", "finetune.optim.epochs=1"),
    *("finetune.optim.batch_per_device=2", "run.device=cpu", "run.log_every=1"),
)


@pytest.fixture(scope="module")
def kitchen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos and tables of four actions; the one that validation alone has is put cup."""
    folder = tmp_path_factory.mktemp("epic")
    rows: dict[str, list[str]] = {"train": [], "validation": []}
    for number, ((verb, verb_class), step) in enumerate(MOVES.items()):
        for noun, noun_class in NOUNS.items():
            video = f"P0{number}_{noun_class}"
            path = folder / "EPIC" / f"P0{number}" / "videos" / f"{video}.MP4"
            render(path, pan(step, frames=24, height=48, width=64, seed=noun_class))
            for split, start, stop in (("train", 0, 0.4), ("validation", 0.4, 0.8)):
                if (verb, noun, split) != ("put", "cup", "train"):
                    rows[split].append(
                        f"{video}_{split},P0{number},{video},00:00:{start:05.2f},"
                        f"00:00:{stop:05.2f},{verb},{verb_class},{noun},{noun_class}\n"
                    )
    for split, lines in rows.items():
        (folder / "EPIC" / f"EPIC_100_{split}.csv").write_text(HEADER + "".join(lines))
    return folder


def test_from_tables_to_the_accuracy_of_verbs_nouns_and_actions(
    kitchen: Path, tmp_path: Path, cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def must(*words: object) -> Any:
        outcome = cli(*words)
        assert outcome.code == 0, outcome.stderr
        return outcome

    out = ("--out", "prepared/epic", "--workers", "1")
    must("prepare", kitchen / "EPIC", *out, "--json")
    store = Store.open("prepared/epic")
    assert store.class_names == ["take cup", "take lid", "put lid", "put cup"]
    verb, noun = (store.class_groups[name] for name in ("verb", "noun"))
    for row in store.rows:
        assert row.label is not None
        number, kind = Path(row.path or "").stem.split("_")
        assert verb.names[verb.of[row.label]] == {"P00": "take", "P01": "put"}[number]
        assert noun.names[noun.of[row.label]] == {"1": "cup", "2": "lid"}[kind]
    words = (*SMALL, "data.store=prepared/epic")
    trained = must("finetune", "small", "--scratch", *words, "--out", "runs/epic", "--json")
    assert "1 of 4 classes have no training video: `put cup`; 1 of 4 videos of split `val`" in (
        " ".join(trained.stderr.split())
    )
    found = trained.json()
    assert {"val_top1", "val_verb_top1", "val_noun_top1"} <= found.keys()
    (line,) = [one for one in metrics("runs/epic") if "loss" in one][:1]
    assert line["loss"] == pytest.approx(line["loss/verb"] + line["loss/noun"], rel=1e-4)
    tensors = weights("runs/epic")
    # Verbs keep their published numbers, so that there are four: 0 and 3 are used.
    assert tensors["heads.verb.weight"].shape == (4, 32)
    assert tensors["heads.noun.weight"].shape == (3, 32)
    scored = must("evaluate", "runs/epic", "--json").json()
    assert scored["top1"] == found["val_top1"]
    assert scored["group_top1"] == {"verb": found["val_verb_top1"], "noun": found["val_noun_top1"]}
    assert "all: verb top-1" in cli("evaluate", "runs/epic").stdout
    by_hand(scored, store)


def by_hand(scored: dict[str, Any], store: Store) -> None:
    """Score every video by a loop over actions, from the checkpoint alone."""
    checkpoint = find_checkpoint(Path("runs/epic"))
    recipe = Recipe.model_validate(checkpoint.meta["recipe"])
    groups = groups_of(checkpoint.meta)
    names = checkpoint.meta["class_names"]
    model = build_classifier(recipe, classes=len(names), groups=groups)
    model.load_state_dict(checkpoint.tensors("model"))
    model.eval()
    rows = store.part("val")
    views = EvalViews(store, rows, recipe.data, sampling=recipe.data.sampling)
    right = {"action": 0, "verb": 0, "noun": 0}
    for place, row in enumerate(rows):
        video = standardized(views[place][0].video_CTHW[None], recipe.data.mean, recipe.data.std)
        with torch.no_grad():
            verbs, nouns = (one[0].softmax(0) for one in model(video, by_head=True))
        products = {
            action: float(verbs[v] * nouns[n])
            for action, v, n in zip(names, groups["verb"].of, groups["noun"].of, strict=True)
        }
        truth = names[store.rows[row].label or 0]
        right["action"] += max(products, key=lambda one: products[one]) == truth
        for place_of, kind in enumerate(("verb", "noun")):
            sums: dict[str, float] = {}
            for action, product in products.items():
                member = action.split()[place_of]
                sums[member] = sums.get(member, 0) + product
            right[kind] += max(sums, key=lambda one: sums[one]) == truth.split()[place_of]
    assert scored["top1"] == pytest.approx(right["action"] / len(rows))
    assert scored["group_top1"] == {
        kind: pytest.approx(right[kind] / len(rows)) for kind in ("verb", "noun")
    }


def test_a_store_without_groups_says_what_to_do(
    kitchen: Path, tmp_path: Path, cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ("prepare", kitchen / "EPIC", "--labels", "verb", "--out", "verbs", "--workers", "1")
    assert cli(*words).code == 0
    outcome = cli("finetune", "small", "--scratch", *SMALL, "data.store=verbs")
    assert outcome.code == 2
    assert "`finetune.heads: [verb, noun]`: the classes have no group `verb`" in outcome.stderr
    assert "tats prepare" in outcome.stderr and not Path("runs").exists()


def test_classes_that_share_a_verb_need_the_noun_as_well(
    kitchen: Path, tmp_path: Path, cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli("prepare", kitchen / "EPIC", "--out", "epic", "--workers", "1").code == 0
    words = ("finetune", "small", "--scratch", *SMALL, "data.store=epic")
    outcome = cli(*words, "finetune.heads=[verb]")
    assert outcome.code == 2
    assert "distinguishes only 2 of 4 classes" in outcome.stderr and "`noun`" in outcome.stderr
    planned = cli(*words, "finetune.ema=0.999", "finetune.freeze=1", "--dry-run")
    assert planned.code == 0, planned.stderr
    for text in ("verb 4, noun 3", "parameters, frozen", "EMA"):
        assert text in planned.stdout
    plan = json.loads(cli(*words, "--dry-run", "--json").stdout)
    assert plan["heads"] == {"verb": 4, "noun": 3}
