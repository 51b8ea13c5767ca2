"""The runner of studies: what is there is not run again, and tables say what the files say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from tests.studies import run as runner
from tests.studies.run import Cell, Failed, Runner, run_all
from tests.studies.study import Study, read_study
from tests.studies.tables import difference, markdown

FILES = sorted((Path(__file__).parent / "studies").glob("*.yaml"))

STUDY = Study.model_validate(
    {
        "question": "Does it pay?",
        "criterion": {"yes": "more", "no": "not more", "undecided": "between"},
        "stores": {"clips": {"source": "clips"}},
        "recipe": "demo",
        "pretrain_store": "clips",
        "score_store": "clips",
        "pretrain": ["optim.epochs=3"],
        "scores": {
            "probe": {"protocol": "attentive", "set": ["evaluate.shots=5"]},
            "tuned": {"protocol": "finetuned"},
        },
        "arms": {"tube": {"set": ["mask.kind=tube"]}, "scratch": {"pretrained": False}},
        "reference": "scratch",
        "seeds": [0, 1],
    }
)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_study_says_what_would_count(path: Path) -> None:
    study = read_study(path)
    assert set(study.criterion) == {"yes", "no", "undecided"}


def test_names_that_are_not_there_are_refused() -> None:
    given = STUDY.model_dump()
    for change in ({"reference": "none"}, {"score_store": "none"}):
        with pytest.raises(ValueError, match="none"):
            Study.model_validate(given | change)
    with pytest.raises(ValueError, match="no score is called"):
        Study.model_validate(given | {"arms": {"scratch": {"scores": ["none"]}}})


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[list[str]]:
    """Take down what would be run; a pretraining leaves metrics, a second fine-tuning fails."""
    given: list[list[str]] = []

    def tats(self: Runner, *words: object, answers: bool = True) -> tuple[dict[str, Any], float]:
        said = [str(word) for word in words]
        given.append(said)
        if said[0] == "pretrain":
            out = Path(said[said.index("--out") + 1])
            out.mkdir(parents=True, exist_ok=True)
            lines = [{"step": 5, "loss": 1.0}, {"step": 10, "epoch": 1, "watch/loss": 0.5}]
            (out / "metrics.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in lines))
            (out / "run.json").write_text(json.dumps({"derived": {"total_batch": 8}}))
        if said[0] == "finetune" and "fail" in said:
            raise Failed("no")
        return {"top1": 0.25 + 0.01 * len(given)}, 2.0

    monkeypatch.setattr(Runner, "tats", tats)
    monkeypatch.setattr(runner, "RESULTS", tmp_path / "results")
    return given


def test_an_arm_is_pretrained_probed_fine_tuned_and_written_down(
    commands: list[list[str]], tmp_path: Path
) -> None:
    at = Runner(tmp_path / "data", tmp_path / "out")
    cells = [Cell(STUDY, "pays", arm, 0, at) for arm in STUDY.arms]
    assert not run_all(cells, jobs=1)
    tube, scratch = (json.loads(cell.result.read_text()) for cell in cells)
    assert tube["views"] == 80 and tube["curve"] == [{"views": 80, "watch/loss": 0.5}]
    assert scratch["views"] == 0 and set(scratch["scores"]) == {"probe", "tuned"}
    assert tube["seconds"] == {"pretrain": 2.0, "probe": 2.0, "tuned": 4.0}
    kinds = [words[0] for words in commands]
    assert kinds == [
        *("pretrain", "evaluate", "finetune", "evaluate"),
        *("evaluate", "finetune", "evaluate"),
    ]
    assert "mask.kind=tube" in commands[0] and "optim.epochs=3" in commands[0]
    assert "--untrained" in commands[4] and "--scratch" in commands[5]
    assert all("run.seed=0" in words for words in (commands[0], commands[4], commands[5]))
    assert not any((tmp_path / "out" / "runs" / "pays").iterdir())


def test_an_arm_that_failed_goes_on_where_it_stopped(
    commands: list[list[str]], tmp_path: Path
) -> None:
    at = Runner(tmp_path / "data", tmp_path / "out")
    scores = STUDY.scores | {"tuned": STUDY.scores["tuned"].model_copy(update={"set": ["fail"]})}
    failing = STUDY.model_copy(update={"scores": scores})
    (problem,) = run_all([Cell(failing, "pays", "tube", 1, at)], jobs=1)
    assert problem.startswith("tube, seed 1: no")
    first = list(commands)
    assert not run_all([Cell(STUDY, "pays", "tube", 1, at)], jobs=1)
    assert [words[0] for words in commands[len(first) :]] == ["finetune", "evaluate"]


def test_differences_are_paired_by_seed(tmp_path: Path) -> None:
    one, other = [0.5, 0.7, 0.6], [0.4, 0.5, 0.55]
    mean, error = difference(one, other)
    assert error == pytest.approx(stats.sem([a - b for a, b in zip(one, other, strict=True)]))
    for arm, values in {"tube": one, "scratch": other}.items():
        for seed, value in enumerate(values):
            cell = {"arm": arm, "seed": seed, "views": 10, "seconds": {"pretrain": 60.0}}
            text = json.dumps(cell | {"scores": {"probe": value}, "curve": []})
            (tmp_path / f"{arm}-{seed}.json").write_text(text)
    table = markdown(STUDY, tmp_path)
    assert f"0.600 (0.500 to 0.700) | {mean:+.3f} +- {error:.3f}" in table
    assert table.count("\n| `") == 2
