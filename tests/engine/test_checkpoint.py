import json
from pathlib import Path

import pytest
import torch

from tatscli.engine.checkpoint import find_checkpoint
from tatscli.engine.keeping import save_checkpoint
from tatscli.engine.metrics import Averages, MetricsLog
from tatscli.engine.rng import random_at
from tatscli.engine.run import open_run
from tatscli.errors import CheckpointError, UsageError
from tatscli.seeding import seed_of


def save(folder: Path, step: int, *, keep: int = 2, best: bool = False) -> Path:
    tensors = {"model": {"weight": torch.full((3,), float(step))}, "optimizer": {}}
    return save_checkpoint(
        folder, step=step, tensors=tensors, meta={"kind": "pretrained"}, keep=keep, best=best
    )


def test_a_run_a_link_and_a_checkpoint_mean_the_same(tmp_path: Path) -> None:
    save(tmp_path, 10, best=True)
    path = save(tmp_path, 20)
    for name in (tmp_path, tmp_path / "checkpoints" / "last", path):
        found = find_checkpoint(name)
        assert (found.step, found.kind, found.path) == (20, "pretrained", path.resolve())
        assert torch.equal(found.tensors("model")["weight"], torch.full((3,), 20.0))
    assert find_checkpoint(tmp_path, prefer="best").step == 10


def test_an_interrupted_write_is_no_checkpoint_and_is_cleared(tmp_path: Path) -> None:
    save(tmp_path, 10)
    draft = tmp_path / "checkpoints" / ".tmp-step-0000020"
    draft.mkdir()
    (draft / "model.safetensors").write_bytes(b"half")
    assert find_checkpoint(tmp_path).step == 10
    save(tmp_path, 20)
    assert not draft.exists()
    assert find_checkpoint(tmp_path).step == 20


def test_old_checkpoints_go_but_last_and_best_stay(tmp_path: Path) -> None:
    for step in range(1, 7):
        save(tmp_path, step, keep=2, best=step == 2)
    names = sorted(p.name for p in (tmp_path / "checkpoints").glob("step-*"))
    assert names == ["step-0000002", "step-0000005", "step-0000006"]


def test_writing_the_same_step_again_replaces_it(tmp_path: Path) -> None:
    save(tmp_path, 5)
    save(tmp_path, 5)
    assert find_checkpoint(tmp_path).step == 5


def test_what_is_not_there_or_damaged_is_said(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        find_checkpoint(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        find_checkpoint(tmp_path)
    path = save(tmp_path, 1)
    whole = (path / "model.safetensors").read_bytes()
    found = find_checkpoint(tmp_path)
    (path / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(CheckpointError, match="cannot read"):
        found.tensors("model")
    (path / "model.safetensors").write_bytes(whole)
    meta = json.loads((path / "meta.json").read_text())
    assert meta["format"] == 2
    for other in (0, 3, 99, None):
        (path / "meta.json").write_text(json.dumps({**meta, "format": other}))
        with pytest.raises(CheckpointError, match=f"format `{other}`; this version reads 1 and 2"):
            find_checkpoint(tmp_path)


def test_a_link_that_leads_nowhere_is_damage_not_absence(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    (path / "meta.json").rename(path / "elsewhere")
    with pytest.raises(CheckpointError, match=r"`last` checkpoint .* `meta.json` is missing"):
        find_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="no `best` checkpoint: nothing was scored"):
        find_checkpoint(tmp_path, prefer="best")
    path.rename(path.with_name("elsewhere"))
    with pytest.raises(CheckpointError, match=r"`last` checkpoint .* `step-0000001` is missing"):
        find_checkpoint(tmp_path)


def test_the_format_before_this_one_is_read(tmp_path: Path) -> None:
    path = save(tmp_path, 7)
    meta = json.loads((path / "meta.json").read_text())
    (path / "meta.json").write_text(json.dumps({**meta, "format": 1}))
    found = find_checkpoint(tmp_path)
    assert found.step == 7
    assert torch.equal(found.tensors("model")["weight"], torch.full((3,), 7.0))


def test_a_file_is_there_or_not(tmp_path: Path) -> None:
    save(tmp_path, 1)
    assert find_checkpoint(tmp_path).has("model")
    assert not find_checkpoint(tmp_path).has("masker")


def test_a_full_run_folder_is_refused_resumed_or_replaced(tmp_path: Path) -> None:
    run = tmp_path / "run"
    open_run(run, resume=False, overwrite=False)
    with pytest.raises(CheckpointError, match="no run that could be resumed"):
        open_run(run, resume=True, overwrite=False)
    (run / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="is not empty"):
        open_run(run, resume=False, overwrite=False)
    with pytest.raises(UsageError, match="does not look like a run"):
        open_run(run, resume=False, overwrite=True)
    (run / "recipe.yaml").write_text("data: {}")
    open_run(run, resume=True, overwrite=False)
    assert (run / "notes.txt").exists()
    open_run(run, resume=False, overwrite=True)
    assert not any(run.iterdir())


def test_metrics_after_the_checkpoint_are_dropped_on_resuming(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path, step=0)
    for step in (5, 10, 15):
        log.write({"step": step, "loss": float("nan") if step == 5 else 1.0})
    with open(path, "a") as file:
        file.write('{"step": 1')  # a kill in the middle of a line
    log = MetricsLog(path, step=10)
    log.write({"step": 12})
    steps = [json.loads(line) for line in path.read_text().splitlines()]
    assert steps == [{"step": 5, "loss": None}, {"step": 10, "loss": 1.0}, {"step": 12}]


def test_averages_forget_what_was_read() -> None:
    averages = Averages()
    averages.add({"loss": 1.0, "kl": 4.0})
    averages.add({"loss": 3.0})
    assert averages.read() == {"loss": 2.0, "kl": 4.0}
    assert averages.read() == {}


def test_averages_of_tensors_are_read_when_they_are_asked_for() -> None:
    """Of any precision and beside plain numbers; what is not finite is left out."""
    averages, loss = Averages(), torch.tensor(1.0, requires_grad=True)
    averages.add({"loss": loss * 2, "kl": torch.tensor(0.5, dtype=torch.bfloat16), "lr": 0.25})
    averages.add({"loss": torch.tensor(torch.nan), "kl": torch.tensor(1.5), "lr": float("inf")})
    averages.add({"loss": torch.tensor(6.0, dtype=torch.float64), "count": torch.tensor(3)})
    averages.add({"never": torch.tensor(-torch.inf)})
    assert averages.read() == {"loss": 4.0, "kl": 1.0, "lr": 0.25, "count": 3.0}
    assert averages.read() == {}


def test_adding_to_averages_waits_for_nothing() -> None:
    """No number of a tensor is looked at before `read`: tensors without memory have none."""
    averages = Averages()
    for _ in range(3):
        averages.add({"loss": torch.zeros((), device="meta"), "lr": 1.0})
    with pytest.raises((RuntimeError, NotImplementedError)):
        averages.read()


def test_random_numbers_follow_from_the_position_alone() -> None:
    def draw(*position: int) -> tuple[float, float]:
        generator = random_at(*position)
        return float(torch.rand(())), float(torch.rand((), generator=generator))

    first = draw(0, 3, 1, 0)
    torch.rand(17)
    assert draw(0, 3, 1, 0) == first
    assert (
        len({draw(0, step, part, rank) for step in (0, 1) for part in (0, 1) for rank in (0, 1)})
        == 8
    )
    assert first[0] != first[1]
    assert seed_of(1, 23) != seed_of(12, 3)
    assert 0 <= seed_of(5) < 2**63
