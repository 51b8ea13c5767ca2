"""Looking at a trained run: its own mask, its guesses, and what may be changed about it."""

import pytest
import torch

from tatscli.errors import CheckpointError, UsageError
from tatscli.tasks.build import load_system
from tatscli.tasks.finetune import finetune
from tatscli.tasks.pretrain import pretrain
from tatscli.tasks.visualize_masks import Wishes, choose_viewer, visualize_masks
from tests.clips import pan, render


@pytest.fixture
def run(load, reporter):
    """A pretrained run of the tiny recipe."""
    pretrain(load("optim.epochs=2"), reporter=reporter, out="runs/tiny")
    return "runs/tiny"


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


def test_probabilities_and_guesses_are_those_of_the_trained_weights(run, clip):
    _, system = load_system(run)
    viewer, _, notes = choose_viewer(run, None, Wishes())
    tokens_BND = torch.randn(2, 64, 128, generator=torch.Generator().manual_seed(0))
    assert torch.equal(viewer.masker.scores_BN(tokens_BND), system.masker.scores_BN(tokens_BND))
    assert len(viewer.masker.scores_BN(tokens_BND).unique()) > 1  # trained: not uniform
    for name, weight in system.autoencoder.state_dict().items():
        assert torch.equal(viewer.autoencoder.state_dict()[name], weight), name
    assert notes == [f"from {run}, step 4"]


def test_another_ratio_keeps_the_learned_policy_and_another_mask_the_model(run):
    tokens_BND = torch.randn(1, 64, 128)
    own, _, _ = choose_viewer(run, None, Wishes())
    tighter, recipe, _ = choose_viewer(run, None, Wishes(ratio=0.9))
    assert recipe.mask.ratio == tighter.masker.ratio == 0.9
    assert torch.equal(own.masker.scores_BN(tokens_BND), tighter.masker.scores_BN(tokens_BND))
    tube, recipe, notes = choose_viewer(run, None, Wishes(mask="tube"))
    assert recipe.mask.kind == "tube" and tube.masker.scores_BN(tokens_BND) is None
    assert tube.pixel_target == 0 and len(notes) == 1


def test_what_the_model_fixes_cannot_be_chosen(run):
    with pytest.raises(UsageError, match="`--size`, `--patch` cannot be chosen with `--run`"):
        choose_viewer(run, None, Wishes(size=64, patch=16))
    assert choose_viewer(run, None, Wishes(stride=3))[1].data.sampling.stride == 3


def test_a_finetuned_run_has_no_mask_to_look_at(run, load, reporter):
    finetune(load("finetune.optim.epochs=1"), reporter=reporter, init=run, out="runs/tuned")
    with pytest.raises(CheckpointError, match="is a finetuned run"):
        choose_viewer("runs/tuned", None, Wishes())


def test_a_recipe_of_whole_videos_says_which_step_it_shows(recipe_file, clip, reporter, tmp_path):
    text = recipe_file.read_text().replace("{mode: dense, stride: 1}", "{mode: uniform}")
    recipe_file.write_text(text)
    found = visualize_masks(
        clip, reporter=reporter, recipe=str(recipe_file), out=tmp_path / "out.gif"
    )
    assert found["windows"][0]["frames"] == [0, 4, 8, 12, 16, 16, 16, 16]
    assert any("samples whole videos" in note for note in found["notes"])
