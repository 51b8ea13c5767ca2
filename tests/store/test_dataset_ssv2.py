"""The annotations of Something-Something V2 as they are published, with their traps."""

import pytest

from tatscli.errors import DataError, UsageError
from tests.store.published import TEMPLATES, facts, said, sample


@pytest.mark.parametrize("dataset", ["auto", "ssv2"])
def test_ssv2_brackets_string_indices_and_a_test_split_without_labels(ssv2, dataset):
    found = ssv2.find(dataset=dataset)
    inside = "20bn-something-something-v2"
    assert found.class_names == ["Holding something", "Pushing something from left to right"]
    assert facts(found) == {
        f"{inside}/1.webm": ("Pushing something from left to right", ["train"]),
        f"{inside}/2.webm": ("Holding something", ["train"]),
        f"{inside}/3.webm": ("Holding something", ["val"]),
        f"{inside}/4.webm": (None, ["test"]),
    }
    assert found.dataset == "ssv2" and found.missing == 0
    assert "Something-Something V2, by " in said(found)
    assert "2 videos in split `train`, 1 video in split `val`" in said(found)


def test_ssv2_indices_are_the_files_not_ranks(ssv2):
    ssv2.write("labels/labels.json", {"Pushing something from left to right": "0",
                                      "Holding something": "1"})  # fmt: skip
    assert ssv2.find().items[0].label == 0
    assert ssv2.find().items[1].label == 1


def test_ssv2_a_part_of_the_classes_keeps_its_numbers(ssv2):
    ssv2.write("labels/labels.json", {"Pushing something from left to right": "4",
                                      "Holding something": "2"})  # fmt: skip
    found = ssv2.find()
    assert [item.label for item in found.items] == [4, 2, 2, None]
    assert found.class_names == [
        "0", "1", "Holding something", "3", "Pushing something from left to right"
    ]  # fmt: skip


def test_ssv2_test_answers(ssv2):
    ssv2.write("labels/test-answers.csv", "4;Holding something\n5;Holding something\n")
    assert facts(ssv2.find())["20bn-something-something-v2/4.webm"][0] == "Holding something"
    ssv2.write("labels/test-answers.csv", "3;x\n4;Holding a thing\n")
    with pytest.raises(DataError, match=r"test-answers\.csv`, line 2: .*`Holding a thing`"):
        ssv2.find()


def test_ssv2_older_names_in_a_folder_given(data):
    data.add("7.mp4", "7.webm", "8.webm")
    name = "far/something-something-v2"
    data.write(f"{name}-train.json", [sample(7, "Holding [something]", "x")])
    data.write(f"{name}-validation.json", [sample(9, "Holding [something]", "x")])
    data.write(f"{name}-labels.json", TEMPLATES)
    found = data.find(data.root / "far", dataset="ssv2")
    assert facts(found) == {"7.mp4": ("Holding something", ["train"])}
    assert found.missing == 1
    assert "1 of 2 rows have no video file and are left out, such as `9`" in said(found)
    assert "2 further videos in" in said(found)


def test_ssv2_one_file_named_is_one_split(ssv2):
    labels = ssv2.root / "labels"
    assert set(facts(ssv2.find(labels / "validation.json"))) == {
        "20bn-something-something-v2/3.webm"
    }
    found = ssv2.find(f"mine={labels / 'train.json'}", labels / "labels.json")
    assert {tuple(splits) for _, splits in facts(found).values()} == {("mine",)}


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("train.json", [sample(1, "Holding [something]"), sample(2, "Eating [something]")],
         "train.json`, item 1: the template `Eating [something]` is not in"),
        ("train.json", [sample(1, "Holding [something]"), {"id": "2"}],
         "train.json`, item 1: no `template`"),
        ("train.json", [sample(1, "Holding [something]"), {"template": "x"}],
         "train.json`, item 1: no `id`"),
        ("train.json", '[{"id": "1", "template": "Holding [something]"},\n',
         "train.json`, line 2: not JSON"),
        ("labels.json", {"Holding something": "zero"},
         "labels.json`, `Holding something`: class `zero` is not a whole number"),
        ("labels.json", {"Holding something": "1", "x": "1"},
         "labels.json`, `x`: class `1` is `x`, but before, it was `Holding something`"),
        ("labels.json", {"Holding something": "999999"}, "`999999` is no class"),
    ],
)  # fmt: skip
def test_ssv2_mistakes_are_placed(ssv2, file, content, message):
    ssv2.write(f"labels/{file}", content)
    with pytest.raises(DataError) as raised:
        ssv2.find()
    assert message in raised.value.message


def test_ssv2_without_class_names(ssv2):
    (ssv2.root / "labels" / "labels.json").unlink()
    with pytest.raises(UsageError, match=r"no `labels\.json` beside") as raised:
        ssv2.find()
    assert "`--dataset folders`" in raised.value.hint
