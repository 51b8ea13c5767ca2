"""An adaptive tokenizer of videos through its training: second stage, ranks, a sudden end."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tatscli.console import Reporter
from tatscli.engine.checkpoint import find_checkpoint
from tatscli.engine.distributed import World
from tatscli.engine.feed import Feed
from tatscli.engine.loop import optimise
from tatscli.engine.metrics import Averages
from tatscli.engine.session import Session
from tatscli.engine.training import Training
from tatscli.errors import RecipeError, UsageError
from tatscli.recipe.derive import derive_schedule
from tatscli.recipe.load import LoadedRecipe, load_recipe
from tatscli.recipe.schema import Data, Sampling
from tatscli.store.reader import Store
from tatscli.tasks.dry_run import plan_pretraining
from tatscli.tasks.evaluate_tokenizer import evaluate_tokenizer
from tatscli.tasks.pretrain import pretrain
from tatscli.tasks.tokenizer import TokenizerTraining
from tatscli.tokenizer.adaptive import AdaptiveTokenizer
from tatscli.tokenizer.load import open_run
from tatscli.visualize.windows import WindowReader
from tests.clips import moving_patch, render
from tests.processes import train_and_kill
from tests.system.fake_device import GPU, NoWaits, pretend_gpu, to_gpu
from tests.system.test_no_waits import Arrived, host_batch
from tests.tasks.runs import assert_equal, metrics, weights

Load = Callable[..., LoadedRecipe]
RECIPE = """
data:
  {{store: {store}, split: train, frames: 8, size: 32, sampling: {{mode: dense, stride: 1}},
    workers: 0}}
tokenizer:
  {{kind: adaptive, stride: 8, patch: 4, widths: [8, 8], blocks: 1, levels: [5, 5], keep: 20,
    scorer_width: 4, ema: 0.8}}
optim: {{epochs: 4, total_batch: 6, batch_per_device: 6, base_lr: 0.2, warmup_epochs: 0}}
run: {{log_every: 1, save_every: 0.5, device: cpu}}
"""
GAN = "tokenizer.discriminator={start: 2, width: 4, layers: 2, loss: nonsaturating, r1: 1}"
PARTS = ("model", "trained", "optimizer", "discriminator", "discriminator_optimizer")


@pytest.fixture
def load_coder(tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "coder.yaml"
    path.write_text(RECIPE.format(store=store))
    return lambda *overrides: load_recipe(path, overrides)


@pytest.fixture(scope="module")
def coder(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained tokenizer that every test may read."""
    folder = tmp_path_factory.mktemp("adaptive")
    (folder / "coder.yaml").write_text(RECIPE.format(store=store))
    say = Reporter()
    say.quiet = True
    pretrain(load_recipe(folder / "coder.yaml", [GAN]), reporter=say, out=folder / "run")
    return folder / "run"


def test_it_learns_and_tells_how_well(coder: Path) -> None:
    lines = [line for line in metrics(coder) if "psnr" in line]
    assert len(lines) == 8
    assert lines[-1]["psnr"] > lines[0]["psnr"] + 0.5
    for number, line in enumerate(lines):
        assert line["score"] > 0
        assert line["score_contrast"] > 0
        assert 0 < line["code_use"] <= 1
        assert ("loss/r1" in line) == ("loss/adversarial" in line) == (number >= 2)
        parts = line["loss/reconstruction"] + line.get("loss/adversarial", 0)
        assert line["loss"] == pytest.approx(parts, rel=1e-5)
    scorers = (weights(coder, "trained"), open_run(coder)[0].state_dict())
    assert not torch.equal(*(one["scorer.first.weight"] for one in scorers))


def test_the_model_of_a_checkpoint_is_the_average(load_coder: Load, reporter: Reporter) -> None:
    """Of the weights after every step, by the formula."""
    runs = []
    for steps in (1, 2, 3):
        loaded = load_coder(f"run.max_steps={steps}", "tokenizer.ema=0.3")
        pretrain(loaded, reporter=reporter, out=f"runs/{steps}")
        runs.append(Path(f"runs/{steps}"))
    # The first average is the start: one step back from the first one.
    after = [weights(run, "trained")["encoder.stem.weight"] for run in runs]
    first = 2 / 11
    mean = (weights(runs[0])["encoder.stem.weight"] - (1 - first) * after[0]) / first
    for number, (run, one) in enumerate(zip(runs, after, strict=True), start=1):
        momentum = min(0.3, (1 + number) / (10 + number))  # 0.18, 0.25, and then the recipe's
        mean = momentum * mean + (1 - momentum) * one
        torch.testing.assert_close(weights(run)["encoder.stem.weight"], mean, atol=1e-6, rtol=1e-5)
    plain = load_coder("tokenizer.ema=null", "run.max_steps=2")
    pretrain(plain, reporter=reporter, out="runs/plain")
    assert torch.equal(weights(Path("runs/plain"))["encoder.stem.weight"], after[1])
    assert not find_checkpoint(Path("runs/plain")).has("trained")


@pytest.mark.slow
def test_killed_and_resumed_it_is_bit_equal(
    coder: Path, load_coder: Load, reporter: Reporter
) -> None:
    """Generator, discriminator and average, as a run that nobody disturbed."""
    loaded = load_coder(GAN)
    train_and_kill(6, "pretrain", "coder.yaml", GAN, "--out", "runs/killed")
    pretrain(loaded, reporter=reporter, out="runs/killed", resume=True)
    assert "resuming after step" in reporter.stderr.getvalue()
    assert_equal(coder, Path("runs/killed"), *PARTS)


@pytest.mark.slow
def test_two_ranks_learn_what_one_process_learns(
    load_coder: Load, tats: Callable[..., subprocess.CompletedProcess[str]], reporter: Reporter
) -> None:
    # Biases before a norm of single channels have no gradient but rounding, which Adam would scale
    # up to steps of full length.
    slow = (GAN, "optim.base_lr=0.01", "optim.epochs=2", "optim.eps=1e-4")
    pretrain(load_coder(*slow), reporter=reporter, out="runs/one")
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m")
    words = ("pretrain", "coder.yaml", *slow, "optim.batch_per_device=3", "--out", "runs/two")
    two = tats(*words, launch=launch)
    assert two.returncode == 0, two.stderr
    for part in ("model", "trained", "discriminator"):
        first, second = weights(Path("runs/one"), part), weights(Path("runs/two"), part)
        for name, value in first.items():
            torch.testing.assert_close(second[name], value, atol=1e-5, rtol=1e-5, msg=name)
    moved = weights(Path("runs/one"), "trained")["decoder.stem.weight"]
    assert (moved - weights(Path("runs/one"))["decoder.stem.weight"]).abs().max() > 1e-5


def test_a_second_stage_trains_the_decoder_alone(
    coder: Path, load_coder: Load, reporter: Reporter
) -> None:
    second = load_coder("tokenizer.train=decoder", "run.max_steps=3")
    with pytest.raises(UsageError, match=r"`tokenizer\.train: decoder` needs a trained encoder"):
        pretrain(second, reporter=reporter, out="runs/second")
    other = load_coder("tokenizer.train=decoder", "data.frames=4", "tokenizer.keep=10")
    with pytest.raises(UsageError, match="windows of 8 frames"):
        pretrain(other, reporter=reporter, init=coder, out="runs/second")
    pretrain(second, reporter=reporter, init=coder, out="runs/second")
    before, after = weights(coder), weights(Path("runs/second"))
    for name, value in before.items():
        same = torch.equal(value, after[name])
        assert same == (not name.startswith("decoder.")), name
    optimizer = weights(Path("runs/second"), "optimizer")
    assert all(name.startswith("decoder.") for name in optimizer)
    whole = load_coder("tokenizer.train=decoder", "run.max_steps=4")
    pretrain(whole, reporter=reporter, out="runs/second", resume=True)
    frames = torch.rand(1, 3, 8, 32, 32)
    one, two = open_run(coder)[0].eval(), open_run(Path("runs/second"))[0].eval()
    assert torch.equal(one.encode(frames), two.encode(frames))


def test_evaluation_shows_what_the_kept_codes_hold(
    coder: Path, reporter: Reporter, tmp_path: Path
) -> None:
    result = evaluate_tokenizer(coder, reporter=reporter, out=tmp_path / "result.json")
    assert (result["videos"], result["pictures"]) == (6, 48)
    assert result["kept"] == pytest.approx((16 + 20) / 64)
    assert 0 < result["code_use"] <= 1
    assert result["codebook_size"] == 25
    tokenizer, _, _ = open_run(coder)
    assert isinstance(tokenizer, AdaptiveTokenizer)
    assert (tokenizer.window, tokenizer.frames) == (8, 2)


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_scores_lie_where_something_moves(coder: Path, tmp_path: Path, codec: str) -> None:
    """A patch of known places over still ground, encoded: it and what it uncovers."""
    step, start, side, frames = (3, 2), (8, 8), 16, 24
    moving = moving_patch(step, frames=frames, height=96, width=96, side=side, start=start)
    clip = render(tmp_path / "moving.mp4", moving, codec=codec)
    data = Data(store="", frames=frames, size=96, sampling=Sampling(stride=1))
    (window,) = WindowReader(data).read(clip, grid=(12, 12))
    tokenizer, _, _ = open_run(coder)
    video = window.video_TCHW.transpose(0, 1)[None].float() / 255
    scores = tokenizer.eval().code(video).scores_Bthw
    assert scores is not None
    touched = torch.zeros(frames, 96, 96)
    for frame in range(frames):
        left, top = (begin + frame * by for begin, by in zip(start, step, strict=True))
        touched[frame, top : top + side, left : left + side] = 1
    by_code = touched.view(frames // 2, 2, 12, 8, 12, 8).amax(dim=(1, 3, 5))
    inside = by_code[1:].maximum(by_code[:-1])  # a slice is compared with the one before
    share = (scores[0, 1:] * inside).sum() / scores[0, 1:].sum()
    assert share / inside.mean() >= 3


def test_what_is_for_encoders_is_refused_and_other_frames_have_a_name(
    coder: Path, reporter: Reporter
) -> None:
    with pytest.raises(UsageError, match=r"`evaluate\.shots` is for encoders"):
        evaluate_tokenizer(coder, reporter=reporter, overrides=["evaluate.shots=1"])
    short = evaluate_tokenizer(coder, reporter=reporter, overrides=["data.frames=2"])
    assert Path(short["results"]).name == "reconstruction-val-1x1-frames2.json"


def test_a_tokenizer_that_moved_is_found_again_by_selections(
    coder: Path, load_coder: Load, reporter: Reporter, tmp_path: Path
) -> None:
    base = ("tokenizer=null", "mask={kind: tube, ratio: 0.75}", "model={size: nano, patch: 8}")
    shutil.copytree(coder, "moved", symlinks=True)

    def masked(path: Path | str, *more: str) -> LoadedRecipe:
        predict = f"predict={{kind: tokenizer, tokenizer: {{kind: run, path: {path}}}}}"
        return load_coder(*base, predict, "head={kind: decoder, depth: 1}", *more)

    pretrain(masked(coder, "run.max_steps=1"), reporter=reporter, out="runs/masked")
    pretrain(masked("moved", "run.max_steps=2"), reporter=reporter, out="runs/masked", resume=True)
    assert find_checkpoint(Path("runs/masked")).meta["frozen"][0]["path"] == "moved"


@pytest.mark.parametrize("topk", ["straight_through", "perturbed"])
def test_a_step_waits_for_nothing_on_the_device(
    topk: str, load_coder: Load, reporter: Reporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a pretend GPU; without R1, whose gradient torch wants from a real one."""
    gan = "tokenizer.discriminator={start: 0, width: 4, layers: 2}"
    loaded = load_coder(gan, f"tokenizer.topk={topk}")
    stage = TokenizerTraining(loaded, Store.open(loaded.recipe.data.store), None, Path("runs"))
    here = Session(World(), torch.device("cpu"), torch.float32, reporter, {})
    stage.build(here, resume=False)
    assert stage.adversary is not None
    assert stage.average is not None
    schedule = derive_schedule(loaded.recipe.optim, videos=12, repeats=1, world=1)
    with pretend_gpu(monkeypatch):
        to_gpu(stage.model, stage.average.average, stage.adversary)
        stage.network = stage.model
        learners = stage.learners(schedule)
        batches = iter([Arrived(host_batch(loaded.recipe, size=32))] * 2)
        training = Training(
            model=stage.model,
            step=stage.step,
            learners=learners,
            parts=stage.parts(learners),
            schedule=schedule,
            batches=lambda start: batches,
            run=loaded.recipe.run,
            folder=Path("runs/pretend"),
            meta={},
            world=World(),
            device=GPU,
            dtype=torch.float32,
            reporter=reporter,
        )
        feed = Feed(batches, GPU)
        with NoWaits():
            for _ in range(2):
                optimise(training, feed, Averages())
        for module in (stage.model, stage.adversary, stage.average.average):
            assert all(one.device == GPU for one in module.parameters())


def test_a_dry_run_tells_its_grid_and_cost(load_coder: Load) -> None:
    plan = plan_pretraining(load_coder(GAN), Path("runs/coder"))
    assert plan["grid"] == [4, 4, 4]
    assert plan["tokens"] == 64
    assert plan["codebook_size"] == 25
    assert plan["gflops_per_clip"]["tokenizer"] > 0


@pytest.mark.parametrize(
    "override, words",
    [
        ("tokenizer.keep=48", "`tokenizer.keep: 48` must lie between 1 and 47"),
        ("data.frames=2", "a window of `data.frames: 2` is a single slice"),
        ("tokenizer={kind: adaptive, first: among, keep: 16, stride: 8, widths: [8, 8]}", "17 and"),
        ("data.frames=7", "`data.frames: 7` is not a multiple of `tokenizer.tubelet: 2`"),
        ("tokenizer.levels=[2]", "`tokenizer.levels.0: 2` must be at least 3"),
        ("tokenizer.ema=1", "`tokenizer.ema: 1` must be less than 1"),
    ],
)
def test_recipes_that_cannot_be_are_refused(load_coder: Load, override: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words.replace("[", r"\[")):
        plan_pretraining(load_coder(override), Path("runs/coder"))
