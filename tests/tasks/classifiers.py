"""Run folders of classifiers that nothing trained, and videos of a store made unreadable."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from tatscli.engine.run import write_run_json
from tatscli.files import write_safely
from tatscli.recipe.schema import Recipe
from tatscli.recipe.text import dump_recipe
from tatscli.store.reader import Store
from tests.small_runs import save_run


def save_classifier(folder: Path, recipe: Recipe, *, seed: int = 0) -> Path:
    """Write a whole run folder with an untrained classifier of the store's classes."""
    store = Store.open(recipe.data.store)
    save_run(
        folder,
        recipe,
        names=store.class_names,
        seed=seed,
        step=4,
        name="tiny",
        store_fingerprint=store.fingerprint(),
        tats="0.1.0",
        init=None,
        best_score=0.25 + 0.1 * seed,
    )
    write_safely(folder / "recipe.yaml", dump_recipe(recipe))
    facts = {"recipe": "tiny", "started": "2026-01-01T00:00:00+00:00"}
    write_run_json(folder, {**facts, "derived": {"total_steps": 4}})
    return folder


def unprepared(store: Path, copy: Path, ids: Sequence[str]) -> Path:
    """Copy a store, with rows of some ids as `tats prepare` leaves them where it fails."""
    shutil.copytree(store, copy)
    rows = [json.loads(line) for line in (copy / "manifest.jsonl").read_text().splitlines()]
    for row in rows:
        if row["id"] in ids:
            row |= {"status": "failed", "reason": "no frames", "shard": None, "frames": 0}
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (copy / "manifest.jsonl").write_text(text, encoding="utf-8")
    return copy


def spoiled(store: Path, copy: Path, frames: dict[str, Sequence[int] | None]) -> Path:
    """Copy a store and overwrite JPEGs of some videos: the frames named, or None for all.

    Neither manifest nor fingerprint changes.
    """
    shutil.copytree(store, copy)
    opened = Store.open(copy)
    for row, record in enumerate(opened.rows):
        if record.id not in frames:
            continue
        assert record.shard is not None
        shard = copy / record.shard
        content = bytearray(shard.read_bytes())
        size = int.from_bytes(content[:8], "little")
        begin, end = json.loads(content[8 : 8 + size])[f"{record.id}/jpeg"]["data_offsets"]
        lengths = [len(one) for one in opened.jpegs(row, range(record.frames))]
        places = frames[record.id]
        assert sum(lengths) == end - begin
        for frame in range(record.frames) if places is None else places:
            start = 8 + size + begin + sum(lengths[:frame])
            content[start : start + lengths[frame]] = bytes(lengths[frame])
        shard.unlink()
        shard.write_bytes(content)
    return copy
