"""`tats bench`: the search for the largest batch, what is counted, and the command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tatscli.console import Reporter
from tatscli.engine.session import session
from tatscli.errors import TatsError
from tatscli.recipe.load import load_recipe
from tatscli.tasks import bench as module
from tatscli.tasks.flops import step_flops
from tatscli.tasks.largest_batch import largest_batch, probe_cpu
from tatscli.tasks.rehearsal import Rehearsal, open_store, rehearsed
from tests.nn.counting import block_macs

TINY: dict[str, Any] = {
    "data": {"store": "none", "frames": 8, "size": 32, "sampling": {"stride": 2}, "workers": 0},
    "model": {"width": 32, "depth": 2, "heads": 2, "tubelet": 2, "patch": 8},
    "mask": {"kind": "tube", "ratio": 0.75},
    "head": {"kind": "decoder", "depth": 1},
    "optim": {"total_batch": 8, "batch_per_device": 4},
    "finetune": {"optim": {"total_batch": 8, "batch_per_device": 4}},
    "run": {"device": "cpu", "precision": "fp32"},
}
TOKENIZER = {"kind": "vq", "stride": 8, "widths": [8, 8], "blocks": 1, "codes": 16, "code_width": 4}


def tokenizer_recipe(folder: Path) -> Path:
    sections = {name: TINY[name] for name in ("data", "optim", "run")}
    discriminator = {"width": 8}
    path = folder / "coder.yaml"
    path.write_text(
        yaml.safe_dump(sections | {"tokenizer": TOKENIZER | {"discriminator": discriminator}})
    )
    return path


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return path


@pytest.mark.parametrize("most", [1, 2, 3, 17, 100, 2048])
@pytest.mark.parametrize("slope", [0.0, 1.0, 7.3, 100.0, 5000.0])
@pytest.mark.parametrize("bend", [0.0, 0.02, -0.004])
@pytest.mark.parametrize("guesses", [True, False])
def test_the_search_finds_what_trying_all_finds(
    most: int, slope: float, bend: float, guesses: bool
) -> None:
    """Whatever the memory's curve, as long as more clips take no less."""
    limit, asked = 1000.0, []

    def peak(batch: int) -> float:
        return 100 + slope * batch + bend * min(batch, 100) ** 2

    def probe(batch: int) -> float | None:
        asked.append(batch)
        return peak(batch) if peak(batch) <= limit else None

    brute = max((one for one in range(1, most + 1) if peak(one) <= limit), default=0)
    found, tried = largest_batch(probe, most, limit=limit if guesses else None)
    assert found == brute
    assert list(tried) == asked == list(dict.fromkeys(asked))  # no batch is tried twice
    assert len(asked) <= 24
    if guesses and bend == 0 and slope in (1.0, 7.3):
        assert len(asked) <= 6  # the line is right at once


def test_the_search_may_begin_at_two() -> None:
    assert largest_batch(lambda batch: 1.0 if batch <= 5 else None, 8, first=2)[0] == 5
    assert largest_batch(lambda batch: None, 8, first=2)[0] == 0


@pytest.mark.slow
def test_a_batch_is_tried_in_a_process_of_its_own(tiny: Path) -> None:
    """The limit decides; what was tried leaves no memory behind here."""
    loaded = load_recipe(tiny)
    peak = probe_cpu(loaded, "pretrain", 8e9)(2)
    assert peak is not None and 1e8 < peak < 4e9
    assert probe_cpu(loaded, "pretrain", 0.5 * peak)(2) is None


@pytest.mark.slow
def test_what_goes_wrong_there_is_told_here(tiny: Path) -> None:
    loaded = load_recipe(tiny, ["head.width=7", "head.heads=2"])
    with pytest.raises(TatsError, match="is not a multiple"):
        probe_cpu(loaded, "pretrain", 8e9)(1)


def test_a_step_is_counted_by_formula(tiny: Path) -> None:
    """Encoder on 16 visible tokens, decoder on 64, forward once and backward twice, but for what
    has no gradient to its input."""
    loaded = load_recipe(tiny)
    with session(loaded.recipe.run, Reporter(quiet=True)) as here:
        stage = rehearsed(loaded, "pretrain", here, open_store(loaded)[0])
        counted = step_flops(stage)
        again = step_flops(stage)
    pixels = 2 * 8 * 8 * 3
    embed = 16 * 32 * pixels  # of which the backward pass needs one product, not two
    encoder = 2 * block_macs(16, 32)
    decoder = 16 * 32 * 16 + block_macs(64, 16) + 48 * 16 * pixels
    assert counted == again == 2 * (2 * embed + 3 * (encoder + decoder))
    assert all(one.device.type == "cpu" for one in stage.model.parameters())


def test_what_checkpointing_does_twice_is_counted_once(tiny: Path) -> None:
    counts = []
    for value in ("true", "false"):
        loaded = load_recipe(tiny, [f"model.checkpointing={value}"])
        with session(loaded.recipe.run, Reporter(quiet=True)) as here:
            counts.append(step_flops(rehearsed(loaded, "pretrain", here, open_store(loaded)[0])))
    assert counts[0] == counts[1]


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("pretrain", ["mask={kind: tats, ratio: 0.75, width: 16, heads: 2}"]),
        ("pretrain", ["mask={kind: mgm, ratio: 0.75}", "predict.kind=running_cell"]),
        ("tokenizer", []),
        ("finetune", ["finetune.drop={kind: mgm, ratio: 0.5}"]),
        ("finetune", ["finetune.auxiliary=0.9", "finetune.repeats=2"]),
    ],
)
def test_every_kind_of_training_is_counted_and_stepped(
    name: Any, overrides: list[str], tiny: Path
) -> None:
    """Without a store; weights learn."""
    source = tokenizer_recipe(tiny.parent) if name == "tokenizer" else tiny
    loaded = load_recipe(source, overrides)
    name = "finetune" if name == "finetune" else "pretrain"
    with session(loaded.recipe.run, Reporter(quiet=True)) as here:
        stage = rehearsed(loaded, name, here, open_store(loaded)[0])
        assert step_flops(stage) > 1e5
        rehearsal = Rehearsal(stage, here)
        before = [one.clone() for one in stage.model.parameters()]
        timing = rehearsal.run(2, steps=2)
    assert timing.steps == 2
    assert timing.clips_per_second == pytest.approx(4 * stage.repeats / timing.seconds)
    changed = [
        not torch.equal(one, other)
        for one, other in zip(before, stage.model.parameters(), strict=True)
    ]
    assert sum(changed) > len(changed) / 2


def test_it_waits_for_no_other_process(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process that a launcher starts measures on its own."""
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")

    def built(*given: Any) -> None:
        raise TatsError(f"a world of {given[2].world.size}")

    monkeypatch.setattr(module, "rehearsed", built)
    loaded = load_recipe(tiny, ["run.peers_timeout=1"])
    with pytest.raises(TatsError, match="a world of 1"):
        module.bench(loaded, reporter=Reporter(quiet=True))


def test_the_loader_is_measured_from_the_store(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.clips import pan, render
    from tests.store.stores import prepare

    for number in range(3):
        render(tmp_path / "videos" / f"{number}.mp4", pan(frames=20, seed=number))
    prepare(tmp_path / "videos", tmp_path / "store")
    loaded = load_recipe(tiny, [f"data.store={tmp_path}/store", "data.repeats=2"])
    monkeypatch.setattr(module, "computes_bf16", lambda device: True)
    found = module.bench(loaded, reporter=Reporter(quiet=True), batch=2, seconds=0.2)
    assert found["loader"]["skipped"] is None
    assert found["loader"]["clips_per_second"] > 1
    assert found["batch"] == {"wanted": 4, "used": 2, "search": None}
    step = found["step"]
    assert step["tflops"] == pytest.approx(
        step["clips_per_second"] * step["gflops_per_clip"] / 1000
    )
    assert step["of_ceiling"] == pytest.approx(step["tflops"] / step["ceiling_tflops"])
    assert step["mfu"] is None and step["peak_tflops"] is None
    assert found["bottleneck"]["sentence"]
    # Measured, and advised only where it is faster.
    gain = step["clips_per_second_in_bf16"] / step["clips_per_second"]
    assert found["bottleneck"]["kind"] != "precision" or gain > 1.05


def run_command(recipe: Path, *options: str) -> str:
    answer = subprocess.run(
        [sys.executable, "-m", "tatscli", "bench", str(recipe), "--seconds", "0.2", *options],
        capture_output=True,
        text=True,
        check=True,
        cwd=recipe.parent,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": ":".join(sys.path)},
    )
    return answer.stdout


@pytest.mark.slow
def test_the_command_looks_for_the_largest_batch(tiny: Path) -> None:
    batch = ["optim.total_batch=2", "optim.batch_per_device=2"]
    search = json.loads(run_command(tiny, "--memory", "4", "--json", *batch))["batch"]["search"]
    assert search["largest"] == search["most"] == 2
    assert [one["batch"] for one in search["tried"]] == [1, 2]
    assert all(0.1 < one["peak_memory_gb"] < 4 for one in search["tried"])


@pytest.mark.slow
def test_the_command_prints_one_object_and_leaves_no_file(tiny: Path) -> None:
    found = json.loads(run_command(tiny, "--batch", "2", "--json"))
    assert found["batch"] == {"wanted": 4, "used": 2, "search": None}
    assert found["loader"]["skipped"] == "there is no store at `none`"
    assert found["step"]["of_ceiling"] > 0
    assert list(tiny.parent.iterdir()) == [tiny]


def test_a_tokenizer_is_not_fine_tuned(tmp_path: Path) -> None:
    loaded = load_recipe(tokenizer_recipe(tmp_path))
    with pytest.raises(TatsError, match="--stage finetune"):
        module.bench(loaded, reporter=Reporter(quiet=True), stage="finetune", batch=1)
