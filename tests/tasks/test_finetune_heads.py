"""`finetune.head`: every form trains, resumes, is evaluated, and is the same on several ranks."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tatscli.console import Reporter
from tatscli.errors import RecipeError
from tatscli.recipe.load import LoadedRecipe
from tatscli.tasks.evaluate import evaluate
from tatscli.tasks.finetune import finetune

Load = Callable[..., LoadedRecipe]

PLAIN = "finetune.augment={flip: 0, rand_augment: 0, erasing: 0, mixup: 0, cutmix: 0}"


@pytest.mark.parametrize("pool", ["cls", pytest.param("attention", marks=pytest.mark.slow)])
def test_other_heads_resume_bit_equal_and_are_evaluated(
    load: Load, reporter: Reporter, pool: str
) -> None:
    head = (f"finetune.head={{pool: {pool}, norm: batch}}", "finetune.val_split=null")
    finetune(load(*head), reporter=reporter, init=None, out="runs/straight")
    finetune(load(*head, "run.max_steps=2"), reporter=reporter, init=None, out="runs/halves")
    finetune(load(*head), reporter=reporter, init=None, out="runs/halves", resume=True)
    first, second = (
        load_file(Path(f"runs/{name}/checkpoints/last/model.safetensors"))
        for name in ("straight", "halves")
    )
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["batch_norm.running_mean_D"], torch.zeros(128))
    assert evaluate("runs/halves", reporter=reporter)["videos"] == 6


def test_a_batch_norm_over_one_view_is_refused(load: Load, reporter: Reporter) -> None:
    alone = load(
        "finetune.head.norm=batch", "finetune.optim.total_batch=1",
        "finetune.optim.batch_per_device=1",
    )  # fmt: skip
    with pytest.raises(RecipeError, match=r"`finetune\.head\.norm: batch` needs two views"):
        finetune(alone, reporter=reporter, init=None)
    assert not Path("runs").exists()


@pytest.mark.slow
def test_two_ranks_normalise_over_the_videos_of_both(
    recipe_file: Path, tats: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """The same videos in a step, whoever reads them: the same losses, weights and running means."""
    words = (
        *("finetune", recipe_file, "--scratch", PLAIN, "finetune.head.norm=batch"),
        *("finetune.head_scale=1", "finetune.drop_path=0", "finetune.val_split=null"),
    )
    alone = tats(*words, "--out", "runs/alone")
    assert alone.returncode == 0, alone.stderr
    launch = ("-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=29641", "-m")
    both = tats(*words, "finetune.optim.batch_per_device=3", "--out", "runs/both", launch=launch)
    assert both.returncode == 0, both.stderr
    norms, running = [], []
    for name in ("alone", "both"):
        lines = Path(f"runs/{name}/metrics.jsonl").read_text().splitlines()
        norms.append([json.loads(line)["grad_norm"] for line in lines])
        model = load_file(Path(f"runs/{name}/checkpoints/last/model.safetensors"))
        running.append(model["batch_norm.running_var_D"])
    assert norms[1] == pytest.approx(norms[0], rel=1e-2)
    torch.testing.assert_close(running[1], running[0], rtol=1e-3, atol=1e-4)
