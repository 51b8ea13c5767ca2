"""The memory plan of a dry run: sums by formulae of their own, what fits, and what to change."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tatscli.system.memory import StepMemory
from tatscli.tasks.memory_table import CONTEXT, GB, SLACK, Devices, Weights, plan_memory

Cli = Callable[..., Any]

NANO = (
    "model={width: 32, depth: 2, heads: 2, patch: 8}",
    "data.size=32",
    "data.frames=8",
    "optim.total_batch=64",
    "optim.batch_per_device=4",
    "mask={kind: tube, ratio: 0.75}",
)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def by_kind(memory: dict[str, Any], *, checkpointing: bool) -> dict[str, dict[str, Any]]:
    plans = memory["plans"]
    return {one["parallel"]: one for one in plans if one["checkpointing"] == checkpointing}


@pytest.mark.slow
def test_v2s_giant_is_planned_for_eight_devices_of_80_gb(cli: Cli) -> None:
    words = ("pretrain", "videomae2/giant", "--dry-run", "--gpus", "8", "--gpu-memory", "80")
    plan = cli(*words, "--json").json()
    assert (plan["grid"], plan["visible"], plan["predicted"]) == ([8, 16, 16], 208, 920)
    assert (plan["devices"], plan["batch"], plan["passes"]) == (8, [32, 8], 1200)
    assert plan["peak_lr"] == pytest.approx(4.8e-3)
    memory = plan["memory"]
    assert (memory["views"], memory["batch_per_device"], memory["checkpointing"]) == (128, 32, True)
    kept, again = (by_kind(memory, checkpointing=one) for one in (False, True))
    parameters = sum(plan["parameters"].values())
    for kind, parts in (("ddp", 1), ("fsdp", 8)):
        one = again[kind]
        assert one["parameters_gb"] == pytest.approx(4e-9 * parameters / parts)
        assert one["gradients_gb"] == one["parameters_gb"]
        assert one["optimizer_gb"] == pytest.approx(8e-9 * parameters / parts)
        keys = ("parameters_gb", "gradients_gb", "optimizer_gb", "copies_gb", "activations_gb")
        assert one["total_gb"] == pytest.approx(sum(one[key] for key in keys))
        assert one["fits"] is True
        # A residual stream of 208 tokens in float32 is kept before each of the 40 blocks.
        assert one["activations_gb"] > 40 * 128 * 208 * 1408 * 4e-9
        assert one["activations_gb"] < 0.2 * kept[kind]["activations_gb"]
    assert kept["ddp"]["fits"] is False and kept["ddp"]["largest_batch"] < 32
    assert kept["ddp"]["copies_gb"] == pytest.approx(2e-9 * parameters, rel=0.02)
    assert memory["advice"] == "fits with `run.parallel=ddp` or `fsdp`"
    # Eight processes that share nothing are refused, so nothing is planned for them.
    assert {one["parallel"] for one in memory["plans"]} == {"ddp", "fsdp"}


def test_the_table_says_the_same(cli: Cli) -> None:
    words = ("pretrain", "small", *NANO, "--dry-run")
    alone = cli(*words).stdout
    assert "none" not in alone  # one device has no choice, and is told no word for it
    assert "memory per device" in alone and "checkpointing on" not in alone
    shown = cli(*words, "--gpus", "4", "--gpu-memory", "24").stdout
    assert "GB per device: 4 devices of 24 GB" in shown
    for line in ("fits into 21.3 GB", "checkpointing on", "checkpointing off", "16 accumulated"):
        assert line.replace("16 acc", "4 acc") in shown


def test_finetuning_has_a_plan_too(cli: Cli) -> None:
    words = ("finetune", "small", *NANO, "finetune.optim.total_batch=8", "--dry-run", "--json")
    whole = cli(*words, "finetune.optim.batch_per_device=4").json()["memory"]
    half = cli(*words, "finetune.optim.batch_per_device=2").json()["memory"]
    assert whole["views"] == 2 * half["views"]
    activations = [by_kind(one, checkpointing=False)["none"] for one in (whole, half)]
    assert activations[0]["activations_gb"] == pytest.approx(
        2 * activations[1]["activations_gb"], rel=0.1
    )
    frozen = cli(*words, "finetune.freeze=encoder").json()["memory"]
    assert frozen["plans"][0]["gradients_gb"] < 0.2 * frozen["plans"][0]["parameters_gb"]


def test_processes_count_as_devices(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("pretrain", "small", *NANO, "run.device=cpu", "--dry-run", "--json")
    assert cli(*words, "--nproc", "2").json()["batch"] == [4, 8]
    for name, value in {"RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "one"}.items():
        monkeypatch.setenv(name, value)
    plan = cli(*words).json()
    assert (plan["devices"], plan["batch"], plan["memory"]["devices"]) == (4, [4, 4], 4)


def test_options_of_a_plan_need_a_dry_run(cli: Cli) -> None:
    outcome = cli("pretrain", "small", "--gpus", "8")
    assert outcome.code == 2
    assert outcome.stderr.startswith("error: `--gpus` and `--gpu-memory` only work with")


WEIGHTS = Weights(sharded=10**9, still=0, own=10**7, frozen=0, block=10**7, rest=10**7)


def planned(gigabytes: float, *, devices: int = 8, views: int = 32) -> dict[str, Any]:
    counted = {
        False: StepMemory(activations=int(60 * GB), copies=int(2 * GB)),
        True: StepMemory(activations=int(10 * GB), copies=0),
    }
    return plan_memory(
        WEIGHTS, counted, Devices(devices, gigabytes, True), views=views, repeats=1, half=True
    )


@pytest.mark.parametrize(
    ("gigabytes", "advice"),
    [
        (100, "fits with `run.parallel=ddp` or `fsdp`"),
        (72, "fits with `run.parallel=fsdp`"),
        (40, "fits with `model.checkpointing=true` and `run.parallel=ddp` or `fsdp`"),
        (20, "fits with `model.checkpointing=true` and `run.parallel=fsdp`"),
        (10, "does not fit, but would with `batch_per_device=16`, `model.checkpointing=true` and"
             " `run.parallel=fsdp`"),
        (3, "does not fit at any batch: use more or larger devices, or a smaller model"),
    ],
)  # fmt: skip
def test_the_advice_is_what_fits(gigabytes: float, advice: str) -> None:
    memory = planned(gigabytes)
    assert memory["advice"] == advice
    room = gigabytes * (1 - SLACK) - CONTEXT / GB
    for one in memory["plans"]:
        assert one["fits"] == (one["total_gb"] <= room)
        fixed = one["total_gb"] - one["activations_gb"]
        most = one["largest_batch"]
        assert fixed > room or fixed + one["activations_gb"] * most / 32 <= room + 1e-9
        assert one["fits"] == (most >= 32)


def test_one_device_that_is_too_small_is_told_of_fsdp() -> None:
    assert planned(100, devices=1)["advice"] == "fits"
    assert planned(12, devices=1)["advice"].endswith(
        "FSDP shards weights and moments over several devices (`--gpus`)"
    )
