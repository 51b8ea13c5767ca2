"""`run.watch`: what is held out, what is written, and that nobody notices."""

from __future__ import annotations

import io
import json
import math
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tatscli.console import Reporter
from tatscli.data.batch import collate
from tatscli.data.dataset import PretrainClips
from tatscli.data.normalize import standardized
from tatscli.data.views import EvalViews
from tatscli.draws import Draws
from tatscli.errors import DataError, UsageError
from tatscli.evaluation.knn import knn_scores
from tatscli.evaluation.rank import effective_rank
from tatscli.recipe.load import LoadedRecipe
from tatscli.recipe.schema import Watch
from tatscli.seeding import seed_of
from tatscli.store.reader import Store
from tatscli.system.load import load_system
from tatscli.tasks.dry_run import plan_pretraining
from tatscli.tasks.pretrain import Pretraining, pretrain
from tatscli.tasks.watch import part_watched

Load = Callable[..., LoadedRecipe]

HALF = "run.watch={share: 0.5, every: 1, videos: 4}"
SHORT = ("optim.epochs=3", "evaluate.batch_per_device=4")


def lines(run: str | Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]


def watched(run: str | Path) -> list[dict[str, float]]:
    return [line for line in lines(run) if "watch/loss" in line]


def tensors(run: str | Path) -> dict[str, torch.Tensor]:
    last = Path(run) / "checkpoints" / "last"
    return {
        f"{file.stem}/{name}": value
        for file in sorted(last.glob("*.safetensors"))
        for name, value in load_file(file).items()
    }


def test_the_effective_rank_is_its_formula() -> None:
    torch.manual_seed(0)
    features = torch.randn(9, 4) @ torch.diag(torch.tensor([3.0, 2.0, 1.0, 0.0]))
    share = [float(s) / float(torch.linalg.svdvals(features).sum()) + 1e-7
             for s in torch.linalg.svdvals(features)]  # fmt: skip
    by_hand = math.exp(-sum(p * math.log(p) for p in share))
    assert effective_rank(features) == pytest.approx(by_hand, rel=1e-4)
    assert 1 < effective_rank(features) < 3
    assert effective_rank(torch.eye(6)) == pytest.approx(6, rel=1e-4)
    assert effective_rank(torch.ones(5, 7)) == pytest.approx(1, rel=1e-3)


def test_whole_videos_are_held_out_by_their_names(store: Path) -> None:
    opened = Store.open(store)
    rows = opened.part("train")
    trained, held = part_watched(opened, rows, Watch(share=0.25))
    assert (len(trained), len(held)) == (9, 3)
    assert sorted(trained + held) == rows
    # Others that come or go change nothing for those that stay, but for how many there are.
    fewer = [row for row in rows if row != trained[0]]
    assert set(part_watched(opened, fewer, Watch(share=0.25))[1]) == set(held)
    assert len(part_watched(opened, rows, Watch(share=0.001))[1]) == 1
    assert part_watched(opened, rows, None) == (rows, [])
    with pytest.raises(DataError, match=r"`run\.watch\.share: 0\.99` holds out 12 of 12"):
        part_watched(opened, rows, Watch(share=0.99))
    # Segments of one file go together.
    for place, row in enumerate(rows):
        opened.rows[row] = opened.rows[row].model_copy(update={"path": f"{place // 4}.mp4"})
    trained, held = part_watched(opened, rows, Watch(share=0.3))
    assert held == rows[rows.index(held[0]) : rows.index(held[0]) + 4]


def test_what_is_watched_is_never_trained_on(
    load: Load, reporter: Reporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[int] = set()
    plain = Pretraining.step

    def step(self: Pretraining, batch: Any, draws: Any) -> Any:
        seen.update(batch.row_B.tolist())
        return plain(self, batch, draws)

    monkeypatch.setattr(Pretraining, "step", step)
    stderr = io.StringIO()
    result = pretrain(load(HALF, *SHORT), reporter=Reporter(stdout=io.StringIO(), stderr=stderr))
    stage_rows = Store.open(load().recipe.data.store).part("train")
    opened = Store.open(load().recipe.data.store)
    trained, held = part_watched(opened, stage_rows, Watch(share=0.5))
    assert seen == set(trained) and not seen & set(held)
    assert result["steps"] == 3  # three passes of one step of six videos
    facts = json.loads((Path(result["run"]) / "run.json").read_text())
    assert (facts["derived"]["videos"], facts["derived"]["steps_per_epoch"]) == (6, 1)
    names = {"watch/loss", "watch/loss/pixels", "watch/rankme", "watch/knn_top1"}
    assert [line["step"] for line in watched(result["run"])] == [1, 2, 3]
    assert all(names <= line.keys() for line in watched(result["run"]))
    assert names <= result.keys()
    assert "best_score" not in result
    assert not (Path(result["run"]) / "checkpoints" / "best").exists()
    assert (
        "epoch 2 of 3: watch/loss 0." in stderr.getvalue() or "watch/loss 1." in stderr.getvalue()
    )
    plan = plan_pretraining(load(HALF, *SHORT), Path("runs/x"))
    assert (plan["videos"], plan["schedule"]["steps_per_epoch"]) == (6, 1)


def test_watched_videos_without_motion_are_refused_before_training(
    load: Load, reporter: Reporter, store: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "store"
    shutil.copytree(store, copy)
    opened = Store.open(store)
    held = part_watched(opened, opened.part("train"), Watch(share=0.5))[1]
    manifest = copy / "manifest.jsonl"
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    rows[held[0]]["moving"] = 0
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    still = (f"data.store={copy}", "data.motion.fallback=error", "mask={kind: mgm}")
    with pytest.raises(DataError, match="1 of 12 videos have no motion"):
        pretrain(load(HALF, *SHORT, *still), reporter=reporter, out="runs/x")
    assert not Path("runs/x").exists()


@pytest.mark.parametrize(
    "mask",
    ["", pytest.param("mask={kind: adamae, ratio: 0.75, width: 32}", marks=pytest.mark.slow)],
    ids=["tats", "adamae"],
)
def test_looking_leaves_every_weight_as_it_is(load: Load, reporter: Reporter, mask: str) -> None:
    """Sampler, optimisers and guards too."""
    words = (*SHORT, *([mask] if mask else []))
    never = HALF.replace("every: 1", "every: 1000")
    often = pretrain(load(HALF, *words), reporter=reporter, out="runs/often")
    rarely = pretrain(load(never, *words), reporter=reporter, out="runs/rarely")
    assert [len(watched(one["run"])) for one in (often, rarely)] == [3, 1]
    first, second = tensors("runs/often"), tensors("runs/rarely")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert watched("runs/often")[-1] == watched("runs/rarely")[-1]


def test_the_numbers_are_those_by_hand(load: Load, reporter: Reporter, store: Path) -> None:
    targets = "targets=[{kind: pixels}, {kind: difference, weight: 0.5}]"
    run = pretrain(load(HALF, *SHORT, targets, "mask.kind=random"), reporter=reporter)["run"]
    loaded, system = load_system(run)
    recipe, opened = loaded.recipe, Store.open(store)
    trained, held = part_watched(opened, opened.part("train"), recipe.run.watch)
    clips = PretrainClips(opened, held, recipe.data, patch=8, seed=0, follows_motion=False)
    losses: dict[str, list[torch.Tensor]] = {"pixels": [], "difference": []}
    for number, places in enumerate([range(4), range(4, 6)]):
        batch = collate([clips[0, place][0] for place in places])
        draws = Draws(seed_of("watch", 0), first=4 * number)
        with torch.no_grad():
            errors = system.errors(system.clip(batch.video_BCTHW), draws)
        for name, found in losses.items():
            found.append(errors.by_target[name].mean(dim=1))
    last = watched(run)[-1]
    means = {name: float(torch.cat(found).mean()) for name, found in losses.items()}
    for name, mean in means.items():
        assert last[f"watch/loss/{name}"] == pytest.approx(mean, rel=1e-5)
    total = means["pixels"] + 0.5 * means["difference"]
    assert last["watch/loss"] == pytest.approx(total, rel=1e-5)

    def features(rows: list[int]) -> torch.Tensor:
        views = EvalViews(opened, rows, recipe.data, sampling=recipe.data.sampling)
        clip = torch.stack([views[place][0].video_CTHW for place in range(len(rows))])
        with torch.no_grad():
            embedded = system.encoder.embed(
                system.encoder.cubes(standardized(clip, recipe.data.mean, recipe.data.std))
            )
            return system.encoder(embedded).mean(1)

    some = sorted(sorted(trained, key=lambda row: seed_of("watch", opened.rows[row].id))[:4])
    asked, stored = features(held), features(some)
    together = effective_rank(torch.cat([asked, stored]))
    assert last["watch/rankme"] == pytest.approx(together, rel=1e-4)
    label = torch.tensor([opened.rows[row].label for row in some])
    votes = knn_scores(
        asked, stored, label, query_row_R=torch.tensor(held), stored_row_Q=torch.tensor(some),
        classes=3, neighbours=3, temperature=0.07,
    )  # fmt: skip
    right = [int(votes[i].argmax()) == opened.rows[row].label for i, row in enumerate(held)]
    assert last["watch/knn_top1"] == pytest.approx(sum(right) / len(right))


@pytest.mark.slow
def test_watching_resumes_bit_equal_and_its_share_is_fixed(load: Load, reporter: Reporter) -> None:
    pretrain(load(HALF, *SHORT), reporter=reporter, out="runs/straight")
    pretrain(load(HALF, *SHORT, "run.max_steps=2"), reporter=reporter, out="runs/halves")
    for words, said in (
        ("run.watch.share=0.25", r"`run\.watch\.share: 0\.25` \(the run has `0\.5`\)"),
        ("run.watch=null", r"`run\.watch: None`"),
    ):
        with pytest.raises(UsageError, match=said):
            pretrain(load(HALF, *SHORT, words), reporter=reporter, out="runs/halves", resume=True)
    often = load(HALF, *SHORT, "run.watch.every=3")
    pretrain(often, reporter=reporter, out="runs/halves", resume=True)
    first, second = tensors("runs/straight"), tensors("runs/halves")
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert watched("runs/straight") == watched("runs/halves")


@pytest.mark.slow
def test_two_ranks_see_what_one_does(
    recipe_file: Path, tats: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """A learning rate of nothing: both look at the same weights."""
    words = (
        *("pretrain", recipe_file, HALF, "optim.epochs=1", "mask.kind=tube"),
        *("optim.base_lr=1e-30", "optim.min_lr=0", "evaluate.batch_per_device=2"),
    )
    alone = tats(*words, "--out", "runs/alone")
    assert alone.returncode == 0, alone.stderr
    launch = ("-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=29647", "-m")
    both = tats(*words, "optim.batch_per_device=3", "--out", "runs/both", launch=launch)
    assert both.returncode == 0, both.stderr
    (one,), (two,) = watched("runs/alone"), watched("runs/both")
    assert one.keys() == two.keys()
    for name in one:
        assert two[name] == pytest.approx(one[name], rel=1e-5), name
