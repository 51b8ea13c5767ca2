"""A schedule of masks in a training: what is logged, resuming, and pictures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tatscli.console import Reporter
from tatscli.recipe.load import LoadedRecipe
from tatscli.system.load import load_system
from tatscli.tasks.mask_setup import Overrides
from tatscli.tasks.pretrain import pretrain, start_from
from tatscli.tasks.visualize_masks import visualize_masks

Load = Callable[..., LoadedRecipe]

SCHEDULE = (
    "mask={kind: schedule, ratio: 0.75, from: mgm, to: {kind: tats, width: 32, heads: 2}}",
    "model={width: 32, depth: 1, heads: 2, patch: 8}",
)


def kept(run: str, part: str) -> dict[str, torch.Tensor]:
    return load_file(Path(run) / f"checkpoints/last/{part}.safetensors")


def test_it_goes_on_bit_for_bit_from_the_middle(load: Load, reporter: Reporter) -> None:
    pretrain(load(*SCHEDULE), reporter=reporter, out="runs/straight")
    pretrain(load(*SCHEDULE, "run.max_steps=3"), reporter=reporter, out="runs/halves")
    pretrain(load(*SCHEDULE), reporter=reporter, out="runs/halves", resume=True)
    for part in ("model", "masker", "optimizer"):
        first, second = kept("runs/straight", part), kept("runs/halves", part)
        assert first.keys() == second.keys()
        for name, value in first.items():
            assert torch.equal(value, second[name]), (part, name)
    written = [Path(f"runs/{name}/metrics.jsonl").read_text() for name in ("straight", "halves")]
    shares = [[json.loads(line)["mask/to_share"] for line in text.splitlines()] for text in written]
    # Ten steps, the shares 0, 0.2, 0.4 ... of the first five: two of them, and all that follow.
    assert shares[0] == shares[1]
    assert sum(shares[0][:6]) == 3 and shares[0][0] == 0 and shares[0][6:] == [1.0] * 4
    assert kept("runs/halves", "masker")["done"] == 10


def test_its_sampler_is_taken_along_and_looked_at(
    load: Load, reporter: Reporter, store: Path, tmp_path: Path
) -> None:
    run = pretrain(load(*SCHEDULE, "run.max_steps=8"), reporter=reporter)["run"]
    _, system = load_system(run)
    assert start_from(system, run).startswith("encoder, head and sampler start from `")
    clip = next((store.parent / "videos0").rglob("*.mp4"))
    found = visualize_masks(
        clip,
        reporter=reporter,
        run=Path(run),
        overrides=Overrides(stride=1),
        out=tmp_path / "a.png",
    )
    assert (found["mask"], found["temperature"]) == ("schedule", 1.0)
    assert "the `schedule` mask is shown as at the end of training: `tats`" in found["notes"]
    assert len(found["windows"][0]["visible"]) == 16


def test_its_parts_are_chosen_from_the_command_line(load: Load) -> None:
    recipe = load("mask.kind=schedule", "mask.to.kind=block", "mask.to.blocks=2").recipe
    assert recipe.mask.kind == "schedule" and recipe.mask.ratio == 0.75
    assert recipe.mask.to.blocks == 2  # type: ignore[union-attr]
    assert load("mask.kind=schedule", "mask.from=tube").recipe.mask.both[0].kind == "tube"


@pytest.mark.parametrize("mask", ["schedule", "future"])
def test_a_kind_alone_can_be_looked_at(
    mask: str, reporter: Reporter, store: Path, tmp_path: Path
) -> None:
    clip = next((store.parent / "videos0").rglob("*.mp4"))
    overrides = Overrides(mask, ratio=0.75, size=32, patch=8, frames=8, stride=1)
    found = visualize_masks(clip, reporter=reporter, overrides=overrides, out=tmp_path / "a.png")
    assert (found["mask"], found["ratio"]) == (mask, 0.75)
