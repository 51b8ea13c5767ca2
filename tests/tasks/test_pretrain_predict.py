"""Pretraining with predict-selections, and with masks and selections that follow motion."""

from __future__ import annotations

import io
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tatscli.console import Reporter
from tatscli.data.clip import Clip
from tatscli.errors import DataError, RecipeError
from tatscli.heads.base import Encode, HeadOutput
from tatscli.heads.decoder import DecoderHead
from tatscli.masking.plan import MaskPlan
from tatscli.recipe.load import LoadedRecipe
from tatscli.tasks.dry_run import plan_pretraining
from tatscli.tasks.pretrain import pretrain

Load = Callable[..., LoadedRecipe]

TATS = "mask.base_lr=1e-2"  # the recipe's own mask
TUBE = "mask={kind: tube, ratio: 0.75}"


@pytest.fixture
def predicted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count the tokens that the head is asked for, in every step."""
    counts: list[int] = []
    forward = DecoderHead.forward

    def counting(
        self: DecoderHead, clip: Clip, latents: Tensor, plan: MaskPlan, encode: Encode
    ) -> HeadOutput:
        counts.append(plan.predict_BM.shape[1])
        return forward(self, clip, latents, plan, encode)

    monkeypatch.setattr(DecoderHead, "forward", counting)
    return counts


def metrics(run: Path | str) -> list[dict[str, float]]:
    return [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("mask", "predict", "tokens", "follows"),
    [
        (TATS, "predict={kind: all}", 48, False),
        (TATS, "predict={kind: random}", 9, False),
        (TATS, "predict={kind: flow, budget: 12}", 12, True),
        (TATS, "predict={kind: everest}", 9, False),
        (TUBE, "predict={kind: everest}", 9, False),
        (TUBE, "predict={kind: uniform, every: 3}", 21, False),
        ("mask={kind: frame, ratio: 0.75}", "predict={kind: running_cell}", 24, False),
        ("mask={kind: motion_bins}", "predict={kind: all}", 52, True),
        ("mask={kind: mgm}", "predict={kind: everest, budget: 5}", 5, True),
        ("mask={kind: everest, ratio: 0.75, keep: 0.5}", "predict={kind: all}", 16, False),
        ("mask={kind: everest, ratio: 0.75, keep: 0.5}", "predict={kind: flow}", 9, True),
        ("mask={kind: adamae, ratio: 0.75, heads: 4}", "predict={kind: running_cell}", 24, False),
        ("mask.rollouts=2", "predict={kind: uniform, every: 2, budget: 7}", 7, False),
        ("mask.detach=false", "predict={kind: everest, budget: 1}", 1, False),
    ],
)
def test_any_mask_trains_with_any_selection(
    load: Load, reporter: Reporter, predicted: list[int], mask: str, predict: str, tokens: int,
    follows: bool,
) -> None:  # fmt: skip
    loaded = load(mask, predict, "run.max_steps=2")
    plan = plan_pretraining(loaded, Path("runs/tiny"))
    assert plan["predicted"] == tokens
    assert set(predicted) == {tokens}  # what is counted is what is done, for cost and memory
    predicted.clear()
    result = pretrain(loaded, reporter=reporter)
    assert predicted == [tokens, tokens]
    assert math.isfinite(result["loss"])
    for line in metrics("runs/tiny"):
        assert line["motion_missing"] == 0
    assert "without motion" not in reporter.stderr.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "overrides",
    [
        (TATS, "predict={kind: flow}"),
        ("mask={kind: motion_bins}", "predict={kind: everest}"),
        ("mask={kind: everest, ratio: 0.75, keep: 0.5}", "predict={kind: running_cell}"),
    ],
    ids=["tats-flow", "motion_bins-everest", "everest-running_cell"],
)
def test_resuming_is_bit_equal(load: Load, reporter: Reporter, overrides: tuple[str, ...]) -> None:
    few = (*overrides, "optim.epochs=2")
    pretrain(load(*few), reporter=reporter, out="runs/straight")
    pretrain(load(*few, "run.max_steps=2"), reporter=reporter, out="runs/halves")
    pretrain(load(*few), reporter=reporter, out="runs/halves", resume=True)
    assert len(metrics("runs/halves")) == 4
    for path in Path("runs/straight/checkpoints/last").resolve().glob("*.safetensors"):
        straight = load_file(path)
        halves = load_file(Path("runs/halves/checkpoints/last") / path.name)
        assert straight.keys() == halves.keys()
        assert all(torch.equal(straight[name], halves[name]) for name in straight)


def test_a_budget_that_cannot_be_met_is_told_before_anything_is_written(
    load: Load, reporter: Reporter, cli: Callable[..., Any], recipe_file: Path
) -> None:
    with pytest.raises(RecipeError, match=r"`predict.budget: 49` .* at most 48 of 64 tokens"):
        pretrain(load("predict={kind: random, budget: 49}"), reporter=reporter)
    assert not Path("runs").exists()
    outcome = cli("pretrain", recipe_file, "predict={kind: flow, budget: 60}", "--dry-run")
    assert outcome.code == 2 and "`predict.budget: 60`" in outcome.stderr


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [["mask={kind: motion_bins}"], ["predict={kind: flow}"]])
def test_clips_without_motion_fall_back_and_are_counted(
    load: Load, store: Path, tmp_path: Path, overrides: list[str]
) -> None:
    videos = store.parent / "videos0"
    words = ["prepare", videos, "--out", tmp_path / "bare", "--motion", "none", "--workers", "1"]
    subprocess.run([sys.executable, "-m", "tatscli", *words], check=True)
    reporter = Reporter(stdout=io.StringIO(), stderr=io.StringIO())
    bare = [f"data.store={tmp_path / 'bare'}", "run.max_steps=2"]
    planned = plan_pretraining(load(*bare, *overrides), tmp_path / "run")
    assert planned["videos_without_motion"] == planned["videos"] == 12
    strict = load(*bare, *overrides, "data.motion.fallback=error")
    for refuse in (
        lambda: plan_pretraining(strict, tmp_path),
        lambda: pretrain(strict, reporter=reporter),
    ):
        with pytest.raises(DataError, match=r"12 of 12 videos have no motion, first `.*\.mp4`"):
            refuse()
    assert not Path("runs/tiny").exists()
    pretrain(
        load(*bare, "mask={kind: tube}", "data.motion.fallback=error"),
        reporter=reporter,
        overwrite=True,
    )
    pretrain(load(*bare, *overrides), reporter=reporter, overwrite=True)
    assert [line["motion_missing"] for line in metrics("runs/tiny")] == [1, 1]
    said = reporter.stderr.getvalue()  # type: ignore[attr-defined]
    assert said.count("12 of 12 videos have no motion: for them ") == 1
