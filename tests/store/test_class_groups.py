"""Class groups of a store: on disk, in older stores, and where stores are joined."""

import hashlib
import io
import json
import shutil

import pytest

from tatscli.console import Reporter
from tatscli.errors import DataError, UsageError
from tatscli.store.merge import merge
from tatscli.store.reader import Store
from tatscli.store.schema import ClassGroup, join_groups
from tests.clips import render, static
from tests.store.published import HEADER, action
from tests.store.stores import QUIET, prepare

VERBS = ClassGroup(names=("take", "put"), of=(0, 0, 1))


@pytest.fixture
def kitchen(epic100):
    """Made-up tables, and the videos they speak of."""
    segments = ("00:00:00.00", "00:00:00.10")
    epic100.write(
        "epic-kitchens-100-annotations/EPIC_100_train.csv",
        HEADER
        + action("P01_01_0", *segments, "take", 0, "cup", 1)
        + action("P01_01_1", *segments, "put", 1, "cup", 1),
    )
    epic100.write(
        "epic-kitchens-100-annotations/EPIC_100_validation.csv",
        HEADER + action("P02_101_0", *segments, "take", 0, "pan", 0),
    )
    for name in ("P01/P01_01.MP4", "P02/videos/P02_101.mp4", "P03_05.mkv", "P04/rgb/P04_11.MP4"):
        render(epic100.videos / name, static(frames=4))
    return epic100


def test_a_store_keeps_them_and_adds_them_to_an_older_store(kitchen, tmp_path):
    out, sources = tmp_path / "store", kitchen.find()
    prepare(sources, out)
    store = Store.open(out)
    groups = store.class_groups
    assert store.class_names == ["take cup", "put cup", "take pan"]
    assert (groups["verb"].names, groups["verb"].of) == (("take", "put"), (0, 1, 0))
    assert (groups["noun"].names, groups["noun"].of) == (("pan", "cup"), (1, 1, 0))
    plain = json.loads((out / "dataset.json").read_text())
    assert plain.pop("class_groups")["verb"] == {"names": ["take", "put"], "of": [0, 1, 0]}
    # As a version that knew nothing of groups wrote it: it opens, and the same command adds them.
    (out / "dataset.json").write_text(json.dumps(plain))
    assert Store.open(out).class_groups == {}
    prepare(sources, out)
    assert Store.open(out).class_groups == groups


def test_a_store_without_groups_does_not_mention_them(tmp_path):
    """The fingerprint of a store is that of earlier versions."""
    render(tmp_path / "videos" / "walk" / "a.mp4", static(frames=3))
    out = tmp_path / "store"
    prepare(tmp_path / "videos", out)
    text = (out / "dataset.json").read_bytes()
    assert list(json.loads(text)) == [
        *("format", "format_version", "complete", "settings", "part", "class_names", "counts")
    ]
    digest = hashlib.sha256(text + (out / "manifest.jsonl").read_bytes()).hexdigest()
    assert Store.open(out).fingerprint() == digest


def test_adding_and_merging_join_them(kitchen, tmp_path, cli):
    out, sources = tmp_path / "store", kitchen.find()
    prepare(sources, out)
    groups = Store.open(out).class_groups
    prepare(kitchen.find(), out, add=True)
    assert Store.open(out).class_groups == groups
    for number in (1, 2):
        prepare(sources, tmp_path / str(number), part=(number, 2))
    merge([tmp_path / "1", tmp_path / "2"], tmp_path / "both", QUIET)
    assert Store.open(tmp_path / "both").class_groups == groups
    # With a store whose classes are no combinations nobody knows every class's verb.
    for name in ("walk", "run"):
        render(tmp_path / "others" / name / "a.mp4", static(frames=4, seed=5))
    prepare(tmp_path / "others", tmp_path / "plain")
    said = io.StringIO()
    merge([out, tmp_path / "plain"], tmp_path / "mixed", Reporter(stderr=said))
    assert Store.open(tmp_path / "mixed").class_groups == {}
    assert "`noun`, `verb` are left out" in " ".join(said.getvalue().split())
    shown = cli("store", "info", out)
    assert "verb of a class" in shown.stdout + shown.stderr


def test_members_are_joined_by_name():
    other = ClassGroup(names=("put", "cut"), of=(1, 0))
    joined = join_groups(
        [(["a", "b", "c"], {"verb": VERBS}), (["d", "c"], {"verb": other})], ["a", "b", "c", "d"]
    )
    assert joined == {"verb": ClassGroup(names=("take", "put", "cut"), of=(0, 0, 1, 2))}
    with pytest.raises(UsageError, match="class `c` has the verb `put` here, `cut` there"):
        join_groups(
            [(["a", "b", "c"], {"verb": VERBS}), (["c", "d"], {"verb": other})], list("abcd")
        )


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ({"names": ["take"], "of": [0]}, "is of 1 classes"),
        ({"names": ["take"], "of": [0, 1, 0]}, "member 1 of a class group with 1 names"),
    ],
)
def test_groups_that_cannot_be_are_damage(kitchen, tmp_path, group, message):
    out = tmp_path / "store"
    prepare(kitchen.find(), out)
    damaged = shutil.copytree(out, tmp_path / "damaged")
    facts = json.loads((out / "dataset.json").read_text())
    facts["class_groups"]["verb"] = group
    (damaged / "dataset.json").write_text(json.dumps(facts))
    with pytest.raises(DataError, match=message):
        Store.open(damaged)
