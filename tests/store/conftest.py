"""Videos and their store, and published data sets on disk, with their traps."""

import pytest

from tests.clips import CLEAN_VECTORS, pan, render
from tests.store.published import (
    HEADER,
    ODD,
    TEMPLATES,
    TEST,
    TRAIN,
    VAL,
    Set,
    action,
    dive,
    sample,
)
from tests.store.stores import prepare_with_workers


@pytest.fixture
def data(tmp_path):
    return Set(tmp_path)


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


@pytest.fixture
def kinetics(data):
    data.write("annotations/train.csv", TRAIN)
    data.write("annotations/val.csv", VAL)
    data.write("annotations/test.csv", TEST)
    return data


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


@pytest.fixture
def diving48(data):
    data.add("rgb/-mmq0PT-u8k_00155.mp4", "rgb/2x00lRzlTVQ_00000.mp4")
    data.write("Diving48_vocab.json", [["Back", "15som", "05Twis", "FREE"],
                                       ["Inward", "25som", "NoTwis", "PIKE"]])  # fmt: skip
    data.write("Diving48_V2_train.json", [dive("-mmq0PT-u8k_00155", 1)])
    data.write("Diving48_V2_test.json", [dive("2x00lRzlTVQ_00000", 0, 10, 30)])
    return data


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


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Two classes, seven videos of different lengths, one of them noise."""
    folder = tmp_path_factory.mktemp("videos")
    for index in range(6):
        clip = pan((index, 1), frames=6 + index, height=64, width=96, seed=index)
        name = f"{'fall' if index % 2 else 'walk'}/clip {index}.mp4"
        render(folder / name, clip, options=CLEAN_VECTORS)
    (folder / "fall" / "noise.mp4").write_bytes(bytes(range(256)) * 40)
    return folder


@pytest.fixture(scope="module")
def undisturbed(videos, tmp_path_factory):
    """Their store, made in one go."""
    out = tmp_path_factory.mktemp("stores") / "undisturbed"
    prepare_with_workers(videos, out, shard_bytes=30_000)
    return out
