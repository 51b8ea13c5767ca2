"""The `motion` target on stores with and without motion."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tatscli.console import Reporter
from tatscli.data.dataset import PretrainClips
from tatscli.data.motion import MotionField
from tatscli.errors import DataError
from tatscli.recipe.load import LoadedRecipe
from tatscli.store.reader import Store
from tatscli.system.system import build_system
from tatscli.tasks.dry_run import plan_pretraining
from tatscli.tasks.pretrain import pretrain
from tests.clips import pan, render
from tests.tasks.conftest import MOVES

Load = Callable[..., LoadedRecipe]

TARGET = ("mask.kind=tube", "targets=[{kind: pixels}, {kind: motion, scale: none}]")


def prepare(folder: Path, out: Path, *words: str) -> None:
    command = [sys.executable, "-m", "tatscli", "prepare", folder, "--out", out, "--workers", "1"]
    subprocess.run([*command, *words], check=True, capture_output=True)


def spoken() -> Reporter:
    return Reporter(stdout=io.StringIO(), stderr=io.StringIO())


def test_pans_are_what_a_store_says_of_them(load: Load, store: Path) -> None:
    recipe = load(*TARGET, "data.crop_scales=[1]").recipe
    opened = Store.open(store)
    system = build_system(recipe)
    rows = opened.part("train")
    clips = PretrainClips(opened, rows, recipe.data, patch=recipe.model.patch, seed=0)
    every = torch.arange(system.form.tokens)[None]
    for position, row in enumerate(rows):
        (sample,) = clips[(0, position)]
        motion = sample.motion
        assert isinstance(motion, MotionField)
        clip = system.clip(sample.video_CTHW[None], motion=motion)
        values, valid = system.targets["motion"].of(clip, every)
        name = opened.rows[row].id.split("/")[-2]
        known = values.unflatten(-1, (-1, 2))[valid]
        # 48 rows of the video fill the 32 of the view.
        expected = torch.tensor(MOVES[name]) * 32 / 48
        torch.testing.assert_close(known.median(dim=0).values, expected, atol=0.2, rtol=0)


def test_it_is_trained_against(load: Load, reporter: Reporter) -> None:
    run = pretrain(load(*TARGET, "run.max_steps=3"), reporter=reporter)["run"]
    for line in map(json.loads, Path(run, "metrics.jsonl").read_text().splitlines()):
        assert line["loss/motion"] > 0
        assert line["loss"] == pytest.approx(line["loss/pixels"] + line["loss/motion"], rel=1e-4)
    assert "no motion" not in reporter.stderr.getvalue()  # type: ignore[attr-defined]


@pytest.mark.slow
def test_a_store_without_motion_is_refused_and_a_part_of_it_counted(
    load: Load, tmp_path: Path
) -> None:
    for number in range(4):
        path = tmp_path / "videos" / f"{number}.mp4"
        path.parent.mkdir(exist_ok=True)
        # A lone key frame after another knows no motion.
        options = {"g": "1"} if number == 3 else {}
        render(path, pan((2, 0), frames=12, height=48, width=64, seed=number), options=options)
    prepare(tmp_path / "videos", tmp_path / "bare", "--motion", "none")
    bare = ("data.split=null", f"data.store={tmp_path / 'bare'}", "run.max_steps=1",
            "optim.total_batch=2", "optim.batch_per_device=2")  # fmt: skip
    for refuse in (
        lambda: plan_pretraining(load(*bare, *TARGET), Path("runs/tiny")),
        lambda: pretrain(load(*bare, *TARGET), reporter=spoken()),
    ):
        with pytest.raises(
            DataError, match=r"none of the 4 videos in `.*bare` has motion"
        ) as found:
            refuse()
        assert "`targets: motion` predicts" in found.value.message
        assert found.value.hint and "--motion auto" in found.value.hint
    assert not Path("runs").exists()

    prepare(tmp_path / "videos", tmp_path / "native", "--motion", "native")
    reporter = spoken()
    native = (*bare, f"data.store={tmp_path / 'native'}")
    pretrain(load(*native, *TARGET), reporter=reporter)
    said = reporter.stderr.getvalue()  # type: ignore[attr-defined]
    notice = "1 of 4 videos have no motion: for them `targets: motion` is left out of the loss"
    assert said.count(notice) == 1
    pretrain(load(*native, *TARGET, "mask.kind=mgm"), reporter=reporter, out="runs/both")
    said = reporter.stderr.getvalue()  # type: ignore[attr-defined]
    words = "`mask.kind: mgm` falls back to `tube` and `targets: motion` is left out of the loss"
    assert words in said
