"""`tats store encode`: a tokenizer over every stored frame, once, for views that do not change.

Shapes: F stored frames, C colours, H and W pixels, h and w codes along the picture.
"""

from __future__ import annotations

import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tatscli.console import Reporter
from tatscli.data.normalize import to_unit
from tatscli.data.unreadable import UNREADABLE, unreadable
from tatscli.data.view import spatial_crop
from tatscli.data.vision import decode_jpegs
from tatscli.engine.device import choose_device
from tatscli.errors import UsageError
from tatscli.recipe.schema import TrainedTokenizer
from tatscli.store.codes import (
    codes_key,
    finish_codes,
    folder_of,
    has_codes,
    stamp_of,
    write_codes,
)
from tatscli.store.reader import Store
from tatscli.tokenizer.base import Tokenizer, rescaled
from tatscli.tokenizer.load import open_tokenizer

_FRAMES = 32  # encoded at once


def encode_store(
    path: Path,
    source: TrainedTokenizer,
    *,
    size: tuple[int, int],
    reporter: Reporter,
    scale: float = 1.0,
    device: str = "auto",
) -> dict[str, Any]:
    """Write the codes of every video of a store; what is there already is not done again, unless
    the videos have changed since.

    Args:
        path: The store.
        source: The tokenizer.
        size: Height and width of the view, as the recipe's `data.size`.
        reporter: Speaks to the user.
        scale: As the target's `scale`.
        device: As `run.device`.

    Returns:
        `store`, `codes` (the folder), `videos`, `frames`, `shards` written now, `codebook_size`,
        `bytes`, `seconds`.

    Raises:
        TatsError: If store or tokenizer cannot be used, or a video cannot be read.
    """
    began = time.perf_counter()
    store = Store.open(path)
    tokenizer, digest = open_tokenizer(source)
    if tokenizer.frames > 1:
        raise UsageError(
            f"`{source.path}` codes {tokenizer.frames} frames at once, and clips are drawn at any "
            "frame: its codes cannot be kept by frame",
            hint="leave the target's `cached` out",
        )
    for side in size:
        if side * scale % tokenizer.stride:
            raise UsageError(
                f"a view of {size[0]} x {size[1]} at a scale of {scale:g} is not a multiple of the "
                f"tokenizer's stride, {tokenizer.stride}"
            )
    place, _ = choose_device(device)
    tokenizer.to(place)
    folder = folder_of(store, codes_key(digest, size, scale))
    by_shard = defaultdict(list)
    for row in store.part(None):
        by_shard[str(store.rows[row].shard)].append(row)
    written = 0
    with reporter.progress(total=len(by_shard), description="encode", unit="shard") as bar:
        for shard, rows in sorted(by_shard.items()):
            stamp = stamp_of(store, rows)
            if not has_codes(folder, shard, stamp=stamp):
                codes = {
                    store.rows[row].id: _encode(store, row, tokenizer, size, scale, place)
                    for row in rows
                }
                write_codes(folder, shard, codes, stamp=stamp)
                written += 1
            bar.update()
    facts = {
        "tokenizer": source.path,
        "tokenizer_sha256": digest,
        "codebook_size": tokenizer.codebook_size,
        "size": list(size),
        "scale": scale,
        "store_fingerprint": store.fingerprint(),
    }
    finish_codes(folder, facts)
    return {
        "store": str(store.path),
        "codes": str(folder),
        "videos": sum(map(len, by_shard.values())),
        "frames": sum(store.rows[row].frames for rows in by_shard.values() for row in rows),
        "shards": written,
        "codebook_size": tokenizer.codebook_size,
        "bytes": sum(file.stat().st_size for file in folder.iterdir()),
        "seconds": round(time.perf_counter() - began, 3),
    }


@torch.no_grad()
def _encode(
    store: Store,
    row: int,
    tokenizer: Tokenizer,
    size: tuple[int, int],
    scale: float,
    device: torch.device,
) -> np.ndarray:
    """Return the codes of all frames of a video: (F, h, w)."""
    found = []
    for first in range(0, store.rows[row].frames, _FRAMES):
        frames = range(first, min(first + _FRAMES, store.rows[row].frames))
        try:
            video_FCHW = decode_jpegs(store.jpegs(row, frames))
        except UNREADABLE as error:
            raise unreadable(store.rows[row].id, error) from error
        height, width = video_FCHW.shape[-2:]
        view = spatial_crop(height, width, size, crop=0, crops=1)
        seen_FCHW = to_unit(view.frames(video_FCHW).to(device))
        codes_1Fhw = tokenizer.encode(rescaled(seen_FCHW.transpose(0, 1)[None], scale))
        found.append(codes_1Fhw[0].cpu().numpy())
    return np.concatenate(found)
