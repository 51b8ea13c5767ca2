"""Lists of videos in every form they come in, and what is said about wrong ones."""

import pytest

from tatscli.errors import DataError
from tatscli.store.annotations.labels import resolve_labels
from tatscli.store.annotations.lists import read_list
from tatscli.store.annotations.videos import has_video_suffix


def write(tmp_path, text, name="train.csv", labels=None):
    tmp_path.mkdir(parents=True, exist_ok=True)
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    if labels is not None:
        (tmp_path / "labels.txt").write_text("\n".join(labels) + "\n")
    return path


def pairs(tmp_path, text):
    return [(entry.path, entry.label) for entry in read_list(write(tmp_path, text), "train").lines]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.mp4 3\nb/c.webm 4\n", [("a.mp4", "3"), ("b/c.webm", "4")]),
        ("a.mp4  3\nb.mp4   4", [("a.mp4", "3"), ("b.mp4", "4")]),
        ("a.mp4\t3\r\nb c.mp4\t4\r\n", [("a.mp4", "3"), ("b c.mp4", "4")]),
        ("a.mp4,3\n\nb c.mp4, 4\n", [("a.mp4", "3"), ("b c.mp4", "4")]),
        ('"a, b.mp4",3\nc.mp4,4\n', [("a, b.mp4", "3"), ("c.mp4", "4")]),
        ("\"a b.mp4\" 3\n'c d.mp4' 4\n", [("a b.mp4", "3"), ("c d.mp4", "4")]),
        ("a b.mp4 3\nc.mp4 4\n", [("a b.mp4", "3"), ("c.mp4", "4")]),
        ("x,1.mp4 3\nx,2.mp4 4\n", [("x,1.mp4", "3"), ("x,2.mp4", "4")]),
        ("a.mp4 riding a bike\n", [("a.mp4", "riding a bike")]),
        ("a.mp4\nb c.MP4\nd,e.mp4\n", [("a.mp4", None), ("b c.MP4", None), ("d,e.mp4", None)]),
        ("a.mp4 3\nb.mp4\n", [("a.mp4", "3"), ("b.mp4", None)]),
        ("path label\na.mp4 3\n", [("a.mp4", "3")]),
        ("label,file_name\n3,a.mp4\n4,b.mp4\n", [("a.mp4", "3"), ("b.mp4", "4")]),
        ("video,start,class\na.mp4,7,3\n", [("a.mp4", "3")]),
        ("filename\na.mp4\n", [("a.mp4", None)]),
        ("\ufeffa.mp4 3\n", [("a.mp4", "3")]),
        ("a.mp4 0 -1\nb.mp4 0 -1\n", [("a.mp4", None), ("b.mp4", None)]),
        ("some_id 3\nother_id 4\n", [("some_id", "3"), ("other_id", "4")]),
        ("a.mp4::3\nb c.mp4 :: 4\n", [("a.mp4", "3"), ("b c.mp4", "4")]),
        ("a.mp4::3\nb, c.mp4::4\n", [("a.mp4", "3"), ("b, c.mp4", "4")]),
        ("path label\nx,1.mp4 3\ny.mp4 4\n", [("x,1.mp4", "3"), ("y.mp4", "4")]),
        ("path label start end\na b.mp4 riding a bike 1 2\n", [("a b.mp4", "riding a bike")]),
        (
            "path,label\na\u2028b.mp4,3\nc\x0cd.mp4,4\n",
            [("a\u2028b.mp4", "3"), ("c\x0cd.mp4", "4")],
        ),
    ],
)
def test_forms(tmp_path, text, expected):
    assert pairs(tmp_path, text) == expected


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("a.mp4 3\n", "fields separated by blanks"),
        ("a.mp4\t3\n", "fields separated by TAB"),
        ("path,label\na.mp4,3\n", "fields separated by comma, with a header"),
        ("a.mp4\n", "paths without labels"),
        ("a.mp4::3\n", "fields separated by `::`"),
    ],
)
def test_says_which_form_it_found(tmp_path, text, form):
    assert read_list(write(tmp_path, text), "train").form == form


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.mp4 3\nb.mp4 4 5\n", "train.csv`, line 2: more than a path and a label: `b.mp4 4 5`"),
        ("a.mp4,3\nb.mp4,4,5\n", "train.csv`, line 2: more than a path and a label"),
        ('a.mp4,3\n"b.mp4,4\n', "train.csv`, line 2: a quote is not closed"),
        ("a.mp4,3\n,4\n", "train.csv`, line 2: no path: `,4`"),
        (b"a.mp4 3\n\xff.mp4 4\n", "train.csv`, line 2: not UTF-8"),
        ("a.mp4 3\nframes/b 300 4\n", "line 2: a folder of images and its number of frames"),
        ("frames/a 1 300\n", "line 1: a folder of images and its number of frames, not a video"),
        ("frames/a,300,4\n", "line 1: a folder of images and its number of frames, not a video"),
        ("path,label,start,end\na.mp4,0,5,5\n", "line 2: the segment ends at `5`, not after"),
        ("path,start\na.mp4,0\nb.mp4,-1\n", "line 3: `-1` is not a time"),
        ("path,start,name\na.mp4,0,a#b\n", "line 2: the segment's name `a#b` holds a `#`"),
        ("\n\n", "names no video"),
        ("path,label\n", "names no video"),
    ],
)
def test_wrong_lines_are_named(tmp_path, text, message):
    with pytest.raises(DataError) as raised:
        read_list(write(tmp_path, text), "train")
    assert message in raised.value.message
    assert raised.value.hint


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("path,label,start,end\na.mp4,3,1.5,2\nb.mp4,4,,\n", [(1.5, 2.0), None]),
        ("video\tstart_time\na.mp4\t7\nb.mp4\t\n", [(7.0, None), None]),
        ("end,path\n00:01:02.5,a.mp4\n1:00:00,b.mp4\n", [(0.0, 62.5), (0.0, 3600.0)]),
        ("path label start end\na b.mp4 jump 1 2\nc.mp4 run 03:04 05:06\n",
         [(1.0, 2.0), (184.0, 306.0)]),
        ("a.mp4 3\nb.mp4 4\n", [None, None]),
    ],
)  # fmt: skip
def test_columns_of_seconds_make_segments(tmp_path, text, expected):
    lines = read_list(write(tmp_path, text), "train").lines
    segments = [line.segment and (line.segment.start, line.segment.end) for line in lines]
    assert segments == expected
    assert {line.segment.unit for line in lines if line.segment} <= {"seconds"}


def labels_of(*lists):
    return resolve_labels(list(lists))


def test_numbers_are_indices(tmp_path):
    assert labels_of(read_list(write(tmp_path, "a.mp4 2\nb.mp4 0\nc.mp4 -1\n"), "train")) == (
        ["0", "1", "2"],
        {"2": 2, "0": 0},
    )


def test_names_are_sorted_over_all_lists(tmp_path):
    one = read_list(write(tmp_path, "a.mp4 walk\nb.mp4 fall\n"), "train")
    other = read_list(write(tmp_path, "c.mp4 jump\n", "val.csv"), "val")
    assert labels_of(one, other) == (["fall", "jump", "walk"], {"walk": 2, "fall": 0, "jump": 1})


def test_labels_txt_names_numbers_and_orders_names(tmp_path):
    found = read_list(write(tmp_path, "a.mp4 1\nb.mp4 walk\n", labels=["walk", "fall"]), "train")
    assert labels_of(found) == (["walk", "fall"], {"1": 1, "walk": 0})


@pytest.mark.parametrize(
    ("text", "labels", "message"),
    [
        ("a.mp4 1\nb.mp4 2\n", ["x", "y"], "line 2: label `2` is too large"),
        ("a.mp4 wlak\n", ["walk", "fall"], "line 1: class `wlak` is not in `labels.txt`"),
        ("a.mp4 walk\nb.mp4 7\n", None, "line 2: label `7` is a number"),
        ("a.mp4 x\n", ["x", "y", "x"], "names the class `x` twice"),
    ],
)
def test_wrong_labels_are_named(tmp_path, text, labels, message):
    with pytest.raises(DataError) as raised:
        labels_of(read_list(write(tmp_path, text, labels=labels), "train"))
    assert message in raised.value.message
    if "wlak" in message:
        assert raised.value.hint == "did you mean `walk`?"


def test_lists_that_disagree_about_the_classes(tmp_path):
    one = read_list(write(tmp_path / "one", "a.mp4 0\n", labels=["x", "y"]), "train")
    other = read_list(write(tmp_path / "two", "b.mp4 0\n", labels=["y", "x"]), "val")
    with pytest.raises(DataError, match="name different classes"):
        labels_of(one, other)


def test_suffixes_in_any_case():
    assert has_video_suffix("a/B.WebM") and has_video_suffix("x.264")
    assert not has_video_suffix("a.txt") and not has_video_suffix("mp4")
