"""Lists written from a store: in the forms that others read, and that we read back."""

import csv

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tatscli.errors import DataError, TatsError, UsageError
from tatscli.store.annotations.labels import resolve_labels
from tatscli.store.annotations.lines import parse_lines
from tatscli.store.annotations.lists import read_list
from tatscli.store.lists import write_lists
from tatscli.store.reader import Store
from tatscli.store.schema import Dataset, Row


def store(tmp_path, *rows, class_names=("fall", "walk")):
    return Store(tmp_path / "store", Dataset(class_names=class_names), list(rows))


def row(name, label=None, split="train", **more):
    return Row(id=name, status="ok", label=label, split=split, **more)


def test_plain_lists_as_videomae_reads_them(tmp_path):
    rows = (
        row("a/1.mp4", 1),
        row("a/2.mp4"),
        row("b.mp4", 0, "val", also_in=("test",)),
        row("c.mp4", 1, None),
        Row(id="bad.mp4", status="failed", reason="no", label=1, split="train"),
        row("/far/d.mp4", 0, "test"),
    )
    files = write_lists(store(tmp_path, *rows), tmp_path / "new" / "lists")
    texts = {file.name: file.read_text() for file in files}
    assert texts == {
        "train.csv": "a/1.mp4 1\na/2.mp4 -1\n",
        "val.csv": "b.mp4 0\n",
        "test.csv": "b.mp4 0\n/far/d.mp4 0\n",
        "unsplit.csv": "c.mp4 1\n",
        "labels.txt": "fall\nwalk\n",
    }
    assert sorted(path.name for path in files[0].parent.iterdir()) == sorted(texts)
    assert files[-1].name == "labels.txt"


def test_a_root_for_relative_paths(tmp_path):
    rows = (row("a.mp4", 1), row("/far/b.mp4", 0))
    (train, _) = write_lists(store(tmp_path, *rows), tmp_path, root="/data/videos")
    assert train.read_text() == "/data/videos/a.mp4 1\n/far/b.mp4 0\n"
    with pytest.raises(UsageError, match=r"`/my data/a\.mp4` cannot be written"):
        write_lists(store(tmp_path, *rows), tmp_path, root="/my data")


@pytest.mark.parametrize("name", ["jump 01.mp4", "a\tb.mp4", '"a".mp4', "'a.mp4"])
def test_what_has_to_be_quoted_needs_commas(tmp_path, name):
    rows = (row("a.mp4", 1), row(name, 0))
    with pytest.raises(UsageError) as raised:
        write_lists(store(tmp_path, *rows), tmp_path)
    assert f"`{name}`" in raised.value.message and "`--separator ,`" in raised.value.hint
    assert not (tmp_path / "train.csv").exists()
    (train, _) = write_lists(store(tmp_path, *rows), tmp_path, separator=",")
    with train.open(newline="") as file:
        assert list(csv.reader(file)) == [["path", "label"], ["a.mp4", "1"], [name, "0"]]
    assert [line.path for line in read_list(train, "train").lines] == ["a.mp4", name]


@pytest.mark.parametrize("name", ["x.mp4,1.mp4", "a.mp4::1.mp4"])
def test_a_list_that_would_look_like_another_form_needs_commas(tmp_path, name):
    with pytest.raises(UsageError, match="would be misread"):
        write_lists(store(tmp_path, row(name, 0)), tmp_path)
    (train, _) = write_lists(store(tmp_path, row(name, 0)), tmp_path, separator=",")
    assert [line.path for line in read_list(train, "train").lines] == [name]


def test_segments_need_commas(tmp_path):
    rows = (
        row("P01/P01_01.MP4#P01_01_0", 1, path="P01/P01_01.MP4", start=0.14, end=3.37),
        row("P01/P01_01.MP4#P01_01_1", 0, path="P01/P01_01.MP4", start=2.0),
        row("b.mp4", 0),
    )
    with pytest.raises(UsageError, match=r"`P01/P01_01\.MP4#P01_01_0` is a segment"):
        write_lists(store(tmp_path, *rows), tmp_path)
    (train, _) = write_lists(store(tmp_path, *rows), tmp_path, separator=",")
    assert train.read_text() == (
        "path,label,start,end,name\n"
        "P01/P01_01.MP4,1,0.14,3.37,P01_01_0\n"
        "P01/P01_01.MP4,0,2,,P01_01_1\n"
        "b.mp4,0,,,\n"
    )
    lines = read_list(train, "train").lines
    assert [line.segment and (line.segment.start, line.segment.end) for line in lines] == [
        (0.14, 3.37),
        (2.0, None),
        None,
    ]
    assert [line.name for line in lines] == ["P01_01_0", "P01_01_1", None]


def test_what_cannot_be_written_at_all(tmp_path):
    for wrong in (
        store(tmp_path, row("a\nb.mp4", 0)),
        store(tmp_path, row("a.mp4", 0, "../train")),
        store(tmp_path, row("a.mp4", 0), class_names=("fall ", "walk")),
    ):
        with pytest.raises(DataError):
            write_lists(wrong, tmp_path, separator=",")
    with pytest.raises(UsageError, match="separator `;`"):
        write_lists(store(tmp_path), tmp_path, separator=";")
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="cannot write"):
        write_lists(store(tmp_path, row("a.mp4", 0)), tmp_path / "file")


ODD = st.text(
    st.characters(exclude_categories=("Cs",), exclude_characters="\0"), min_size=1, max_size=12
)
NAMES = st.one_of(
    ODD, ODD.map(lambda name: f"{name}.mp4"), st.from_regex(r"[a-c,: \t\"'.mp4]{1,9}")
).filter(lambda name: "\0" not in name)


@given(
    names=st.lists(NAMES, min_size=1, max_size=5, unique=True),
    labels=st.lists(st.sampled_from([None, 0, 1]), min_size=5, max_size=5),
    separator=st.sampled_from([" ", ","]),
)
@example(names=["a,b.mp4", "c.mp4"], labels=[0] * 5, separator=" ")
@example(names=["path"], labels=[0] * 5, separator=" ")
@example(names=["a.mp4 0 -1"], labels=[None] * 5, separator=",")
@example(names=[",\r0"], labels=[0] * 5, separator=",")
def test_what_is_written_is_read_back(tmp_path_factory, names, labels, separator):
    """Or refused: never misread."""
    folder = tmp_path_factory.mktemp("lists")
    rows = [row(name, label) for name, label in zip(names, labels, strict=False)]
    try:
        (file, _) = write_lists(store(folder, *rows), folder, separator=separator)
    except TatsError:
        return
    read = read_list(file, "train")
    class_names, index = resolve_labels([read])
    assert class_names == ["fall", "walk"]
    assert [(line.path, index.get(line.label or "")) for line in read.lines] == [
        (item.id, item.label) for item in rows
    ]


SANE = st.from_regex(
    r"[A-Za-z0-9_()#&;!+=@-][A-Za-z0-9_()#&;!+=@./-]{0,20}\.(mp4|avi|MP4)", fullmatch=True
)


@given(names=st.lists(SANE, min_size=1, max_size=5, unique=True))
def test_names_as_data_sets_have_them_are_not_refused(tmp_path_factory, names):
    folder = tmp_path_factory.mktemp("lists")
    (file, _) = write_lists(store(folder, *(row(name, 1) for name in names)), folder)
    assert [line.path for line in parse_lines(file.read_text(), "x")[0]] == names


SPACED = st.from_regex(r"[a-z(][a-z ,;'\"#]{0,12}\.mp4", fullmatch=True)


@given(names=st.lists(SPACED, min_size=1, max_size=5, unique=True))
def test_nor_are_names_with_blanks_and_quotes_in_tables(tmp_path_factory, names):
    folder = tmp_path_factory.mktemp("lists")
    rows = [row(name, 1) for name in names]
    (file, _) = write_lists(store(folder, *rows), folder, separator=",")
    assert [line.path for line in parse_lines(file.read_text(), "x")[0]] == names
