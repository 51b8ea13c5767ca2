"""The set on disk: class folders of H.264 that `tats prepare` understands."""

import io

from tatscli.console import Reporter
from tatscli.demo.clips import SetSize, write_set
from tatscli.demo.movements import MOVEMENTS
from tatscli.store.sources import find_sources
from tatscli.video.frames import read_frames
from tatscli.video.reader import VideoReader

SIZE = SetSize(train=2, val=1, frames=6, side=32)


def write(folder, seed=0):
    write_set(folder, SIZE, seed=seed, reporter=Reporter(stderr=io.StringIO()))
    return sorted(folder.rglob("*.mp4"))


def test_files_are_h264_with_motion_in_class_folders(tmp_path):
    files = write(tmp_path / "set")
    assert len(files) == 3 * len(MOVEMENTS)
    reader = VideoReader(files[0])
    assert len(list(reader)) == 6
    assert (reader.codec, reader.size) == ("h264", (32, 32))
    assert sum(frame.valid for frame in read_frames(files[0])) == 5
    sources = find_sources(tmp_path / "set")
    assert sources.class_names == sorted(MOVEMENTS)
    assert {item.split for item in sources.items} == {"train", "val"}
    for item in sources.items:
        assert sources.class_names[item.label] == item.path.parent.name


def test_every_clip_is_its_own_and_comes_again_from_the_seed(tmp_path):
    first, again, other = (
        write(tmp_path / name, seed) for name, seed in zip("abc", (0, 0, 1), strict=True)
    )
    contents = [[file.read_bytes() for file in files] for files in (first, again, other)]
    assert contents[0] == contents[1]
    assert len({*contents[0], *contents[2]}) == 2 * len(first)
