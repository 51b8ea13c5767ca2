"""The runner of studies: what is there is not run again, and tables say what the files say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from scipy import stats

from tests.clips import render, static
from tests.studies import run as runner
from tests.studies.cut import cut_folder
from tests.studies.run import Cell, Failed, Runner, run_all
from tests.studies.study import Study, read_study
from tests.studies.tables import begun, difference, markdown, page

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
        "along": {"protocol": "attentive", "set": ["evaluate.layer=2"]},
        "arms": {"tube": {"set": ["mask.kind=tube"]}, "scratch": {"pretrained": False}},
        "reference": "scratch",
        "seeds": [0, 1],
    }
)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_study_says_what_would_count(path: Path) -> None:
    study = read_study(path)
    assert set(study.criterion) == {"yes", "no", "undecided"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_page_of_a_study_is_what_its_files_say(path: Path) -> None:
    folder = runner.RESULTS / path.stem
    study = read_study(path)
    if not begun(study, folder):
        pytest.skip("nothing of it has run")
    assert (folder / "README.md").read_text() == page(study, folder)


def test_names_that_are_not_there_are_refused() -> None:
    given = STUDY.model_dump()
    codes = {"recipe": "tokenizer/small", "store": "none"}
    for change in (
        *({"reference": "none"}, {"score_store": "none"}),
        *({"networks": {"codes": codes}}, {"networks": {"teacher": {"arm": "none"}}}),
    ):
        with pytest.raises(ValueError, match="none"):
            Study.model_validate(given | change)
    with pytest.raises(ValueError, match="no score is called"):
        Study.model_validate(given | {"arms": {"scratch": {"scores": {"none": []}}}})


def test_a_study_takes_some_scores_of_its_setting(tmp_path: Path) -> None:
    own = {"question", "criterion", "arms", "reference"}
    given = STUDY.model_dump(mode="json", exclude_none=True)
    (tmp_path / "settings").mkdir()
    shared = {key: value for key, value in given.items() if key not in own}
    (tmp_path / "settings" / "clips.yaml").write_text(yaml.safe_dump(shared))
    file = tmp_path / "masks.yaml"
    asked = {key: given[key] for key in own} | {"setting": "clips"}
    file.write_text(yaml.safe_dump(asked | {"scores": ["probe"]}))
    assert read_study(file).scores == {"probe": STUDY.scores["probe"]}
    file.write_text(yaml.safe_dump(asked | {"scores": ["probe", "none"]}))
    with pytest.raises(ValueError, match=r"clips\.yaml has no score none"):
        read_study(file)


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
            (out / "checkpoints" / "step-0000010").mkdir(parents=True)
            lines = [
                {"step": 5, "loss": 1.0, "motion_lift": 1.0},
                {"step": 10, "loss": 1.0, "motion_lift": 1.5},
                {"step": 10, "epoch": 1, "watch/loss": 0.5},
            ]
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
    assert tube["views"] == 80
    assert tube["curve"] == [
        {"views": 80, "watch/loss": 0.5, "motion_lift": 1.25},
        {"views": 80, "probe": 0.27},
    ]
    assert scratch["views"] == 0 and set(scratch["scores"]) == {"probe", "tuned"}
    assert tube["seconds"] == {"pretrain": 2.0, "along": 2.0, "probe": 2.0, "tuned": 4.0}
    kinds = [words[0] for words in commands]
    assert kinds == [
        *("pretrain", "evaluate", "evaluate", "finetune", "evaluate"),
        *("evaluate", "finetune", "evaluate"),
    ]
    assert "mask.kind=tube" in commands[0] and "optim.epochs=3" in commands[0]
    assert commands[1][1].endswith("step-0000010") and "evaluate.layer=2" in commands[1]
    assert "--untrained" in commands[5] and "--scratch" in commands[6]
    assert all("run.seed=0" in words for words in (commands[0], commands[5], commands[6]))
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


def test_a_network_is_trained_once_and_named_by_where_it_is(
    commands: list[list[str]], tmp_path: Path
) -> None:
    (tmp_path / "out" / "stores" / "clips").mkdir(parents=True)
    (tmp_path / "out" / "stores" / "clips" / "dataset.json").touch()
    given = STUDY.model_dump()
    named = {"taught": "targets=NETWORKS/teacher", "coded": "targets=NETWORKS/codes"}
    arms = given["arms"] | {name: {"pretrain": [key]} for name, key in named.items()}
    networks = {
        "codes": {"recipe": "tokenizer/small", "store": "clips", "set": ["optim.epochs=2"]},
        "teacher": {"arm": "tube"},
    }
    study = Study.model_validate(given | {"arms": arms, "networks": networks})
    at = Runner(tmp_path / "data", tmp_path / "out")
    at.prepare(study, ["tube", "coded"])
    (codes,) = commands
    assert codes[:3] == ["pretrain", "tokenizer/small", "optim.epochs=2"]
    for _ in range(2):
        at.prepare(study, study.arms)
    _, teacher = commands
    assert teacher[:4] == ["pretrain", "demo", "mask.kind=tube", "optim.epochs=3"]
    assert not run_all([Cell(study, "pays", "taught", 0, at)], jobs=1)
    folder = tmp_path / "out" / "networks" / "teacher"
    assert f"targets={folder}" in commands[2] and (folder / "metrics.jsonl").is_file()


def test_differences_are_paired_by_seed(tmp_path: Path) -> None:
    one, other = [0.5, 0.7, 0.6], [0.4, 0.5, 0.55]
    mean, error, p = difference(one, other)
    assert error == pytest.approx(stats.sem([a - b for a, b in zip(one, other, strict=True)]))
    assert p == pytest.approx(stats.ttest_1samp([0.1, 0.2, 0.05], 0).pvalue)
    for arm, values in {"tube": one, "scratch": other}.items():
        write_cells(tmp_path, arm, values)
    table = markdown(STUDY, tmp_path)
    spread = f"0.600 +- {stats.sem(one):.3f} (0.500 to 0.700)"
    assert f"{spread} | {mean:+.3f} +- {error:.3f}, p {p:.3f}" in table
    assert table.count("\n| `") == 2


def test_an_arm_may_be_compared_with_another_than_the_rest(tmp_path: Path) -> None:
    longer = {"pretrained": False, "against": "tube"}
    arms = STUDY.model_dump()["arms"] | {"longer": longer}
    study = Study.model_validate(STUDY.model_dump() | {"arms": arms})
    for arm, value in {"scratch": 0.5, "tube": 0.6, "longer": 0.7}.items():
        write_cells(tmp_path, arm, [value])
    table = markdown(study, tmp_path)
    assert "0.700 (0.700 to 0.700) | +0.100 to `tube` |" in table
    assert "0.600 (0.600 to 0.600) | +0.100 |" in table
    with pytest.raises(ValueError, match="'none' is no arm"):
        Study.model_validate(
            STUDY.model_dump() | {"arms": arms | {"longer": longer | {"against": "none"}}}
        )


def write_cells(folder: Path, arm: str, values: list[float]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for seed, value in enumerate(values):
        cell = {"arm": arm, "seed": seed, "views": 10, "seconds": {"pretrain": 60.0}}
        text = json.dumps(cell | {"scores": {"probe": value}, "curve": []})
        (folder / f"{arm}-{seed}.json").write_text(text)


def test_a_setting_is_shared_and_an_arm_is_that_of_another_study(tmp_path: Path) -> None:
    shared = STUDY.model_dump(include={"stores", "recipe", "pretrain_store", "score_store"})
    shared["networks"] = {"codes": {"recipe": "tokenizer/small", "store": "clips"}}
    (tmp_path / "settings").mkdir()
    (tmp_path / "settings" / "words.yaml").write_text(yaml.safe_dump(shared))
    own = STUDY.model_dump(include={"question", "criterion", "reference"}) | {"setting": "words"}
    own |= {"scores": {"probe": {"protocol": "knn"}}}
    first = own | {"arms": {"scratch": {"set": ["model.size=nano"]}}}
    second = own | {"arms": {"scratch": {"of": "first"}, "tube": {}}}
    second |= {"networks": {"teacher": {"arm": "tube"}}}
    for name, one in {"first": first, "second": second}.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(one))
    study = read_study(tmp_path / "second.yaml")
    assert study.stores == STUDY.stores and study.arms["scratch"].set == ["model.size=nano"]
    assert set(study.networks) == {"codes", "teacher"}

    write_cells(tmp_path / "out" / "first", "scratch", [0.5])
    write_cells(tmp_path / "out" / "second", "tube", [0.75])
    assert "0.750 (0.750 to 0.750) | +0.250" in markdown(study, tmp_path / "out" / "second")

    (tmp_path / "first.yaml").write_text(yaml.safe_dump(first | {"arms": {"tube": {}}}))
    with pytest.raises(ValueError, match="no arm 'scratch'"):
        read_study(tmp_path / "second.yaml")


def test_a_cut_square_is_shifted_by_the_name_of_its_video(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.mp4"):
        render(tmp_path / "in" / name, static(frames=2, height=48, width=48))
    for target, shift in {"out": 0, "shifted": 8, "again": 8}.items():
        cut_folder(tmp_path / "in", tmp_path / target, (16, 16, 16), shift=shift)
    seen = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*.mp4")}
    assert seen[Path("out/a.mp4")] == seen[Path("out/b.mp4")]
    assert len({seen[Path(one)] for one in ("out/a.mp4", "shifted/a.mp4", "shifted/b.mp4")}) == 3
    assert seen[Path("shifted/a.mp4")] == seen[Path("again/a.mp4")]
