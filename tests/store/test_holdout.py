"""What is held out for validation: a share of each class, whole groups, always the same."""

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tatscli.errors import DataError, UsageError
from tatscli.store.holdout import Holdout, held_out, split_sources, split_store
from tatscli.store.reader import Store
from tatscli.store.sources import Source, Sources, find_sources
from tatscli.video.decode import Segment
from tests.clips import render, static
from tests.store.stores import prepare, rows_of


def sources(*items: Source) -> Sources:
    return Sources(Path("videos"), sorted(items, key=lambda item: item.id), ["fall", "walk"])


def video(name: str, label: int | None = None, **facts) -> Source:
    return Source(name, Path(name), label, **facts)


@given(
    videos=st.lists(
        st.tuples(st.integers(0, 12), st.one_of(st.none(), st.integers(0, 4))), max_size=60
    ),
    share=st.floats(0.01, 0.99),
)
def test_groups_stay_whole_and_no_class_is_emptied(videos, share):
    keys, labels = [str(key) for key, _ in videos], [label for _, label in videos]
    chosen = held_out(keys, labels, share)
    by_key: dict[str, set[bool]] = {}
    for key, out in zip(keys, chosen, strict=True):
        by_key.setdefault(key, set()).add(out)
    assert all(len(found) == 1 for found in by_key.values())
    kept = Counter(label for label, out in zip(labels, chosen, strict=True) if not out)
    assert all(kept[label] for label in labels)
    assert held_out(keys, labels, share) == chosen


@given(
    counts=st.lists(st.integers(2, 40), min_size=1, max_size=4),
    share=st.floats(0.05, 0.5),
    order=st.randoms(),
)
def test_every_class_gives_its_share(counts, share, order):
    videos = [(f"{label}/{n}", label) for label, count in enumerate(counts) for n in range(count)]
    order.shuffle(videos)
    chosen = held_out([key for key, _ in videos], [label for _, label in videos], share)
    held = Counter(label for (_, label), out in zip(videos, chosen, strict=True) if out)
    for label, count in enumerate(counts):
        assert abs(held[label] - max(1, share * count)) <= 0.5
    named = {key: out for (key, _), out in zip(videos, chosen, strict=True)}
    again = held_out(sorted(named), [int(key[0]) for key in sorted(named)], share)
    assert [named[key] for key in sorted(named)] == again  # the order of videos does not matter


def test_segments_of_a_file_stay_together():
    items = [
        video(f"{n}.mp4#{part}", n % 2, segment=Segment(part, part + 1))
        for n in range(10)
        for part in range(6)
    ]
    divided = split_sources(sources(*items), Holdout(0.2))
    split_of = {}
    for item in divided.items:
        assert split_of.setdefault(item.file, item.split) == item.split
    assert Counter(split_of.values()) == {"train": 8, "val": 2}
    assert "12 of 60 videos are held out as split `val`" in divided.findings[-1]


def test_groups_in_the_names_stay_together():
    items = [
        video(f"{label}/person{who}_{n}.mp4", label)
        for label in (0, 1)
        for who in range(5)
        for n in range(3)
    ]
    divided = split_sources(sources(*items), Holdout(0.2, r"person(\d)"))
    held = [item for item in divided.items if item.split == "val"]
    assert len({item.id.split("person")[1][0] for item in held}) == 1 and len(held) == 6
    assert "in 5 groups" in divided.findings[-1]
    with pytest.raises(UsageError, match=r"finds nothing in `0/person0_0\.mp4`"):
        split_sources(sources(*items), Holdout(0.2, "actor"))
    with pytest.raises(UsageError, match="is not a regular expression"):
        split_sources(sources(*items), Holdout(0.2, "(person"))


def test_a_list_of_training_videos_is_divided():
    items = [video(f"{n}.mp4", n % 2, split="train") for n in range(10)]
    items.append(video("t.mp4", 0, split="test"))
    splits = Counter(item.split for item in split_sources(sources(*items), Holdout(0.2)).items)
    assert splits == {"train": 8, "val": 2, "test": 1}


def test_what_cannot_be_divided_says_why():
    items = [video("a.mp4", 0, split="train"), video("b.mp4", 0, split="val")]
    with pytest.raises(UsageError, match="there is a split `val` already"):
        split_sources(sources(*items), Holdout(0.2))
    with pytest.raises(UsageError, match="the splits are `mine`") as raised:
        split_sources(sources(video("a.mp4", 0, split="mine")), Holdout(0.2))
    assert "--annotations train=FILE" in raised.value.hint
    with pytest.raises(DataError, match="no video can be held out"):
        split_sources(sources(video("a.mp4", 0), video("b.mp4", 1)), Holdout(0.2))


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    """Ten videos in two class folders."""
    folder = tmp_path_factory.mktemp("classes") / "videos"
    for name in ("fall", "walk"):
        for n in range(5):
            render(folder / name / f"{n}.mp4", static(frames=2, height=32, width=32, seed=n))
    return folder


def test_the_manifest_says_the_splits_and_the_command_line_continues(classes, tmp_path, cli):
    out = tmp_path / "store"
    command = ("prepare", str(classes), "-o", str(out), "--val-share", "0.2", "--workers", "1")
    outcome = cli(*command)
    assert outcome.code == 0 and "2 of 10 videos are held out as split `val`" in outcome.stderr
    store = Store.open(out)
    splits = {row.id: row.split for row in store.rows}
    assert Counter(splits.values()) == {"train": 8, "val": 2}
    assert {row.label for row in store.rows if row.split == "val"} == {0, 1}
    assert (store.dataset.val_share, store.dataset.counts.splits) == (0.2, {"train": 8, "val": 2})
    before = (out / "manifest.jsonl").read_bytes()
    assert cli(*command).code == 0
    assert (out / "manifest.jsonl").read_bytes() == before
    other = cli("prepare", str(classes), "-o", str(out))
    assert other.code == 2 and "was begun with `--val-share 0.2`" in other.stderr
    changed = cli(*command[:-3], "0.4", *command[-2:])
    assert changed.code == 2 and (out / "manifest.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--val-share", "0"], "`--val-share 0` must be between 0 and 1"),
        (["--val-share", "1"], "`--val-share 1` must be between 0 and 1"),
        (["--val-group", "x"], "`--val-group` needs `--val-share`"),
        (["--val-share", "0.2", "--check"], "`--check` writes nothing"),
        (["--val-share", "0.2", "--val-group", "("], "is not a regular expression"),
    ],
)
def test_wrong_options_write_nothing(classes, tmp_path, cli, options, message, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = cli("prepare", str(classes), *options)
    assert outcome.code == 2 and message in outcome.stderr
    assert not list(tmp_path.iterdir())


def test_parts_divide_alike(classes, tmp_path):
    found, splits = find_sources(classes), {}
    for number in (1, 2, 3):
        out = tmp_path / str(number)
        prepare(found, out, part=(number, 3), holdout=Holdout(0.2))
        splits |= {row.id: row.split for row in rows_of(out).values()}
    prepare(found, tmp_path / "whole", holdout=Holdout(0.2))
    assert splits == {row.id: row.split for row in rows_of(tmp_path / "whole").values()}


def test_added_videos_keep_the_splits_of_the_others(classes, tmp_path):
    out, more = tmp_path / "store", tmp_path / "more"
    prepare(find_sources(classes), out, holdout=Holdout(0.2))
    before = {row.id: row.split for row in rows_of(out).values()}
    for n in range(5):
        render(more / "fall" / f"new {n}.mp4", static(frames=2, height=32, width=32, seed=n))
        render(more / "walk" / f"new {n}.mp4", static(frames=2, height=32, width=32, seed=n))
    prepare(find_sources(more), out, add=True, holdout=Holdout(0.2))
    after = {row.id: row.split for row in rows_of(out).values()}
    assert len(after) == 20 and after.items() >= before.items()
    assert Store.open(out).dataset.val_share == 0.2


def test_a_store_is_divided_in_memory_as_prepare_divides_it(classes, tmp_path):
    prepare(find_sources(classes), tmp_path / "plain")
    prepare(find_sources(classes), tmp_path / "divided", holdout=Holdout(0.4))
    plain = Store.open(tmp_path / "plain")
    divided = split_store(plain, Holdout(0.4), train="train", val="val")
    assert divided.part("val") == Store.open(tmp_path / "divided").part("val")
    assert len(divided.part("train")) == 6 and {row.split for row in plain.rows} == {None}
    with pytest.raises(UsageError, match="there is a split `val` already"):
        split_store(divided, Holdout(0.4), train="train", val="val")
