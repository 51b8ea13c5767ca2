"""The annotations of Kinetics as they are published, with their traps."""

import pytest

from tatscli.errors import DataError, UsageError
from tests.store.published import TRAIN, VAL, facts, said


def test_kinetics_in_class_folders_flat_and_by_id_alone(kinetics):
    kinetics.add(
        "train/riding_a_bike/-abcdefghij_000006_000016.mp4",
        "train/abseiling/abcDEF_-123_000000_000010.mkv",
        "valvalvalva.mp4",
        "testtesttes_000001_000011.mp4",
        "other.mp4",
    )
    found = kinetics.find()
    assert found.class_names == ["abseiling", "riding a bike"]
    assert facts(found) == {
        "train/riding_a_bike/-abcdefghij_000006_000016.mp4": ("riding a bike", ["train"]),
        "train/abseiling/abcDEF_-123_000000_000010.mkv": ("abseiling", ["train"]),
        "valvalvalva.mp4": ("riding a bike", ["val"]),
        "testtesttes_000001_000011.mp4": (None, ["test"]),
    }
    assert found.missing == 1 and found.dataset == "kinetics"
    assert (
        "1 of 5 rows have no video file and are left out, such as"
        f" `gone0000000_000120_000130` (`{kinetics.root}/annotations/train.csv`, line 4)"
    ) in found.doubts
    assert "1 further video in" in said(found)
    assert all(item.segment is None for item in found.items)


def test_kinetics_indices_are_those_of_the_training_labels(kinetics):
    """A list of validation videos alone does not renumber the classes."""
    kinetics.add("valvalvalva_000001_000011.mp4")
    found = kinetics.find(kinetics.root / "annotations" / "val.csv")
    assert found.class_names == ["abseiling", "riding a bike"]
    assert [item.label for item in found.items] == [1]
    lonely = kinetics.write("far/val.csv", VAL)
    found = kinetics.find(lonely)
    assert found.class_names == ["riding a bike"]
    assert "no table of training videos" in said(found)


def test_kinetics_prefers_the_replacement_and_the_class_folder(kinetics):
    name = "abcDEF_-123_000000_000010.mp4"
    kinetics.add(name, f"abseiling/{name}", f"zoo/{name}")
    assert list(facts(kinetics.find())) == [f"abseiling/{name}"]
    kinetics.add(f"replacement/replacement_for_corrupted_k400/{name}")
    assert list(facts(kinetics.find())) == [f"replacement/replacement_for_corrupted_k400/{name}"]


@pytest.mark.parametrize(
    ("file", "line", "message", "hint"),
    [
        ("val", "ridding a bike,x,1,2,val\n", "val.csv`, line 3: no training video has the label"
         " `ridding a bike`", "did you mean `riding a bike`?"),
        ("val", "riding a bike,,1,2,val\n", "val.csv`, line 3: no `youtube_id`", None),
        ("train", "abseiling,x,1,soon,train\n", "train.csv`, line 5: time_end `soon`", None),
    ],
)  # fmt: skip
def test_kinetics_mistakes_are_placed(kinetics, file, line, message, hint):
    kinetics.add("valvalvalva.mp4")
    kinetics.write(f"annotations/{file}.csv", (TRAIN if file == "train" else VAL) + line)
    with pytest.raises(DataError) as raised:
        kinetics.find(kinetics.root / "annotations")
    assert message in raised.value.message and raised.value.hint == hint


def test_kinetics_without_any_video_says_where_it_looked(kinetics):
    kinetics.add("other.mp4")
    with pytest.raises(DataError, match=r"none of the 5 videos that .* is in") as raised:
        kinetics.find(dataset="kinetics")
    assert "`-abcdefghij_000006_000016`" in raised.value.message


def test_labels_of_a_set_that_has_one_kind(kinetics):
    kinetics.add("valvalvalva.mp4")
    for dataset in ("auto", "kinetics"):
        with pytest.raises(UsageError, match="Kinetics has no labels `verb`") as raised:
            kinetics.find(dataset=dataset, labels="verb")
        assert raised.value.hint == "leave out `--labels`"
