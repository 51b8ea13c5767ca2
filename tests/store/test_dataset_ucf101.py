"""The annotations of UCF101 as they are published, with their traps."""

from pathlib import Path

import pytest

from tatscli.errors import DataError, UsageError
from tests.store.published import NAMES, facts, said


def test_ucf101_first_fold_labels_from_zero_and_validation_on_test(ucf101):
    ucf101.add(*NAMES)
    found = ucf101.find()
    assert found.class_names == ["ApplyEyeMakeup", "HandstandPushups", "YoYo"]
    assert [item.label for item in found.items] == [0, 1, 2]
    assert [splits for _, splits in facts(found).values()] == [
        ["train"],
        ["train"],
        ["test", "val"],
    ]
    assert "fold 1" in said(found) and "`test` is used as `val` too" in said(found)
    assert found.doubts == []


def test_ucf101_flat_re_encoded_and_another_fold(ucf101):
    ucf101.add(*(Path(name).with_suffix(".mp4").name for name in NAMES))
    lists = ucf101.root / "ucfTrainTestlist"
    found = ucf101.find(lists / "trainlist02.txt", lists / "testlist02.txt", dataset="ucf101")
    assert facts(found) == {
        "v_YoYo_g01_c01.mp4": ("YoYo", ["train"]),
        "v_ApplyEyeMakeup_g08_c01.mp4": ("ApplyEyeMakeup", ["test", "val"]),
    }
    assert "fold 2" in said(found)


def test_ucf101_splits_by_other_names(ucf101):
    ucf101.add(*NAMES)
    lists = ucf101.root / "ucfTrainTestlist"
    found = ucf101.find(f"val={lists / 'testlist01.txt'}", lists / "trainlist01.txt")
    assert facts(found)[NAMES[2]] == ("YoYo", ["val"])


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("trainlist01.txt", f"{NAMES[0]} 0\n", "line 1: class `0` is not in"),
        ("trainlist01.txt", f"\n{NAMES[0]} 2\n", "line 2: class `2` is `HandstandPushups`, but"),
        ("testlist01.txt", "Yodel/v_Yodel_g01_c01.avi\n", "the folder of `Yodel/v_Yodel_g01_c01"),
        ("classInd.txt", "0 ApplyEyeMakeup\n1 YoYo\n", "line 1: `0` is no class"),
        ("classInd.txt", "1 ApplyEyeMakeup\n2 ApplyEyeMakeup\n", "line 2: class `2` is `ApplyEye"),
    ],
)
def test_ucf101_mistakes_are_placed(ucf101, file, content, message):
    ucf101.add(*NAMES)
    ucf101.write(f"ucfTrainTestlist/{file}", content)
    with pytest.raises(DataError) as raised:
        ucf101.find()
    assert message in raised.value.message and file in raised.value.message
    assert raised.value.hint


def test_ucf101_without_class_names(ucf101):
    (ucf101.root / "ucfTrainTestlist" / "classInd.txt").unlink()
    with pytest.raises(UsageError, match=r"no `classInd\.txt` beside"):
        ucf101.find()
