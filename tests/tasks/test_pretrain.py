import io
import itertools
import json
import math
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tatscli.console import Reporter
from tatscli.errors import CheckpointError, DataError, UsageError
from tatscli.recipe.load import LoadedRecipe
from tatscli.system.load import load_system
from tatscli.tasks.pretrain import Pretraining, pretrain
from tests.processes import train_and_kill

Load = Callable[..., LoadedRecipe]


def weights(run: Path) -> dict[str, torch.Tensor]:
    last = run / "checkpoints" / "last"
    files = ("model", "masker", "optimizer")
    return {
        f"{file}/{name}": value
        for file in files
        if (last / f"{file}.safetensors").exists()
        for name, value in load_file(last / f"{file}.safetensors").items()
    }


def assert_equal_weights(first: Path, second: Path) -> None:
    one, other = weights(first), weights(second)
    assert one.keys() == other.keys()
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert not different, different[:3]


def metrics(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_run_leaves_what_the_run_folder_promises(load: Load, reporter: Reporter) -> None:
    result = pretrain(load(), reporter=reporter)
    run = Path(result["run"])
    assert run == Path("runs/tiny")
    assert result["steps"] == 10
    assert load("run.seed=0").recipe == load().recipe
    facts = json.loads((run / "run.json").read_text())
    assert facts["derived"]["total_steps"] == 10
    assert facts["device"].startswith("cpu")
    meta = json.loads((run / "checkpoints" / "last" / "meta.json").read_text())
    assert (meta["kind"], meta["step"], meta["name"]) == ("pretrained", 10, "tiny")
    lines = metrics(run)
    assert [line["step"] for line in lines] == list(range(1, 11))
    wanted = {
        "loss", "loss/pixels", "loss/tats", "lr", "grad_norm", "sampler_lr", "sampler_grad_norm",
        "data_seconds", "step_seconds", "entropy", "clip_fraction", "kl", "policy_loss",
        "value_loss", "explained_variance", "reward", "restored", "motion_share", "motion_lift",
    }  # fmt: skip
    assert wanted <= lines[0].keys()
    assert not {"updates", "plan_faults"} & lines[0].keys()
    assert [line["skipped"] for line in lines] == [0] * 10
    loaded, system = load_system(run)
    assert loaded.recipe == load().recipe
    assert system.masker.policy.actor.weight.abs().sum() > 0  # it has learned something


def test_losses_are_told_by_target_and_mask(load: Load, reporter: Reporter) -> None:
    """`loss` is what the autoencoder gets wrong: neither weights nor the sampler hide it."""
    targets = "targets=[{kind: pixels}, {kind: difference, weight: 0.5}, {kind: pixels, weight: 2}]"
    result = pretrain(load(targets), reporter=reporter)
    for line in metrics(Path(result["run"])):
        pixels, difference = line["loss/pixels"], line["loss/difference"]
        total = pixels + 0.5 * difference + 2 * line["loss/pixels_2"]
        assert line["loss"] == pytest.approx(total, rel=1e-4)
        assert pixels != line["loss/pixels_2"]
        sampler = line["policy_loss"] + 0.5 * line["value_loss"]  # and less the entropy in nats
        assert line["loss/tats"] == pytest.approx(
            sampler - line["entropy"] * math.log(64), rel=1e-3
        )


@pytest.mark.parametrize("mask", ["tube", "random"])
def test_masks_heads_and_targets_mix_freely(load: Load, reporter: Reporter, mask: str) -> None:
    targets = "targets=[{kind: pixels}, {kind: difference, span: clip, gaps: [1, 3]}]"
    heads = {
        "decoder": ("head.depth=2", "head.branches"),
        "regressor": ("head={kind: regressor, depth: 1, regressor_depth: 1}", "head.decoders"),
    }
    for kind, (head, stem) in heads.items():
        result = pretrain(
            load(f"mask.kind={mask}", head, targets, "optim.epochs=2"),
            reporter=reporter,
            out=f"runs/{kind}",
        )
        assert not {"entropy", f"loss/{mask}", "sampler_lr"} & result.keys()
        assert not (Path(result["checkpoint"]) / "masker.safetensors").exists()
        names = load_file(Path(result["checkpoint"]) / "model.safetensors")
        places = {name.split(".")[2] for name in names if name.startswith(stem)}
        assert places == {"0", "1"}
        assert load_system(result["run"])[0].recipe.head.kind == kind


def test_alignment_is_part_of_the_loss(load: Load, reporter: Reporter) -> None:
    head = "head={kind: regressor, depth: 1, regressor_depth: 1, alignment: 2}"
    result = pretrain(load(head, "mask.kind=tube", "run.max_steps=2"), reporter=reporter)
    for line in metrics(Path(result["run"])):
        assert line["loss/alignment"] > 0
        assert line["loss"] == pytest.approx(
            line["loss/pixels"] + 2 * line["loss/alignment"], rel=1e-4
        )


def test_ten_steps_equal_five_resumed_by_five(load: Load, reporter: Reporter) -> None:
    pretrain(load(), reporter=reporter, out="runs/straight")
    pretrain(load("run.max_steps=5"), reporter=reporter, out="runs/halves")
    result = pretrain(load(), reporter=reporter, out="runs/halves", resume=True)
    assert result["steps"] == 10
    assert_equal_weights(Path("runs/straight"), Path("runs/halves"))


def test_data_order_and_weights_do_not_depend_on_the_workers(
    load: Load, reporter: Reporter
) -> None:
    pretrain(load("run.max_steps=4"), reporter=reporter, out="runs/none")
    pretrain(load("run.max_steps=4", "data.workers=2"), reporter=reporter, out="runs/two")
    assert_equal_weights(Path("runs/none"), Path("runs/two"))


def test_views_that_the_device_resizes_train_alike(load: Load, reporter: Reporter) -> None:
    losses = []
    for where in ("host", "device"):
        loaded = load("run.max_steps=2", f"data.resize_on={where}", "data.crop_scales=[0.66]")
        result = pretrain(loaded, reporter=reporter, out=f"runs/{where}")
        losses.append([line["loss"] for line in metrics(Path(result["run"]))])
    host, device = losses
    assert host != device  # by a grey level here and there
    assert host == pytest.approx(device, rel=1e-2)


def test_killed_without_warning_and_resumed_is_bit_equal(
    recipe_file: Path, cli: Callable[..., Any]
) -> None:
    words = ["pretrain", str(recipe_file), "run.save_every=0.5", "optim.epochs=12"]
    straight = cli(*words, "--out", "runs/straight")
    assert straight.code == 0, straight.stderr
    train_and_kill(5, *words, "--out", "runs/killed")
    again = cli(*words, "--out", "runs/killed", "--resume")
    assert again.code == 0, again.stderr
    assert "resuming after step" in again.stderr
    assert_equal_weights(Path("runs/straight"), Path("runs/killed"))
    assert [line["step"] for line in metrics(Path("runs/killed"))] == list(range(1, 25))


def test_sigterm_saves_and_exits_with_143(
    recipe_file: Path, cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process: it is told by a signal of its own in the middle of its third step."""
    plain, steps = Pretraining.step, itertools.count(1)

    def step(self: Pretraining, *given: Any) -> Any:
        if next(steps) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(self, *given)

    monkeypatch.setattr(Pretraining, "step", step)
    outcome = cli("pretrain", recipe_file)
    assert outcome.code == 143
    assert "\nstopped after step 3 of 10" in outcome.stderr  # and not `stopped: stopped ...`
    assert "--resume" in outcome.stderr
    last = json.loads(Path("runs/tiny/checkpoints/last/meta.json").read_text())
    assert last["step"] == 3


@pytest.mark.slow
def test_two_ranks_resume_bit_for_bit(
    recipe_file: Path, tats: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    launch = ("-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=29613", "-m")
    words = ("pretrain", recipe_file, "optim.batch_per_device=3")
    words = (*words, "run.save_every=0.5", "run.keep=9")
    both = tats(*words, "--out", "runs/two", "--json", launch=launch)
    assert both.returncode == 0, both.stderr
    assert json.loads(both.stdout)["steps"] == 10  # exactly one object, from rank 0
    assert json.loads(Path("runs/two/run.json").read_text())["processes"] == 2
    # Saved by two ranks in the middle of a pass and finished by them, it is the straight one.
    kept = Path(shutil.copytree("runs/two", "runs/halves", symlinks=True)) / "checkpoints"
    for step in range(6, 11):
        shutil.rmtree(kept / f"step-{step:07d}")
    (kept / "last").unlink()
    (kept / "last").symlink_to("step-0000005")
    second = tats(*words, "--out", "runs/halves", "--resume", "--nproc", "2", "--json")
    assert second.returncode == 0, second.stderr
    assert second.stderr.count("resuming after step 5") == 1
    assert json.loads(second.stdout)["steps"] == 10
    assert_equal_weights(Path("runs/two"), Path("runs/halves"))


def test_threads_are_those_of_the_recipe_while_it_trains(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts, before = [], torch.get_num_threads()
    plain = Pretraining.step

    def step(self: Pretraining, *given: Any) -> Any:
        counts.append(torch.get_num_threads())
        return plain(self, *given)

    monkeypatch.setattr(Pretraining, "step", step)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    stderr = io.StringIO()
    talkative = Reporter(stdout=io.StringIO(), stderr=stderr, verbose=True)
    short = ("run.max_steps=1", "mask.kind=tube")
    pretrain(load(*short, f"run.threads={before + 1}"), reporter=talkative, overwrite=True)
    pretrain(load(*short), reporter=talkative, overwrite=True)  # a small step
    assert counts == [before + 1, 1]
    assert torch.get_num_threads() == before
    assert f"threads: {before + 1}: set in the recipe" in stderr.getvalue()
    assert "threads: 1: a step is only" in stderr.getvalue()


def test_wrong_inputs_are_told_before_anything_is_written(load: Load, reporter: Reporter) -> None:
    with pytest.raises(DataError, match="no store at `nowhere`"):
        pretrain(load("data.store=nowhere"), reporter=reporter)
    with pytest.raises(DataError, match="no split `trian`; it has `train`, `val`"):
        pretrain(load("data.split=trian"), reporter=reporter)
    assert not Path("runs").exists()
    pretrain(load("run.max_steps=1"), reporter=reporter)
    with pytest.raises(UsageError, match="is not empty"):
        pretrain(load(), reporter=reporter)
    with pytest.raises(UsageError, match=r"`optim\.epochs: 9` \(the run has `5`\)"):
        pretrain(load("optim.epochs=9"), reporter=reporter, resume=True)
    with pytest.raises(UsageError, match=r"`run\.seed: 1` \(the run has `0`\)"):
        pretrain(load("run.seed=1"), reporter=reporter, resume=True)
    pretrain(load("run.max_steps=1"), reporter=reporter, overwrite=True)


def test_the_loss_curve_is_pinned(load: Load, reporter: Reporter) -> None:
    """A change that should not alter numbers must leave these alone."""
    pretrain(load(), reporter=reporter)
    curve = [line["loss"] for line in metrics(Path("runs/tiny"))]
    pinned = json.loads((Path(__file__).parents[1] / "assets" / "tiny_losses.json").read_text())
    assert curve == pytest.approx(pinned, rel=2e-3)


def test_resuming_needs_a_checkpoint_and_the_same_store(
    load: Load, reporter: Reporter, store: Path, tmp_path: Path
) -> None:
    pretrain(load("run.max_steps=1"), reporter=reporter)
    moved = tmp_path / "moved"
    shutil.copytree(store, moved)
    elsewhere = (f"data.store={moved}", "data.workers=1", "run.max_steps=2")
    assert pretrain(load(*elsewhere), reporter=reporter, resume=True)["steps"] == 2
    rows = (moved / "manifest.jsonl").read_text().splitlines(keepends=True)
    (moved / "manifest.jsonl").write_text("".join(rows[1:]))
    with pytest.raises(UsageError, match="videos or settings have changed"):
        pretrain(load(*elsewhere), reporter=reporter, resume=True)
    shutil.rmtree("runs/tiny/checkpoints")
    with pytest.raises(CheckpointError, match="stopped before its first checkpoint"):
        pretrain(load(), reporter=reporter, resume=True)


def test_a_store_of_nothing_but_failures_is_refused(
    load: Load, reporter: Reporter, cli: Callable[..., object], tmp_path: Path
) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "clip.mp4").write_bytes(b"no video")
    assert cli("prepare", tmp_path / "bad").code == 1
    with pytest.raises(DataError, match="holds no readable video"):
        pretrain(load("data.store=prepared/bad", "data.split=null"), reporter=reporter)


def test_a_loss_that_is_not_finite_is_null_in_the_json(
    recipe_file: Path, cli: Callable[..., object]
) -> None:
    outcome = cli(
        "pretrain", recipe_file, "optim.base_lr=1e30", "run.max_bad_steps=50", "--json", "-q"
    )
    assert outcome.code == 0, outcome.stderr
    assert outcome.json()["steps"] == 10


def test_a_place_that_cannot_be_written_is_one_message(
    recipe_file: Path, cli: Callable[..., object]
) -> None:
    outcome = cli("pretrain", recipe_file, "--out", "/proc/nowhere/run")
    assert outcome.code == 1
    assert "error: cannot use `/proc/nowhere" in outcome.stderr
    assert "Traceback" not in outcome.stderr
