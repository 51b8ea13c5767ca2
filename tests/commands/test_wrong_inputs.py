"""Whatever is wrong with the input: one message, exit 1 or 2, no traceback, nothing written."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tatscli.console import Reporter

RECIPE = """
data: {{store: {store}, frames: 4, size: 32, sampling: {{mode: dense, stride: 1}}, workers: 0}}
model: {{size: nano, patch: 16}}
mask: {{kind: tube, ratio: 0.75}}
optim: {{epochs: 1, total_batch: 2, batch_per_device: 2}}
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store, a recipe and a pretrained run."""
    from tatscli.cli import main
    from tests.clips import pan, render

    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for number in range(2):
            render(Path(f"videos/{number}.mp4"), pan(frames=6, height=32, width=48, seed=number))
        Path("mine.yaml").write_text(RECIPE.format(store="prepared/videos"))
        assert main(["prepare", "videos", "--workers", "1"]) == 0
        assert main(["pretrain", "mine.yaml", "--max-steps", "1"]) == 0
    (folder / "empty").mkdir()
    (folder / "notes.txt").write_text("not a video")
    (folder / "old.onnx").write_text("not ours to replace")
    (folder / "broken.yaml").write_text("data: [unclosed\n")
    return folder


@pytest.fixture
def place(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, which is also the working directory."""
    monkeypatch.chdir(shutil.copytree(made, tmp_path / "place", symlinks=True))
    return tmp_path / "place"


NO_FOLDER = "notes.txt`: it is not a folder"


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        (
            "pretrain mine.yaml mask.rato=0.5",
            2,
            "`mask.rato` is unknown; did you mean `mask.ratio`?",
        ),
        ("pretrain mine.yaml mask.ratio=1.5 optim.epochs=none", 2, "2 problems"),
        ("pretrain broken.yaml", 2, "broken.yaml"),
        ("pretrain none.yaml", 2, "no recipe `none.yaml`"),
        ("pretrain mine.yaml --out runs/new --store nowhere", 1, "there is no store at `nowhere`"),
        ("pretrain mine.yaml --out runs/new --store empty", 1, "`empty` is not a store"),
        ("pretrain mine.yaml", 2, "run folder `runs/mine` is not empty"),
        ("pretrain mine.yaml --out runs/new --resume", 1, "is not a resumable run"),
        ("pretrain mine.yaml --resume optim.epochs=3", 2, "the recipe differs from the run"),
        ("pretrain mine.yaml --out runs/new --init nowhere", 1, "`nowhere` does not exist"),
        ("pretrain mine.yaml --out runs/new run.device=cuda", 2, "`run.device: cuda`"),
        ("prepare empty", 1, "no videos in `empty`"),
        ("prepare nowhere", 2, "there is no folder `nowhere`"),
        ("finetune runs/mine", 1, "the store `prepared/videos` has no split `train`"),
        ("finetune runs/mine finetune.split=null", 2, "`finetune.split: null` must be text"),
        ("finetune mine.yaml --init runs/mine --scratch", 2, "cannot be combined"),
        ("evaluate runs/mine", 1, "it has no classifier to evaluate"),
        ("evaluate empty", 1, "`empty` holds no checkpoint"),
        ("evaluate runs/mine --protocol nearest", 2, "nearest"),
        ("visualize-masks notes.txt", 1, "notes.txt"),
        ("visualize-masks nowhere.mp4", 1, "no such file"),
        ("visualize-masks videos/0.mp4 --mask tub", 2, "tub"),
        ("visualize-masks videos/0.mp4 --out picture.jpg", 2, "picture.jpg"),
        ("visualize-masks videos/0.mp4 --ratio 2", 2, "2"),
        ("visualize-masks videos/0.mp4 --out notes.txt/new.mp4", 2, NO_FOLDER),
        ("predict videos/0.mp4 --run runs/mine --out notes.txt/new.mp4", 2, NO_FOLDER),
        ("embed videos/0.mp4 --run runs/mine --out notes.txt/new.safetensors", 2, NO_FOLDER),
        ("evaluate runs/mine --protocol knn --out notes.txt/new.json", 2, NO_FOLDER),
        ("report runs/mine --out notes.txt/new.html", 2, NO_FOLDER),
        ("export runs/mine --out notes.txt/new.onnx", 2, NO_FOLDER),
        ("export runs/mine --out new.txt", 2, "its suffix must be .onnx"),
        ("export runs/mine --out old.onnx", 2, "`old.onnx` exists"),
        ("export runs/mine --opset 3", 2, "`3`"),
        ("predict videos/0.mp4 --run runs/mine --top -1", 2, "`-1`"),
        ("convert runs/mine --to hf --out notes.txt/new", 2, NO_FOLDER),
    ],
)
def test_wrong_inputs_are_told_in_one_message(
    place: Path, cli: Callable[..., Any], line: str, code: int, said: str
) -> None:
    before = sorted(path for path in place.rglob("*") if "runs/mine" not in str(path))
    outcome = cli(*line.split(), "--quiet")
    assert outcome.code == code, outcome.stderr
    assert said in outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert outcome.stdout == ""
    assert sorted(path for path in place.rglob("*") if "runs/mine" not in str(path)) == before


def test_a_table_in_a_pipe_has_one_line_for_each_row() -> None:
    out = io.StringIO()
    long = "x" * 200
    Reporter(stdout=out).table("wide", ["a", "b"], [(long, "1"), (long, "2")])
    assert sum(long in line for line in out.getvalue().splitlines()) == 2
