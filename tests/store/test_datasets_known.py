"""The published annotations of each known data set, in small, with their traps."""

import json
from pathlib import Path
from random import Random

import pytest

from tatscli.errors import DataError, TatsError, UsageError
from tatscli.store.sources import find_sources
from tatscli.video.decode import Segment


class Set:
    """A data set on disk: `videos/` with empty files, and annotation files anywhere beside it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.videos = root / "videos"
        self.videos.mkdir()

    def add(self, *names: str) -> None:
        for name in names:
            self.write(f"videos/{name}", "x")

    def write(self, name: str, content: object) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    def find(self, *annotations: object, dataset: str = "auto", **options: str):
        return find_sources(
            self.videos, [str(item) for item in annotations], dataset=dataset, **options
        )


@pytest.fixture
def data(tmp_path):
    return Set(tmp_path)


def facts(found):
    """Per id: name of the class, and all splits."""
    return {
        item.id: (
            None if item.label is None else found.class_names[item.label],
            [split for split in (item.split, *item.also_in) if split],
        )
        for item in found.items
    }


def said(found):
    return "\n".join([*found.findings, *found.doubts])


# --- Something-Something V2 -----------------------------------------------------------------------

TEMPLATES = {"Holding something": "0", "Pushing something from left to right": "1"}


def sample(number, template, *things):
    label = template
    for thing in things:
        label = label.replace("[something]", thing, 1)
    return {
        "id": str(number),
        "label": label.lower(),
        "template": template,
        "placeholders": list(things),
    }


@pytest.fixture
def ssv2(data):
    """The newer package: `labels/` beside the videos, which lie in a folder of their own."""
    data.add(*(f"20bn-something-something-v2/{number}.webm" for number in (1, 2, 3, 4)))
    data.write(
        "labels/train.json",
        [
            sample(1, "Pushing [something] from left to right", "a [red] cup"),
            sample(2, "Holding [something]", "a box"),
        ],
    )
    data.write("labels/validation.json", [sample(3, "Holding [something]", "a pen")])
    data.write("labels/test.json", [{"id": "4"}])
    data.write("labels/labels.json", TEMPLATES)
    return data


@pytest.mark.parametrize("dataset", ["auto", "ssv2"])
def test_ssv2_brackets_string_indices_and_a_test_split_without_labels(ssv2, dataset):
    found = ssv2.find(dataset=dataset)
    inside = "20bn-something-something-v2"
    assert found.class_names == ["Holding something", "Pushing something from left to right"]
    assert facts(found) == {
        f"{inside}/1.webm": ("Pushing something from left to right", ["train"]),
        f"{inside}/2.webm": ("Holding something", ["train"]),
        f"{inside}/3.webm": ("Holding something", ["val"]),
        f"{inside}/4.webm": (None, ["test"]),
    }
    assert found.dataset == "ssv2" and found.missing == 0
    assert "Something-Something V2, by " in said(found)
    assert "2 videos in split `train`, 1 video in split `val`" in said(found)


def test_ssv2_indices_are_the_files_not_ranks(ssv2):
    ssv2.write("labels/labels.json", {"Pushing something from left to right": "0",
                                      "Holding something": "1"})  # fmt: skip
    assert ssv2.find().items[0].label == 0
    assert ssv2.find().items[1].label == 1


def test_ssv2_a_part_of_the_classes_keeps_its_numbers(ssv2):
    ssv2.write("labels/labels.json", {"Pushing something from left to right": "4",
                                      "Holding something": "2"})  # fmt: skip
    found = ssv2.find()
    assert [item.label for item in found.items] == [4, 2, 2, None]
    assert found.class_names == [
        "0", "1", "Holding something", "3", "Pushing something from left to right"
    ]  # fmt: skip


def test_ssv2_test_answers(ssv2):
    ssv2.write("labels/test-answers.csv", "4;Holding something\n5;Holding something\n")
    assert facts(ssv2.find())["20bn-something-something-v2/4.webm"][0] == "Holding something"
    ssv2.write("labels/test-answers.csv", "3;x\n4;Holding a thing\n")
    with pytest.raises(DataError, match=r"test-answers\.csv`, line 2: .*`Holding a thing`"):
        ssv2.find()


def test_ssv2_older_names_in_a_folder_given(data):
    data.add("7.mp4", "7.webm", "8.webm")
    name = "far/something-something-v2"
    data.write(f"{name}-train.json", [sample(7, "Holding [something]", "x")])
    data.write(f"{name}-validation.json", [sample(9, "Holding [something]", "x")])
    data.write(f"{name}-labels.json", TEMPLATES)
    found = data.find(data.root / "far", dataset="ssv2")
    assert facts(found) == {"7.mp4": ("Holding something", ["train"])}
    assert found.missing == 1
    assert "1 of 2 rows have no video file and are left out, such as `9`" in said(found)
    assert "2 further videos in" in said(found)


def test_ssv2_one_file_named_is_one_split(ssv2):
    labels = ssv2.root / "labels"
    assert set(facts(ssv2.find(labels / "validation.json"))) == {
        "20bn-something-something-v2/3.webm"
    }
    found = ssv2.find(f"mine={labels / 'train.json'}", labels / "labels.json")
    assert {tuple(splits) for _, splits in facts(found).values()} == {("mine",)}


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("train.json", [sample(1, "Holding [something]"), sample(2, "Eating [something]")],
         "train.json`, item 1: the template `Eating [something]` is not in"),
        ("train.json", [sample(1, "Holding [something]"), {"id": "2"}],
         "train.json`, item 1: no `template`"),
        ("train.json", [sample(1, "Holding [something]"), {"template": "x"}],
         "train.json`, item 1: no `id`"),
        ("train.json", '[{"id": "1", "template": "Holding [something]"},\n',
         "train.json`, line 2: not JSON"),
        ("labels.json", {"Holding something": "zero"},
         "labels.json`, `Holding something`: class `zero` is not a whole number"),
        ("labels.json", {"Holding something": "1", "x": "1"},
         "labels.json`, `x`: class `1` is `x`, but before, it was `Holding something`"),
        ("labels.json", {"Holding something": "999999"}, "`999999` is no class"),
    ],
)  # fmt: skip
def test_ssv2_mistakes_are_placed(ssv2, file, content, message):
    ssv2.write(f"labels/{file}", content)
    with pytest.raises(DataError) as raised:
        ssv2.find()
    assert message in raised.value.message


def test_ssv2_without_class_names(ssv2):
    (ssv2.root / "labels" / "labels.json").unlink()
    with pytest.raises(UsageError, match=r"no `labels\.json` beside") as raised:
        ssv2.find()
    assert "`--dataset folders`" in raised.value.hint


# --- Kinetics -------------------------------------------------------------------------------------

TRAIN = """label,youtube_id,time_start,time_end,split,is_cc
riding a bike,-abcdefghij,6,16,train,0
"abseiling",abcDEF_-123,0,10,train,0
abseiling,gone0000000,120,130,train,1
"""
VAL = """label,youtube_id,time_start,time_end,split
riding a bike,valvalvalva,1,11,validate
"""
TEST = "youtube_id,time_start,time_end,split\ntesttesttes,1,11,test\n"


@pytest.fixture
def kinetics(data):
    data.write("annotations/train.csv", TRAIN)
    data.write("annotations/val.csv", VAL)
    data.write("annotations/test.csv", TEST)
    return data


def test_kinetics_in_class_folders_flat_and_by_id_alone(kinetics):
    kinetics.add(
        "train/riding_a_bike/-abcdefghij_000006_000016.mp4",
        "train/abseiling/abcDEF_-123_000000_000010.mkv",
        "valvalvalva.mp4",
        "testtesttes_000001_000011.mp4",
        "other.mp4",
    )
    found = kinetics.find()
    assert found.class_names == ["abseiling", "riding a bike"]
    assert facts(found) == {
        "train/riding_a_bike/-abcdefghij_000006_000016.mp4": ("riding a bike", ["train"]),
        "train/abseiling/abcDEF_-123_000000_000010.mkv": ("abseiling", ["train"]),
        "valvalvalva.mp4": ("riding a bike", ["val"]),
        "testtesttes_000001_000011.mp4": (None, ["test"]),
    }
    assert found.missing == 1 and found.dataset == "kinetics"
    assert (
        "1 of 5 rows have no video file and are left out, such as"
        f" `gone0000000_000120_000130` (`{kinetics.root}/annotations/train.csv`, line 4)"
    ) in found.doubts
    assert "1 further video in" in said(found)
    assert all(item.segment is None for item in found.items)


def test_kinetics_indices_are_those_of_the_training_labels(kinetics):
    """A list of validation videos alone does not renumber the classes."""
    kinetics.add("valvalvalva_000001_000011.mp4")
    found = kinetics.find(kinetics.root / "annotations" / "val.csv")
    assert found.class_names == ["abseiling", "riding a bike"]
    assert [item.label for item in found.items] == [1]
    lonely = kinetics.write("far/val.csv", VAL)
    found = kinetics.find(lonely)
    assert found.class_names == ["riding a bike"]
    assert "no table of training videos" in said(found)


def test_kinetics_prefers_the_replacement_and_the_class_folder(kinetics):
    name = "abcDEF_-123_000000_000010.mp4"
    kinetics.add(name, f"abseiling/{name}", f"zoo/{name}")
    assert list(facts(kinetics.find())) == [f"abseiling/{name}"]
    kinetics.add(f"replacement/replacement_for_corrupted_k400/{name}")
    assert list(facts(kinetics.find())) == [f"replacement/replacement_for_corrupted_k400/{name}"]


@pytest.mark.parametrize(
    ("file", "line", "message", "hint"),
    [
        ("val", "ridding a bike,x,1,2,val\n", "val.csv`, line 3: no training video has the label"
         " `ridding a bike`", "did you mean `riding a bike`?"),
        ("val", "riding a bike,,1,2,val\n", "val.csv`, line 3: no `youtube_id`", None),
        ("train", "abseiling,x,1,soon,train\n", "train.csv`, line 5: time_end `soon`", None),
    ],
)  # fmt: skip
def test_kinetics_mistakes_are_placed(kinetics, file, line, message, hint):
    kinetics.add("valvalvalva.mp4")
    kinetics.write(f"annotations/{file}.csv", (TRAIN if file == "train" else VAL) + line)
    with pytest.raises(DataError) as raised:
        kinetics.find(kinetics.root / "annotations")
    assert message in raised.value.message and raised.value.hint == hint


def test_kinetics_without_any_video_says_where_it_looked(kinetics):
    kinetics.add("other.mp4")
    with pytest.raises(DataError, match=r"none of the 5 videos that .* is in") as raised:
        kinetics.find(dataset="kinetics")
    assert "`-abcdefghij_000006_000016`" in raised.value.message


# --- UCF101 ---------------------------------------------------------------------------------------


@pytest.fixture
def ucf101(data):
    data.write(
        "ucfTrainTestlist/classInd.txt", "1 ApplyEyeMakeup\r\n2 HandstandPushups\r\n3 YoYo\r\n"
    )
    clips = {
        "01": (["ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1",
                "HandstandPushups/v_HandStandPushups_g08_c01.avi 2"],
               ["YoYo/v_YoYo_g01_c01.avi"]),
        "02": (["YoYo/v_YoYo_g01_c01.avi 3"], ["ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi"]),
    }  # fmt: skip
    for fold, (train, test) in clips.items():
        data.write(f"ucfTrainTestlist/trainlist{fold}.txt", "\r\n".join(train) + "\r\n")
        data.write(f"ucfTrainTestlist/testlist{fold}.txt", "\r\n".join(test) + "\r\n")
    return data


NAMES = [
    "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi",
    "HandstandPushups/v_HandStandPushups_g08_c01.avi",
    "YoYo/v_YoYo_g01_c01.avi",
]


def test_ucf101_first_fold_labels_from_zero_and_validation_on_test(ucf101):
    ucf101.add(*NAMES)
    found = ucf101.find()
    assert found.class_names == ["ApplyEyeMakeup", "HandstandPushups", "YoYo"]
    assert [item.label for item in found.items] == [0, 1, 2]
    assert [splits for _, splits in facts(found).values()] == [
        ["train"],
        ["train"],
        ["test", "val"],
    ]
    assert "fold 1" in said(found) and "`test` serves as `val` too" in said(found)
    assert found.doubts == []


def test_ucf101_flat_re_encoded_and_another_fold(ucf101):
    ucf101.add(*(Path(name).with_suffix(".mp4").name for name in NAMES))
    lists = ucf101.root / "ucfTrainTestlist"
    found = ucf101.find(lists / "trainlist02.txt", lists / "testlist02.txt", dataset="ucf101")
    assert facts(found) == {
        "v_YoYo_g01_c01.mp4": ("YoYo", ["train"]),
        "v_ApplyEyeMakeup_g08_c01.mp4": ("ApplyEyeMakeup", ["test", "val"]),
    }
    assert "fold 2" in said(found)


def test_ucf101_splits_by_other_names(ucf101):
    ucf101.add(*NAMES)
    lists = ucf101.root / "ucfTrainTestlist"
    found = ucf101.find(f"val={lists / 'testlist01.txt'}", lists / "trainlist01.txt")
    assert facts(found)[NAMES[2]] == ("YoYo", ["val"])


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("trainlist01.txt", f"{NAMES[0]} 0\n", "line 1: class `0` is not in"),
        ("trainlist01.txt", f"\n{NAMES[0]} 2\n", "line 2: class `2` is `HandstandPushups`, but"),
        ("testlist01.txt", "Yodel/v_Yodel_g01_c01.avi\n", "the folder of `Yodel/v_Yodel_g01_c01"),
        ("classInd.txt", "0 ApplyEyeMakeup\n1 YoYo\n", "line 1: `0` is no class"),
        ("classInd.txt", "1 ApplyEyeMakeup\n2 ApplyEyeMakeup\n", "line 2: class `2` is `ApplyEye"),
    ],
)
def test_ucf101_mistakes_are_placed(ucf101, file, content, message):
    ucf101.add(*NAMES)
    ucf101.write(f"ucfTrainTestlist/{file}", content)
    with pytest.raises(DataError) as raised:
        ucf101.find()
    assert message in raised.value.message and file in raised.value.message
    assert raised.value.hint


def test_ucf101_without_class_names(ucf101):
    (ucf101.root / "ucfTrainTestlist" / "classInd.txt").unlink()
    with pytest.raises(UsageError, match=r"no `classInd\.txt` beside"):
        ucf101.find()


# --- HMDB51 ---------------------------------------------------------------------------------------

ODD = [
    "#20_Rhythm_clap_u_nm_np1_fr_goo_0.avi",
    "(Rad)Schlag_die_Bank!_clap_f_cm_np1_le_med_0.avi",
    "A&B;_clap_f_nm_np1_fr_med_1.avi",
    "Two  words_clap_u_cm_np1_fr_med_3.avi",
]


@pytest.fixture
def hmdb51(data):
    folder = "testTrainMulti_7030_splits"
    lines = [f"{name} {flag} \n" for name, flag in zip(ODD, (1, 2, 0, 1), strict=True)]
    data.write(f"{folder}/clap_test_split1.txt", "".join(lines))
    data.write(f"{folder}/brush_hair_test_split1.txt", "April_09_brush_hair_0.avi 2 \n")
    data.write(f"{folder}/clap_test_split2.txt", f"{ODD[0]} 2 \n")
    data.write(f"{folder}/brush_hair_test_split2.txt", "April_09_brush_hair_0.avi 1 \n")
    data.add(*(f"clap/{name}" for name in ODD), "brush_hair/April_09_brush_hair_0.avi")
    return data


def test_hmdb51_flags_and_odd_names(hmdb51):
    found = hmdb51.find()
    assert found.class_names == ["brush_hair", "clap"]
    assert facts(found) == {
        "brush_hair/April_09_brush_hair_0.avi": ("brush_hair", ["test", "val"]),
        f"clap/{ODD[0]}": ("clap", ["train"]),
        f"clap/{ODD[1]}": ("clap", ["test", "val"]),
        f"clap/{ODD[2]}": ("clap", []),
        f"clap/{ODD[3]}": ("clap", ["train"]),
    }
    assert all(item.path.exists() for item in found.items)
    assert "in no split: 1" in said(found)


def test_hmdb51_one_file_names_its_fold(hmdb51):
    folder = hmdb51.root / "testTrainMulti_7030_splits"
    found = hmdb51.find(folder / "clap_test_split2.txt")
    assert facts(found) == {
        "brush_hair/April_09_brush_hair_0.avi": ("brush_hair", ["train"]),
        f"clap/{ODD[0]}": ("clap", ["test", "val"]),
    }
    for wrong in (
        [folder / "clap_test_split2.txt", folder / "clap_test_split1.txt"],
        [f"train={folder / 'clap_test_split1.txt'}"],
    ):
        with pytest.raises(UsageError):
            hmdb51.find(*wrong)


def test_hmdb51_wrong_flags(hmdb51):
    hmdb51.write("testTrainMulti_7030_splits/clap_test_split1.txt", f"{ODD[0]} 1\n{ODD[1]} 3\n")
    with pytest.raises(DataError, match=r"clap_test_split1\.txt`, line 2: `3` in"):
        hmdb51.find()


# --- Diving48 -------------------------------------------------------------------------------------


def dive(name, label, start=0, end=48):
    return {"vid_name": name, "label": label, "start_frame": start, "end_frame": end}


@pytest.fixture
def diving48(data):
    data.add("rgb/-mmq0PT-u8k_00155.mp4", "rgb/2x00lRzlTVQ_00000.mp4")
    data.write("Diving48_vocab.json", [["Back", "15som", "05Twis", "FREE"],
                                       ["Inward", "25som", "NoTwis", "PIKE"]])  # fmt: skip
    data.write("Diving48_V2_train.json", [dive("-mmq0PT-u8k_00155", 1)])
    data.write("Diving48_V2_test.json", [dive("2x00lRzlTVQ_00000", 0, 10, 30)])
    return data


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


# --- EPIC-KITCHENS-100 ----------------------------------------------------------------------------

HEADER = (
    "narration_id,participant_id,video_id,narration_timestamp,start_timestamp,stop_timestamp,"
    "start_frame,stop_frame,narration,verb,verb_class,noun,noun_class,all_nouns,all_noun_classes\n"
)


def action(name, start, stop, verb, verb_class, noun, noun_class):
    video = name.rpartition("_")[0]
    return (
        f"{name},{video[:3]},{video},00:00:00.560,{start},{stop},8,202,{verb} the {noun},"
        f"{verb},{verb_class},{noun},{noun_class},\"['{noun}', 'x']\",\"[{noun_class}, 0]\"\n"
    )


@pytest.fixture
def epic100(data):
    train = [
        action("P01_01_0", "00:00:00.14", "00:00:03.37", "turn-on", 6, "light", 2),
        action("P01_01_1", "00:59:59.50", "01:00:00.25", "open", 3, "door:kitchen", 0),
        action("P02_101_0", "00:00:01.00", "00:00:02.00", "pull-open", 3, "door", 0),
        action("P09_07_0", "00:00:01.00", "00:00:02.00", "open", 3, "light", 2),
    ]
    val = [action("P03_05_7", "00:00:01.00", "00:00:02.00", "open", 3, "cup", 1)]
    data.write("epic-kitchens-100-annotations/EPIC_100_train.csv", HEADER + "".join(train))
    data.write("epic-kitchens-100-annotations/EPIC_100_validation.csv", HEADER + "".join(val))
    data.write(
        "epic-kitchens-100-annotations/EPIC_100_test_timestamps.csv",
        "uid,narration_id,participant_id,video_id,narration_timestamp,start_timestamp,"
        "stop_timestamp,start_frame,stop_frame\n"
        "1924,P04_11_0,P04,P04_11,00:00:02.851,00:00:02.86,00:00:03.87,143,193\n",
    )
    data.add("P01/P01_01.MP4", "P02/videos/P02_101.mp4", "P03_05.mkv", "P04/rgb/P04_11.MP4")
    return data


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


def test_labels_of_a_set_that_has_one_kind(kinetics):
    kinetics.add("valvalvalva.mp4")
    for dataset in ("auto", "kinetics"):
        with pytest.raises(UsageError, match="Kinetics has no labels `verb`") as raised:
            kinetics.find(dataset=dataset, labels="verb")
        assert raised.value.hint == "leave out `--labels`"


# --- all of them ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ssv2", "kinetics", "ucf101", "hmdb51", "diving48", "epic100"])
def test_damaged_annotations_are_errors_with_a_message(request, data, name):
    """Whatever is in the files: an error of ours, or sources."""
    request.getfixturevalue(name)
    data.add("valvalvalva.mp4", *NAMES)
    random = Random(name)
    files = [
        path for path in sorted(data.root.rglob("*")) if path.suffix in (".json", ".csv", ".txt")
    ]
    whole = {path: path.read_bytes() for path in files}
    pieces = [
        b"",
        b"\n",
        b'"',
        b",",
        b"[",
        b"{",
        b"null",
        b"-1",
        b"9" * 5000,
        b"\xff",
        b"\x00",
        b"\0",
    ]
    messages = set()
    for _ in range(300):
        path = random.choice(files)
        text = whole[path]
        start = random.randrange(len(text))
        end = min(len(text), start + random.choice([0, 1, 5, 400]))
        path.write_bytes(text[:start] + random.choice(pieces) * random.choice([1, 3]) + text[end:])
        try:
            found = data.find(dataset=name)
        except TatsError as error:
            assert "`" in error.message
            messages.add(error.message)
        else:
            assert all(item.path.is_file() for item in found.items)
            assert all(item.label is None or found.class_names[item.label] for item in found.items)
        path.write_bytes(text)
    assert len(messages) > 20
