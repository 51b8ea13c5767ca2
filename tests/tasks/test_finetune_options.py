"""Averaged weights, class weights, frozen blocks, few shots, several heads: whole trainings."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tatscli.console import Reporter
from tatscli.engine.checkpoint import find_checkpoint
from tatscli.errors import DataError, RecipeError
from tatscli.nn.averaged import copies_in
from tatscli.recipe.load import LoadedRecipe
from tatscli.tasks import finetune as stage
from tatscli.tasks.dry_run import plan_finetuning
from tatscli.tasks.evaluate import evaluate
from tatscli.tasks.finetune import finetune
from tatscli.tasks.pretrain import pretrain
from tests.processes import train_and_kill
from tests.tasks.classifiers import unprepared
from tests.tasks.runs import assert_equal, metrics, weights

Load = Callable[..., LoadedRecipe]

NANO = ("model={width: 32, depth: 2, heads: 2, patch: 8}", "mask.kind=tube")
PLAIN = "finetune.augment={flip: 0, rand_augment: 0, erasing: 0, mixup: 0, cutmix: 0}"
ALL = (
    *("finetune.ema=0.6", "data.shots=2", "finetune.class_weights=balanced", "finetune.freeze=1"),
    *("finetune.heads=[axis,sign]", "finetune.head.norm=batch", "run.save_every=1"),
)
"""Everything at once; of two shots of three classes a step is a pass."""


@pytest.fixture(scope="session")
def grouped(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store, whose three movements are pairs of an axis and a sign."""
    out = Path(shutil.copytree(store, tmp_path_factory.mktemp("grouped") / "store"))
    facts = json.loads((out / "dataset.json").read_text())
    assert facts["class_names"] == ["down", "left", "right"]
    facts["class_groups"] = {
        "axis": {"names": ["up-down", "left-right"], "of": [0, 1, 1]},
        "sign": {"names": ["minus", "plus"], "of": [1, 0, 1]},
    }
    (out / "dataset.json").write_text(json.dumps(facts))
    return out


@pytest.mark.parametrize("auxiliary", ["null", "0.5"])
def test_the_average_is_what_is_validated_and_saved(
    load: Load, reporter: Reporter, monkeypatch: pytest.MonkeyPatch, auxiliary: str
) -> None:
    """Against a plain loop over the weights after every step, two micro-batches each."""
    seen: list[dict[str, Tensor]] = []
    plain = stage.score_views

    def spy(model: Any, *args: Any, **options: Any) -> Any:
        seen.append({name: value.clone() for name, value in model.state_dict().items()})
        return plain(model, *args, **options)

    monkeypatch.setattr(stage, "score_views", spy)
    words = (
        *(*NANO, "finetune.ema=0.3", "finetune.head.norm=batch", "run.save_every=0.5"),
        *("run.keep=9", "finetune.optim.batch_per_device=3", f"finetune.auxiliary={auxiliary}"),
    )
    result = finetune(load(*words), reporter=reporter, init=None, out="runs/averaged")
    assert result["steps"] == 4
    root = Path("runs/averaged/checkpoints")
    checkpoints = [find_checkpoint(root / f"step-{step:07d}") for step in (1, 2, 3, 4)]
    moving = dict(stage_weights(load(*words)))
    for step, checkpoint in enumerate(checkpoints, start=1):
        trained, average = checkpoint.tensors("trained"), checkpoint.tensors("model")
        momentum = min(0.3, (1 + step) / (10 + step))
        for name, value in moving.items():
            moving[name] = momentum * value + (1 - momentum) * trained[name]
            torch.testing.assert_close(average[name], moving[name], atol=1e-6, rtol=1e-5)
        assert torch.equal(average["batch_norm.running_var_D"], trained["batch_norm.running_var_D"])
        # The first step of a warm-up has the rate 0.
        assert torch.equal(average["head.weight"], trained["head.weight"]) == (step == 1)
    # Both passes were scored by the average, which a checkpoint's `model` is.
    for scored, checkpoint in zip(seen, (checkpoints[1], checkpoints[3]), strict=True):
        average = checkpoint.tensors("model")
        assert all(torch.equal(scored[name], value) for name, value in average.items())
    assert evaluate("runs/averaged", reporter=reporter)["top1"] == result["val_top1"]


def stage_weights(loaded: LoadedRecipe) -> dict[str, Tensor]:
    """The trained weights as a training by this recipe begins."""
    from tests.tasks.test_auxiliary import stage_of

    return {name: one.detach() for name, one in stage_of(loaded).classifier.named_parameters()}


def test_averaging_changes_no_step(load: Load, reporter: Reporter) -> None:
    words = (*NANO, "run.max_steps=2", "finetune.val_split=null")
    finetune(load(*words), reporter=reporter, init=None, out="runs/plain")
    finetune(load(*words, "finetune.ema=0.9"), reporter=reporter, init=None, out="runs/averaged")
    first, second = weights("runs/plain"), weights("runs/averaged", "trained")
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert not find_checkpoint(Path("runs/plain")).has("trained")


@pytest.mark.slow
def test_all_at_once_killed_and_resumed_is_bit_equal(
    recipe_file: Path, grouped: Path, load: Load, reporter: Reporter
) -> None:
    words = (*NANO, *ALL, f"data.store={grouped}", "finetune.optim.epochs=40",
             "finetune.val_every=20")  # fmt: skip
    train_and_kill(6, "finetune", recipe_file, *words, "--scratch", "--out", "runs/killed")
    last = Path("runs/killed/checkpoints/last/meta.json")
    finetune(load(*words), reporter=reporter, init=None, out="runs/straight")
    result = finetune(load(*words), reporter=reporter, init=None, out="runs/killed", resume=True)
    assert "resuming after step" in reporter.stderr.getvalue()
    assert_equal("runs/straight", "runs/killed", "model", "trained", "optimizer")
    assert {"val_top1", "val_axis_top1", "val_sign_top1", "loss/axis"} <= result.keys()
    scored = [line for line in metrics("runs/straight") if "val_top1" in line]
    assert [line["epoch"] for line in scored] == [20, 40]
    # Two videos of each class; the axis up-down has two of six, and weighs as much as the other.
    meta = json.loads(last.read_text())
    run = json.loads(Path("runs/killed/run.json").read_text())
    for facts in (meta, run):
        assert (facts["shots"], facts["train_videos"]) == (2, 6)
        assert facts["class_weights"] == {"axis": [1.5, 0.75], "sign": [1.5, 0.75]}
    assert meta["class_groups"]["axis"] == {"names": ["up-down", "left-right"], "of": [0, 1, 1]}
    # The classifier is rebuilt from what the checkpoint knows.
    found = evaluate("runs/killed", reporter=reporter)
    assert found["top1"] == result["val_top1"]
    assert found["group_top1"] == {name: result[f"val_{name}_top1"] for name in ("axis", "sign")}
    names = set(weights("runs/killed", "optimizer"))
    assert not [one for one in names if one.startswith(("encoder.patch_embed", "encoder.blocks.0"))]
    assert any(one.startswith("encoder.blocks.1") for one in names)


@pytest.mark.slow
def test_two_ranks_train_as_one_process_does(
    recipe_file: Path,
    grouped: Path,
    load: Load,
    reporter: Reporter,
    tats: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    words = (
        *(*NANO, *ALL, PLAIN, f"data.store={grouped}", "finetune.drop_path=0"),
        *("finetune.head_scale=1", "finetune.optim.base_lr=0.05", "finetune.optim.eps=1e-4"),
    )
    finetune(load(*words), reporter=reporter, init=None, out="runs/one")
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m")
    given = ("finetune.optim.batch_per_device=3", "--scratch", "--out", "runs/two")
    two = tats("finetune", recipe_file, *words, *given, launch=launch)
    assert two.returncode == 0, two.stderr
    for part in ("model", "trained"):
        first, second = weights("runs/one", part), weights("runs/two", part)
        for name, value in first.items():
            torch.testing.assert_close(second[name], value, atol=1e-5, rtol=1e-4, msg=name)
    head = "heads.axis.weight"
    moved = weights("runs/one", "trained")[head] - weights("runs/one")[head]
    assert moved.abs().max() > 1e-4  # ten times what is forgiven
    one, both = (json.loads(Path(f"runs/{run}/run.json").read_text()) for run in ("one", "two"))
    assert one["class_weights"] == both["class_weights"] and both["processes"] == 2


@pytest.mark.parametrize(
    ("freeze", "compiled"),
    [("1", "false"), ("encoder", "false"), pytest.param("1", "true", marks=pytest.mark.slow)],
)
def test_frozen_weights_stay_to_the_bit(
    load: Load, reporter: Reporter, freeze: str, compiled: str
) -> None:
    words = (*NANO, f"finetune.freeze={freeze}", "run.max_steps=2", "finetune.val_split=null")
    loaded = load(*words, f"run.compile={compiled}", "finetune.drop_path=0.5")
    before = stage_weights(loaded)
    finetune(loaded, reporter=reporter, init=None, out="runs/frozen")
    after, moments = weights("runs/frozen"), weights("runs/frozen", "optimizer")
    stems = {"1": ("encoder.patch_embed", "encoder.blocks.0"), "encoder": ("encoder.",)}[freeze]
    for name, value in before.items():
        kept = name.startswith((*stems, "encoder.norm"))
        assert torch.equal(after[name], value) == kept, name
        assert any(one.startswith(f"{name}/") for one in moments) != kept, name
    assert f"`finetune.freeze: {freeze}` freezes random weights" in reporter.stderr.getvalue()


@pytest.mark.parametrize("auxiliary", ["null", "0.5"])
def test_last_blocks_start_from_random_weights(
    load: Load, reporter: Reporter, auxiliary: str
) -> None:
    """The others are the run's, and the random ones those of a training from scratch."""
    from tests.tasks.test_auxiliary import stage_of

    pretrain(load(*NANO, "run.max_steps=1", "run.seed=7"), reporter=reporter, out="runs/start")
    trained = weights("runs/start")
    loaded = load(*NANO, f"finetune.auxiliary={auxiliary}", "finetune.reinit_blocks=1",
                  "targets=[{kind: ema}]")  # fmt: skip
    scratch = stage_weights(loaded)
    stage = stage_of(loaded, init=Path("runs/start"))
    begun = stage.classifier.state_dict()
    for name, value in begun.items():
        if name.startswith("encoder."):
            start = scratch if name.startswith("encoder.blocks.1.") else trained
            assert torch.equal(value, start[name]), name
    matrix = "encoder.blocks.{}.mlp.fc1.weight"
    assert not any(
        torch.equal(trained[matrix.format(i)], scratch[matrix.format(i)]) for i in (0, 1)
    )
    if stage.auxiliary is not None:
        ((average, _),) = copies_in(*stage.auxiliary.system.targets.values())
        for name, value in average.state_dict().items():
            assert torch.equal(value, begun[f"encoder.{name}"]), name


def test_a_frozen_encoder_and_its_average_serve_several_heads(
    load: Load, reporter: Reporter, grouped: Path, tmp_path: Path
) -> None:
    """What was pretrained is what comes out, and `--dry-run` says how much that is."""
    words = (*NANO, f"data.store={grouped}", "finetune.freeze=encoder", "finetune.ema=0.5",
             "finetune.heads=[sign,axis]", "finetune.class_weights={sign/plus: 2}",
             "data.shots=1")  # fmt: skip
    plan = plan_finetuning(load(*words), tmp_path)
    blocks = 2 * (12 * 32**2 + (2 + 1 + 4 + 1) * 32 + 4 * 32)  # matrices, biases, norms
    assert plan["frozen_parameters"] == blocks + 2 * 8 * 8 * 3 * 32 + 32
    assert plan["heads"] == {"sign": 2, "axis": 2}
    total = plan["frozen_parameters"] + 2 * 32 + 2 * 32 + 2 * (2 * 32 + 2)
    assert plan["ema_gb"] == pytest.approx(4e-9 * total)
    assert plan["optimizer_gb"] == pytest.approx(4e-9 * plan["frozen_parameters"] + 16e-9 * 64)
    assert (plan["videos"], plan["shots"]) == (3, 1)
    assert plan["class_weights"] == {"sign": [1, 2], "axis": [1, 1]}
    plain = plan_finetuning(load(*NANO), tmp_path)
    assert (plain["heads"], plain["ema_gb"], plain["frozen_parameters"]) == ({"class": 3}, 0, 0)


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        (["finetune.ema=1"], RecipeError, r"`finetune\.ema: 1` must be less than 1"),
        (["finetune.freeze=all"], RecipeError, r"`finetune\.freeze: \"all\"` must be one of"),
        (["finetune.freeze=0"], RecipeError, r"`finetune\.freeze: 0` must be"),
        (["finetune.freeze=9"], RecipeError, r"`finetune\.freeze: 9`: the encoder has only 2"),
        (["finetune.reinit_blocks=-1"], RecipeError, r"`finetune\.reinit_blocks: -1` must be"),
        (["finetune.reinit_blocks=3"], RecipeError, "`.*: 3`: the encoder has only 2 blocks"),
        (
            ["finetune.reinit_blocks=1", "finetune.freeze=2"],
            RecipeError,
            "`finetune.freeze: 2` would freeze re-initialised blocks: .* 1 of 2 blocks keep",
        ),
        (
            ["finetune.reinit_blocks=1", "finetune.freeze=encoder"],
            RecipeError,
            "`freeze: encoder` and `reinit_blocks: 1` cannot be combined",
        ),
        (
            ["finetune.freeze=encoder", "finetune.auxiliary=0.9"],
            RecipeError,
            "`freeze: encoder` and `auxiliary: 0.9` cannot be combined",
        ),
        (["finetune.heads=[]"], RecipeError, r"`finetune\.heads: \[\]` must be a list of at least"),
        (["finetune.heads=[verb,verb]"], RecipeError, "names a group twice"),
        (["finetune.heads=[verb]"], RecipeError, "no group `verb`: they are not combinations"),
        (["finetune.class_weights=equal"], RecipeError, r"`finetune\.class_weights: \"equal\"`"),
        (
            ["finetune.class_weights={left: -1}"],
            RecipeError,
            r"`finetune\.class_weights: {\"left\": -1}` must be `balanced`, or positive weights",
        ),
        (["finetune.class_weights={lfet: 2}"], RecipeError, "`lfet`, .* did you mean `left`"),
        (["data.shots=0"], RecipeError, r"`data\.shots: 0` must be at least 1"),
        (["data.shots=9"], DataError, r"`data\.shots: 9` is more than the videos"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_settings_are_one_message_and_leave_nothing(
    load: Load, reporter: Reporter, words: list[str], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as raised:
        finetune(load(*NANO, *words), reporter=reporter, init=None)
    assert "problems" not in str(raised.value)
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("task", "told"),
    [(pretrain, [("train", 12, 1)]), (finetune, [("train", 12, 1), ("val", 6, 2)])],
)
def test_a_training_says_once_which_videos_could_not_be_prepared(
    load: Load,
    store: Path,
    tmp_path: Path,
    reporter: Reporter,
    task: Any,
    told: list[tuple[str, int, int]],
) -> None:
    gone = ["train/left/0.mp4", "val/down/0.mp4", "val/left/1.mp4"]
    partly = unprepared(store, tmp_path / "partly", gone)
    words = (f"data.store={partly}", "run.max_steps=1", "mask={kind: tube, ratio: 0.75}", NANO[0])
    task(load(*words), reporter=reporter, init=None, out="runs/partly")
    said = reporter.stderr.getvalue()  # type: ignore[attr-defined]
    for split, total, failed in told:
        message = f"{failed} of {total} videos in split `{split}` of `{partly}` could not be prepar"
        assert said.count(message) == 1
    assert said.count("could not be prepared") == len(told)
