"""Videos in a report: masks, the best and worst predictions, neighbours.

Shapes: R videos, L classes, Q stored features, D width, T frames.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tatscli.data.motion_source import MotionSource
from tatscli.data.views import EvalViews
from tatscli.draws import Draws
from tatscli.engine.checkpoint import Checkpoint
from tatscli.engine.session import Session
from tatscli.errors import DataError
from tatscli.evaluation.features import PooledFeatures
from tatscli.evaluation.knn import nearest
from tatscli.evaluation.views import as_is, score_views
from tatscli.recipe.schema import Data, Recipe
from tatscli.report.page import Figure, Gallery
from tatscli.report.pictures import animation, strip
from tatscli.report.sections import Result
from tatscli.store.reader import Store
from tatscli.system.load import load_system
from tatscli.tasks.frozen import frozen_encoder
from tatscli.tasks.results import read_scores
from tatscli.visualize.render import rows_seen
from tatscli.visualize.viewer import Viewer
from tatscli.visualize.windows import stored_window

_FPS = 6.0
_TOLD = 3  # predictions below a video
_NEIGHBOURS = 5
_SEARCHED = 2000  # videos, at most, in which neighbours are searched


def mask_gallery(checkpoint: Checkpoint, recipe: Recipe, store: Store) -> list[Gallery]:
    """Show what a pretrained system hides of a video and predicts for it, as animations.

    Raises:
        TatsError: If the video cannot be read.
    """
    _, system = load_system(checkpoint.path)
    row = _rows(store, recipe)[0]
    motion = MotionSource(store, recipe.data.motion)
    views = EvalViews(
        store,
        [row],
        _uncached(recipe),
        sampling=recipe.data.sampling,
        motion=motion,
        patch=recipe.model.patch,
    )
    (sample,) = views[0]
    frames = views.frames(row, 0)
    window = stored_window(store, sample, frames)
    viewer = Viewer(system, trained=True)
    masked = viewer.mask(window, Draws(recipe.run.seed))
    painted = rows_seen(viewer, window, masked, range(len(frames)))
    figures = [
        Figure(animation(one.panels_TYX3, fps=_FPS), one.label, one.notes) for one in painted
    ]
    title = (
        f"{store.rows[row].id}, frames {min(frames)} to {max(frames)}, "
        f"{min(window.times):.2f} to {max(window.times):.2f} s"
    )
    return [Gallery(title, figures)]


def example_galleries(result: Result, recipe: Recipe, store: Store, count: int) -> list[Gallery]:
    """Show the videos with the highest and the lowest probability of their true class.

    Raises:
        DataError: If the result has no scores of videos, or was made on another store.
    """
    facts = result.facts
    if facts.get("store_fingerprint") != store.fingerprint():
        raise DataError(f"`{result.path.name}` was evaluated on another store than `{store.path}`")
    scores = read_scores(result.path, facts)
    score_RL, label_R, row_R = map(
        torch.from_numpy, (scores.score_RL, scores.label_R, scores.row_R)
    )
    truth_R = score_RL.gather(1, label_R.unsqueeze(1)).squeeze(1)
    order = truth_R.argsort(descending=True, stable=True).tolist()
    names = facts["class_names"]
    views = EvalViews(store, row_R.tolist(), _uncached(recipe), sampling=recipe.view_sampling)

    def figure(place: int) -> Figure:
        row, label = int(row_R[place]), int(label_R[place])
        top = score_RL[place].topk(min(_TOLD, score_RL.shape[1]))
        said = [
            f"{names[one]}: {share:.1%}"
            for one, share in zip(top.indices.tolist(), top.values.tolist(), strict=True)
        ]
        right = int(top.indices[0]) == label
        lines = [*said, store.rows[row].id]
        return Figure(
            _strip(views, place), str(names[label]), lines, mark="right" if right else "wrong"
        )

    return [
        Gallery("Best", [figure(place) for place in order[:count]]),
        Gallery("Worst", [figure(place) for place in order[::-1][:count]]),
    ]


def neighbour_galleries(
    checkpoint: Checkpoint, recipe: Recipe, store: Store, count: int, session: Session
) -> list[Gallery]:
    """Show some videos, each followed by those with the nearest features.

    The queries are from the split that is scored, or from the training split if there is no such
    split; the neighbours are training videos.

    Raises:
        TatsError: If a video cannot be read, or the weights do not fit.
    """
    asked = _spread(_rows(store, recipe), count)
    split = recipe.finetune.split if checkpoint.kind == "finetuned" else recipe.data.split
    searched = _spread(store.part(split), _SEARCHED)
    model = PooledFeatures(frozen_encoder(recipe, checkpoint)).to(session.device)
    views, found = {}, {}
    for name, rows in (("asked", asked), ("searched", searched)):
        views[name] = EvalViews(store, rows, recipe.data, sampling=recipe.view_sampling)
        found[name] = score_views(
            model, views[name], recipe, session, output=as_is, description=f"features of {name}"
        )
    # Without subtracting the mean, all videos would be similar.
    mean_D = found["searched"].score_VL.mean(dim=0)
    similarity_RK, index_RK = nearest(
        found["asked"].score_VL - mean_D,
        found["searched"].score_VL - mean_D,
        query_row_R=found["asked"].row_V,
        stored_row_Q=found["searched"].row_V,
        neighbours=_NEIGHBOURS,
    )
    place = {"asked": _places(asked), "searched": _places(searched)}

    def figure(name: str, row: int, words: str, mark: str = "") -> Figure:
        record = store.rows[row]
        label = "" if record.label is None else store.class_names[record.label]
        return Figure(
            _strip(views[name], place[name][row]), label or record.id, [words, record.id], mark
        )

    galleries = []
    for query, row in enumerate(found["asked"].row_V.tolist()):
        record = store.rows[row]
        near = []
        for likeness, index in zip(similarity_RK[query], index_RK[query], strict=True):
            if likeness == -torch.inf:  # the video itself
                continue
            other = int(found["searched"].row_V[index])
            mark = ""
            if record.label is not None:
                mark = "right" if store.rows[other].label == record.label else "wrong"
            near.append(figure("searched", other, f"cosine {float(likeness):.3f}", mark))
        galleries.append(Gallery(record.id, [figure("asked", row, "query"), *near]))
    return galleries


def _rows(store: Store, recipe: Recipe) -> list[int]:
    """Return the rows of the split that is scored, or of the training split."""
    try:
        return store.part(recipe.evaluate.split)
    except DataError:
        return store.part(recipe.data.split)


def _spread(rows: Sequence[int], count: int) -> list[int]:
    """Return `count` of the rows, evenly spread."""
    if len(rows) <= count:
        return list(rows)
    return [rows[one * len(rows) // count] for one in range(count)]


def _places(rows: Sequence[int]) -> dict[int, int]:
    return {row: place for place, row in enumerate(rows)}


def _strip(views: EvalViews, place: int) -> str:
    (sample,) = views[place]
    return strip(sample.video_CTHW.transpose(0, 1))


def _uncached(recipe: Recipe) -> Data:
    """Return the data settings without a cache, for reading a few clips."""
    return recipe.data.model_copy(update={"cache": "none"})
