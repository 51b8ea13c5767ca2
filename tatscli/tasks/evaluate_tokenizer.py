"""Evaluating a tokenizer: how well it reconstructs videos, and how many of its codes it uses.

Shapes: B batch, C colours, T frames, X = B * T pictures, K codes that are used.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import torch

from tatscli.console import Reporter
from tatscli.data.loader import evaluation_batches, worker_count
from tatscli.data.normalize import to_unit
from tatscli.data.views import EvalViews
from tatscli.engine import distributed
from tatscli.engine.device import autocast
from tatscli.engine.session import Session, session
from tatscli.errors import UsageError
from tatscli.evaluation.reconstruction import perplexity, psnr, ssim
from tatscli.evaluation.views import Skipped, refuse_not_finite, share_skipped
from tatscli.nn.load import open_checkpoint
from tatscli.recipe.load import override_recipe
from tatscli.recipe.schema import Recipe
from tatscli.store.reader import Store
from tatscli.tasks.evaluate import describe_evaluation
from tatscli.tasks.failed_rows import take_failed
from tatscli.tasks.result_files import checked_out, find_place, save_result
from tatscli.tasks.results import results_home, unreadable_videos
from tatscli.tokenizer.base import TrainedTokenizer, pictures_of
from tatscli.tokenizer.load import open_run


@dataclass(slots=True)
class _Tally:
    """Scores of a video's frames.

    Attributes:
        psnr: Of every frame, in dB.
        ssim: Of every frame.
        codes: How often each code was used; codebooks may be far larger than a video.
        kept: Number of codes that were used, and of those that could have been.
    """

    psnr: list[float] = field(default_factory=list)
    ssim: list[float] = field(default_factory=list)
    codes: Counter[int] = field(default_factory=Counter)
    kept: tuple[int, int] = (0, 0)

    def numbers(self) -> dict[str, float]:
        return {
            "psnr": fmean(self.psnr),
            "ssim": fmean(self.ssim),
            "codes": len(self.codes),
            "perplexity": _perplexity(self.codes),
        }


def _perplexity(codes: Counter[int]) -> float:
    return perplexity(torch.tensor(list(codes.values()), dtype=torch.float64)).item()


def evaluate_tokenizer(
    path: Path | str,
    *,
    reporter: Reporter,
    overrides: Sequence[str] = (),
    prefer: Literal["last", "best"] = "last",
    skip_bad: bool = False,
    out: Path | str | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Score a tokenizer on a split of its recipe's store.

    Args:
        path: Run or checkpoint folder of a tokenizer.
        reporter: Speaks to the user.
        overrides: Recipe keys to change, such as `evaluate.segments=5`.
        prefer: Which checkpoint of a run to take.
        skip_bad: Skip videos that cannot be read or prepared, and list them in the result;
            otherwise the first one stops the evaluation.
        out: Where the result is written; by default in the run's `results`.
        overwrite: Replace what is at `out`.

    Returns:
        `protocol: reconstruction`, split, counts; `psnr` and `ssim`, means over the videos;
        `codebook_size`, `code_use` (share of the codes, or of as many as were looked at) and
        `perplexity` over all codes; `kept`, the share of places whose code reached the decoder;
        `per_video` (`id`, `psnr`, `ssim`, `codes` used, `perplexity`); hashes of checkpoint and
        store.

    Raises:
        TatsError: If run or store cannot be used, a video cannot be read, or a reconstruction is
            not finite.
    """
    chosen = checked_out(out, overwrite=overwrite)
    began = time.perf_counter()
    run = open_checkpoint(path, prefer=prefer)
    home = results_home(Path(path), run.checkpoint.path)
    place = find_place(chosen, home, prefer, reporter, trained_frames=run.recipe.data.frames)
    tokenizer, _, checkpoint = open_run(run.checkpoint.path)
    recipe = override_recipe(run.recipe, overrides, origin=checkpoint.path)
    store, settings = Store.open(recipe.data.store), recipe.evaluate
    for key in ("drop", "durations", "layer", "shots"):
        if getattr(settings, key) is not None:
            raise UsageError(f"`evaluate.{key}` is for encoders, and `{path}` is a tokenizer")
    split: str | None = settings.split
    if not any(row.split for row in store.rows):
        reporter.info(
            f"`{store.path}` has no splits: all videos are scored, training videos included"
        )
        split = None
    rows = store.part(split)
    views = EvalViews(
        store,
        rows,
        recipe.data,
        sampling=settings.sampling or recipe.data.sampling,
        segments=settings.segments,
        crops=settings.crops,
    )
    skipped: Skipped | None = {} if skip_bad else None
    take_failed(store, split, skipped)
    with session(recipe.run, reporter) as here:
        facts = describe_evaluation(here, overrides)
        tallies = reconstruct(tokenizer.to(here.device).eval(), views, recipe, here, skipped)
        codes: Counter[int] = sum((one.codes for one in tallies.values()), Counter())
        used, places = (sum(one.kept[part] for one in tallies.values()) for part in (0, 1))
        numbers = {row: tallies[row].numbers() for row in sorted(tallies)}
        result: dict[str, Any] = {
            "protocol": "reconstruction",
            "split": split,
            "segments": settings.segments,
            "crops": settings.crops,
            "videos": len(numbers),
            "views": len(numbers) * views.views,
            "skipped": unreadable_videos(skipped, store, split),
            "pictures": sum(len(one.psnr) for one in tallies.values()),
            "psnr": fmean(one["psnr"] for one in numbers.values()),
            "ssim": fmean(one["ssim"] for one in numbers.values()),
            "codebook_size": tokenizer.codebook_size,
            "code_use": len(codes) / min(tokenizer.codebook_size, used),
            "perplexity": _perplexity(codes),
            "kept": used / places,
            "per_video": [{"id": store.rows[row].id, **numbers[row]} for row in sorted(numbers)],
            "checkpoint": str(checkpoint.path),
            "checkpoint_sha256": checkpoint.digest(),
            "step": checkpoint.step,
            "store": str(store.path),
            "store_fingerprint": store.fingerprint(),
            "trained_on": checkpoint.meta.get("store_fingerprint"),
            "trained_with": checkpoint.meta.get("tats"),
            "seed": recipe.run.seed,
            "recipe": recipe.model_dump(mode="json"),
            **facts,
            "seconds": round(time.perf_counter() - began, 3),
        }
        save_result(result, place, here)
    return result


@torch.no_grad()
def reconstruct(
    tokenizer: TrainedTokenizer,
    views: EvalViews,
    recipe: Recipe,
    here: Session,
    skipped: Skipped | None = None,
) -> dict[int, _Tally]:
    """Encode and decode all views, spread over the ranks, and return the scores of each video.

    Args:
        tokenizer: In evaluation mode, on its device.
        views: The views to reconstruct.
        recipe: Gives the batch size.
        here: Device, precision and peers.
        skipped: Collects videos that cannot be read; with None the first one is an error.

    Raises:
        TatsError: If a video cannot be read, or a reconstruction is not finite.
    """
    batch_size = recipe.evaluate.batch_per_device
    batches = evaluation_batches(
        views,
        batch=batch_size,
        workers=worker_count(recipe.data.workers, local_ranks=here.world.local_size),
        rank=here.world.rank,
        world=here.world.size,
        timeout=recipe.data.timeout,
        on_bad=None if skipped is None else skipped.setdefault,
    )
    steps = -(-len(views) // (batch_size * here.world.size))
    mine = []
    for batch in here.reporter.progress(
        batches, total=steps, description="reconstruct", unit="batch"
    ):
        frames_BCTHW = to_unit(batch.video_BCTHW.to(here.device, non_blocking=True))
        with autocast(here.device, here.dtype):
            found = tokenizer.reconstruct(frames_BCTHW)
        true_XCHW, decoded_XCHW = (
            pictures_of(one).float() for one in (frames_BCTHW, found.video_BCTHW)
        )
        shape = (len(frames_BCTHW), -1)
        quality_BT = psnr(decoded_XCHW, true_XCHW).view(shape)
        refuse_not_finite(quality_BT, batch, views)
        psnr_BT = quality_BT.tolist()
        ssim_BT = ssim(decoded_XCHW, true_XCHW).view(shape).tolist()
        for place, row in enumerate(batch.row_B.tolist()):
            codes_thw = found.codes_Bthw[place]
            kept = codes_thw if found.kept_Bthw is None else codes_thw[found.kept_Bthw[place] > 0]
            sizes = (kept.numel(), codes_thw.numel())
            used = Counter(kept.flatten().tolist())
            mine.append((row, used, sizes, psnr_BT[place], ssim_BT[place]))
    tallies: dict[int, _Tally] = defaultdict(_Tally)
    share_skipped(skipped, views)
    for row, used, sizes, psnr_T, ssim_T in distributed.gathered(mine):
        if skipped and row in skipped:
            continue
        tally = tallies[row]
        tally.codes += used
        tally.kept = (tally.kept[0] + sizes[0], tally.kept[1] + sizes[1])
        tally.psnr += psnr_T
        tally.ssim += ssim_T
    return tallies
