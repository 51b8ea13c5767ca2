"""Data sets as they are published, in small: for the tests of each."""

import json
from pathlib import Path

from tatscli.store.sources import find_sources


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


TRAIN = """label,youtube_id,time_start,time_end,split,is_cc
riding a bike,-abcdefghij,6,16,train,0
"abseiling",abcDEF_-123,0,10,train,0
abseiling,gone0000000,120,130,train,1
"""


VAL = """label,youtube_id,time_start,time_end,split
riding a bike,valvalvalva,1,11,validate
"""


TEST = "youtube_id,time_start,time_end,split\ntesttesttes,1,11,test\n"


NAMES = [
    "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi",
    "HandstandPushups/v_HandStandPushups_g08_c01.avi",
    "YoYo/v_YoYo_g01_c01.avi",
]


ODD = [
    "#20_Rhythm_clap_u_nm_np1_fr_goo_0.avi",
    "(Rad)Schlag_die_Bank!_clap_f_cm_np1_le_med_0.avi",
    "A&B;_clap_f_nm_np1_fr_med_1.avi",
    "Two  words_clap_u_cm_np1_fr_med_3.avi",
]


def dive(name, label, start=0, end=48):
    return {"vid_name": name, "label": label, "start_frame": start, "end_frame": end}


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
