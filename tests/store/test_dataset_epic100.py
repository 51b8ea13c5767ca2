"""The annotations of EPIC-KITCHENS-100 as they are published, with their traps."""

import pytest

from tatscli.errors import DataError, UsageError
from tatscli.store.sources import find_sources
from tatscli.video.decode import Segment
from tests.store.published import HEADER, action, facts, said


def test_epic100_rows_are_segments_of_long_videos(epic100):
    found = epic100.find()
    assert facts(found) == {
        "P01/P01_01.MP4#P01_01_0": ("turn-on light", ["train"]),
        "P01/P01_01.MP4#P01_01_1": ("open door", ["train"]),
        "P02/videos/P02_101.mp4#P02_101_0": ("open door", ["train"]),
        "P03_05.mkv#P03_05_7": ("open cup", ["val"]),
        "P04/rgb/P04_11.MP4#P04_11_0": (None, ["test"]),
    }
    assert [item.segment for item in found.items[:2]] == [
        Segment(0.14, 3.37),
        Segment(3599.5, 3600.25),
    ]
    assert found.items[0].path == found.items[1].path == epic100.videos / "P01" / "P01_01.MP4"
    assert "3 segments in split `train`" in said(found)
    assert found.missing == 1 and "such as `P09_07`" in said(found)


def test_epic100_actions_of_training_come_first(epic100):
    """(3, 0), (3, 2), (6, 2) of training, sorted, then (3, 1) of validation."""
    assert epic100.find().class_names == ["open door", "open light", "turn-on light", "open cup"]


@pytest.mark.parametrize(
    ("kind", "names", "labels"),
    [
        ("verb", ["verb 0", "verb 1", "verb 2", "open", "verb 4", "verb 5", "turn-on"],
         [6, 3, 3, 3, None]),
        ("noun", ["door", "cup", "light"], [2, 0, 0, 1, None]),
        ("action", ["open door", "open light", "turn-on light", "open cup"], [2, 0, 0, 3, None]),
    ],
)  # fmt: skip
def test_epic100_verbs_or_nouns(epic100, kind, names, labels):
    found = epic100.find(labels=kind)
    assert found.class_names == names
    assert [item.label for item in found.items] == labels
    assert f"labels are {kind}s" in said(found)


def test_epic100_class_names_of_the_published_files(epic100):
    folder = "epic-kitchens-100-annotations"
    verbs = ["take", "put", "wash", "open", "close", "insert", "turn-on"]
    rows = [f"{n},{key},\"['{key}', 'x']\",c\n" for n, key in enumerate(verbs)]
    epic100.write(
        f"{folder}/EPIC_100_verb_classes.csv", "id,key,instances,category\n" + "".join(rows)
    )
    assert epic100.find(labels="verb").class_names == verbs
    nouns = '"id","key","instances","category"\n0,"door:big","[]","x"\n'
    file = epic100.write(f"{folder}/EPIC_100_noun_classes_v2.csv", nouns)
    with pytest.raises(DataError, match="noun_class `2` is too large"):
        epic100.find()
    file.write_text(nouns + "1,cup,[],x\n2,light,[],x\n")
    assert epic100.find().class_names[0] == "open door:big"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (action("P01_01_5", "00:00:09.00", "00:00:09.00", "open", 3, "cup", 1),
         "line 2: the segment ends at `00:00:09.00`, not after its start"),
        (action("P01_01_5", "soon", "00:00:09.00", "open", 3, "cup", 1),
         "line 2: `soon` is not a time"),
        (action("P01_01_5", "00:00:08.00", "00:00:09.00", "open", "x", "cup", 1),
         "line 2: verb_class `x` is not a whole number"),
    ],
)  # fmt: skip
def test_epic100_mistakes_are_placed(epic100, row, message):
    epic100.write("epic-kitchens-100-annotations/EPIC_100_validation.csv", HEADER + row)
    with pytest.raises(DataError) as raised:
        epic100.find()
    assert f"EPIC_100_validation.csv`, {message}" in raised.value.message


def test_labels_to_choose_from(epic100, tmp_path):
    with pytest.raises(UsageError, match="no labels `adverb`") as raised:
        epic100.find(labels="adverb")
    assert raised.value.hint.startswith("choose one of action, verb, noun")
    for options in ({"dataset": "folders"}, {"dataset": "auto"}):  # nothing known is near
        with pytest.raises(UsageError, match="no labels `verb`"):
            find_sources(epic100.videos / "P01", labels="verb", **options)


def test_epic100_actions_know_their_verbs_and_nouns(epic100):
    found = epic100.find()
    groups = found.class_groups
    assert list(groups) == ["verb", "noun"]
    pairs = [
        f"{groups['verb'].names[verb]} {groups['noun'].names[noun]}"
        for verb, noun in zip(groups["verb"].of, groups["noun"].of, strict=True)
    ]
    assert pairs == found.class_names
    assert (len(groups["verb"].names), groups["noun"].names) == (7, ("door", "cup", "light"))
    assert epic100.find(labels="verb").class_groups == {}
