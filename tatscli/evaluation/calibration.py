"""Calibration: whether predicted probabilities match accuracy.

Shapes: R videos, L classes.
"""

from __future__ import annotations

from typing import Any

import torch

from tatscli.evaluation.scores import ViewScores

BINS = 15  # as in Guo et al. 2017
LEAST = 1e-12  # smallest probability, since the logarithm of 0 is not finite


def calibration(videos: ViewScores, bins: int = BINS) -> dict[str, Any]:
    """Return the expected calibration error and the likelihood of the true classes.

    The confidence of a video is its largest probability, after its views were averaged. Bins are of
    equal width, `i / bins < confidence <= (i + 1) / bins`, and the expected calibration error (Guo
    et al. 2017, arXiv 1706.04599, equation 3) is

        ECE = sum over bins of (videos in the bin / videos) * |accuracy - mean confidence|

    Args:
        videos: One entry per video.
        bins: Number of bins.

    Returns:
        `ece`; `nll`, the mean of -log of the true class's probability, clamped to at least
        1e-12; and `calibration`, one entry for each bin: `from` (not in it), `to` (in it),
        `videos`, and `confidence` and `accuracy`, None where there are no videos.
    """
    score_RL = videos.score_VL.double()
    confidence_R, guess_R = score_RL.max(dim=1)
    right_R = (guess_R == videos.label_V).double()
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64)
    bin_R = torch.bucketize(confidence_R, edges[1:-1])  # above the last inner edge: the last bin
    counts = bin_R.bincount(minlength=bins)
    confidences = bin_R.bincount(weights=confidence_R, minlength=bins) / counts
    accuracies = bin_R.bincount(weights=right_R, minlength=bins) / counts
    gap = (accuracies - confidences).abs() * counts / len(bin_R)
    true_R = score_RL.gather(1, videos.label_V.unsqueeze(1)).clamp(min=LEAST)
    table = zip(
        edges[:-1].tolist(),
        edges[1:].tolist(),
        counts.tolist(),
        confidences.tolist(),
        accuracies.tolist(),
        strict=True,
    )
    return {
        "ece": float(gap[counts > 0].sum()),
        "nll": float(-true_R.log().mean()),
        "calibration": [
            {
                "from": low,
                "to": high,
                "videos": count,
                "confidence": confidence if count else None,
                "accuracy": accuracy if count else None,
            }
            for low, high, count, confidence, accuracy in table
        ],
    }
