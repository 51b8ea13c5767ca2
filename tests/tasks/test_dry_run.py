"""`--dry-run`: published numbers, costs against formulae of their own, and nothing computed."""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tatscli.recipe.load import load_recipe
from tatscli.recipe.shipped import shipped
from tatscli.system.memory import StepMemory
from tatscli.tasks import dry_run, memory_plan
from tests.nn.counting import block_macs, regressor_macs, trajectory_macs
from tests.tokenizer.saved import save_tokenizer

Plan = Callable[..., dict[str, Any]]

TUBE = "mask={kind: tube, ratio: 0.9}"
TOKENS, VISIBLE, HIDDEN, PIXELS = 1568, 160, 1408, 1536  # of ssv2 under a tube mask of 0.9


def count_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the step that is counted, which takes a second; the plan around it stays."""
    monkeypatch.setattr(memory_plan, "step_memory", lambda *a, **k: StepMemory(0, 0))


@pytest.fixture
def plan(cli: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """What `tats pretrain ssv2 ... --dry-run` says, but for memory."""
    monkeypatch.chdir(tmp_path)
    count_no_memory(monkeypatch)

    def run(*words: str, command: str = "pretrain") -> dict[str, Any]:
        outcome = cli(command, "ssv2", *words, "--dry-run", "--json")
        assert outcome.code == 0, outcome.stderr
        return outcome.json()

    return run


def gflops(macs: float) -> Any:
    return pytest.approx(2 * macs / 1e9, rel=1e-9)


COUNTED = {"small", "mgm/small", "mam2/small", "lvmae/small"}
"""Recipes whose steps are counted there; `test_memory_plan.py` has more."""

CODERS = {
    ("mam2", False): "tokenizer/vq",
    ("mam2", True): "tokenizer/small",
    ("lvmae", False): "lvmae/tokenizer",
    ("lvmae", True): "lvmae/tokenizer-small",
}
"""By a recipe's folder, and whether it is for a laptop: the tokenizer that it names."""


@pytest.fixture(scope="module")
def coders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tokenizers that nothing trained, by the recipe that needs them."""
    return {
        name: save_tokenizer(
            tmp_path_factory.mktemp("coders") / name.replace("/", "-"),
            recipe.tokenizer,
            size=recipe.data.view_size[0],
            frames=recipe.data.frames,
        )
        for name in CODERS.values()
        for recipe in [load_recipe(name).recipe]
    }


def one_of_each() -> list[Any]:
    """Every shipped recipe; all but one for each system and size are left to `make test-all`."""
    quick = {"ssv2", "small", "demo", "giant", "tokenizer", "tokenizer-small", "vq"}
    return [
        pytest.param(name, marks=() if name.split("/")[-1] in quick else pytest.mark.slow)
        for name in (recipe.name for recipe in shipped())
    ]


@pytest.mark.parametrize("name", one_of_each())
def test_every_shipped_recipe_passes_a_dry_run(
    name: str,
    cli: Callable[..., Any],
    coders: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    planned: dict[str, Any] = {}  # table and JSON show the same plan, which is made once

    def once(make: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
        def plan(*args: Any, **options: Any) -> dict[str, Any]:
            if make.__name__ not in planned:
                planned[make.__name__] = make(*args, **options)
            return planned[make.__name__]

        return plan

    for make in (dry_run.plan_pretraining, dry_run.plan_finetuning):
        monkeypatch.setattr(dry_run, make.__name__, once(make))
    alone = load_recipe(name).recipe.tokenizer is not None
    coder = None if alone else CODERS.get((name.split("/")[0], name.endswith("small")))
    more = [f"targets.0.tokenizer.path={coders[coder]}"] if coder else []
    if name in COUNTED:
        more += ["optim.batch_per_device=2"]  # each clip takes its time
    else:
        count_no_memory(monkeypatch)
    for command in ("pretrain", "finetune"):
        outcome = cli(command, name, *more, "--dry-run", "--json")
        if command == "finetune" and alone:
            assert outcome.code == 2
            assert "trains a tokenizer" in outcome.stderr
            continue
        assert outcome.code == 0, outcome.stderr
        plan = outcome.json()
        assert plan["tokens"] == plan["grid"][0] * plan["grid"][1] * plan["grid"][2]
        assert alone or "problem" not in plan["memory"]
        assert cli(command, name, *more, "--dry-run").stdout.strip()
    assert not any(tmp_path.iterdir())


def test_the_published_numbers(plan: Plan) -> None:
    found = plan(TUBE)
    assert (found["tokens"], found["visible"], found["predicted"]) == (TOKENS, VISIBLE, HIDDEN)
    assert found["peak_lr"] == pytest.approx(1.2e-3)
    assert found["parameters"]["encoder"] == pytest.approx(86.2e6, rel=0.01)
    # 13.7 G multiply-accumulates in the blocks, 0.19 G in the embedding, 19.5 G in the head
    assert found["gflops_per_clip"]["encoder"] == pytest.approx(2 * (13.7 + 0.19), rel=0.05)
    assert found["gflops_per_clip"]["head"] == pytest.approx(2 * 19.5, rel=0.05)


@pytest.mark.parametrize(
    ("model", "width", "depth", "mlp"),
    [
        ("model.size=base", 768, 12, 3072),
        ("model.size=large", 1024, 24, 4096),
        ("model={width: 96, depth: 3, heads: 6, mlp: 100}", 96, 3, 100),
    ],
)
def test_the_encoder_costs_what_its_visible_tokens_do(
    plan: Plan, model: str, width: int, depth: int, mlp: int
) -> None:
    """Per block and token 4 D^2 + 2 D x MLP, and two products of N x N x D."""
    block = VISIBLE * (4 * width**2 + 2 * width * mlp) + 2 * VISIBLE**2 * width
    found = plan(TUBE, model)["gflops_per_clip"]
    assert found["encoder"] == gflops(VISIBLE * PIXELS * width + depth * block)
    if mlp == 4 * width:
        assert block == 12 * VISIBLE * width**2 + 2 * VISIBLE**2 * width


def test_the_decoder_costs_a_branch_a_target(plan: Plan) -> None:
    two = "targets=[{kind: pixels}, {kind: difference, span: clip, gaps: [1, 3]}]"
    shared = VISIBLE * 768 * 384 + 4 * block_macs(VISIBLE + HIDDEN, 384)
    found = plan(TUBE)["gflops_per_clip"], plan(TUBE, two)["gflops_per_clip"]
    assert found[0]["head"] == gflops(shared + HIDDEN * 384 * PIXELS)
    assert found[1]["head"] == gflops(2 * shared + HIDDEN * 384 * (PIXELS + 2 * PIXELS))


def test_the_regressor_costs_cross_attention_and_decoders_of_the_hidden(plan: Plan) -> None:
    head = "head={kind: regressor, regressor_depth: 2, depth: 3}"
    decoder = HIDDEN * 768 * 384 + 3 * block_macs(HIDDEN, 384) + HIDDEN * 384 * PIXELS
    expected = regressor_macs(VISIBLE, HIDDEN, 768, 2, 3072) + decoder
    assert plan(TUBE, head)["gflops_per_clip"]["head"] == gflops(expected)
    # Alignment sends the hidden tokens through the encoder.
    again = HIDDEN * PIXELS * 768 + 12 * block_macs(HIDDEN, 768)
    aligned = plan(TUBE, head, "head.alignment=2")["gflops_per_clip"]
    assert aligned["head"] == gflops(expected + again)


def test_what_is_not_predicted_costs_nothing(plan: Plan, cli: Callable[..., Any]) -> None:
    full, part = plan(TUBE), plan(TUBE, "predict={kind: random}")
    assert (full["predicted"], part["visible"], part["predicted"]) == (HIDDEN, VISIBLE, 235)
    assert part["gflops_per_clip"].keys() == {"encoder", "head"}
    assert part["gflops_per_clip"]["encoder"] == full["gflops_per_clip"]["encoder"]
    head = VISIBLE * 768 * 384 + 4 * block_macs(VISIBLE + 235, 384) + 235 * 384 * PIXELS
    assert part["gflops_per_clip"]["head"] == gflops(head)
    shown = cli("pretrain", "ssv2", TUBE, "predict={kind: random}", "--dry-run").stdout
    assert "visible / predicted" in shown and "160 / 235" in shown


def test_whoever_looks_at_all_tokens_embeds_them_once(plan: Plan) -> None:
    embedding = TOKENS * PIXELS * 768
    looking = plan(TUBE, "predict={kind: everest}")["gflops_per_clip"]
    assert looking["sampler"] == gflops(embedding)
    chosen = plan("mask={kind: everest}")
    assert (chosen["visible"], chosen["predicted"]) == (156, 314)
    assert chosen["gflops_per_clip"]["sampler"] == looking["sampler"]
    policy = TOKENS * 768 * 384 + trajectory_macs(TOKENS, 384, 8, 8) + TOKENS * 384
    critic = 384 * 384 + 384
    tats = plan("mask={kind: tats}")["gflops_per_clip"]
    assert tats["sampler"] == gflops(embedding + policy + critic)
    both = plan("mask={kind: tats}", "predict={kind: everest}")["gflops_per_clip"]
    assert both["sampler"] == tats["sampler"]


def test_masks_that_follow_motion_have_a_cost_too(plan: Plan) -> None:
    for mask in ("mask={kind: mgm}", "mask={kind: motion_bins}"):
        assert plan(mask)["gflops_per_clip"].keys() == {"encoder", "head"}
    flow = plan("mask={kind: tats}", "predict={kind: flow}")["gflops_per_clip"]
    assert flow.keys() == {"encoder", "head", "sampler"}


def test_finetuning_costs_all_tokens(plan: Plan) -> None:
    found = plan(command="finetune")
    encoder = TOKENS * PIXELS * 768 + 12 * block_macs(TOKENS, 768)
    assert found["gflops_per_clip"]["encoder"] == gflops(encoder + 768 * 2)  # two classes


def test_the_largest_model_is_planned_without_its_memory(plan: Plan) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = plan(TUBE, "model.size=giant", "model.patch=14")
    assert found["parameters"]["encoder"] == pytest.approx(1.012e9, rel=0.01)
    assert found["optimizer_gb"] > 16
    assert found["grid"] == [8, 16, 16]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # KB; weights 4 GB


def test_heads_that_do_not_divide_are_a_recipe_error(cli: Callable[..., Any]) -> None:
    outcome = cli("pretrain", "ssv2", "head.heads=5", "--dry-run")
    assert outcome.code == 2
    assert "`head.heads: 5`" in outcome.stderr


def test_a_dry_run_refuses_what_a_training_would(
    recipe_file: Path, cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    count_no_memory(monkeypatch)
    for command, wrong, said in (
        ("pretrain", "data.split=nix", "has no split `nix`; it has `train`, `val`"),
        ("finetune", "finetune.split=nix", "has no split `nix`"),
        ("finetune", "finetune.val_split=nix", "has no split `nix`"),
        ("pretrain", "optim.base_lr=1e-7", "`optim.min_lr: 1e-05` is above"),
        ("finetune", "finetune.optim.warmup_lr=1", "`finetune.optim.warmup_lr: 1` is above"),
        ("pretrain", "data.sampling={stride: 9, short: error}", "12 of 12 videos are too short"),
        ("finetune", "data.sampling={stride: 9, short: error}", "18 of 18 videos are too short"),
    ):
        outcome = cli(command, recipe_file, wrong, "--dry-run")
        assert outcome.code in (1, 2), wrong
        assert said in outcome.stderr
    assert cli("finetune", recipe_file, "finetune.val_split=none", "--dry-run").code == 0
    missing = cli("finetune", recipe_file, "data.store=prepared/later", "--dry-run", "--json")
    assert missing.json()["store_note"] == "unknown: there is no store at `prepared/later`"


def test_a_dry_run_honours_the_limit_and_warns(
    recipe_file: Path, store: Path, cli: Callable[..., Any], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    count_no_memory(monkeypatch)
    words = ("pretrain", recipe_file, "--max-steps", 3, "--dry-run", "optim.warmup_epochs=5")
    plan = cli(*words, "--json").json()
    assert (plan["schedule"]["total_steps"], plan["max_steps"], plan["steps"]) == (10, 3, 3)
    (said,) = plan["warnings"]
    assert said.startswith("all 10 steps are warm-up")
    shown = cli(*words)
    assert "step 3 (`run.max_steps`)" in shown.stdout
    assert "6 videos x 1 device x 1 accumulated" in shown.stdout
    assert f"warning: {said}" in " ".join(shown.stderr.split())
    # A class whose only clips are in the validation split.
    bare = tmp_path / "bare"
    shutil.copytree(store, bare)
    rows = [json.loads(line) for line in (bare / "manifest.jsonl").read_text().splitlines()]
    kept = [row for row in rows if row["split"] == "val" or row["label"] != 1]
    (bare / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    plan = cli("finetune", recipe_file, f"data.store={bare}", "--dry-run", "--json").json()
    (said,) = plan["warnings"]
    assert said.startswith("1 of 3 classes have no training video: `left`")
    assert "2 of 6 videos of split `val` belong to them" in said
