"""`finetune.drop` and `evaluate.drop`: fewer tokens, the same ones whoever asks."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tatscli.console import Reporter
from tatscli.data.motion_source import MotionSource
from tatscli.data.normalize import standardized
from tatscli.data.views import EvalViews
from tatscli.errors import DataError, RecipeError
from tatscli.nn.classifier import build_classifier
from tatscli.nn.vit import PatchEmbed
from tatscli.recipe.load import LoadedRecipe, load_recipe
from tatscli.store.reader import Store
from tatscli.system.drop import TokenDrop
from tatscli.tasks.dry_run import plan_finetuning
from tatscli.tasks.evaluate import evaluate
from tatscli.tasks.finetune import finetune
from tatscli.tasks.frozen import scored_views
from tests.nn.counting import block_macs
from tests.tasks.conftest import RECIPE

Load = Callable[..., LoadedRecipe]

ROOT = Path(__file__).resolve().parents[2]
TUBE = "{kind: tube, ratio: 0.25}"
STILL = "{kind: still, ratio: 0.5}"
PROBE = ("evaluate.probe.epochs=2", "evaluate.probe.rates=[1e-2]", "evaluate.probe.decays=[0]")
TOKENS, WIDTH, DEPTH = 64, 128, 6


@pytest.fixture(scope="module")
def tuned(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fine-tuned run, which the tests of this file only read."""
    folder = tmp_path_factory.mktemp("dropped")
    (folder / "tiny.yaml").write_text(RECIPE.format(store=store))
    words = ["finetune.val_split=null", "finetune.head_scale=1", "run.max_steps=2"]
    loaded = load_recipe(folder / "tiny.yaml", words)
    quiet = Reporter(quiet=True)
    return Path(finetune(loaded, reporter=quiet, init=None, out=folder / "run")["run"])


def scored(run: Path, *words: str, protocol: Any = "finetuned", **options: Any) -> Any:
    reporter = options.pop("reporter", Reporter(quiet=True))
    return evaluate(run, reporter=reporter, protocol=protocol, overrides=words, **options)


@pytest.mark.parametrize("pool", ["mean", pytest.param("attention", marks=pytest.mark.slow)])
def test_training_on_fewer_tokens_resumes_bit_equal_and_embeds_no_other(
    load: Load, reporter: Reporter, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    forward = PatchEmbed.forward
    monkeypatch.setattr(
        PatchEmbed,
        "forward",
        lambda self, cubes: (seen.append(cubes.shape[1]), forward(self, cubes))[1],
    )
    words = (f"finetune.head.pool={pool}", f"finetune.drop={STILL}", f"evaluate.drop={TUBE}")
    finetune(load(*words), reporter=reporter, init=None, out="runs/straight")
    # Trained with the one, scored on `val` with the other.
    assert seen == [32, 32, 48, 32, 32, 48]
    finetune(load(*words, "run.max_steps=3"), reporter=reporter, init=None, out="runs/halves")
    finetune(load(*words), reporter=reporter, init=None, out="runs/halves", resume=True)
    first, second = (
        load_file(Path(f"runs/{name}/checkpoints/last/model.safetensors"))
        for name in ("straight", "halves")
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert "plan_faults" not in Path("runs/straight/metrics.jsonl").read_text()


@pytest.mark.parametrize("drop", [STILL, "{kind: everest, ratio: 0.5, keep: 0.8}"])
def test_evaluation_is_what_averaging_views_by_hand_gives(tuned: Path, drop: str) -> None:
    words = (f"evaluate.drop={drop}", "evaluate.segments=2", "evaluate.crops=3")
    found = [scored(tuned, *words, f"evaluate.batch_per_device={batch}") for batch in (1, 5, 16)]
    for one in found[1:]:
        for key in ("top1", "top5", "confusion", "tokens_kept"):
            assert one[key] == found[0][key]
    result = found[0]
    assert (result["views"], result["tokens"], result["tokens_kept"]) == (36, TOKENS, 32)
    recipe = load_recipe(tuned / "recipe.yaml", words).recipe
    opened = Store.open(recipe.data.store)
    model = build_classifier(recipe, classes=3)
    model.load_state_dict(load_file(tuned / "checkpoints/last/model.safetensors"))
    model.eval()
    assert recipe.evaluate.drop is not None
    dropping = TokenDrop(
        recipe.evaluate.drop, key="evaluate.drop", recipe=recipe, encoder=model.encoder
    )
    views = scored_views(recipe, opened, None, None)  # type: ignore[arg-type]
    assert views[0][0].motion is None  # nobody reads it
    source = EvalViews(
        opened, views.rows, recipe.data, sampling=recipe.data.sampling, segments=2, crops=3,
        motion=MotionSource(opened, recipe.data.motion), patch=8,
    )  # fmt: skip
    confusion = torch.zeros(3, 3, dtype=torch.int64)
    for place, row in enumerate(source.rows):
        total = torch.zeros(3)
        for number in range(6):
            (sample,) = source[place * 6 + number]
            assert sample.motion is not None
            pixels = sample.video_CTHW[None]
            kept = dropping.fixed(pixels, sample.motion, [row], [number])
            with torch.no_grad():
                video = standardized(pixels, recipe.data.mean, recipe.data.std)
                total += model(video, kept)[0].softmax(dim=0)
        confusion[opened.rows[row].label, int(total.argmax())] += 1
    assert result["confusion"] == confusion.tolist()


def test_results_tell_tokens_cost_and_name(tuned: Path) -> None:
    whole, half = scored(tuned), scored(tuned, f"evaluate.drop={STILL}")
    assert (whole["tokens"], whole["tokens_kept"], whole["drop"]) == (TOKENS, TOKENS, None)
    assert half["drop"]["kind"] == "still" and half["videos_without_motion"] == 0
    assert Path(whole["results"]).name == "finetuned-val-1x1.json"
    assert Path(half["results"]).name == "finetuned-val-1x1-drop-still0.5.json"
    for one, kept in ((whole, TOKENS), (half, 32)):
        macs = kept * 384 * WIDTH + DEPTH * block_macs(kept, WIDTH) + WIDTH * 3
        assert one["gflops_per_clip"] == pytest.approx(2 * macs / 1e9, rel=1e-9)
    looked = scored(tuned, "evaluate.drop={kind: everest, ratio: 0.5, keep: 0.8}")
    assert Path(looked["results"]).name == "finetuned-val-1x1-drop-everest0.5-keep0.8.json"
    extra = looked["gflops_per_clip"] - half["gflops_per_clip"]
    assert extra == pytest.approx(2 * TOKENS * 384 * WIDTH / 1e9, rel=1e-6)


def test_results_of_other_frames_have_names_of_their_own(tuned: Path) -> None:
    longer = scored(tuned, "data.frames=16")
    assert Path(longer["results"]).name == "finetuned-val-1x1-frames16.json"


@pytest.mark.parametrize("protocol", ["knn", "linear", "attentive"])
def test_frozen_features_of_fewer_tokens(tuned: Path, protocol: str) -> None:
    words = (*PROBE, f"evaluate.drop={STILL}", "evaluate.probe.views=2")
    found = [
        scored(tuned, *words, f"evaluate.batch_per_device={batch}", protocol=protocol)
        for batch in (1, 16)
    ]
    assert found[0]["confusion"] == found[1]["confusion"]
    assert (found[0]["videos"], found[0]["tokens_kept"]) == (6, 32)
    macs = 32 * 384 * WIDTH + DEPTH * block_macs(32, WIDTH)
    assert found[0]["gflops_per_clip"] == pytest.approx(2 * macs / 1e9, rel=1e-9)


@pytest.mark.parametrize("pool", ["slice", "token"])
def test_features_of_places_need_all_tokens(tuned: Path, pool: str) -> None:
    words = (f"evaluate.drop={TUBE}", f"evaluate.knn.pool={pool}")
    with pytest.raises(RecipeError, match=rf"`evaluate\.knn\.pool: {pool}` needs all tokens"):
        scored(tuned, *words, protocol="knn")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["evaluate.drop={kind: tube}"], "`drop` needs a `ratio`"),
        (["finetune.drop={kind: still}"], "`drop` needs a `ratio`"),
        (["evaluate.drop={kind: tats, ratio: 0.5}"], "tats"),
        (["finetune.drop={kind: schedule, ratio: 0.5}"], "schedule"),
        ([f"finetune.drop={TUBE}", "finetune.auxiliary=0.9"], "cannot be combined"),
        (["evaluate.durations=[4, 4]"], "must ascend"),
        (["evaluate.durations=[]"], "durations"),
        (["evaluate.durations=[-1, 4]"], "durations"),
    ],
)
def test_what_makes_no_sense_is_refused(load: Load, words: list[str], message: str) -> None:
    with pytest.raises(RecipeError) as refused:
        load(*words)
    assert message in refused.value.message


def test_a_dry_run_tells_what_is_kept_and_its_cost(load: Load, cli: Callable[..., Any]) -> None:
    plan = plan_finetuning(load(f"finetune.drop={TUBE}"), Path("runs/x"))
    assert (plan["tokens"], plan["tokens_kept"]) == (TOKENS, 48)
    macs = 48 * 384 * WIDTH + DEPTH * block_macs(48, WIDTH) + 3 * WIDTH  # three classes
    assert plan["gflops_per_clip"]["encoder"] == pytest.approx(2 * macs / 1e9, rel=1e-9)
    outcome = cli("finetune", "tiny.yaml", "--scratch", f"finetune.drop={TUBE}", "--dry-run")
    assert outcome.code == 0 and "tokens kept" in outcome.stdout
    whole = cli("finetune", "tiny.yaml", "--scratch", "--dry-run")
    assert "tokens kept" not in whole.stdout


def _without_motion(store: Path, folder: Path) -> Path:
    """A copy of the store whose videos to score have no motion."""
    shutil.copytree(store, folder)
    manifest = folder / "manifest.jsonl"
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    for row in rows:
        if row["split"] == "val":
            row |= {"motion": "none", "moving": 0}
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_videos_without_motion_are_told_of_or_refused(
    tuned: Path, store: Path, tmp_path: Path, reporter: Reporter
) -> None:
    bare = f"data.store={_without_motion(store, tmp_path / 'bare')}"
    result = scored(tuned, bare, f"evaluate.drop={STILL}", reporter=reporter)
    assert result["videos_without_motion"] == 6
    said = reporter.stderr.getvalue().replace("\n", " ")  # type: ignore[attr-defined]
    assert "6 of 6 videos have no motion: for them `evaluate.drop.kind: still` falls back" in said
    with pytest.raises(DataError, match="6 of 6 videos have no motion"):
        scored(tuned, bare, f"evaluate.drop={STILL}", "data.motion.fallback=error")
    changed = scored(tuned, bare, f"evaluate.drop={STILL}", "data.motion.source=framediff")
    assert changed["videos_without_motion"] == 0


def test_accuracy_by_duration_is_that_of_the_stores_videos(
    tuned: Path, cli: Callable[..., Any]
) -> None:
    outcome = cli("evaluate", tuned, "evaluate.durations=[0, 0.3, 4]", "--json")
    assert outcome.code == 0, outcome.stderr
    result = outcome.json()
    store = Store.open(result["store"])
    lengths = [store.rows[row].duration for row in store.part("val")]
    assert all(0.3 < one < 4 for one in lengths)
    assert [part["videos"] for part in result["by_duration"]] == [0, 6, 0]
    assert result["by_duration"][1]["top1"] == result["top1"]
    assert result["by_duration"][2]["to"] is None
    shown = cli("evaluate", tuned, "evaluate.durations=[0.3, 4]").stdout
    assert "0.3 to 4 s" in shown and "4 s and longer" in shown
    short = cli("evaluate", tuned, "evaluate.durations=[30]")
    assert "6 videos are shorter than 30 s" in short.stderr.replace("\n", " ")
    assert "by_duration" not in scored(tuned)


@pytest.mark.slow
def test_two_ranks_keep_the_tokens_that_one_does(
    tuned: Path, tats: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    words = (f"evaluate.drop={STILL}", "evaluate.segments=2")
    alone = scored(tuned, *words)
    launch = ("-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=29653", "-m")
    both = tats("evaluate", tuned, *words, "--json", launch=launch)
    assert both.returncode == 0, both.stderr
    result = json.loads(both.stdout)
    for key in ("top1", "top5", "confusion", "tokens_kept", "results"):
        assert result[key] == alone[key]


@pytest.mark.slow
def test_the_loop_of_the_docs_prints_accuracy_against_tokens(tuned: Path, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    (loop,) = re.findall(r"```bash\n(for ratio in .*?done)\n```", page, flags=re.DOTALL)
    script = (
        f'python() {{ "{sys.executable}" "$@"; }}\n'
        f'tats() {{ "{sys.executable}" -m tatscli "$@"; }}\n'
        + loop.replace("runs/ucf101-finetune", str(tuned))
    )
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, cwd=tmp_path, timeout=240
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [int(kept) for kept, _, _ in lines] == [48, 32, 16]
    costs = [float(cost) for _, cost, _ in lines]
    assert costs == sorted(costs, reverse=True)
    assert all(0 <= float(top1) <= 1 for _, _, top1 in lines)
