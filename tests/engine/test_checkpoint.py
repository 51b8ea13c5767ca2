import errno
import json
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tatscli.console import Reporter
from tatscli.engine import distributed
from tatscli.engine.checkpoint import find_checkpoint
from tatscli.engine.keeping import save_checkpoint
from tatscli.engine.metrics import Averages, MetricsLog
from tatscli.engine.rng import seed_torch
from tatscli.engine.run import held_run, open_run, resume_or_start, write_run_json
from tatscli.errors import CheckpointError, DataError, UsageError
from tatscli.lock import LOCK, is_held
from tatscli.recipe.schema import Run
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
    with pytest.raises(CheckpointError, match=r"only checkpoint .* `meta.json` is missing"):
        find_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="no `best` checkpoint: nothing was scored"):
        find_checkpoint(tmp_path, prefer="best")
    path.rename(path.with_name("elsewhere"))
    with pytest.raises(CheckpointError, match=r"only checkpoint .* `step-0000001` is missing"):
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
    with pytest.raises(CheckpointError, match="is not a resumable run"):
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


def test_averages_are_over_processes_even_where_one_has_no_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = Averages()
    other.add({"loss": 1.0, "kl": torch.nan, "motion": 0.5})
    other.add({"loss": 4.0})
    sent: list[list[object]] = []

    def gathered(mine: list[object]) -> list[object]:
        sent.append(mine)
        return [*mine, *sent[0]] if len(sent) > 1 else mine

    monkeypatch.setattr(distributed, "gathered", gathered)
    other.read()
    averages = Averages()
    averages.add({"loss": 10.0, "kl": 3.0})
    assert averages.read() == {"loss": 5.0, "kl": 3.0, "motion": 0.5}


def test_adding_to_averages_waits_for_nothing() -> None:
    """No number of a tensor is looked at before `read`: tensors without memory have none."""
    averages = Averages()
    for _ in range(3):
        averages.add({"loss": torch.zeros((), device="meta"), "lr": 1.0})
    with pytest.raises((RuntimeError, NotImplementedError)):
        averages.read()


def test_random_numbers_follow_from_the_position_alone() -> None:
    def draw(*position: int) -> float:
        seed_torch(*position)
        return float(torch.rand(()))

    first = draw(0, 3, 1, 0)
    torch.rand(17)
    assert draw(0, 3, 1, 0) == first
    assert (
        len({draw(0, step, part, rank) for step in (0, 1) for part in (0, 1) for rank in (0, 1)})
        == 8
    )
    assert seed_of(1, 23) != seed_of(12, 3)
    assert 0 <= seed_of(5) < 2**63


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-4])


def lengthen(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"\0")


def scribble(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:8] + b"#" * (file.stat().st_size - 8))


DAMAGE = {
    "cut": lambda path: cut(path / "model.safetensors"),
    "longer": lambda path: lengthen(path / "model.safetensors"),
    "header": lambda path: scribble(path / "model.safetensors"),
    "empty": lambda path: (path / "model.safetensors").write_bytes(b""),
    "no model": lambda path: (path / "model.safetensors").unlink(),
    "no meta": lambda path: (path / "meta.json").unlink(),
    "half a meta": lambda path: cut(path / "meta.json"),
    "other meta": lambda path: (path / "meta.json").write_text("[1]"),
    "meta in bytes": lambda path: (path / "meta.json").write_bytes(b"\xff\xfe\0"),
    "gone": shutil.rmtree,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
@pytest.mark.parametrize("named", [True, False], ids=["new", "old"])
def test_a_damaged_last_checkpoint_has_a_stand_in_loudly(
    tmp_path: Path, damage: Callable[[Path], object], named: bool
) -> None:
    """With the names of files in `meta.json` or, as earlier versions wrote it, without."""
    save(tmp_path, 10, best=True)
    path = save(tmp_path, 20)
    if not named:
        meta = json.loads((path / "meta.json").read_text())
        del meta["files"]
        (path / "meta.json").write_text(json.dumps(meta))
    damage(path)
    said = list[str]()
    assert find_checkpoint(tmp_path, say=said.append).step == 10
    (warning,) = said
    assert f"`{path}` is damaged: " in warning and "using that of step 10 instead" in warning
    for one in (path, tmp_path / "checkpoints" / "last"):
        if one.exists() or one.is_symlink():  # never for one that is named itself
            with pytest.raises(CheckpointError, match=r"is damaged|does not exist") as refused:
                find_checkpoint(one, say=said.append)
            assert not one.exists() or "step-0000010` is intact" in str(refused.value.hint)
    assert find_checkpoint(tmp_path, prefer="best").step == 10
    assert len(said) == 1
    damage(tmp_path / "checkpoints" / "step-0000010")
    with pytest.raises(CheckpointError, match=r"the `best` checkpoint of .* is damaged"):
        find_checkpoint(tmp_path, prefer="best")
    with pytest.raises(CheckpointError) as every:
        find_checkpoint(tmp_path, say=said.append)
    if damage is shutil.rmtree:
        assert "the only checkpoint of" in every.value.message and every.value.hint
    else:
        assert "all 2 checkpoints of" in every.value.message
        assert all(f"`step-00000{step}0`: " in every.value.message for step in (1, 2))


def text(link: Path) -> None:
    target = os.readlink(link)
    link.unlink()
    link.write_text(target)


def copied(link: Path) -> None:
    target = link.resolve()
    link.unlink()
    shutil.copytree(target, link)


def dangling(link: Path) -> None:
    link.unlink()
    link.symlink_to("/elsewhere/step-0000020" if link.name == "last" else "step-0000010")


def lost(link: Path) -> None:
    if link.name == "last":
        link.unlink()


@pytest.mark.parametrize("change", [text, copied, dangling, lost])
def test_checkpoints_are_found_whatever_became_of_the_links(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    save(tmp_path, 10, best=True)
    save(tmp_path, 20)
    for name in ("last", "best"):
        change(tmp_path / "checkpoints" / name)
    moved = tmp_path / "moved"
    shutil.copytree(tmp_path / "checkpoints", moved / "checkpoints", symlinks=True)
    said = list[str]()
    assert find_checkpoint(moved, say=said.append).step == 20
    assert find_checkpoint(moved, prefer="best", say=said.append).step == 10
    assert not said
    if change is not lost:
        assert find_checkpoint(moved / "checkpoints" / "last").step == 20
    save(moved, 30)  # training goes on, and links are links again
    assert (moved / "checkpoints" / "last").is_symlink()
    assert find_checkpoint(moved).step == 30
    assert find_checkpoint(moved, prefer="best").step == 10
    kept = {one.name for one in (moved / "checkpoints").glob("step-*")}
    assert kept | {"step-0000010"} == {"step-0000010", "step-0000020", "step-0000030"}
    assert change is copied or len(kept) == 3


def test_a_copy_in_the_place_of_the_link_may_be_all_there_is(tmp_path: Path) -> None:
    save(tmp_path, 10)
    copied(tmp_path / "checkpoints" / "last")
    shutil.rmtree(tmp_path / "checkpoints" / "step-0000010")
    assert find_checkpoint(tmp_path).step == 10
    save(tmp_path, 20)
    assert find_checkpoint(tmp_path).step == 20
    assert find_checkpoint(tmp_path / "checkpoints" / "step-0000010").step == 10
    copied(tmp_path / "checkpoints" / "last")  # and may be older than what is beside it
    shutil.copytree(tmp_path / "checkpoints" / "last", tmp_path / "kept")
    save(tmp_path, 30)
    (tmp_path / "checkpoints" / "last").unlink()
    (tmp_path / "kept").rename(tmp_path / "checkpoints" / "last")
    assert find_checkpoint(tmp_path).step == 30


def test_where_links_cannot_be_made_a_file_says_which_is_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, target: str) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(Path, "symlink_to", refuse)
    save(tmp_path, 10, best=True)
    save(tmp_path, 20)
    assert (tmp_path / "checkpoints" / "last").read_text() == "step-0000020\n"
    assert find_checkpoint(tmp_path).step == 20
    assert find_checkpoint(tmp_path, prefer="best").step == 10


def test_a_newer_format_is_no_damage(tmp_path: Path) -> None:
    """It was continued by a newer version: an older checkpoint would throw that away."""
    save(tmp_path, 10)
    path = save(tmp_path, 20)
    meta = json.loads((path / "meta.json").read_text())
    (path / "meta.json").write_text(json.dumps({**meta, "format": 99}))
    with pytest.raises(CheckpointError, match="format `99`"):
        find_checkpoint(tmp_path)


def test_going_back_keeps_what_training_will_replace(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        save(tmp_path, step)
    cut(tmp_path / "checkpoints" / "step-0000030" / "model.safetensors")
    save(tmp_path, 25)
    kept = sorted(one.name for one in (tmp_path / "checkpoints").glob("step-*"))
    assert kept == ["step-0000020", "step-0000025", "step-0000030"]
    assert find_checkpoint(tmp_path).step == 25
    save(tmp_path, 30)
    assert find_checkpoint(tmp_path).step == 30


def test_an_old_run_that_kept_one_checkpoint_is_read(tmp_path: Path) -> None:
    meta = {"kind": "pretrained", "recipe": {"run": {"keep": 1}}}
    weight = {"model": {"weight": torch.zeros(1)}}
    save_checkpoint(tmp_path, step=1, tensors=weight, meta=meta, keep=1, best=False)
    assert find_checkpoint(tmp_path).meta["recipe"]["run"]["keep"] == 2


def test_a_damaged_description_of_a_run_is_put_aside(tmp_path: Path) -> None:
    said = list[str]()
    write_run_json(tmp_path, {"first": 1})
    write_run_json(tmp_path, {"second": 2})
    assert json.loads((tmp_path / "run.json").read_text())["earlier"] == [{"first": 1}]
    cut(tmp_path / "run.json")
    cut(tmp_path / "run.json")
    write_run_json(tmp_path, {"third": 3}, said.append)
    assert json.loads((tmp_path / "run.json").read_text()) == {"third": 3, "earlier": []}
    assert "first" in (tmp_path / "run.damaged.json").read_text()
    assert "run.json` cannot be read" in said[0]


@pytest.mark.parametrize("kept", [1, 0])
def test_a_single_checkpoint_is_too_few(kept: int) -> None:
    with pytest.raises(ValueError, match="at least 2, so that one remains"):
        Run(keep=kept)


def test_what_resume_auto_means(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert resume_or_start(run) == (False, False)
    run.mkdir()
    assert resume_or_start(run) == (False, False)
    (run / "recipe.yaml").write_text("data: {}")
    assert resume_or_start(run) == (False, True)  # it died before its first checkpoint
    path = save(run, 1)
    assert resume_or_start(run) == (True, False)
    cut(path / "model.safetensors")
    assert resume_or_start(run) == (True, False)  # which then says what is wrong


def test_a_lock_is_no_content_of_a_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with held_run(run, Reporter(quiet=True), main=True):
        open_run(run, resume=False, overwrite=False)
        (run / "recipe.yaml").write_text("data: {}")
        open_run(run, resume=False, overwrite=True)
        assert [one.name for one in run.iterdir()] == [LOCK]
        with (
            pytest.raises(DataError, match=rf"in use by process {os.getpid()} on `.*`, since 20"),
            held_run(run, Reporter(quiet=True), main=True),
        ):
            pass
        with held_run(run, Reporter(quiet=True), main=False):  # the other ranks
            pass
        assert is_held(run / LOCK)
    assert not run.exists()  # nothing was begun
    assert is_held(run / LOCK) is False


def test_every_file_of_a_checkpoint_follows_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o002)
    try:
        path = save(tmp_path, 1)
    finally:
        os.umask(before)
    modes = {one.name: stat.S_IMODE(one.stat().st_mode) for one in path.iterdir()}
    names = ("meta.json", "model.safetensors", "optimizer.safetensors")
    assert modes == dict.fromkeys(names, 0o664)


def test_a_checkpoint_is_known_by_its_tensors(tmp_path: Path) -> None:
    one, two = save(tmp_path / "a", 7), save(tmp_path / "b", 7)
    file = two / "model.safetensors"
    tensors = find_checkpoint(two).tensors("model")
    save_file(tensors, file, metadata={"format": "pt", "another": "order"})
    assert file.read_bytes() != (one / "model.safetensors").read_bytes()
    assert find_checkpoint(one).digest() == find_checkpoint(two).digest()
    save_file({"weight": tensors["weight"] + 1}, file)
    assert find_checkpoint(one).digest() != find_checkpoint(two).digest()
