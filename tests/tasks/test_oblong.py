"""Every stage on views that are not square, and runs whose recipes spell a square in two ways."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tatscli.console import Reporter
from tatscli.errors import UsageError
from tatscli.recipe.load import LoadedRecipe
from tatscli.system.load import load_system
from tatscli.tasks.dry_run import plan_pretraining
from tatscli.tasks.evaluate import evaluate
from tatscli.tasks.finetune import finetune
from tatscli.tasks.mask_setup import Overrides
from tatscli.tasks.pretrain import pretrain
from tatscli.tasks.visualize_masks import visualize_masks
from tests.clips import pan, render

Load = Callable[..., LoadedRecipe]

GRIDS = {"[24,40]": [4, 3, 5], "[40,24]": [4, 5, 3]}


@pytest.mark.parametrize(("size", "mask"), zip(GRIDS, ("tats", "mgm"), strict=True))
def test_an_oblong_view_goes_through_every_stage(
    load: Load, reporter: Reporter, tmp_path: Path, size: str, mask: str
) -> None:
    changes = [f"data.size={size}", "run.max_steps=2", "data.flip=0.5", "evaluate.crops=3"]
    recipe = load(*changes, f"mask.kind={mask}")
    assert plan_pretraining(recipe, Path("runs/x"))["grid"] == GRIDS[size]
    run = pretrain(recipe, reporter=reporter)["run"]
    loaded, system = load_system(run)
    assert list(system.encoder.grid) == GRIDS[size]
    assert loaded.recipe == recipe.recipe

    clip = render(tmp_path / "clip.mp4", pan((2, 0), frames=10, height=48, width=64))
    found = visualize_masks(clip, reporter=reporter, run=Path(run), out=tmp_path / "masks.png")
    (window,) = found["windows"]
    assert found["grid"] == GRIDS[size]
    assert len(window["error"]) == len(window["predict"])
    assert sorted(window["visible"] + window["predict"]) == list(range(60))

    tuned = finetune(recipe, reporter=reporter, init=run)["run"]
    scored = evaluate(tuned, reporter=reporter)
    assert (scored["videos"], scored["views"]) == (6, 18)
    assert evaluate(run, reporter=reporter, protocol="knn")["views"] == 18


def test_a_run_goes_on_whichever_way_its_size_is_written(load: Load, reporter: Reporter) -> None:
    tube = ("mask.kind=tube", "data.size=[32,32]")
    pretrain(load(*tube, "run.max_steps=2"), reporter=reporter)
    result = pretrain(load(tube[0], "data.size=32"), reporter=reporter, resume=True)
    assert result["steps"] == 10
    with pytest.raises(UsageError, match=r"`data\.size: \[32, 40\]` \(the run has `32`\)"):
        pretrain(load(tube[0], "data.size=[32,40]"), reporter=reporter, resume=True)


def test_a_clip_is_looked_at_in_any_shape(reporter: Reporter, tmp_path: Path) -> None:
    clip = render(tmp_path / "clip.mp4", pan((2, 0), frames=10, height=48, width=64))
    overrides = Overrides(size=(24, 40), patch=8, frames=4, stride=2)
    out = tmp_path / "masks.gif"
    found = visualize_masks(clip, reporter=reporter, overrides=overrides, out=out)
    assert found["grid"] == [2, 3, 5]
    square = Overrides(size=(32, 32), patch=8, frames=4, stride=2)
    assert visualize_masks(clip, reporter=reporter, overrides=square, out=out) == visualize_masks(
        clip, reporter=reporter, overrides=Overrides(size=32, patch=8, frames=4, stride=2), out=out
    )
