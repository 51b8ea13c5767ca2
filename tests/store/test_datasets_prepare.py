"""Data sets all the way into a store: class names, splits and segments arrive."""

from functools import partial

import pytest

from tatscli.console import Reporter
from tatscli.store.lists import write_lists
from tatscli.store.pool import run_in_order
from tatscli.store.prepare import prepare
from tatscli.store.reader import Store
from tatscli.store.schema import Settings
from tatscli.store.sources import find_sources
from tests.clips import pan, render


def prepared(folder, out, **options):
    sources = find_sources(folder, **options)
    run = partial(run_in_order, workers=1)
    prepare(sources, out, Settings(short_side=48), run=run, reporter=Reporter(quiet=True))
    return Store.open(out)


def clip(path, frames=10):
    return render(path, pan((1, 0), frames=frames, height=48, width=64), fps=10)


def test_hmdb51_with_odd_names(tmp_path):
    videos, lists = tmp_path / "hmdb51", tmp_path / "testTrainMulti_7030_splits"
    names = ["#20_Rhythm_clap_u.avi", "A&B;(c)_clap_f.avi"]
    for name in names:
        clip(videos / "clap" / name, 4)
    lists.mkdir()
    (lists / "clap_test_split1.txt").write_text(f"{names[0]} 1 \n{names[1]} 2 \n")
    (lists / "walk_test_split1.txt").write_text("gone_walk_f.avi 1 \n")
    store = prepared(videos, tmp_path / "store")
    assert store.class_names == ["clap", "walk"]
    assert [(row.id, row.status, row.label, row.split, row.also_in) for row in store.rows] == [
        (f"clap/{names[0]}", "ok", 0, "train", ()),
        (f"clap/{names[1]}", "ok", 0, "test", ("val",)),
    ]
    assert store.part("val") == store.part("test") == [1]
    files = write_lists(store, tmp_path / "lists")
    again = find_sources(videos, [str(file) for file in files[:-1]])
    known = find_sources(videos)
    assert again.class_names == known.class_names
    assert [(item.id, item.label) for item in again.items] == [
        (item.id, item.label) for item in known.items
    ]


EPIC = "narration_id,video_id,start_timestamp,stop_timestamp,verb,verb_class,noun,noun_class\n"
DIVE = '[{"vid_name": "a_0", "label": 0, "start_frame": 2, "end_frame": 9}]'


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (
            {"EPIC_100_train.csv": EPIC + "a_0_0,a_0,00:00:00.20,00:00:00.90,cut,0,egg,0\n"},
            ("a_0.mp4#a_0_0", "cut egg"),
        ),
        (
            {"Diving48_V2_train.json": DIVE, "Diving48_vocab.json": '[["Back", "x", "y", "z"]]'},
            ("a_0.mp4#2-9", "Back x y z"),
        ),
    ],
    ids=["epic100", "diving48"],
)
def test_only_the_segment_is_in_the_store(tmp_path, files, expected):
    """Seven frames of twenty, by time and by number."""
    clip(tmp_path / "videos" / "a_0.mp4", 20)
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    store = prepared(tmp_path / "videos", tmp_path / "store")
    (row,) = store.rows
    assert (row.status, row.id, row.frames) == ("ok", expected[0], 7)
    assert (row.path, row.start, row.end) == ("a_0.mp4", pytest.approx(0.2), pytest.approx(0.9))
    assert store.class_names == [expected[1]]
