"""Joining stores: the parts of a cluster come out as one run would have made them."""

import errno
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from tatscli.errors import DataError, UsageError
from tatscli.store.merge import merge
from tatscli.store.reader import Store
from tatscli.store.schema import Settings, read_rows, write_rows
from tatscli.store.sources import find_sources
from tatscli.store.verify import verify
from tests.clips import pan, render, static
from tests.store.stores import QUIET, assert_same_videos, content, prepare, rows_of, tensors_of

PARTS = 3


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for index in range(8):
        clip = pan((index % 4, 1), frames=5 + index, height=64, width=96, seed=index)
        render(folder / f"{'fall' if index % 2 else 'walk'}/clip {index}.mp4", clip)
    (folder / "fall" / "noise.mp4").write_bytes(b"noise" * 40)
    return folder


@pytest.fixture(scope="module")
def whole(videos, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "store"
    prepare(videos, out)
    return out


@pytest.fixture(scope="module")
def parts(videos, tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts")
    for number in range(1, PARTS + 1):
        prepare(videos, folder / str(number), part=(number, PARTS))
    return [folder / str(number) for number in range(1, PARTS + 1)]


def nothing_beside(out: Path) -> bool:
    return not [path for path in out.parent.iterdir() if path.name.startswith(f".{out.name}")]


def test_parts_make_the_store_that_one_run_makes(parts, whole, tmp_path):
    merged = merge([parts[1], parts[2], parts[0]], tmp_path / "out", QUIET)
    assert_same_videos(tmp_path / "out", whole)
    store = Store.open(tmp_path / "out")
    assert store.dataset == Store.open(whole).dataset
    assert store.dataset.part is None
    shards = sum(len(list((part / "shards").iterdir())) for part in parts)
    assert (merged.repeated, merged.linked, merged.copied) == (0, shards, 0)
    assert verify(store, reporter=QUIET, decode=True).findings == []
    assert nothing_beside(tmp_path / "out")


def test_links_outlive_the_old_stores(parts, whole, tmp_path):
    copies = [shutil.copytree(part, tmp_path / part.name) for part in parts]
    merge(copies, tmp_path / "out", QUIET)
    (shard, *_) = (tmp_path / "out" / "shards").iterdir()
    assert os.stat(shard).st_nlink == 2
    for copy in copies:
        shutil.rmtree(copy)
    assert_same_videos(tmp_path / "out", whole)


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EPERM, errno.EMLINK])
def test_without_links_shards_are_copied(parts, whole, tmp_path, monkeypatch, number):
    def refuse(*args):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refuse)
    merged = merge(parts, tmp_path / "out", QUIET)
    assert merged.linked == 0 and merged.copied > 2
    assert_same_videos(tmp_path / "out", whole)


def test_missing_parts_are_listed(parts, tmp_path):
    for given, missing in (
        (parts[1:], "1 of 3 parts are missing: 1/3"),
        (parts[1:2], "2 of 3 parts are missing: 1/3, 3/3"),
    ):
        with pytest.raises(UsageError, match=missing) as raised:
            merge(given, tmp_path / "out", QUIET)
        assert "--part I/N" in raised.value.hint
    assert not list(tmp_path.iterdir())


def test_parts_of_different_cuts_are_refused(videos, parts, whole, tmp_path):
    prepare(videos, tmp_path / "half", part=(1, 2))
    with pytest.raises(UsageError, match=r"not the parts of one store: .* is 1/2"):
        merge([*parts, tmp_path / "half"], tmp_path / "out", QUIET)
    with pytest.raises(UsageError, match="not the parts of one store"):
        merge([*parts, shutil.copytree(parts[0], tmp_path / "twice")], tmp_path / "out", QUIET)
    with pytest.raises(UsageError, match=f"`{whole}` is a whole store, others are parts"):
        merge([*parts, whole], tmp_path / "out", QUIET)


@pytest.fixture
def two(tmp_path):
    """Two folders with one class and one video in common, and a store of each."""
    for folder, classes in (("one", ("fall", "walk")), ("two", ("jump", "walk"))):
        for index, name in enumerate(classes):
            path = tmp_path / folder / name / f"{folder}.mp4"
            render(path, static(frames=2, height=64, width=64, seed=index))
        render(tmp_path / folder / "walk" / "both.mp4", static(frames=3, height=64, width=64))
        (tmp_path / folder / "walk" / "broken.mp4").write_bytes(b"broken")
        prepare(tmp_path / folder, tmp_path / f"store-{folder}")
    return [tmp_path / "store-one", tmp_path / "store-two"]


def test_classes_are_joined_by_name_and_repeated_videos_taken_once(two, tmp_path):
    for store, split in zip(two, ("train", "val"), strict=True):
        rows = read_rows(store / "manifest.jsonl")
        update = {"split": split}
        write_rows(store / "manifest.jsonl", [row.model_copy(update=update) for row in rows])
    merged = merge(two, tmp_path / "out", QUIET)
    assert merged.repeated == 2
    store = Store.open(tmp_path / "out")
    assert store.class_names == ["fall", "walk", "jump"]
    named = {row.id: (store.class_names[row.label], row.split, row.also_in) for row in store.rows}
    assert named == {
        "fall/one.mp4": ("fall", "train", ()),
        "jump/two.mp4": ("jump", "val", ()),
        "walk/both.mp4": ("walk", "train", ("val",)),
        "walk/broken.mp4": ("walk", "train", ("val",)),
        "walk/one.mp4": ("walk", "train", ()),
        "walk/two.mp4": ("walk", "val", ()),
    }
    assert len(tensors_of(tmp_path / "out")) == store.dataset.counts.ok == 5
    assert store.dataset.counts.splits == {"train": 3, "val": 3}
    for old in two:
        for name, tensors in tensors_of(old).items():
            for kind, tensor in tensors.items():
                assert np.array_equal(tensor, tensors_of(tmp_path / "out")[name][kind])


def test_the_same_id_for_another_video_is_refused(two, tmp_path):
    render(tmp_path / "two" / "walk" / "both.mp4", static(frames=9, height=64, width=64))
    prepare(tmp_path / "two", two[1])
    with pytest.raises(UsageError, match=r"`walk/both\.mp4` is a different video in .*`checksum`"):
        merge(two, tmp_path / "out", QUIET)
    assert not (tmp_path / "out").exists() and nothing_beside(tmp_path / "out")


def test_the_same_store_twice_is_refused(whole, tmp_path):
    with pytest.raises(UsageError, match="is given twice"):
        merge([whole, whole.parent / "." / whole.name], tmp_path / "out", QUIET)


def test_other_settings_are_refused(videos, whole, tmp_path):
    prepare(videos, tmp_path / "other", settings=Settings(short_side=32))
    with pytest.raises(UsageError, match=r"`--short-side 48`, `.*other` with `--short-side 32`"):
        merge([whole, tmp_path / "other"], tmp_path / "out", QUIET)


def test_an_unfinished_store_is_refused(videos, parts, tmp_path):
    copy = Path(shutil.copytree(parts[0], tmp_path / "copy"))
    dataset = (copy / "dataset.json").read_text().replace('"complete": true', '"complete": false')
    (copy / "dataset.json").write_text(dataset)
    with pytest.raises(DataError, match=f"the store `{copy}` is unfinished"):
        merge([copy, *parts[1:]], tmp_path / "out", QUIET)
    assert not (tmp_path / "out").exists()


def test_what_is_there_is_never_overwritten(parts, whole, tmp_path):
    before = content(whole)
    with pytest.raises(UsageError, match="already exists"):
        merge(parts, whole, QUIET)
    assert content(whole) == before
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match="already exists"):
        merge(parts, tmp_path / "file", QUIET)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_merge_that_fails_leaves_nothing(parts, whole, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr(os, "link", full)
        patched.setattr(shutil, "copyfile", full)
        with pytest.raises(DataError, match="No space left"):
            merge(parts, out, QUIET)
    assert not list(tmp_path.iterdir())
    (tmp_path / ".out.merging" / "shards").mkdir(parents=True)  # of one that was killed
    (tmp_path / ".out.merging" / "shards" / "00000.safetensors").write_bytes(b"half")
    (tmp_path / ".out.lock").write_text("")
    merge(parts, out, QUIET)
    assert_same_videos(out, whole)
    assert nothing_beside(out)


def test_a_missing_shard_is_named(parts, tmp_path):
    copy = Path(shutil.copytree(parts[0], tmp_path / "copy"))
    (shard, *_) = (copy / "shards").iterdir()
    shard.unlink()
    with pytest.raises(DataError, match=f"the shard `{shard}` is missing"):
        merge([copy, *parts[1:]], tmp_path / "out", QUIET)
    assert not (tmp_path / "out").exists() and nothing_beside(tmp_path / "out")


def test_a_merged_store_can_be_extended(videos, parts, whole, tmp_path):
    merge(parts, tmp_path / "out", QUIET)
    report = prepare(find_sources(videos), tmp_path / "out")
    assert report.counts.ok == 8
    assert rows_of(tmp_path / "out").keys() == rows_of(whole).keys()
    assert_same_videos(tmp_path / "out", whole)
