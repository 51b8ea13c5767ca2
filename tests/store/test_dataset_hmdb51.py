"""The annotations of HMDB51 as they are published, with their traps."""

import pytest

from tatscli.errors import DataError, UsageError
from tests.store.published import ODD, facts, said


def test_hmdb51_flags_and_odd_names(hmdb51):
    found = hmdb51.find()
    assert found.class_names == ["brush_hair", "clap"]
    assert facts(found) == {
        "brush_hair/April_09_brush_hair_0.avi": ("brush_hair", ["test", "val"]),
        f"clap/{ODD[0]}": ("clap", ["train"]),
        f"clap/{ODD[1]}": ("clap", ["test", "val"]),
        f"clap/{ODD[2]}": ("clap", []),
        f"clap/{ODD[3]}": ("clap", ["train"]),
    }
    assert all(item.path.exists() for item in found.items)
    assert "in no split: 1" in said(found)


def test_hmdb51_one_file_names_its_fold(hmdb51):
    folder = hmdb51.root / "testTrainMulti_7030_splits"
    found = hmdb51.find(folder / "clap_test_split2.txt")
    assert facts(found) == {
        "brush_hair/April_09_brush_hair_0.avi": ("brush_hair", ["train"]),
        f"clap/{ODD[0]}": ("clap", ["test", "val"]),
    }
    for wrong in (
        [folder / "clap_test_split2.txt", folder / "clap_test_split1.txt"],
        [f"train={folder / 'clap_test_split1.txt'}"],
    ):
        with pytest.raises(UsageError):
            hmdb51.find(*wrong)


def test_hmdb51_wrong_flags(hmdb51):
    hmdb51.write("testTrainMulti_7030_splits/clap_test_split1.txt", f"{ODD[0]} 1\n{ODD[1]} 3\n")
    with pytest.raises(DataError, match=r"clap_test_split1\.txt`, line 2: `3` in"):
        hmdb51.find()
