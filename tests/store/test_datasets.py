"""Which form of annotations is recognised, where they are looked for, and what is said about it."""

import json
from pathlib import Path

import pytest

from tatscli.errors import DataError, UsageError
from tatscli.store.annotations import DATASETS
from tatscli.store.sources import find_sources

UCF = {"classInd.txt": "1 A\n2 B\n", "trainlist01.txt": "A/v_A_1.avi 1\n",
       "testlist01.txt": "B/v_B_1.avi\n"}  # fmt: skip
KINETICS = "label,youtube_id,time_start,time_end,split\njump,abc,0,10,train\n"


@pytest.fixture
def make(tmp_path):
    def write(**files):
        for name, content in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        return tmp_path / "videos"

    return lambda files: write(**files)


VIDEOS = {"videos/A/v_A_1.avi": "x", "videos/B/v_B_1.avi": "x"}


def under(folder, files):
    return {f"{folder}/{name}": content for name, content in files.items()}


@pytest.mark.parametrize(
    "place",
    ["videos", "videos/ucfTrainTestlist", "videos/annotations", ".", "ucfTrainTestlist", "labels"],
)
def test_annotations_are_found_in_the_usual_places(make, place):
    folder = make(VIDEOS | under(place, UCF))
    for dataset in ("auto", "ucf101"):
        found = find_sources(folder, dataset=dataset)
        assert found.dataset == "ucf101"
        assert [item.split for item in found.items] == ["train", "test"]
        assert any(finding.startswith("UCF101, by ") for finding in found.findings)


def test_the_present_folder_has_a_parent_too(make, monkeypatch):
    monkeypatch.chdir(make(VIDEOS | under("ucfTrainTestlist", UCF)))
    assert find_sources(Path(".")).dataset == "ucf101"


def test_elsewhere_they_have_to_be_named(make, tmp_path):
    folder = make(VIDEOS | under("far/away", UCF))
    assert find_sources(folder).dataset == "folders"
    assert find_sources(folder, [str(tmp_path / "far/away")]).dataset == "ucf101"
    assert find_sources(folder, [str(tmp_path / "far/away/trainlist01.txt")]).dataset == "ucf101"
    with pytest.raises(UsageError, match="no annotation files of UCF101 in") as raised:
        find_sources(folder, dataset="ucf101")
    assert "`trainlist01.txt`" in raised.value.hint


def test_annotations_of_other_videos_are_mentioned_and_left_alone(make):
    folder = make(VIDEOS | {"train.csv": KINETICS})
    found = find_sources(folder)
    assert found.dataset == "folders" and found.class_names == ["A", "B"]
    assert "train.csv`: Kinetics, but it lists none of these videos" in found.findings[0]
    with pytest.raises(DataError, match="none of the 1 videos"):
        find_sources(folder, dataset="kinetics")


def test_lists_beside_the_videos_are_not_taken_unasked(make):
    folder = make(VIDEOS | {"train.csv": "A/v_A_1.avi 0\n", "labels/train.json": "[]"})
    assert find_sources(folder).dataset == "folders"
    found = find_sources(folder, dataset="list")
    assert [item.id for item in found.items] == ["A/v_A_1.avi"]


def test_folders_can_be_insisted_on(make):
    folder = make(VIDEOS | under("videos", UCF))
    found = find_sources(folder, dataset="folders")
    assert found.dataset == "folders" and {item.split for item in found.items} == {None}


def test_a_list_can_be_insisted_on(make, tmp_path):
    folder = make(VIDEOS | under("far", UCF))
    found = find_sources(folder, [str(tmp_path / "far/trainlist01.txt")], dataset="list")
    assert found.dataset == "list" and found.items[0].label == 1


def test_a_folder_of_lists(make, tmp_path):
    files = {"lists/train.csv": "A/v_A_1.avi 1\n", "lists/val.txt": "B/v_B_1.avi 0\n"}
    folder = make(VIDEOS | files | {"lists/notes.txt": "hello\n", "lists/labels.txt": "x\ny\n"})
    found = find_sources(folder, [str(tmp_path / "lists")])
    assert found.class_names == ["x", "y"]
    assert {item.id: (item.label, item.split) for item in found.items} == {
        "A/v_A_1.avi": (1, "train"),
        "B/v_B_1.avi": (0, "val"),
    }


def test_class_names_that_lie_elsewhere_can_be_given(make, tmp_path):
    lists = {"a/train.csv": "A/v_A_1.avi 1\n", "b/val.csv": "B/v_B_1.avi x\n"}
    folder = make(VIDEOS | lists | {"c/labels.txt": "x\ny\n", "a/labels.txt": "p\nq\n"})
    names = [str(tmp_path / name) for name in ("a/train.csv", "c/labels.txt", "b/val.csv")]
    found = find_sources(folder, names)
    assert found.class_names == ["x", "y"]
    assert [(item.label, item.split) for item in found.items] == [(1, "train"), (0, "val")]


@pytest.mark.parametrize(
    ("annotations", "dataset", "message"),
    [
        (["a/trainlist01.txt", "k/train.csv"], "auto", "of several data sets: kinetics, ucf101"),
        (["a", "k"], "auto", "of several data sets: kinetics, ucf101"),
        (["a/trainlist01.txt", "k/mine.csv"], "auto", "`k/mine.csv` is not an annotation file of"),
        (["k/train.csv"], "ssv2", "`k/train.csv` is not an annotation file of Something-"),
        (["a"], "folders", "takes labels from the names of folders"),
        (["train=a"], "auto", "`a` is a folder, not a list of the split `train`"),
        (["empty"], "auto", "no annotation files of lists of videos in `empty`"),
        (["a"], "epic100", "no annotation files of EPIC-KITCHENS-100 in `a`"),
        ([], "imagenet", "unknown data set `imagenet`"),
        (["b/trainlist02.txt"], "auto", "there is no `classInd.txt` beside `b/trainlist02.txt`"),
        (["b"], "auto", "there is no fold 1 beside `b/trainlist02.txt`"),
    ],
)
def test_what_does_not_go_together(make, tmp_path, monkeypatch, annotations, dataset, message):
    make(VIDEOS | under("a", UCF) | {"k/train.csv": KINETICS, "k/mine.csv": "a.mp4 0\n"})
    make({"empty/x.txt": "", "b/trainlist02.txt": "A/v_A_1.avi 1\n"})
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as raised:
        find_sources(Path("videos"), annotations, dataset=dataset)
    assert message in raised.value.message
    assert raised.value.hint or dataset == "auto"


def test_annotations_that_cannot_be_read_do_not_lock_the_folder_out(make):
    folder = make(VIDEOS | {"train.csv": KINETICS + "jump,abc,0\n"})
    with pytest.raises(DataError) as raised:
        find_sources(folder)
    assert "`--dataset folders`" in raised.value.hint
    assert find_sources(folder, dataset="folders").class_names == ["A", "B"]


def test_json_files_of_other_things_are_nobodys(make):
    other = [{"id": 1, "caption": "a cat"}]
    coco = {"images": [{"id": 1}], "annotations": []}
    files = {"train.json": json.dumps(other), "labels/val.json": json.dumps(coco)}
    assert find_sources(make(VIDEOS | files)).findings[0].startswith("found 2 videos")


def test_every_form_says_what_its_files_are():
    for name, form in DATASETS.items():
        assert form.title and form.files, name
