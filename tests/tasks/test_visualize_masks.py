"""Looking at a trained run: its own mask, its guesses, and what may be changed about it."""

from pathlib import Path

import pytest
import torch

from tatscli.errors import CheckpointError, UsageError
from tatscli.recipe.schema import FsqTokenizer, Sampling
from tatscli.system.load import load_system
from tatscli.tasks.compare_masks import compare_masks
from tatscli.tasks.finetune import finetune
from tatscli.tasks.mask_setup import Overrides, kept_checkpoints, set_up_viewer
from tatscli.tasks.pretrain import pretrain
from tatscli.tasks.visualize_masks import visualize_masks
from tatscli.tasks.visualize_tokenizer import visualize_tokenizer
from tatscli.visualize.viewer import Viewer
from tests.clips import pan, render
from tests.tokenizer.saved import save_tokenizer


def scores(viewer: Viewer, clips: int = 1) -> torch.Tensor | None:
    """The probabilities of the tokens of noise, the same for every viewer."""
    generator = torch.Generator().manual_seed(0)
    video = torch.randint(0, 256, (clips, 3, 8, 32, 32), dtype=torch.uint8, generator=generator)
    return viewer.system.masker.scores_BN(viewer.system.clip(video))


@pytest.fixture
def run(trained):
    """A pretrained run of the tiny recipe."""
    return str(trained("optim.epochs=2", task=pretrain))


@pytest.fixture
def clip(tmp_path):
    return render(tmp_path / "clip.mp4", pan((2, 0), frames=20, height=48, width=64))


def test_a_run_shows_its_mask_its_guess_and_its_probabilities(run, clip, reporter, tmp_path):
    found = visualize_masks(clip, reporter=reporter, run=run, out=tmp_path / "out.png")
    assert (found["mask"], found["ratio"], found["grid"]) == ("tats", 0.75, [4, 4, 4])
    (window,) = found["windows"]
    assert window["frames"] == list(range(8))  # the recipe's stride
    assert len(window["visible"]) == 16 and len(window["probability"]) == 64
    assert (tmp_path / "out.png").stat().st_size > 0


def test_a_run_that_predicts_differences_misses_no_reconstruction(
    trained, clip, reporter, tmp_path
):
    rows = {"motion": ["left out: reconstruction (the model predicts no pixels)"], "difference": []}
    for target, left in rows.items():
        keys = ("optim.epochs=1", f"targets=[{{kind: {target}}}]")
        run = str(trained(*keys, task=pretrain, out=f"runs/{target}"))
        found = visualize_masks(clip, reporter=reporter, run=run, out=tmp_path / "out.png")
        assert [note for note in found["notes"] if "left out" in note] == left
    _, system = load_system(run)
    assert Viewer(system, trained=True).difference_target == "difference"


def test_probabilities_and_guesses_are_those_of_the_trained_weights(run, clip):
    _, system = load_system(run)
    setup = set_up_viewer(run, None, Overrides())
    viewer, notes = setup.viewer, setup.notes
    assert torch.equal(scores(viewer, 2), scores(Viewer(system), 2))
    assert len(scores(viewer, 2).unique()) > 1  # trained: not uniform
    for name, weight in system.autoencoder.state_dict().items():
        assert torch.equal(viewer.system.autoencoder.state_dict()[name], weight), name
    assert viewer.trained
    assert not any(part.training for part in viewer.system.parts)
    assert notes == [f"from {run}, step 4"]


def test_another_ratio_keeps_the_learned_policy_and_another_mask_the_model(run):
    own = set_up_viewer(run, None, Overrides()).viewer
    tighter = set_up_viewer(run, None, Overrides(ratio=0.9))
    assert tighter.recipe.mask.ratio == 0.9
    assert (own.system.masker.visible, tighter.viewer.system.masker.visible) == (16, 6)
    assert torch.equal(scores(own), scores(tighter.viewer))
    tube = set_up_viewer(run, None, Overrides(mask="tube"))
    assert (tube.recipe.mask.kind, tube.recipe.mask.ratio) == ("tube", 0.75)
    assert scores(tube.viewer) is None
    assert tube.viewer.pixel_target == "pixels" and len(tube.notes) == 1
    for name, weight in own.system.autoencoder.state_dict().items():
        assert torch.equal(tube.viewer.system.autoencoder.state_dict()[name], weight), name


def test_what_the_model_fixes_cannot_be_chosen(run):
    with pytest.raises(UsageError, match="`--size`, `--patch` cannot be set with `--run`"):
        set_up_viewer(run, None, Overrides(size=64, patch=16))
    assert set_up_viewer(run, None, Overrides(stride=3)).recipe.data.sampling.stride == 3


def test_a_finetuned_run_has_no_mask_to_look_at(run, load, reporter):
    finetune(load("finetune.optim.epochs=1"), reporter=reporter, init=run, out="runs/tuned")
    with pytest.raises(CheckpointError, match="is a finetuned run"):
        set_up_viewer("runs/tuned", None, Overrides())


def test_a_recipe_of_whole_videos_shows_whole_videos(recipe_file, clip, reporter, tmp_path):
    """In a picture of masks, of several masks and of a tokenizer, as evaluation and as training."""
    text = recipe_file.read_text().replace("{mode: dense, stride: 1}", "{mode: uniform}")
    recipe_file.write_text(text)
    where = {"reporter": reporter, "out": tmp_path / "out.gif"}
    same = {"recipe": str(recipe_file)} | where
    (window,) = visualize_masks(clip, **same)["windows"]
    assert window["frames"] == [1, 3, 6, 8, 11, 13, 16, 18]
    assert window["times"] == pytest.approx([frame / 25 for frame in window["frames"]])
    (one,) = compare_masks(clip, "tube", **same)["compare"][0]["windows"]
    assert one["frames"] == window["frames"]
    drawn = visualize_masks(clip, phase="train", windows=2, seed=3, **same)
    assert drawn["as"] == "train" and any("--seed 3" in note for note in drawn["notes"])
    for one in drawn["windows"]:  # one frame of each eighth of the video
        assert all(
            k * 20 // 8 <= frame < (k + 1) * 20 // 8 for k, frame in enumerate(one["frames"])
        )
    assert drawn["windows"][0]["frames"] != drawn["windows"][1]["frames"]
    config = FsqTokenizer(kind="fsq", stride=8, levels=[5, 5], widths=[4, 4], blocks=1)
    coder = save_tokenizer(
        tmp_path / "coder", config, size=32, frames=8, sampling=Sampling(mode="uniform")
    )
    (coded,) = visualize_tokenizer(clip, coder, overrides=Overrides(), **where)["windows"]
    assert coded["frames"] == window["frames"]


@pytest.fixture
def grown(trained):
    """A run that keeps a checkpoint of each of its four epochs, its policy trained hard."""
    words = ("optim.epochs=4", "run.keep=9", "mask.base_lr=0.3", "mask.floor=0")
    return trained(*words, task=pretrain, out="runs/grown")


@pytest.fixture
def tube_run(trained):
    return trained("optim.epochs=1", "mask={kind: tube}", task=pretrain, out="runs/tube")


def test_a_window_tells_its_motion_its_errors_and_its_slices(run, clip, reporter, tmp_path):
    found = visualize_masks(clip, reporter=reporter, run=run, out=tmp_path / "out.png")
    (window,) = found["windows"]
    assert len(window["error"]) == len(window["predict"]) == 48
    assert all(error > 0 for error in window["error"])
    assert sum(window["visible_per_slice"]) == 16 and len(window["visible_per_slice"]) == 4
    assert 0 <= window["motion_share"] <= 1 and window["motion_lift"] > 0
    assert 0.9 < window["entropy"] <= 1 and found["temperature"] == 1
    assert not any("left out" in note for note in found["notes"])


def test_rows_left_out_are_named(tube_run, clip, reporter, tmp_path):
    def left_out(**where):
        found = visualize_masks(clip, reporter=reporter, out=tmp_path / "out.png", **where)
        return [note for note in found["notes"] if note.startswith("left out")]

    none = "sampler probability (the `tube` mask has no policy)"
    assert left_out(run=tube_run) == [f"left out: {none}"]
    (note,) = left_out(overrides=Overrides(size=32, patch=8))
    assert note == f"left out: {none}, reconstruction and error (they need `--run`)"


def test_every_checkpoint_is_seen_as_it_is_seen_alone(grown, clip, reporter, tmp_path):
    """The same window and noise: each strip is the picture that the checkpoint gives by itself."""
    found = visualize_masks(
        clip, reporter=reporter, run=grown, out=tmp_path / "out.png", every=1, seed=5
    )
    assert [one["step"] for one in found["checkpoints"]] == [2, 4, 6, 8]
    for one in found["checkpoints"]:
        alone = visualize_masks(
            clip,
            reporter=reporter,
            run=grown / "checkpoints" / f"step-{one['step']:07d}",
            out=tmp_path / "alone.png",
            seed=5,
        )["windows"][0]
        for name in (
            "entropy",
            "motion_share",
            "motion_lift",
            "motion_hidden",
            "visible_per_slice",
        ):
            assert one[name] == alone[name], name
    assert found["windows"][0]["visible"] == alone["visible"]
    assert found["checkpoints"][0]["entropy"] > found["checkpoints"][-1]["entropy"]


@pytest.mark.parametrize(("every", "steps"), [(2, [4, 8]), (3, [2, 8]), (9, [8])])
def test_checkpoints_are_counted_back_from_the_last(grown, every, steps):
    assert [one.step for one in kept_checkpoints(grown, every)] == steps


def test_growth_takes_windows_ratio_and_temperature(grown, clip, reporter, tmp_path):
    found = visualize_masks(
        clip,
        reporter=reporter,
        run=grown,
        overrides=Overrides(ratio=0.9, temperature=2.0),
        out=tmp_path / "out.gif",
        every=3,
        windows=2,
    )
    assert found["fps"] == 2 and (found["ratio"], found["temperature"]) == (0.9, 2)
    assert [window["frames"][0] for window in found["windows"]] == [0, 8]
    assert all(len(window["visible"]) == 6 for window in found["windows"])
    last = found["checkpoints"][-1]
    assert sum(last["visible_per_slice"]) == 6
    both = [window["entropy"] for window in found["windows"]]
    assert last["entropy"] == pytest.approx(sum(both) / 2, abs=1e-4)


def test_one_checkpoint_says_how_to_keep_more(run, load, reporter, clip, tmp_path):
    pretrain(load("optim.epochs=2", "run.save_every=2"), reporter=reporter, out="runs/single")
    found = visualize_masks(
        clip, reporter=reporter, run=Path("runs/single"), out=tmp_path / "out.mp4", every=1
    )
    assert len(found["checkpoints"]) == 1
    assert any("`run.keep` keeps more" in note for note in found["notes"])
    two = visualize_masks(clip, reporter=reporter, run=Path(run), out=tmp_path / "out.mp4", every=1)
    assert len(two["checkpoints"]) == 2  # as `run.keep: 2` says
    assert not any("run.keep" in note for note in two["notes"])


def test_growth_needs_a_policy_that_was_trained(run, grown, tube_run, clip, reporter, tmp_path):
    def grow(**more):
        visualize_masks(clip, reporter=reporter, out=tmp_path / "out.png", every=1, **more)

    with pytest.raises(UsageError, match="`--every` needs `--run`"):
        grow()
    with pytest.raises(UsageError, match="runs/tube` trained none for the `tube` mask"):
        grow(run=tube_run)
    for mask in ("tube", "tats"):
        other = tube_run if mask == "tats" else grown
        with pytest.raises(UsageError, match=f"trained none for the `{mask}` mask"):
            grow(run=other, overrides=Overrides(mask=mask))
    for name in ("last", "step-0000002"):
        with pytest.raises(UsageError, match="is one checkpoint"):
            grow(run=grown / "checkpoints" / name)
    with pytest.raises(UsageError, match="`--every 0` must be at least 1"):
        kept_checkpoints(grown, 0)
    assert not (tmp_path / "out.png").exists()


def test_adamae_is_a_learned_mask_like_any_other(load, reporter, clip, tmp_path):
    mask = "mask={kind: adamae, ratio: 0.75, width: 32, heads: 2}"
    pretrain(load("optim.epochs=2", mask), reporter=reporter, out="runs/adamae")
    found = visualize_masks(
        clip,
        reporter=reporter,
        run=Path("runs/adamae"),
        overrides=Overrides(temperature=0.5, ratio=0.5),
        out=tmp_path / "out.png",
        every=1,
    )
    assert [one["step"] for one in found["checkpoints"]] == [2, 4]
    assert (found["mask"], found["temperature"]) == ("adamae", 0.5)
    assert sum(found["checkpoints"][0]["visible_per_slice"]) == 32


def test_a_damaged_checkpoint_is_named(grown, clip, reporter, tmp_path):
    (grown / "checkpoints" / "step-0000004" / "masker.safetensors").write_bytes(b"torn")
    with pytest.raises(CheckpointError, match="step-0000004"):
        visualize_masks(clip, reporter=reporter, run=grown, out=tmp_path / "out.png", every=1)
    assert not (tmp_path / "out.png").exists()


def test_a_sheet_too_long_is_refused_before_the_work(grown, clip, reporter, tmp_path, monkeypatch):
    monkeypatch.setattr("tatscli.visualize.growth._MOST_STRIPS", 3)
    monkeypatch.setattr("tatscli.tasks.visualize_masks.render_growth", None)
    with pytest.raises(UsageError, match="cannot hold 4 strips"):
        visualize_masks(clip, reporter=reporter, run=grown, out=tmp_path / "a.png", every=1)


def test_temperature_divides_the_logits(grown):
    """Without a floor p is softmax(logits), so p at temperature T is p^(1/T) made to add up."""

    def at(temperature):
        return scores(
            set_up_viewer(grown, None, Overrides(temperature=temperature)).viewer
        ).double()

    plain = at(None)
    assert torch.equal(plain, at(1.0))
    for temperature in (0.25, 0.5, 3.0):
        power = plain ** (1 / temperature)
        expected = power / power.sum()
        assert torch.allclose(at(temperature), expected, rtol=1e-3, atol=1e-9)


def test_temperature_also_decides_what_is_drawn(grown, clip, reporter, tmp_path):
    found = {
        temperature: visualize_masks(
            clip,
            reporter=reporter,
            run=grown,
            overrides=Overrides(temperature=temperature),
            out=tmp_path / "out.png",
        )
        for temperature in (0.001, 1.0, 1000.0)
    }
    windows = {temperature: one["windows"][0] for temperature, one in found.items()}
    assert windows[0.001]["entropy"] < windows[1.0]["entropy"] < windows[1000.0]["entropy"]
    assert windows[1000.0]["entropy"] == pytest.approx(1, abs=1e-4)
    # At the cold end the draw is the list of the likeliest tokens, whatever the noise.
    likeliest = torch.tensor(windows[1.0]["probability"]).topk(8).indices.tolist()
    assert set(likeliest) <= set(windows[0.001]["visible"])
    assert found[0.001]["temperature"] == 0.001


@pytest.mark.parametrize("temperature", [0.0, -1.0, 1e9, float("nan"), float("inf")])
def test_a_temperature_out_of_range_is_refused(temperature):
    with pytest.raises(UsageError, match=r"must lie between 0\.001 and 1000"):
        set_up_viewer(None, None, Overrides(mask="tats", temperature=temperature))


def test_a_mask_without_a_policy_has_no_temperature(run, tube_run):
    for where, mask in ((tube_run, None), (run, "random"), (None, None)):
        with pytest.raises(UsageError, match="`--temperature` needs a policy") as refused:
            set_up_viewer(where, None, Overrides(mask=mask, temperature=0.5))
        assert "`tats`" in refused.value.hint


def test_the_ratio_of_a_fixed_mask_can_be_changed_too(tube_run, clip, reporter, tmp_path):
    for ratio, visible in ((None, 8), (0.5, 32)):
        found = visualize_masks(
            clip,
            reporter=reporter,
            run=tube_run,
            overrides=Overrides(ratio=ratio),
            out=tmp_path / "out.png",
        )
        (window,) = found["windows"]
        assert len(window["visible"]) == visible and len(window["error"]) == 64 - visible
        assert window["entropy"] is None and found["temperature"] is None
