"""Which videos are found, with which labels and splits."""

import os

import pytest

from tatscli.errors import DataError, UsageError
from tatscli.store.sources import find_sources
from tatscli.video.decode import Segment


@pytest.fixture
def tree(tmp_path):
    def make(*names):
        for name in names:
            path = tmp_path / "videos" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"x")
        return tmp_path / "videos"

    return make


def facts(sources):
    return {item.id: (item.label, item.split) for item in sources.items}


def test_sub_folders_are_classes_sorted_by_name(tree):
    found = find_sources(tree("walk/b.mp4", "fall/x/a.AVI", "fall/notes.txt", "walk/._b.mp4"))
    assert found.class_names == ["fall", "walk"]
    assert list(facts(found).items()) == [("fall/x/a.AVI", (0, None)), ("walk/b.mp4", (1, None))]
    assert "2 classes" in " ".join(found.findings)


def test_a_flat_folder_and_a_single_sub_folder_are_unlabelled(tree):
    found = find_sources(tree("clips/a.mp4", "clips/b.mp4"))
    assert found.class_names == [] and facts(found)["clips/a.mp4"] == (None, None)
    assert "unlabelled" in " ".join(found.findings)


def test_split_folders_with_classes_inside(tree):
    found = find_sources(tree("train/walk/a.mp4", "train/fall/a.mp4", "val/walk/b.mp4"))
    assert found.class_names == ["fall", "walk"]
    assert facts(found) == {
        "train/fall/a.mp4": (0, "train"),
        "train/walk/a.mp4": (1, "train"),
        "val/walk/b.mp4": (1, "val"),
    }
    assert "splits: train, val" in " ".join(found.findings)


def test_train_beside_another_folder_is_a_class(tree):
    found = find_sources(tree("train/a.mp4", "plane/b.mp4"))
    assert found.class_names == ["plane", "train"]
    assert {item.split for item in found.items} == {None}


def test_linked_folders_are_followed_once(tree, tmp_path):
    folder = tree("walk/a.mp4", "fall/b.mp4")
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "c.mp4").write_bytes(b"x")
    os.symlink(tmp_path / "far", folder / "jump")
    os.symlink(folder, folder / "walk" / "loop")
    assert list(facts(find_sources(folder))) == ["fall/b.mp4", "jump/c.mp4", "walk/a.mp4"]


def test_nothing_found_says_what_there_is(tree, tmp_path):
    with pytest.raises(DataError, match=r"no videos in .*: it holds 2 x \.txt") as raised:
        find_sources(tree("a.txt", "x/b.txt"))
    assert raised.value.hint
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="it is empty"):
        find_sources(tmp_path / "empty")


def test_missing_folders_and_files(tmp_path, tree):
    with pytest.raises(UsageError, match="there is no folder"):
        find_sources(tmp_path / "none")
    with pytest.raises(UsageError, match="is a file"):
        find_sources(tree("a.mp4") / "a.mp4")
    with pytest.raises(UsageError, match=r"there is no list `none\.csv`"):
        find_sources(tree("a.mp4"), ["none.csv"])


def test_lists_name_videos_splits_and_labels(tree, tmp_path):
    folder = tree("a.mp4", "b.mp4", "sub/c.mp4", "unlisted.mp4")
    lists = tmp_path / "lists"
    lists.mkdir()
    (lists / "train.csv").write_text(f"a.mp4 1\n{folder / 'sub/c.mp4'} 0\n")
    (lists / "fold1.txt").write_text("b.mp4,1\ngone.mp4,0\n")
    found = find_sources(folder, [str(lists / "train.csv"), f"val={lists / 'fold1.txt'}"])
    assert facts(found) == {
        "a.mp4": (1, "train"),
        "b.mp4": (1, "val"),
        "gone.mp4": (0, "val"),
        "sub/c.mp4": (0, "train"),
    }
    assert found.class_names == ["0", "1"]
    assert any("fold1.txt`: 2 videos in split `val`" in finding for finding in found.findings)


def test_paths_may_be_relative_to_the_list_and_lie_outside(tree, tmp_path):
    folder = tree("a.mp4")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "b.mp4").write_bytes(b"x")
    (tmp_path / "other" / "train.csv").write_text("a.mp4\n./b.mp4\n")
    found = find_sources(folder, [str(tmp_path / "other" / "train.csv")])
    assert list(facts(found)) == sorted([str(tmp_path / "other/b.mp4"), "a.mp4"])


def test_a_list_may_lie_in_the_prepared_folder(tree):
    folder = tree("a.mp4")
    (folder / "train.csv").write_text("a.mp4\n")
    assert facts(find_sources(folder, ["train.csv"])) == {"a.mp4": (None, "train")}


def test_a_video_in_several_lists(tree):
    folder = tree("a.mp4", "b.mp4")
    (folder / "train.csv").write_text("a.mp4 0\nb.mp4 1\n")
    (folder / "val.csv").write_text("./b.mp4 1\n")
    (folder / "test.csv").write_text("b.mp4\n")
    found = find_sources(folder, ["train.csv", "val.csv", "test.csv"])
    item = found.items[1]
    assert (item.label, item.split, item.also_in) == (1, "train", ("val", "test"))
    assert found.doubts == ["1 video of split `train` also in another split"]


def test_labels_that_contradict_each_other(tree):
    folder = tree("a.mp4", "b.mp4")
    (folder / "train.csv").write_text("a.mp4 0\nb.mp4 1\n")
    (folder / "val.csv").write_text("\nb.mp4 0\n")
    with pytest.raises(DataError) as raised:
        find_sources(folder, ["train.csv", "val.csv"])
    assert "val.csv`, line 2: `b.mp4` has label `0`" in raised.value.message
    assert "train.csv`, line 2 says `1`" in raised.value.message


def test_a_list_of_nothing_that_exists(tree):
    folder = tree("a.mp4")
    (folder / "train.csv").write_text("x/a.mp4 0\n")
    with pytest.raises(DataError, match="none of the 1 listed videos exists") as raised:
        find_sources(folder, ["train.csv"])
    assert "relative to" in raised.value.hint


def test_names_that_are_no_text_get_a_readable_id(tree, tmp_path):
    folder = tree("a.mp4")
    os.rename(folder / "a.mp4", os.fsencode(folder) + b"/\xff.mp4")
    found = find_sources(folder)
    assert [item.id for item in found.items] == ["\\xff.mp4"]
    assert found.items[0].path.exists()


def test_segments_of_a_list(tree):
    folder = tree("a.mp4", "b.mp4")
    lines = (
        "path,label,start,end,name\na.mp4,0,0,1.5,\na.mp4,1,1.5,,\nb.mp4,1,2,3,jump\nb.mp4,0,,,\n"
    )
    (folder / "train.csv").write_text(lines)
    found = find_sources(folder, ["train.csv"])
    assert [(item.id, item.label, item.segment) for item in found.items] == [
        ("a.mp4#0-1.5", 0, Segment(0.0, 1.5)),
        ("a.mp4#1.5-", 1, Segment(1.5)),
        ("b.mp4", 0, None),
        ("b.mp4#jump", 1, Segment(2.0, 3.0)),
    ]
    assert found.items[0].path == found.items[1].path == folder / "a.mp4"
    (folder / "val.csv").write_text("path,start,name\nb.mp4,1,jump\n")
    with pytest.raises(DataError, match="different segment than in"):
        find_sources(folder, ["train.csv", "val.csv"])


def test_a_list_shared_with_training_is_doubted_in_any_order(tree):
    folder = tree("a.mp4", "b.mp4")
    (folder / "train.csv").write_text("a.mp4 0\nb.mp4 1\n")
    (folder / "val.csv").write_text("b.mp4 1\n")
    doubts = ["1 video of split `train` also in another split"]
    assert find_sources(folder, ["val.csv", "train.csv"]).doubts == doubts


@pytest.mark.parametrize("line", ["x" * 5000 + ".mp4 0", "a\0b.mp4 0", f"b.mp4 {'9' * 5000}"])
def test_lines_no_file_system_would_take(tree, line):
    folder = tree("a.mp4")
    (folder / "train.csv").write_text(f"a.mp4 0\n{line}\n")
    try:
        assert len(find_sources(folder, ["train.csv"]).items) == 2
    except DataError as error:
        assert "train.csv`, line " in error.message


def test_folders_that_cannot_be_read_are_counted(tree, monkeypatch):
    folder = tree("walk/a.mp4", "fall/b.mp4")
    real = os.scandir

    def scandir(path):
        if os.path.basename(path) == "fall":
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    found = find_sources(folder)
    assert list(facts(found)) == ["walk/a.mp4"]
    assert found.doubts == [
        f"1 folder cannot be read, such as `{folder / 'fall'}`: their contents are left out"
    ]
    with pytest.raises(DataError, match="fall` cannot be read"):
        find_sources(folder / "fall")
