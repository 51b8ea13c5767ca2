"""The forms that data sets come in: which videos there are, and what is said about each.

A form is one file here and one line in `DATASETS`; `docs/datasets.md` shows what each accepts.
"""

from tatscli.store.annotations.diving48 import DIVING48
from tatscli.store.annotations.epic100 import EPIC100
from tatscli.store.annotations.folders import FOLDERS
from tatscli.store.annotations.formats import AnnotationFormat
from tatscli.store.annotations.hmdb51 import HMDB51
from tatscli.store.annotations.kinetics import KINETICS
from tatscli.store.annotations.lists import LIST
from tatscli.store.annotations.ssv2 import SSV2
from tatscli.store.annotations.ucf101 import UCF101

DATASETS: dict[str, AnnotationFormat] = {
    "list": LIST,
    "folders": FOLDERS,
    "ssv2": SSV2,
    "kinetics": KINETICS,
    "ucf101": UCF101,
    "hmdb51": HMDB51,
    "diving48": DIVING48,
    "epic100": EPIC100,
}
"""By the name that `tats prepare --dataset` takes."""
