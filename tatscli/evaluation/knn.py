"""Weighted nearest neighbours on frozen features (Wu et al. 2018, arXiv 1805.01978, section 3.4).

Shapes: R queries, C queries at once, Q stored videos, D width, L classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 1024  # queries compared at once: the whole matrix of a large set does not fit anywhere


def knn_scores(
    query_RD: Tensor,
    stored_QD: Tensor,
    label_Q: Tensor,
    *,
    query_row_R: Tensor,
    stored_row_Q: Tensor,
    classes: int,
    neighbours: int,
    temperature: float,
) -> Tensor:
    """Let the nearest stored videos vote, each with weight exp(cosine / temperature).

    Args:
        query_RD: Features to classify.
        stored_QD: Features of labelled videos.
        label_Q: Their classes.
        query_row_R: Which video each query is of; a video is no neighbour of itself.
        stored_row_Q: Which video each stored feature is of.
        classes: Number of classes.
        neighbours: Voters; all stored videos, if there are fewer.
        temperature: Of the weights.

    Returns:
        Shares of the vote, (R, classes), each row summing to 1.
    """
    stored_QD = F.normalize(stored_QD.float(), dim=1)
    votes = []
    for query_CD, row_C in zip(query_RD.split(CHUNK), query_row_R.split(CHUNK), strict=True):
        similarity_CQ = F.normalize(query_CD.float(), dim=1) @ stored_QD.T
        similarity_CQ[row_C.unsqueeze(1) == stored_row_Q] = -torch.inf
        nearest = similarity_CQ.topk(min(neighbours, len(stored_QD)), dim=1)
        weight = (nearest.values / temperature).softmax(dim=1)
        votes_CL = torch.zeros(len(query_CD), classes)
        votes.append(votes_CL.scatter_add_(1, label_Q[nearest.indices], weight))
    return torch.cat(votes)
