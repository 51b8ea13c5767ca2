"""`tats replay`: the bad step of a training, re-run to the bit, and what is found in it."""

from __future__ import annotations

import io
import json
import math
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tatscli.console import Reporter
from tatscli.engine.bad_batch import read_bad_step
from tatscli.engine.trace import Trace, first_bad, worst_of
from tatscli.errors import DataError, TatsError, UsageError
from tatscli.recipe.load import LoadedRecipe, load_recipe
from tatscli.tasks.finetune import finetune
from tatscli.tasks.pretrain import pretrain
from tatscli.tasks.replay import replay
from tests.tasks.runs import metrics
from tests.tasks.test_tokenizer import write_recipe

Load = Callable[..., LoadedRecipe]
WILD = ("optim.base_lr=1e30", "run.max_bad_steps=2", "finetune.optim.base_lr=1e30")
TUBE = ("mask={kind: tube, ratio: 0.75}",)


def fails(task: Callable[..., Any], loaded: LoadedRecipe, out: Path, **options: Any) -> Path:
    with pytest.raises(TatsError, match="2 bad steps in a row"):
        task(loaded, reporter=Reporter(quiet=True), init=None, out=out, **options)
    return out


@pytest.fixture
def wild(load: Load, tmp_path: Path) -> Path:
    """A pretraining whose first step threw its weights away."""
    return fails(pretrain, load(*WILD, *TUBE, "optim.batch_per_device=3"), tmp_path / "wild")


@pytest.mark.slow
def test_a_step_that_is_still_bad_names_its_first_module_and_all_videos(
    wild: Path, tats: Callable[..., subprocess.CompletedProcess[str]], cli: Callable[..., Any]
) -> None:
    """As a real process: exit code 1, one JSON object; the message of the training led here."""
    done = tats("replay", wild, "--json")
    assert done.returncode == 1, done.stderr
    result = json.loads(done.stdout)
    assert result["finite"] is False and result["problems"]
    assert (result["step"], result["processes"]) == (4, 1)
    assert result["reason"] == "the loss is not finite"
    assert (result["loss"], result["grad_norm"]) == (None, None)
    assert result["weights_not_finite"] == []
    first = result["first_output"]
    assert first["module"].startswith("encoder.") and first["share"] > 0
    assert len(first["videos"]) == 3 and first["batch"] == 0
    meta = read_bad_step(wild).meta
    assert [one["row"] for one in result["videos"]] == meta["rows"][0]
    (clips,) = meta["clips"]
    same = ("id", "row", "view")
    assert [[one[key] for key in same] for one in clips] == [
        [one[key] for key in same] for one in result["videos"]
    ]
    assert all(len(one["frames"]) == 8 and one["crop"]["height"] > 0 for one in clips)
    assert {one["batch"] for one in result["videos"]} == {0, 1}
    assert all(one["id"].startswith("train/") for one in result["videos"])
    assert all(one["module"] == first["module"] for one in result["videos"][:3])
    table = cli("replay", wild, "--limit", "2", "-q")
    assert table.code == 1 and table.stderr == ""
    assert f"step 4 of {wild} in float32: the loss is not finite" in table.stdout
    assert "videos, the worst 2 of 6" in table.stdout
    assert max(len(line) for line in table.stdout.splitlines() if "│" in line) <= 100


def test_what_fp16_cannot_hold_is_finite_in_fp32(
    load: Load, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    """Weights of hundreds: products overflow in half precision, and there alone."""
    changes = ("run.precision=fp16", "run.max_bad_steps=2", "optim.base_lr=300", *TUBE)
    run = fails(pretrain, load(*changes), tmp_path / "half")
    assert read_bad_step(run).meta["precision"] == "float16"
    still = cli("replay", run, "--json", "-q")
    assert still.code == 1, still.stderr
    assert still.json()["precision"] == "float16" and still.json()["first_output"] is not None
    now = cli("replay", run, "--precision", "fp32", "--json", "-q")
    assert now.code == 0, now.stderr
    result = now.json()
    assert result["finite"] and result["problems"] == [] and result["first_output"] is None
    largest = [one["largest"] for one in result["largest_outputs"]]
    assert largest == sorted(largest, reverse=True) and largest[0] > 65504
    assert all(math.isfinite(one["loss"]) for one in result["videos"])


HIGH = ("run.skip_above_std=1e-3", "run.max_bad_steps=1", "run.log_every=4")


@pytest.mark.parametrize("mask", ["tats", "schedule"])
def test_a_replay_is_the_step_itself_to_the_bit(
    mask: str, load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loss and gradient are those that the training has logged, although three steps followed."""
    monkeypatch.setattr("tatscli.engine.bad_steps.ENOUGH", 2)
    changes = HIGH
    if mask == "schedule":
        learned = "{kind: tats, width: 32, heads: 2, base_lr: 1e-2}"
        mixed = f"{{kind: schedule, ratio: 0.75, from: {{kind: tube}}, to: {learned}, over: 0.5}}"
        changes = (*HIGH, f"mask={mixed}")
    loaded = load(*changes, "optim.epochs=8", "optim.base_lr=1e-5", "optim.batch_per_device=3")
    with pytest.raises(TatsError, match="is bad: the loss is far above") as ended:
        pretrain(loaded, reporter=Reporter(quiet=True), out=tmp_path / "run")
    kept = read_bad_step(tmp_path / "run")
    result = replay(tmp_path / "run", reporter=Reporter(quiet=True))
    every = load(
        *changes,
        "optim.epochs=8",
        "optim.base_lr=1e-5",
        "optim.batch_per_device=3",
        "run.log_every=1",
        "run.skip_above_std=null",
        f"run.max_steps={kept.step + 1}",
    )
    pretrain(every, reporter=Reporter(quiet=True), out=tmp_path / "every")
    line = metrics(tmp_path / "every")[kept.step]
    assert f"step {kept.step + 1} is bad:" in str(ended.value)
    assert result["loss"] == pytest.approx(line["loss"], rel=1e-7)
    assert result["grad_norm"] == pytest.approx(line["grad_norm"], rel=1e-7)
    assert result["loss"] > result["limit"] and "above" in result["problems"][0]
    own = [one["loss"] for one in result["videos"]]
    assert sum(own) / len(own) == pytest.approx(result["loss"], rel=1e-6)


def test_a_fine_tuning_is_replayed(load: Load, tmp_path: Path) -> None:
    changes = (*WILD, *TUBE, "finetune.auxiliary=0.5")
    run = fails(finetune, load(*changes), tmp_path / "tuned")
    result = replay(run, reporter=Reporter(quiet=True))
    assert (result["kind"], result["finite"]) == ("finetuned", False)
    assert result["first_output"] is not None and len(result["videos"]) == 6


def test_a_tokenizer_is_replayed_with_its_discriminator(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    loaded = load_recipe(
        write_recipe(tmp_path / "coder.yaml", store),
        [*WILD, "tokenizer.discriminator={start: 1, width: 8, layers: 1}"],
    )
    run = fails(pretrain, loaded, tmp_path / "coder")
    assert read_bad_step(run).has("discriminator")
    result = replay(run, reporter=Reporter(quiet=True))
    assert (result["kind"], result["finite"]) == ("tokenizer", False)
    assert result["first_output"] is not None and len(result["videos"]) == 6


def test_one_bad_clip_is_told_from_the_others(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A target that has no finite value for the brightest clip."""
    from tatscli.targets.pixels import PixelTarget

    plain = PixelTarget.error

    def error(self: Any, prediction_BMC: Tensor, values: Tensor) -> Tensor:
        error_BM = plain(self, prediction_BMC, values)
        worst = torch.zeros(len(error_BM), 1)
        worst[2] = math.inf
        return error_BM + worst

    monkeypatch.setattr(PixelTarget, "error", error)
    run = fails(pretrain, load("run.max_bad_steps=2", *TUBE), tmp_path / "one")
    result = replay(run, reporter=Reporter(quiet=True))
    bad = [one["loss"] for one in result["videos"]]
    assert [math.isfinite(loss) for loss in bad] == [True, True, False, True, True, True]
    assert result["first_output"] is None  # all modules are well: it is the target
    assert result["problems"] == ["the loss is not finite"]


@pytest.mark.slow
def test_the_batches_of_several_processes_are_replayed_in_one(
    recipe_file: Path, tats: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m")
    changes = (*WILD, *TUBE, "optim.batch_per_device=3", "--out", "runs/two")
    ended = tats("pretrain", recipe_file, *changes, launch=torchrun)
    assert ended.returncode != 0 and "2 bad steps in a row, the last at step 4" in ended.stderr
    meta = read_bad_step(Path("runs/two")).meta
    assert [len(rows) for rows in meta["rows"]] == [3, 3]
    say = Reporter()
    say.stderr = io.StringIO()
    result = replay(Path("runs/two"), reporter=say)
    assert "the batches of 2 processes" in say.stderr.getvalue()
    assert "not the one that was saved" not in say.stderr.getvalue()
    assert (result["processes"], result["finite"]) == (2, False)
    assert [one["rank"] for one in result["videos"]] == [0, 0, 0, 1, 1, 1]


def test_runs_that_have_nothing_to_replay_are_refused(
    tmp_path: Path, cli: Callable[..., Any]
) -> None:
    with pytest.raises(UsageError, match="is no run folder"):
        read_bad_step(tmp_path / "nowhere")
    outcome = cli("replay", tmp_path)
    assert outcome.code == 2
    assert "has no bad step to replay" in outcome.stderr and "Traceback" not in outcome.stderr
    (tmp_path / "bad-step").mkdir()
    (tmp_path / "bad-step" / "meta.json").write_text("{")
    with pytest.raises(DataError, match=r"meta\.json` cannot be read"):
        read_bad_step(tmp_path)


def test_another_store_is_refused(wild: Path, tmp_path: Path, store: Path) -> None:
    meta = json.loads((wild / "bad-step" / "meta.json").read_text())
    meta["store_fingerprint"] = "other"
    (wild / "bad-step" / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(UsageError, match="is not the one that") as refused:
        replay(wild, reporter=Reporter(quiet=True), store=str(store))
    assert "--store" in str(refused.value.hint)


# The trace


class Faulty(nn.Module):
    """Divides by what may be zero, inside."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Linear(3, 3)
        self.after = nn.Linear(3, 2)

    def forward(self, x_BC: Tensor) -> dict[str, Tensor]:
        return {"scores": self.after(self.before(x_BC)), "number": torch.tensor([1])}


def test_the_first_bad_output_is_the_innermost_modules_and_by_sample() -> None:
    model, trace = Faulty(), Trace(4)
    x_BC = torch.randn(4, 3)
    x_BC[2, 1] = math.inf
    with trace.watching({"net": model}):
        model(x_BC)
    model(x_BC)  # nobody watches any more
    assert [one.module for one in trace.outputs] == ["net.before", "net.after", "net"]
    found = first_bad(trace.outputs)
    assert found is not None
    assert (found.module, found.kind, found.shape) == ("net.before", "Linear", (4, 3))
    assert [bool(one) for one in found.bad_B] == [False, False, True, False]
    assert worst_of(trace.outputs, 2) == found
    healthy = worst_of(trace.outputs, 0)
    assert healthy is not None and healthy.of(0)[0] == 0
    assert healthy.of(0)[1] == max(one.of(0)[1] for one in trace.outputs)


def test_gradients_are_seen_from_the_end() -> None:
    model, trace = Faulty(), Trace(2)
    with trace.watching({"": model}):
        made = model(torch.randn(4, 3))["scores"]
    (made - made.detach()).abs().sqrt().sum().backward()  # a root has no slope at 0
    assert [one.module for one in trace.gradients][-1] == "before"
    found = first_bad(trace.gradients)
    assert found is not None and found.module in ("after", "Faulty")
    assert first_bad(trace.outputs) is None


def test_what_is_computed_again_for_the_backward_pass_is_seen_once() -> None:
    from torch.utils.checkpoint import checkpoint

    model, trace = nn.Sequential(nn.Linear(3, 3), nn.Tanh()), Trace(2)
    x_BC = torch.randn(2, 3, requires_grad=True)
    with trace.watching({"": model}):
        made = checkpoint(model, x_BC, use_reentrant=False)
    made.sum().backward()
    assert [one.module for one in trace.outputs] == ["0", "1", "Sequential"]
    assert len(trace.gradients) == 3
