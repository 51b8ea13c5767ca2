"""Weighted nearest neighbours on frozen features (Wu et al. 2018, arXiv 1805.01978, section 3.4).

Shapes: R queries, C queries at once, Q stored videos, D width, K principal components or
neighbours, L classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 1024  # queries compared at once: the full similarity matrix may not fit into memory


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
    """Classify by a vote of the nearest stored videos, each with weight exp(cosine / temperature).

    Args:
        query_RD: Features to classify.
        stored_QD: Features of labelled videos.
        label_Q: Their classes.
        query_row_R: The video of each query; a video is not a neighbour of itself.
        stored_row_Q: The video of each stored feature.
        classes: Number of classes.
        neighbours: Number of voters; all stored videos, if there are fewer.
        temperature: Temperature of the weights.

    Returns:
        Shares of the vote, (R, classes), each row summing to 1.
    """
    similarity_RK, index_RK = nearest(
        query_RD,
        stored_QD,
        query_row_R=query_row_R,
        stored_row_Q=stored_row_Q,
        neighbours=neighbours,
    )
    weight_RK = (similarity_RK / temperature).softmax(dim=1)
    votes_RL = torch.zeros(len(query_RD), classes)
    return votes_RL.scatter_add_(1, label_Q[index_RK], weight_RK)


def nearest(
    query_RD: Tensor,
    stored_QD: Tensor,
    *,
    query_row_R: Tensor,
    stored_row_Q: Tensor,
    neighbours: int,
) -> tuple[Tensor, Tensor]:
    """Find the most similar stored features.

    Args:
        query_RD: Query features.
        stored_QD: Features to search.
        query_row_R: The video of each query; a video is not a neighbour of itself.
        stored_row_Q: The video of each stored feature.
        neighbours: Number of neighbours; all stored features, if there are fewer.

    Returns:
        Cosines, descending, and indices of stored features, both (R, neighbours). The query's own
        video comes last, with a cosine of minus infinity.
    """
    stored_QD = F.normalize(stored_QD.float(), dim=1)
    found = []
    for query_CD, row_C in zip(query_RD.split(CHUNK), query_row_R.split(CHUNK), strict=True):
        similarity_CQ = F.normalize(query_CD.float(), dim=1) @ stored_QD.T
        similarity_CQ[row_C.unsqueeze(1) == stored_row_Q] = -torch.inf
        found.append(similarity_CQ.topk(min(neighbours, len(stored_QD)), dim=1))
    return torch.cat([one.values for one in found]), torch.cat([one.indices for one in found])


def whiten(stored_QD: Tensor, query_RD: Tensor, components: int) -> tuple[Tensor, Tensor]:
    """Project features onto the principal components of the stored ones, scaled to unit variance.

    Between plain features the cosine is dominated by what all videos have in common. This step is
    ours: Wu et al. compare features that were trained to be compared.

    Args:
        stored_QD: Features that determine mean and components.
        query_RD: Other features, projected in the same way.
        components: Number of components; fewer, if the stored features have fewer.

    Returns:
        The stored features (Q, K) and the others (R, K), float32.
    """
    stored_QD, query_RD = stored_QD.double(), query_RD.double()
    mean_D = stored_QD.mean(dim=0)
    stored_QD, query_RD = stored_QD - mean_D, query_RD - mean_D
    # The smaller of the two Gram matrices has the same components, and is much faster.
    wide = stored_QD.shape[1] > len(stored_QD)
    spread_K, axis_K = torch.linalg.eigh(
        stored_QD @ stored_QD.T if wide else stored_QD.T @ stored_QD
    )
    # N centred features have at most N - 1 components; the rest is rounding error.
    kept = min(components, int((spread_K > 1e-12 * spread_K[-1]).sum()))
    first = len(spread_K) - kept
    spread_K, axis_K = spread_K[first:].flip(0), axis_K[:, first:].flip(1)
    axis_DK = stored_QD.T @ axis_K / spread_K.sqrt() if wide else axis_K
    scale_DK = axis_DK * (len(stored_QD) / spread_K).sqrt()
    return (stored_QD @ scale_DK).float(), (query_RD @ scale_DK).float()
