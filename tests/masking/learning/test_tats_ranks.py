"""Two processes with different clips keep one sampler, bit for bit."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from tatscli.masking import build_masker
from tatscli.recipe import schema

CONFIGS: dict[str, schema.LearnedMask] = {
    "tats": schema.TatsMask(
        kind="tats", ratio=0.75, width=8, heads=2, epochs=3, base_lr=0.02, max_kl=1e-4
    ),
    "rollouts": schema.TatsMask(
        kind="tats", ratio=0.75, width=8, heads=2, rollouts=2, max_kl=1.0, entropy_target=0.9
    ),
    "adamae": schema.AdamaeMask(kind="adamae", ratio=0.75, width=8, heads=2, weight=1.0),
}


def _work(rank: int, folder: str, name: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.manual_seed(0)
    masker = build_masker(CONFIGS[name], grid=(2, 3, 4), width=6).train()
    updates, skipped, visible = [], [], []
    for step in range(6):
        generator = torch.Generator().manual_seed(100 * step + rank)
        plan = masker.plan(torch.randn(2, 24, 6, generator=generator), generator=generator)
        error = torch.rand(plan.predict_BM.shape, generator=generator)
        if rank == 0 and step == 3:
            error[0, 0] = torch.nan  # one rank's trouble is everybody's skipped update
        metrics = masker.learn(plan, error)
        updates.append(metrics["updates"])
        skipped.append(metrics.get("skipped", 0.0))
        visible.append(plan.visible_BK)
    result = {"updates": updates, "skipped": skipped, "visible": torch.stack(visible)}
    torch.save(result | {"state": masker.state_dict()}, os.path.join(folder, f"{rank}.pt"))
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_ranks_draw_differently_and_stay_equal(tmp_path: Path, name: str) -> None:
    mp.spawn(_work, args=(str(tmp_path), name), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert not torch.equal(first["visible"], second["visible"])
    for key, value in first["state"].items():
        assert torch.equal(value, second["state"][key]), key
    assert first["updates"] == second["updates"]
    assert first["skipped"] == second["skipped"]
    assert first["skipped"][3] == 1
    if name == "tats":
        assert min(first["updates"][:3]) < 3  # stopping early is agreed on too
        assert first["skipped"] == [0, 0, 0, 1, 0, 0]
