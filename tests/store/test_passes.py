"""Segments of one video are read together, and come out as if each had been read by itself."""

import os
import signal
from functools import partial
from itertools import chain, pairwise
from pathlib import Path

import av
import numpy as np
import pytest

from tatscli.store.convert import Job, convert_together
from tatscli.store.passes import in_passes
from tatscli.store.pool import run_in_order
from tatscli.store.schema import Settings
from tatscli.store.sources import Source, Sources
from tatscli.video.decode import Limits, Segment
from tatscli.video.frames import stored_frames
from tatscli.video.reader import VideoReader
from tests.clips import CLEAN_VECTORS, pan, render
from tests.store.stores import content, here, prepare, rows_of, tensors_of

SEGMENTS = [
    Segment(0.0, 1.0),
    Segment(0.2, 4.9),  # holds most others
    Segment(0.5, 0.52),  # holds one frame or none
    Segment(0.9, 2.4),
    Segment(1.95, 2.35),  # around the place where the estimator begins again
    Segment(2.0, 3.0),
    Segment(3.9),  # to the end
    Segment(4.2, 9.0),  # beyond the end
    Segment(7.0, 8.0),  # outside
]
KINDS = {
    "native": ("a.mp4", {"options": CLEAN_VECTORS | {"g": "20"}}),
    "encoded": ("a.mp4", {"options": {"bf": "2", "refs": "4", "g": "20"}}),
    "no index": ("a.264", {"options": {"bf": "0", "g": "20"}}),
    "stream": ("a.ts", {"options": {"bf": "2", "g": "15"}, "pts": range(37, 87)}),
    "B-frames": ("a.mpg", {"codec": "mpeg2video", "options": {"bf": "2", "g": "12"}, "fps": 25}),
    "key frames": ("a.mp4", {"options": {"g": "1", "refs": "1"}}),
    "fields": ("a.avi", {"codec": "mpeg4", "options": {"flags": "+ildct+ilme", "g": "12"}}),
}


@pytest.fixture(scope="module", params=KINDS)
def clip(request, tmp_path_factory):
    name, options = KINDS[request.param]
    pictures = pan((2, -1), frames=50, height=64, width=96)
    return render(tmp_path_factory.mktemp("clip") / name, pictures, **{"fps": 10, **options})


def converted(folder: Path, jobs: list[Job]) -> list[dict]:
    """Convert jobs together; return the facts of each, its reason and its bytes."""
    found = []
    for job, result in zip(jobs, convert_together(jobs), strict=True):
        assert result.trouble is None
        one = {"reason": result.reason, "facts": result.facts}
        if result.spool is not None:
            one |= {name: getattr(result.spool, name).tolist() for name in ("times", "valid")}
            one["motion"] = result.spool.motion.read_bytes()
            one["jpeg"] = result.spool.jpeg.read_bytes()
        else:
            assert job.spool is None or not list(folder.glob(f"{job.spool.name}.*"))
        found.append(one)
    return found


def jobs_of(folder: Path, path: Path, segments: list[Segment], **options) -> list[Job]:
    limits = options.pop("limits", Limits(min_share=0))
    return [
        Job(path, folder / f"{n}-spool", Settings(**options), segment, limits)
        for n, segment in enumerate(segments)
    ]


def test_together_is_as_one_by_one(clip, tmp_path):
    jobs = jobs_of(tmp_path, clip, SEGMENTS)
    together = converted(tmp_path, jobs)
    alone = [*chain.from_iterable(converted(tmp_path, [job]) for job in jobs)]
    assert together == alone
    assert sum(one["reason"] is None for one in together) >= 4
    assert "lies outside" in together[-1]["reason"]


@pytest.mark.parametrize("motion", ["native", "none"])
def test_what_is_stored_is_what_reading_only_the_segment_gives(tmp_path, motion):
    """Frames, times and the codec's own vectors do not know of the pass."""
    options = CLEAN_VECTORS | {"g": "20"}
    path = render(tmp_path / "a.mp4", pan(frames=50, height=64, width=96), fps=10, options=options)
    jobs = jobs_of(tmp_path, path, SEGMENTS[:-1], motion=motion)
    for job, found in zip(jobs, converted(tmp_path, jobs), strict=True):
        if found["reason"] is not None:
            assert "no frame" in found["reason"]
            continue
        reader = VideoReader(path, motion=motion, segment=job.segment)
        frames = list(stored_frames(reader, short_side=256, motion_cell=16))
        assert found["times"] == [frame.time for frame in frames]
        assert found["valid"] == [frame.valid for frame in frames]
        fields = b"".join(frame.motion.astype(np.float16).tobytes() for frame in frames)
        assert found["motion"] == fields
        assert found["jpeg"] == b"".join(frame.jpeg(3) for frame in frames)


def test_vectors_of_an_encoding_are_right_in_every_segment(tmp_path):
    options = {"bf": "2", "refs": "4", "crf": "12"}
    path = render(tmp_path / "a.mp4", pan((3, -2), frames=60), fps=10, options=options)
    segments = [Segment(start / 10, start / 10 + 1) for start in range(0, 50, 3)]
    for found in converted(tmp_path, jobs_of(tmp_path, path, segments)):
        assert found["facts"]["motion"] == "reencode"
        assert found["valid"] == [False] + [True] * 9  # the first has none before it
        field = np.frombuffer(found["motion"], np.float16).reshape(10, 12, 16, 2)
        assert not field[0].any()
        assert np.abs(field[1:, 1:-1, 1:-1] - np.array((3, -2), np.float16)).max() < 0.3


def counted(monkeypatch) -> list[int]:
    """Count the frames that are decoded from now on."""
    count = [0]
    decode = VideoReader._decode

    def counting(self, *arguments):
        for frame in decode(self, *arguments):
            count[0] += 1
            yield frame

    monkeypatch.setattr(VideoReader, "_decode", counting)
    return count


def test_each_frame_is_decoded_once(tmp_path, monkeypatch):
    options = {"bf": "2", "refs": "4", "g": "250"}
    path = render(tmp_path / "a.mp4", pan(frames=75, height=64, width=96), options=options)
    count = counted(monkeypatch)
    windows = [Segment(0.3 * n, 0.3 * n + 0.96) for n in range(6)]
    assert [one["reason"] for one in converted(tmp_path, jobs_of(tmp_path, path, windows))] == [
        None
    ] * 6
    assert count[0] <= 75
    encoded = []
    monkeypatch.setattr(
        "tatscli.store.convert.JpegEncoder",
        lambda quality: lambda picture: encoded.append(1) or b"jpeg",
    )
    converted(tmp_path, jobs_of(tmp_path, path, windows))
    assert len(encoded) == round(25 * (0.3 * 5 + 0.96))


def test_limits_are_those_of_each_segment(tmp_path):
    path = render(tmp_path / "a.mp4", pan(frames=50, height=64, width=96), fps=10)
    segments = [Segment(0, 1), Segment(0.5, 3), Segment(1, 2)]
    found = converted(tmp_path, jobs_of(tmp_path, path, segments, limits=Limits(frames=10)))
    assert [one["reason"] for one in found] == [None, "too long: more than `--max-frames` 10", None]


def test_only_the_damaged_segment_says_so(tmp_path):
    options = CLEAN_VECTORS | {"g": "10"}
    path = render(tmp_path / "a.mp4", pan(frames=80, height=64, width=96), fps=10, options=options)
    with av.open(str(path)) as container:
        (packet,) = (p for p in container.demux(video=0) if p.pts and p.pts * p.time_base == 4.5)
        start, size = packet.pos, packet.size
    data = bytearray(path.read_bytes())
    data[start : start + size] = b"\xff" * size
    path.write_bytes(data)
    segments = [Segment(n, n + 1) for n in range(8)]
    together = converted(tmp_path, jobs_of(tmp_path, path, segments))
    warned = [bool(one["facts"]["warning"]) for one in together]
    assert warned == [n == 4 for n in range(8)]


@pytest.mark.shared
def test_only_the_segment_with_a_wrong_timestamp_says_so(shared, tmp_path):
    path = shared / "clips" / "field" / "one_wrong_pts.mkv"  # that of the frame at 0.8 s
    jobs = jobs_of(tmp_path, path, [Segment(n / 2, n / 2 + 0.5) for n in range(4)])
    together = converted(tmp_path, jobs)
    assert together == [*chain.from_iterable(converted(tmp_path, [job]) for job in jobs)]
    assert sum(one["facts"]["frames"] for one in together) == 50
    warned = [one["facts"]["warning"] or "" for one in together]
    assert "wrong and replaced" in warned[1] and warned[0] == ""


def test_a_picture_size_that_changes_is_each_segment_s_own(tmp_path):
    for name, side in (("small", 64), ("large", 96)):
        render(tmp_path / f"{name}.264", pan(frames=50, height=side, width=side), fps=25)
    path = tmp_path / "both.264"
    path.write_bytes(b"".join((tmp_path / f"{n}.264").read_bytes() for n in ("small", "large")))
    segments = [Segment(0, 1), Segment(1.5, 2.5), Segment(2.4, 3.4), Segment(3, 4)]
    together = converted(tmp_path, jobs_of(tmp_path, path, segments))
    assert [one["facts"]["width"] for one in together] == [64, 64, 96, 96]
    assert together == [
        *chain.from_iterable(
            converted(tmp_path, [job]) for job in jobs_of(tmp_path, path, segments)
        )
    ]


def test_a_stream_that_changes_midway_is_judged_by_each_segment(tmp_path):
    """What rules the codec's vectors out in one segment says nothing of those before it."""
    parts = []
    for name, options in (("one", CLEAN_VECTORS), ("many", {"bf": "2", "refs": "4", "crf": "12"})):
        clip = pan((3, -2), frames=50, height=96, width=128)
        parts.append(render(tmp_path / f"{name}.264", clip, options={**options, "g": "10"}))
    path = tmp_path / "both.264"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    segments = [Segment(0.2, 1.2), Segment(1.0, 1.9), Segment(1.6, 2.6), Segment(2.4, 3.2)]
    jobs = jobs_of(tmp_path, path, segments)
    together = converted(tmp_path, jobs)
    assert together == [*chain.from_iterable(converted(tmp_path, [job]) for job in jobs)]
    motions = [one["facts"]["motion"] for one in together]
    assert motions[:2] == ["native"] * 2 and motions[2:] == ["reencode"] * 2


def sources(path: Path, segments: list[Segment]) -> Sources:
    items = [Source(f"a.mp4#{n:03}", path, segment=one) for n, one in enumerate(segments)]
    return Sources(path.parent, items)


@pytest.fixture(scope="module")
def windows(tmp_path_factory):
    """A video of six seconds, twelve windows of it, and what was prepared from them."""
    folder = tmp_path_factory.mktemp("windows")
    options = {"bf": "2", "refs": "4", "g": "30"}
    path = render(folder / "a.mp4", pan(frames=60, height=64, width=96), fps=10, options=options)
    found = sources(path, [Segment(0.4 * n, 0.4 * n + 1.2) for n in range(12)])
    prepare(found, folder / "store", shard_bytes=60_000)
    return found, folder / "store"


def test_a_store_of_segments_is_the_same_wherever_a_run_was_killed(windows, tmp_path):
    found, made = windows
    assert len(list((made / "shards").iterdir())) > 2

    class Killed(BaseException):
        pass

    for after in (0, 4, 7, 11):
        out = tmp_path / str(after)

        def run(work, groups, after=after):
            for number, item in enumerate(here(work, groups)):
                if number == after:
                    raise Killed
                yield item

        with pytest.raises(Killed):
            prepare(found, out, run=run, shard_bytes=60_000)
        prepare(found, out, shard_bytes=60_000)
        assert content(out) == content(made)


def test_parts_of_a_cluster_keep_the_segments_of_a_video_together(windows, tmp_path):
    found, _ = windows
    counts = [
        prepare(found, tmp_path / str(number), part=(number, 3)).counts.ok for number in (1, 2, 3)
    ]
    assert sorted(counts) == [0, 0, 12]


def dying(jobs):
    """Convert, but die on one segment, whether it comes alone or with others."""
    for job, result in zip(jobs, convert_together(jobs), strict=True):
        if job.segment.start == 2.0:
            os.kill(os.getpid(), signal.SIGSEGV)
        yield result


def test_a_crash_costs_the_row_of_its_segment_alone(windows, tmp_path, monkeypatch):
    found, made = windows
    monkeypatch.setattr("tatscli.store.prepare.convert_together", dying)
    report = prepare(found, tmp_path / "store", run=partial(run_in_order, workers=1))
    assert {row.id: row.reason for row in report.failures} == {
        "a.mp4#005": "crashed: its worker was killed by SIGSEGV"
    }
    expected, tensors = tensors_of(made), tensors_of(tmp_path / "store")
    assert tensors.keys() == expected.keys() - {"a.mp4#005"}
    for name, held in tensors.items():
        assert all(np.array_equal(held[kind], expected[name][kind]) for kind in held)
    assert rows_of(tmp_path / "store").keys() == rows_of(made).keys()


def passes(*segments: Segment | None, file: str = "a.mp4") -> list[list[str]]:
    items = [
        Source(file if one is None else f"{file}#{n}", Path(file), segment=one)
        for n, one in enumerate(segments)
    ]
    return [[source.id.partition("#")[2] for source in one] for one in in_passes(items)]


def test_what_is_read_in_one_pass():
    near = [Segment(4, 5), Segment(0, 1), Segment(2, 9), Segment(9.5, 10)]
    assert passes(*near) == [["1", "2", "0", "3"]]
    assert passes(Segment(0, 1), Segment(30, 31), Segment(32)) == [["0"], ["1", "2"]]
    assert passes(Segment(5, 9, "frames"), None, Segment(7, 9, "frames"), Segment(0, 1)) == [
        [""], ["0"], ["2"], ["3"],
    ]  # fmt: skip
    assert in_passes([]) == []


def test_a_pass_is_bounded():
    """A long video is shared among workers, and its files are not all open at once."""
    minutes = in_passes(
        [Source(f"a#{n:04}", Path("a"), segment=Segment(n, n + 3)) for n in range(1000)]
    )
    assert len(minutes) > 5 and max(map(len, minutes)) <= 121
    starts = [[source.segment.start for source in one] for one in minutes]
    assert [*chain.from_iterable(starts)] == list(range(1000))
    dense = in_passes(
        [Source(f"a#{n:04}", Path("a"), segment=Segment(n / 100, n / 100 + 50)) for n in range(300)]
    )
    assert max(map(len, dense)) == 64


def test_files_are_collected_in_the_order_of_their_names():
    items = [
        Source(name, Path(name.partition("#")[0]), segment=Segment(0, 1) if "#" in name else None)
        for name in ("b#x", "a", "a b", "a#z", "a#b")
    ]
    order = [source.id for one in in_passes(items) for source in one]
    assert order == ["a", "a#b", "a#z", "a b", "b#x"]
    assert all(len(one) == 1 or len({s.path for s in one}) == 1 for one in in_passes(items))
    assert all(first != second for first, second in pairwise(order))
