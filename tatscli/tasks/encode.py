"""`tats store encode`: runs a tokenizer over a store once, for crops that do not change.

Shapes: F stored frames, T frames of a clip, C colours, H and W pixels, t, h and w codes.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tatscli.console import Reporter
from tatscli.data.normalize import to_unit
from tatscli.data.sampling import chosen_frames, fixed_indices
from tatscli.data.torchvision_ops import decode_jpegs
from tatscli.data.unreadable import UNREADABLE, unreadable
from tatscli.data.view import spatial_crop
from tatscli.engine.device import choose_device
from tatscli.errors import UsageError
from tatscli.lock import locked
from tatscli.recipe.load import LoadedRecipe
from tatscli.recipe.schema import Data, TrainedTokenizer
from tatscli.store.codes import (
    clips_key,
    codes_key,
    finish_codes,
    folder_of,
    has_codes,
    stamp_of,
    write_codes,
)
from tatscli.store.reader import Store
from tatscli.tokenizer.asked import ANY_CLIPS, by_clip
from tatscli.tokenizer.base import Tokenizer, rescaled
from tatscli.tokenizer.load import open_tokenizer

_FRAMES = 32  # encoded at once


def encode_recipe(
    path: Path,
    loaded: LoadedRecipe,
    *,
    reporter: Reporter,
    source: TrainedTokenizer | None = None,
    size: tuple[int, int] | None = None,
    scale: float | None = None,
) -> dict[str, Any]:
    """Write the codes that a recipe reads from a store; see `encode_store`.

    Args:
        path: The store.
        loaded: The recipe: its `data`, and the tokenizer and scale of the first target, or else
            `predict`, that is `cached`.
        reporter: Prints messages and progress.
        source: Another tokenizer.
        size: Another height and width of the view.
        scale: Another scale.

    Raises:
        TatsError: If nothing in the recipe is cached and no tokenizer is named, or as
            `encode_store`.
    """
    recipe = loaded.recipe
    readers = (*recipe.targets, recipe.resolved_predict)
    reader: Any = next((one for one in readers if getattr(one, "cached", False)), None)
    if source is None and reader is None:
        raise UsageError(
            f"`--recipe {loaded.name}` reads no cached codes: nothing in it is `cached: true`",
            hint="set it for a target, or give `--tokenizer`",
        )
    if scale is None:
        scale = 1.0 if reader is None else reader.scale
    return encode_store(
        path,
        source or reader.tokenizer,
        size=size or recipe.data.view_size,
        reporter=reporter,
        scale=scale,
        device=recipe.run.device,
        data=recipe.data,
    )


def encode_store(
    path: Path,
    source: TrainedTokenizer,
    *,
    size: tuple[int, int],
    reporter: Reporter,
    scale: float = 1.0,
    device: str = "auto",
    data: Data | None = None,
) -> dict[str, Any]:
    """Write the codes of every video of a store; existing ones are kept unless the videos have
    changed.

    Codes are those of every frame, or, for a tokenizer that looks at several frames or has scores,
    those of the recipe's fixed clips. No more than a window of a clip is held in memory.

    Args:
        path: The store.
        source: The tokenizer.
        size: Height and width of the view, as the recipe's `data.size`.
        reporter: Prints messages and progress.
        scale: As the target's `scale`.
        device: As `run.device`.
        data: The recipe's `data`, for fixed clips.

    Returns:
        `store`, `codes` (the folder), `videos`, `clips` of each or None, `frames` coded, `shards`
        written now, `codebook_size`, `bytes`, `seconds`.

    Raises:
        TatsError: If store or tokenizer cannot be used, a video cannot be read, or another run
            writes the same codes.
    """
    began = time.perf_counter()
    store = Store.open(path)
    tokenizer, digest = open_tokenizer(source)
    fixed = _fixed(source, tokenizer, data) if by_clip(tokenizer) else None
    for side in size:
        if side * scale % tokenizer.stride:
            raise UsageError(
                f"a view of {size[0]} x {size[1]} at a scale of {scale:g} is not a multiple of the "
                f"tokenizer's stride, {tokenizer.stride}"
            )
    place, _ = choose_device(device)
    coder = _Coder(store, tokenizer.to(place), size, scale, place, fixed)
    key = codes_key(digest, size, scale, None if fixed is None else clips_key(fixed))
    folder = folder_of(store, key)
    folder.parent.mkdir(exist_ok=True)
    clips = None if fixed is None else fixed.sampling.clips
    with locked(folder.with_name(f".{key}.lock"), folder, reporter):
        rows = store.part(None)
        written = _write(coder, folder, rows, reporter)
        facts = {
            "tokenizer": source.path,
            "tokenizer_sha256": digest,
            "codebook_size": tokenizer.codebook_size,
            "size": list(size),
            "scale": scale,
            "clips": clips,
            "frames": None if fixed is None else fixed.frames,
            "sampling": None if fixed is None else fixed.sampling.model_dump(),
            "scores": fixed is not None and tokenizer.scored,
            "store_fingerprint": store.fingerprint(),
        }
        finish_codes(folder, facts)
    return {
        "store": str(store.path),
        "codes": str(folder),
        "videos": len(rows),
        "clips": clips,
        "frames": sum(coder.count(row) for row in rows),
        "shards": written,
        "codebook_size": tokenizer.codebook_size,
        "bytes": sum(file.stat().st_size for file in folder.iterdir()),
        "seconds": round(time.perf_counter() - began, 3),
    }


def _fixed(source: TrainedTokenizer, tokenizer: Tokenizer, data: Data | None) -> Data:
    """Return the recipe's `data`, which determines the fixed clips.

    Raises:
        UsageError: If there is none, or it does not suit the tokenizer.
    """
    if data is None:
        raise UsageError(
            f"`{source.path}` looks at several frames at once, so its codes depend on the clips of "
            "a recipe",
            hint="give `--recipe RECIPE`, whose `data.sampling.clips` counts the clips of a video",
        )
    if data.sampling.clips is None:
        raise UsageError(
            f"the codes of `{source.path}`: {ANY_CLIPS}",
            hint="`data.sampling.clips: 4` draws from four fixed clips of each video; or leave the "
            "target's `cached` out",
        )
    if data.frames % tokenizer.frames:
        raise UsageError(
            f"`data.frames: {data.frames}` is not a multiple of the {tokenizer.frames} frames that "
            f"a code of `{source.path}` covers"
        )
    return data


def _write(coder: _Coder, folder: Path, rows: Sequence[int], reporter: Reporter) -> int:
    """Write all shards that are missing or out of date; return how many."""
    store, written = coder.store, 0
    by_shard = defaultdict(list)
    for row in rows:
        by_shard[str(store.rows[row].shard)].append(row)
    with reporter.progress(total=len(by_shard), description="encode", unit="shard") as bar:
        for shard, videos in sorted(by_shard.items()):
            stamp = stamp_of(store, videos)
            if not has_codes(folder, shard, stamp=stamp):
                found = {store.rows[row].id: coder.video(row) for row in videos}
                codes = {name: codes for name, (codes, _) in found.items()}
                scores = {name: one for name, (_, one) in found.items() if one is not None}
                write_codes(folder, shard, codes, scores, stamp=stamp)
                written += 1
            bar.update()
    return written


@dataclass(frozen=True)
class _Coder:
    """A tokenizer over the videos of a store.

    Attributes:
        fixed: The recipe's `data`, where fixed clips are coded; None codes all frames.
    """

    store: Store
    tokenizer: Tokenizer
    size: tuple[int, int]
    scale: float
    device: torch.device
    fixed: Data | None

    def count(self, row: int) -> int:
        """Return how many frames of a video are coded."""
        if self.fixed is None:
            return self.store.rows[row].frames
        return (self.fixed.sampling.clips or 0) * self.fixed.frames

    @torch.no_grad()
    def video(self, row: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the codes of a video, (F, h, w) or (clips, t, h, w), and their scores."""
        if self.fixed is None:
            frames = range(self.store.rows[row].frames)
            parts = [self.tokenizer.encode(one) for one in self._parts(row, frames, _FRAMES)]
            return _joined(parts), None
        data = self.fixed
        chosen = chosen_frames(
            self.store, row, data.sampling, lambda n: fixed_indices(n, data.sampling, data.frames)
        )
        # Of a short video all clips are the same.
        clips = {tuple(frames): self._clip(row, frames) for frames in chosen}
        codes, scores = zip(*(clips[tuple(frames)] for frames in chosen), strict=True)
        return np.stack(codes), np.stack(scores) if self.tokenizer.scored else None

    def _clip(self, row: int, frames: Sequence[int]) -> tuple[np.ndarray, np.ndarray | None]:
        """Return codes and scores of one clip, (t, h, w)."""
        windows = self._parts(row, frames, self.tokenizer.window or len(frames))
        parts = list(self.tokenizer.stream(windows))
        scores = [one.scores_Bthw for one in parts if one.scores_Bthw is not None]
        return _joined([one.codes_Bthw for one in parts]), _joined(scores) if scores else None

    def _parts(self, row: int, frames: Sequence[int], length: int) -> Iterator[Tensor]:
        """Yield the centre crop of frames, `length` at a time: (1, C, T, H, W) in [0, 1]."""
        for first in range(0, len(frames), length):
            try:
                video_TCHW = decode_jpegs(self.store.jpegs(row, frames[first : first + length]))
            except UNREADABLE as error:
                raise unreadable(self.store.rows[row].id, error) from error
            height, width = video_TCHW.shape[-2:]
            view = spatial_crop(height, width, self.size, crop=0, crops=1)
            seen_TCHW = to_unit(view.frames(video_TCHW).to(self.device))
            yield rescaled(seen_TCHW.transpose(0, 1)[None], self.scale)


def _joined(parts: Sequence[Tensor]) -> np.ndarray:
    """Join parts of one clip along time: (t, h, w)."""
    return np.concatenate([one[0].cpu().numpy() for one in parts])
