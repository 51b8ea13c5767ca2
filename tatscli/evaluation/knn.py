"""Weighted nearest neighbours on frozen features (Wu et al. 2018, arXiv 1805.01978, section 3.4).

Shapes: R videos to classify, Q stored videos, D width, L classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def knn_scores(
    query_RD: Tensor,
    stored_QD: Tensor,
    label_Q: Tensor,
    *,
    classes: int,
    neighbours: int,
    temperature: float,
) -> Tensor:
    """Let the nearest stored videos vote, each with weight exp(cosine / temperature).

    Args:
        query_RD: Features to classify.
        stored_QD: Features of labelled videos.
        label_Q: Their classes.
        classes: Number of classes.
        neighbours: Voters; all stored videos, if there are fewer.
        temperature: Of the weights.

    Returns:
        Shares of the vote, (R, classes), each row summing to 1.
    """
    similarity_RQ = F.normalize(query_RD.float(), dim=1) @ F.normalize(stored_QD.float(), dim=1).T
    nearest = similarity_RQ.topk(min(neighbours, len(stored_QD)), dim=1)
    weight = (nearest.values / temperature).softmax(dim=1)
    votes_RL = torch.zeros(len(query_RD), classes)
    return votes_RL.scatter_add_(1, label_Q[nearest.indices], weight)
