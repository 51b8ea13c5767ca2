"""From scores of views to metrics of videos: merging, accuracy, confusion.

Shapes: V views, R videos, L classes, G members of a group of classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class ViewScores:
    """Class probabilities of views, each tied to its manifest row.

    Attributes:
        row_V: Manifest row of each view, int64.
        label_V: True class of each view, int64.
        score_VL: Probabilities, float32.
    """

    row_V: Tensor
    label_V: Tensor
    score_VL: Tensor


def merge_views(views: ViewScores) -> ViewScores:
    """Average the probabilities of the views of each video; one entry per manifest row,
    ascending."""
    row_R, place_V = views.row_V.unique(return_inverse=True)
    # Sums in double precision do not depend on how the views were batched or spread over ranks.
    total_RL = torch.zeros(len(row_R), views.score_VL.shape[1], dtype=torch.float64)
    total_RL.index_add_(0, place_V, views.score_VL.double())
    counts_R = place_V.bincount(minlength=len(row_R))
    label_R = torch.empty_like(row_R).scatter_(0, place_V, views.label_V)
    return ViewScores(row_R, label_R, (total_RL / counts_R.unsqueeze(1)).float())


def top_accuracy(videos: ViewScores, k: int) -> float:
    """Return the share of videos whose class is among the k with the highest scores.

    It is NaN, since it is undefined, if a score is not finite.
    """
    if not videos.score_VL.isfinite().all():
        return math.nan
    best = videos.score_VL.topk(min(k, videos.score_VL.shape[1]), dim=1).indices
    return float((best == videos.label_V.unsqueeze(1)).any(dim=1).float().mean())


def top5_accuracy(videos: ViewScores) -> float | None:
    """Return the top-5 accuracy; None for 5 classes or fewer, where it is always 1."""
    return top_accuracy(videos, 5) if videos.score_VL.shape[1] > 5 else None


def summarise(videos: ViewScores, class_names: list[str]) -> dict[str, Any]:
    """Return accuracy of all videos and of each class; all scores must be finite.

    Returns:
        `top1`; `top5`, None for 5 classes or fewer; `mean_class`, the mean of the classes' top-1,
        without those that have no videos, which `classes_without_videos` counts; the `per_class`
        table; and the `confusion` matrix (true class x predicted).
    """
    classes = len(class_names)
    guess_R = videos.score_VL.argmax(dim=1)
    confusion_LL = (videos.label_V * classes + guess_R).bincount(minlength=classes**2)
    confusion_LL = confusion_LL.reshape(classes, classes)
    counts_L, hits_L = confusion_LL.sum(dim=1), confusion_LL.diagonal()
    return {
        "top1": top_accuracy(videos, 1),
        "top5": top5_accuracy(videos),
        "mean_class": float((hits_L / counts_L)[counts_L > 0].double().mean()),
        "classes_without_videos": int((counts_L == 0).sum()),
        "per_class": [
            {
                "class": name,
                "videos": int(count),
                "top1": float(hits / count) if count else None,
            }
            for name, count, hits in zip(class_names, counts_L, hits_L, strict=True)
        ],
        "confusion": confusion_LL.tolist(),
    }


def by_duration(
    videos: ViewScores, seconds_R: Sequence[float], edges: Sequence[float]
) -> dict[str, Any]:
    """Return accuracy by the length of videos.

    Args:
        videos: One entry per video.
        seconds_R: How long each is.
        edges: Seconds, ascending: the start of each range. The last has no end.

    Returns:
        `by_duration`: for each range, in order, `from` (inclusive) and `to` (exclusive, None for
        the last), `videos`, and `top1` and `top5`, None without videos, and `top5` also for 5
        classes or fewer; and `shorter_than_all`, the number of videos before the first range.
    """
    seconds = torch.tensor(seconds_R, dtype=torch.float64)
    parts: list[dict[str, Any]] = []
    for low, high in zip(edges, [*edges[1:], None], strict=True):
        inside_R = seconds >= low
        if high is not None:
            inside_R &= seconds < high
        some = ViewScores(
            videos.row_V[inside_R], videos.label_V[inside_R], videos.score_VL[inside_R]
        )
        part = {"from": low, "to": high, "videos": len(some.row_V), "top1": None, "top5": None}
        if len(some.row_V):
            part |= {"top1": top_accuracy(some, 1), "top5": top5_accuracy(some)}
        parts.append(part)
    return {"by_duration": parts, "shorter_than_all": int((seconds < edges[0]).sum())}


def group_accuracy(videos: ViewScores, groups: Mapping[str, Sequence[int]]) -> dict[str, float]:
    """Return the top-1 accuracy of the groups that classes are combinations of, such as verb and
    noun.

    The score of a member is the sum of the scores of its classes: the probability of a verb is the
    sum over all actions with that verb.

    Args:
        videos: One entry per video.
        groups: By name of the group, the member of each class.

    Returns:
        The accuracy by group; NaN if a score is not finite.
    """
    if not videos.score_VL.isfinite().all():
        return dict.fromkeys(groups, math.nan)
    found = {}
    for name, members in groups.items():
        member_L = torch.tensor(members)
        score_RG = torch.zeros(len(videos.row_V), max(members) + 1, dtype=torch.float64)
        score_RG.index_add_(1, member_L, videos.score_VL.double())
        right_R = score_RG.argmax(dim=1) == member_L[videos.label_V]
        found[name] = float(right_R.float().mean())
    return found
