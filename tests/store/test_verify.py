"""Checking a store: every kind of damage is found, named, and made good by the next run."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from tatscli.errors import DataError, DecodeError
from tatscli.lock import LOCK, locked
from tatscli.store.reader import Store
from tatscli.store.schema import Counts, read_rows, write_rows
from tatscli.store.shards import Shard, Spool, checksum, write_shard
from tatscli.store.verify import repair, verify
from tatscli.video.jpeg import jpeg_size
from tests.clips import pan, render
from tests.store.stores import QUIET, assert_same_videos, content, here, prepare, rows_of


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for index in range(6):
        clip = pan((index, 1), frames=6 + index, height=64, width=96, seed=index)
        render(folder / f"{'fall' if index % 2 else 'walk'}/clip {index}.mp4", clip)
    (folder / "fall" / "noise.mp4").write_bytes(b"noise" * 40)
    return folder


@pytest.fixture(scope="module")
def made(videos, tmp_path_factory):
    out = tmp_path_factory.mktemp("stores") / "made"
    prepare(videos, out)
    return out


@pytest.fixture
def store(made, tmp_path):
    """A copy to damage."""
    return Path(shutil.copytree(made, tmp_path / "store"))


def problems(store: Path, **options) -> dict[str | None, str]:
    verdict = verify(Store.open(store), reporter=QUIET, **options)
    return {finding.id or finding.shard: finding.problem for finding in verdict.findings}


def rewrite(store: Path, change) -> None:
    """Replace the rows of a manifest by `change` of their list, with the counts that belong."""
    rows = change(read_rows(store / "manifest.jsonl"))
    write_rows(store / "manifest.jsonl", rows)
    dataset = json.loads((store / "dataset.json").read_text())
    dataset["counts"] = Counts.of(rows).model_dump()
    (store / "dataset.json").write_text(json.dumps(dataset))


def test_a_sound_store(made):
    before = content(made)
    for decode in (False, True):
        verdict = verify(Store.open(made), reporter=QUIET, decode=decode, workers=2)
        assert (verdict.findings, verdict.notes, verdict.videos) == ([], [], 6)
        assert verdict.bytes == sum(path.stat().st_size for path in (made / "shards").iterdir())
    assert content(made) == before


def test_the_checksum_is_of_the_tensors_in_the_order_of_their_names(made, tmp_path):
    """By another way: the library's reader and the definition in `docs/store.md`."""
    from hashlib import blake2b

    from safetensors.numpy import load_file

    for row in rows_of(made).values():
        if row.shard is None:
            assert row.checksum is None
            continue
        tensors = load_file(made / row.shard)
        kinds = ("jpeg", "motion", "offsets", "times", "valid")
        data = b"".join(tensors[f"{row.id}/{kind}"].tobytes() for kind in kinds)
        assert row.checksum == blake2b(data, digest_size=16).hexdigest()


@pytest.mark.parametrize("pictures", [True, False])
def test_a_spool_and_its_shard_have_the_same_checksum(tmp_path, pictures):
    rng = np.random.default_rng(0)
    (tmp_path / "jpeg").write_bytes(rng.bytes(3_000_001))  # more than a piece
    (tmp_path / "motion").write_bytes(rng.bytes(2 * 2 * 3 * 4 * 2))
    spool = Spool(
        jpeg=tmp_path / "jpeg" if pictures else None,
        motion=tmp_path / "motion",
        motion_shape=(2, 3, 4, 2),
        offsets=np.array([0, 70, 3_000_001]) if pictures else None,
        times=np.array([0.0, 0.5]),
        valid=np.array([False, True]),
    )
    write_shard(tmp_path / "shard", [("a/b.mp4", spool), ("ü", spool)])
    shard = Shard(tmp_path / "shard")
    assert shard.checksum("a/b.mp4") == shard.checksum("ü") == checksum(spool)
    assert (tmp_path / "shard").stat().st_size > 2 * spool.size
    assert [f"/{kind}" for kind in shard.videos["ü"]] == [one.name for one in spool.tensors()]


def test_every_flipped_bit_is_found(store):
    """In any tensor of any video: the checksum sees it, and blames nobody else."""
    chance = random.Random(4)
    rows = {row.id: row for row in rows_of(store).values() if row.shard}
    for kind in ("times", "offsets", "motion", "jpeg", "valid"):
        for name, row in rows.items():
            path = store / row.shard
            before = path.read_bytes()
            tensor = Shard(path).videos[name][kind]
            where = tensor.start + chance.randrange(tensor.size)
            changed = bytearray(before)
            changed[where] ^= 1 << chance.randrange(8)
            path.write_bytes(changed)
            found = problems(store)
            assert list(found) == [name], (kind, name, found)
            assert "its bytes have changed" in found[name]
            path.write_bytes(before)
    assert problems(store) == {}


def test_without_checksums_the_form_is_checked(store):
    rewrite(store, lambda rows: [row.model_copy(update={"checksum": None}) for row in rows])
    verdict = verify(Store.open(store), reporter=QUIET)
    assert verdict.findings == []
    assert verdict.notes == ["6 rows have no checksum: only the shape of their data was checked"]
    row = next(row for row in rows_of(store).values() if row.shard)
    path = store / row.shard
    tensors = Shard(path).videos[row.id]
    data = bytearray(path.read_bytes())
    data[tensors["offsets"].start + 15] ^= 128  # the sign of the second one
    path.write_bytes(data)
    assert problems(store) == {row.id: "`offsets` do not match `jpeg`"}


def test_pictures_that_do_not_decode(store):
    """What a checksum cannot see: pictures that were broken from the beginning."""
    row = next(row for row in rows_of(store).values() if row.shard)
    path = store / row.shard
    shard = Shard(path)
    offsets = shard.array(shard.videos[row.id]["offsets"])
    data = bytearray(path.read_bytes())
    begin = shard.videos[row.id]["jpeg"].start + int(offsets[-2])
    data[begin : begin + int(offsets[-1] - offsets[-2])] = bytes(int(offsets[-1] - offsets[-2]))
    path.write_bytes(data)
    fresh = Shard(path).checksum(row.id)
    rewrite(
        store,
        lambda rows: [
            one.model_copy(update={"checksum": fresh}) if one.id == row.id else one for one in rows
        ],
    )
    assert problems(store) == {}
    (problem,) = problems(store, decode=True).values()
    assert problem.startswith(f"frame {row.frames - 1} does not decode")


def test_a_jpeg_is_measured_or_refused(made):
    store = Store.open(made)
    index = store.part(None)[0]
    jpeg = bytes(store.jpegs(index, [0])[0])
    assert jpeg_size(jpeg) == (store.rows[index].width, store.rows[index].height)
    for broken in (b"", b"xx", jpeg[:200], bytes(len(jpeg))):
        with pytest.raises(DecodeError, match="does not decode"):
            jpeg_size(broken)


DAMAGES = {
    "gone": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "short": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "long": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "headless": lambda path: path.write_bytes(b"\xff" * 8 + path.read_bytes()[8:]),
    "no json": lambda path: path.write_bytes(path.read_bytes().replace(b'{"', b"((", 1)),
    "other json": lambda path: path.write_bytes((2).to_bytes(8, "little") + b"[]"),
    "no fields": lambda path: path.write_bytes((7).to_bytes(8, "little") + b'{"a":1}'),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_shard_that_cannot_be_read_is_named_by_all_its_videos(videos, made, store, damage):
    shard = max(row.shard for row in rows_of(store).values() if row.shard)
    DAMAGES[damage](store / shard)
    inside = [row.id for row in rows_of(store).values() if row.shard == shard]
    found = problems(store)
    assert sorted(found) == sorted(inside)
    assert all("its shard cannot be read" in problem for problem in found.values())
    opened = Store.open(store)
    verdict = verify(opened, reporter=QUIET)
    assert repair(opened, verdict, reporter=QUIET) == len(inside)
    with pytest.raises(DataError, match="is unfinished"):
        Store.open(store)
    prepare(videos, store)
    assert content(store) == content(made)


@pytest.mark.parametrize("shards", ["several", "one"])
def test_repair_redoes_one_video_and_keeps_the_rest(videos, made, store, shards):
    if shards == "one":
        shutil.rmtree(store)
        prepare(videos, store, shard_bytes=1 << 30)
    row = next(row for row in rows_of(store).values() if row.shard)
    path = store / row.shard
    data = bytearray(path.read_bytes())
    data[Shard(path).videos[row.id]["jpeg"].start + 50] ^= 1
    path.write_bytes(data)
    opened = Store.open(store)
    verdict = verify(opened, reporter=QUIET)
    assert repair(opened, verdict, reporter=QUIET) == 1
    tried = []

    def run(work, groups):
        for job, result in here(work, groups):
            tried.append(job.path.name)
            yield job, result

    prepare(videos, store, run=run)
    assert tried == [Path(row.id).name]
    assert_same_videos(store, made)
    verdict = verify(Store.open(store), reporter=QUIET)
    assert verdict.findings == []
    assert "bytes in shards belong to no row" in verdict.notes[0]


def test_rows_that_are_wrong(videos, made, store):
    def change(rows):
        ok = [row for row in rows if row.shard]
        twice, lost, odd = ok[0], ok[1], ok[2]
        return [
            *(row for row in rows if row not in (lost, odd)),
            lost.model_copy(update={"shard": None}),
            odd.model_copy(update={"label": 7}),
            twice,
        ]

    ids = [row.id for row in rows_of(store).values() if row.shard][:3]
    rewrite(store, change)
    found = problems(store)
    assert found.pop(None) == "the manifest is not sorted by id"
    assert found == {
        ids[0]: "appears in the manifest 2 times",
        ids[1]: "is ok, but has no shard",
        ids[2]: "has label 7 of 2 classes",
    }
    opened = Store.open(store)
    assert repair(opened, verify(opened, reporter=QUIET), reporter=QUIET) == 4
    prepare(videos, store)
    assert_same_videos(store, made)


def test_files_and_counts_without_rows_are_mended_at_once(made, store):
    (store / "shards" / "00099.safetensors").write_bytes(b"orphan")
    dataset = json.loads((store / "dataset.json").read_text())
    dataset["counts"]["ok"] = 7
    (store / "dataset.json").write_text(json.dumps(dataset))
    found = problems(store)
    assert found["shards/00099.safetensors"] == "no row names this file"
    assert "counts" in found[None]
    opened = Store.open(store)
    assert repair(opened, verify(opened, reporter=QUIET), reporter=QUIET) == 0
    assert content(store) == content(made)


def test_repair_refuses_a_store_that_was_extended_meanwhile(videos, store, tmp_path):
    opened = Store.open(store)
    (store / "shards" / "00099.safetensors").write_bytes(b"orphan")
    verdict = verify(opened, reporter=QUIET)
    render(tmp_path / "more" / "late.mp4", pan(frames=5, height=64, width=96))
    prepare(tmp_path / "more", store, add=True)
    before = content(store)
    with pytest.raises(DataError, match="has changed during the check"):
        repair(opened, verdict, reporter=QUIET)
    assert content(store) == before


def test_a_store_without_its_manifest_is_not_repaired_away(store):
    (store / "manifest.jsonl").unlink()
    with pytest.raises(DataError, match=r"damaged: it has no `manifest.jsonl`"):
        Store.open(store)


def test_a_store_whose_settings_are_no_text(store):
    (store / "dataset.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(DataError, match="is damaged"):
        Store.open(store)


def test_repair_waits_for_nobody(store):
    shutil.rmtree(store / "shards")
    opened = Store.open(store)
    verdict = verify(opened, reporter=QUIET)
    assert len(verdict.findings) == 6
    with locked(store / LOCK, store, QUIET), pytest.raises(DataError, match="is in use"):
        repair(opened, verdict, reporter=QUIET)
    assert len(rows_of(store)) == 7
