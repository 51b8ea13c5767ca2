"""Lists and folders as people have them: odd labels, other column names, damage, links."""

import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tatscli.errors import DataError, TatsError
from tatscli.store.convert import Converted
from tatscli.store.prepare import _row
from tatscli.store.schema import Row, row_line
from tatscli.store.sources import find_sources


@pytest.fixture
def listed(tmp_path):
    """Return a function that reads a list of `a.mp4`, `b.mp4` and `c.mp4`."""
    for name in "abc":
        (tmp_path / f"{name}.mp4").write_bytes(name.encode())

    def read(text, labels=None):
        (tmp_path / "train.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
        if labels is not None:
            (tmp_path / "labels.txt").write_text("\n".join(labels))
        return find_sources(tmp_path, ["train.csv"])

    return read


def labels(found):
    return [item.label for item in found.items]


@pytest.mark.parametrize(
    ("text", "expected", "classes"),
    [
        ("a.mp4,2.0\nb.mp4,10.0\nc.mp4,nan\n", [2, 10, None], 11),  # as pandas writes integers
        ("a.mp4,2.0\nb.mp4,\nc.mp4,NaN\n", [2, None, None], 3),
        ("a.mp4,1e1\nb.mp4,2.\nc.mp4,-1.0\n", [10, 2, None], 11),
        ("a.mp4,0\nb.mp4,None\nc.mp4,1\n", [0, None, 1], 2),
        ("a.mp4,0\nb.mp4,<NA>\nc.mp4,null\n", [0, None, None], 1),
        ("a.mp4,jump\nb.mp4,nan\nc.mp4,run\n", [0, None, 1], 2),
        ("a.mp4,jump\nb.mp4,none\nc.mp4,run\n", [0, 1, 2], 3),  # a class like others
        ("a.mp4 1.0\nb.mp4 0.0\nc.mp4 1\n", [1, 0, 1], 2),
    ],
)
def test_labels_as_spreadsheets_write_them(listed, text, expected, classes):
    found = listed(text)
    assert labels(found) == expected and len(found.class_names) == classes
    bare = expected.count(None)
    assert any(f"{bare} of 3 videos have no label" in one for one in found.doubts) == (bare > 0)


def test_labels_txt_decides_what_a_word_means(listed):
    found = listed("a.mp4,nan\nb.mp4,2.0\nc.mp4,none\n", ["none", "nan", "x"])
    assert labels(found) == [1, 2, 0]


@pytest.mark.parametrize("label", ["2.5", "-2", "1e99", "-0.5"])
def test_a_number_that_is_no_class_is_an_error(listed, label):
    with pytest.raises(DataError, match=r"line 2: label `.*` is not a class number") as raised:
        listed(f"a.mp4,1\nb.mp4,{label}\nc.mp4,0\n")
    assert "whole numbers from 0" in raised.value.hint


@pytest.mark.parametrize(
    "header",
    ["video_path,class_label", "Video Path,Category", "fileName,Target", "clip-path,class_name",
     "FILE_PATH,category_id", "\ufeffpath,label"],
)  # fmt: skip
def test_near_names_of_columns(listed, header):
    found = listed(f"{header}\na.mp4,3\nb.mp4,1\n")
    assert labels(found) == [3, 1] and found.doubts == []


def test_columns_that_are_not_used_are_named(listed):
    found = listed("video,fps,subject,class\na.mp4,25,7,3\nb.mp4,25,8,1\n")
    assert labels(found) == [3, 1]
    (doubt,) = found.doubts
    assert "columns `fps`, `subject` not used" in doubt and "call it" not in doubt
    (doubt,) = listed("video,activity\na.mp4,3\nb.mp4,1\n").doubts
    assert "column `activity` not used; if one of them holds the labels" in doubt


def test_a_header_without_a_known_path_is_not_a_video(listed):
    with pytest.raises(DataError, match="line 1: `sample,action` looks like a header") as raised:
        listed("sample,action\na.mp4,3\nb.mp4,1\n")
    assert "call that column `path`" in raised.value.hint


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (b"a.mp4,3\nb\0.mp4,1\n", 2),
        (b"\0", 1),
        ("a.mp4,3\n".encode("utf-16-le"), 1),
    ],
)
def test_a_nul_byte_is_named_and_nothing_written(listed, tmp_path, data, line):
    with pytest.raises(DataError, match=f"train.csv`, line {line}: a NUL byte"):
        listed(data)
    assert not (tmp_path / "store").exists()


@pytest.mark.shared
def test_lists_of_the_field(shared, listed):
    field = shared / "clips" / "field"
    assert labels(listed((field / "labels_as_floats.csv").read_bytes())) == [2, 10]
    assert labels(listed((field / "unknown_label_column.csv").read_bytes())) == [3, 1]
    with pytest.raises(DataError, match="line 2: a NUL byte"):
        listed((field / "nul_byte.csv").read_bytes())


def test_a_folder_reached_twice_is_taken_twice_and_said(tmp_path):
    for name in ("train/run/a.mp4", "val/run/b.mp4"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(b"x")
    os.symlink("val", tmp_path / "test")
    found = find_sources(tmp_path, dataset="folders")
    assert [(item.id, item.split) for item in found.items] == [
        ("test/run/b.mp4", "test"), ("train/run/a.mp4", "train"), ("val/run/b.mp4", "val"),
    ]  # fmt: skip
    (doubt,) = [one for one in found.doubts if "reached twice" in one]
    assert "2 folders reached twice by links, such as `val`, which is `test`" in doubt


def test_a_loop_of_links_ends_and_is_said(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "x.mp4").write_bytes(b"x")
    os.symlink("../..", tmp_path / "a" / "b" / "up")
    os.symlink(".", tmp_path / "here")
    found = find_sources(tmp_path, dataset="folders")
    assert [item.id for item in found.items] == ["a/b/x.mp4"]
    (doubt,) = found.doubts
    assert "2 links to a folder above, such as `" in doubt and "not followed" in doubt


BASES = [
    b"path,label,start,end,name\na.mp4,jump,0.5,1.5,x\nb.mp4,run,00:01:02.5,,\n",
    b"a.mp4 3\nb c.mp4 4\n\"d e.mp4\" 5\n",
    b"a.mp4\tjump\nb.mp4\trun\n",
    b"a.mp4::2.0\nb.mp4::nan\n",
    b"video_path,class_label,fps\na.mp4,1,25\nb.mp4,-1,30\n",
    b"clips/a.mp4 0 -1\nclips/b.mp4 0 -1\n",
]  # fmt: skip
PIECES = st.sampled_from(
    [b"\0", b"\n", b"\r", b",", b'"', b"\t", b"::", b" ", b"-1", b"nan", b"1e400", b"9" * 30,
     b"#", b"\xff", b"\xef\xbb\xbf", b"../" * 50, b"/", b"a" * 5000, "é".encode(), b"2.5",
     b"\xf0\x9f\x8e\xa5", b"\xe2\x80\xa8", b"start", b"path", b"."]
)  # fmt: skip
MUTATION = st.tuples(
    st.integers(0, 120), st.integers(0, 12), st.one_of(PIECES, st.binary(max_size=4))
)


@settings(
    max_examples=1000,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(base=st.sampled_from(BASES), mutations=st.lists(MUTATION, min_size=1, max_size=6))
def test_a_mutated_list_is_a_manifest_or_one_sentence(tmp_path, base, mutations):
    """Whatever a list holds: rows that can be written and read, or an error that says what."""
    (tmp_path / "a.mp4").touch()
    for place, length, piece in mutations:
        place %= len(base) + 1
        base = base[:place] + piece + base[place + length :]
    (tmp_path / "train.csv").write_bytes(base)
    try:
        found = find_sources(tmp_path, ["train.csv"])
    except TatsError as error:
        assert error.message and "\n" not in error.message.strip()
        return
    for source in found.items:
        os.path.exists(source.path)  # a path that the system can be asked about
        row = _row(source, Converted(reason="this is not a video"))
        assert Row.model_validate_json(row_line(row)) == row
    assert len({source.id for source in found.items}) == len(found.items) > 0
