"""Validation during pretraining, on videos that it is never trained on.

Shapes: Q stored features, R features asked about, D width.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch

from tatscli.console import Reporter
from tatscli.data.dataset import PretrainClips
from tatscli.data.loader import fixed_batches, worker_count
from tatscli.data.views import EvalViews
from tatscli.draws import Draws
from tatscli.engine import distributed
from tatscli.engine.device import autocast
from tatscli.engine.session import Session
from tatscli.engine.signals import heeding
from tatscli.errors import DataError
from tatscli.evaluation.features import PooledFeatures
from tatscli.evaluation.knn import knn_scores
from tatscli.evaluation.rank import effective_rank
from tatscli.evaluation.scores import ViewScores, top_accuracy
from tatscli.evaluation.views import as_is, score_views
from tatscli.recipe.schema import Recipe, Watch
from tatscli.seeding import seed_of
from tatscli.store.reader import Store
from tatscli.system.system import System


def part_watched(
    store: Store, rows: Sequence[int], watch: Watch | None
) -> tuple[list[int], list[int]]:
    """Split rows into those to train on and those to hold out, both ascending.

    Whole videos are held out, with all their segments. The choice depends only on their names,
    so runs of any seed and recipe hold out the same ones.

    Raises:
        DataError: If nothing would remain to train on.
    """
    if watch is None:
        return list(rows), []
    by_video: dict[str, list[int]] = {}
    for row in rows:
        record = store.rows[row]
        by_video.setdefault(record.path or record.id, []).append(row)
    count = max(1, round(watch.share * len(by_video)))
    if count >= len(by_video):
        raise DataError(
            f"`run.watch.share: {watch.share:g}` holds out {count} of {len(by_video)} videos and "
            "leaves none to train on",
            hint="use a smaller share, or `run.watch=null`",
        )
    chosen = _drawn(by_video, count)
    held = {row for video in chosen for row in by_video[video]}
    return [row for row in rows if row not in held], sorted(held)


def _drawn(names: Iterable[str], count: int) -> list[str]:
    """Return `count` of the names, in an order that depends only on them."""
    return sorted(names, key=lambda name: (seed_of("watch", name), name))[:count]


class Watcher:
    """Evaluates a system on the held-out videos.

    The clips are those that training would have seen in its first epoch, with masks drawn from the
    seed: the same every time, on any number of ranks. Features are averaged over a clip's
    middle window and crop. If all videos have a class, the held-out videos are classified by their
    nearest training videos; all features together give the rank.

    Args:
        store: The data.
        trained: Rows that are trained on; at most `run.watch.videos` of them are used.
        held: Rows held out.
        recipe: The recipe.
        system: Says which motion and codes clips need.
    """

    def __init__(
        self,
        store: Store,
        trained: Sequence[int],
        held: Sequence[int],
        recipe: Recipe,
        system: System,
    ) -> None:
        assert recipe.run.watch is not None
        self.settings = recipe.run.watch
        self.store = store
        self.recipe = recipe
        # Their frames are read too seldom to be kept.
        data = recipe.data.model_copy(update={"cache": "none", "repeats": 1})
        by_id = {store.rows[row].id: row for row in trained}
        some = [by_id[name] for name in _drawn(by_id.keys(), self.settings.videos)]
        self.clips = PretrainClips(
            store,
            held,
            data,
            patch=recipe.model.patch,
            seed=recipe.run.seed,
            follows_motion=system.follows_motion,
            codes=system.cached_codes,
        )
        self.held, self.stored = (
            EvalViews(store, rows, data, sampling=data.sampling) for rows in (held, sorted(some))
        )

    def due(self, epoch: int) -> bool:
        """Whether to validate after an epoch: every `run.watch.every`, and the last."""
        return epoch % self.settings.every == 0 or epoch == self.recipe.optim.epochs

    def look(self, system: System, session: Session) -> dict[str, float]:
        """Return `watch/loss`, `watch/loss/<target>`, `watch/rankme` and, where all videos have a
        class, `watch/knn_top1`; the system is in training mode afterwards."""
        quiet = replace(session, reporter=Reporter(quiet=True))  # the training has a bar already
        system.eval()
        found = self._losses(system, session)
        model = PooledFeatures(system.encoder)
        asked, stored = (
            score_views(model, views, self.recipe, quiet, output=as_is)
            for views in (self.held, self.stored)
        )
        found["watch/rankme"] = effective_rank(torch.cat([asked.score_VL, stored.score_VL]))
        labels = torch.cat([asked.label_V, stored.label_V])
        if int(labels.min()) >= 0 and len(self.store.class_names) > 1:
            found["watch/knn_top1"] = self._neighbours(asked, stored)
        system.train()
        return found

    def _losses(self, system: System, session: Session) -> dict[str, float]:
        """Return the means over the held-out clips of what a training step would have logged."""
        seed = seed_of("watch", self.recipe.run.seed)
        mine: list[tuple[int, int, dict[str, float]]] = []
        batches = fixed_batches(
            self.clips,
            batch=self.recipe.evaluate.batch_per_device,
            workers=worker_count(self.recipe.data.workers, local_ranks=session.world.local_size),
            rank=session.world.rank,
            world=session.world.size,
            timeout=self.recipe.data.timeout,
            on_bad=lambda row, reason: session.own.warn(
                f"`{self.store.rows[row].id}` is held out by `run.watch` but cannot be read, "
                f"another video replaces it: {reason}",
                once=True,
            ),
        )
        for number, batch in heeding(batches):
            there = batch.to(session.device)
            draws = Draws(seed, first=number * self.recipe.evaluate.batch_per_device)
            with torch.inference_mode(), autocast(session.device, session.dtype):
                errors = system.errors(system.clip_of(there), draws)
                metrics = {"loss": errors.loss, **errors.metrics}
            values = {name: float(value) for name, value in metrics.items()}
            mine.append((number, len(batch.row_B), values))
        # In the order of the batches, so that the sum is the same whoever computed them.
        every = sorted(distributed.gathered(mine), key=lambda one: one[0])
        clips = sum(size for _, size, _ in every)
        return {
            f"watch/{name}": math.fsum(size * values[name] for _, size, values in every) / clips
            for name in every[0][2]
        }

    def _neighbours(self, asked: ViewScores, stored: ViewScores) -> float:
        settings = self.recipe.evaluate.knn
        votes_RL = knn_scores(
            asked.score_VL,
            stored.score_VL,
            stored.label_V,
            query_row_R=asked.row_V,
            stored_row_Q=stored.row_V,
            classes=len(self.store.class_names),
            neighbours=settings.neighbours,
            temperature=settings.temperature,
        )
        return top_accuracy(ViewScores(asked.row_V, asked.label_V, votes_RL), 1)
