"""The annotations of Diving48 as they are published, with their traps."""

import pytest

from tatscli.errors import DataError, UsageError
from tatscli.video.decode import Segment
from tests.store.published import dive, facts, said


def test_diving48_names_and_segments(diving48):
    found = diving48.find()
    assert found.class_names == ["Back 15som 05Twis FREE", "Inward 25som NoTwis PIKE"]
    assert facts(found) == {
        "rgb/-mmq0PT-u8k_00155.mp4#0-48": ("Inward 25som NoTwis PIKE", ["train"]),
        "rgb/2x00lRzlTVQ_00000.mp4#10-30": ("Back 15som 05Twis FREE", ["test", "val"]),
    }
    assert [item.segment for item in found.items] == [
        Segment(0, 48, "frames"),
        Segment(10, 30, "frames"),
    ]
    assert found.items[0].path == diving48.videos / "rgb" / "-mmq0PT-u8k_00155.mp4"


def test_diving48_version_1_is_refused(diving48):
    for split in ("train", "test"):
        path = diving48.root / f"Diving48_V2_{split}.json"
        path.rename(diving48.root / f"Diving48_{split}.json")
    for annotations in ((), (diving48.root,), (diving48.root / "Diving48_test.json",)):
        with pytest.raises(UsageError, match="is version 1 of Diving48") as raised:
            diving48.find(*annotations)
        assert "`Diving48_V2_train.json`" in raised.value.hint


def test_diving48_both_versions_beside_each_other(diving48):
    diving48.write("Diving48_train.json", [dive("-mmq0PT-u8k_00155", 0)])
    assert diving48.find().items[0].label == 1


def test_diving48_without_vocabulary(diving48):
    (diving48.root / "Diving48_vocab.json").unlink()
    found = diving48.find()
    assert found.class_names == ["0", "1"]
    assert "classes without names" in said(found)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (dive("x", 2), "item 1: label `2` is too large"),
        (dive("x", "two"), "item 1: label `two` is not a whole number"),
        (dive("x", 0, 9, 9), "item 1: end_frame `9` is not after start_frame `9`"),
        ({"label": 0}, "item 1: no `vid_name`"),
    ],
)
def test_diving48_mistakes_are_placed(diving48, item, message):
    diving48.write("Diving48_V2_train.json", [dive("-mmq0PT-u8k_00155", 1), item])
    with pytest.raises(DataError) as raised:
        diving48.find()
    assert f"Diving48_V2_train.json`, {message}" in raised.value.message


def test_diving48_classes_know_their_four_parts(diving48):
    groups = diving48.find().class_groups
    assert {key: [group.names[one] for one in group.of] for key, group in groups.items()} == {
        "takeoff": ["Back", "Inward"],
        "somersault": ["15som", "25som"],
        "twist": ["05Twis", "NoTwis"],
        "position": ["FREE", "PIKE"],
    }
    diving48.write("Diving48_vocab.json", ["Back 15som 05Twis FREE", "Inward 25som NoTwis PIKE"])
    assert diving48.find().class_groups == {}
