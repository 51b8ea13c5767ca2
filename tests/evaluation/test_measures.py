"""Calibration, likelihood, mean-class accuracy and intervals against plain loops, scikit-learn and
scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tatscli.evaluation.calibration import calibration
from tatscli.evaluation.intervals import accuracy_intervals, difference_interval
from tatscli.evaluation.scores import ViewScores, summarise, top_accuracy


def random_videos(seed: int, *, videos: int = 60, classes: int = 7, used: int = 7) -> ViewScores:
    """Scores that are somewhat right, of labels among the first `used` classes."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(used, (videos,), generator=generator)
    logits = 2 * torch.randn(videos, classes, generator=generator)
    logits[torch.arange(videos), label] += 1.5
    return ViewScores(torch.arange(videos), label, logits.softmax(dim=1))


def loop_ece(videos: ViewScores, bins: int) -> float:
    found: list[list[tuple[float, bool]]] = [[] for _ in range(bins)]
    for label, scores in zip(videos.label_V.tolist(), videos.score_VL.tolist(), strict=True):
        confidence = max(scores)
        for number in range(bins):
            if number / bins < confidence <= (number + 1) / bins:
                found[number].append((confidence, scores.index(confidence) == label))
    total = 0.0
    for inside in found:
        if inside:
            confidence = sum(one for one, _ in inside) / len(inside)
            accuracy = sum(right for _, right in inside) / len(inside)
            total += len(inside) / len(videos.label_V) * abs(accuracy - confidence)
    return total


@given(seed=st.integers(0, 99), bins=st.sampled_from([1, 4, 15]))
def test_calibration_error_is_that_of_a_plain_loop(seed: int, bins: int) -> None:
    videos = random_videos(seed)
    found = calibration(videos, bins)
    assert found["ece"] == pytest.approx(loop_ece(videos, bins), abs=1e-9)
    table = found["calibration"]
    assert len(table) == bins and sum(part["videos"] for part in table) == 60
    again = sum(
        part["videos"] / 60 * abs(part["accuracy"] - part["confidence"])
        for part in table
        if part["videos"]
    )
    assert found["ece"] == pytest.approx(again)
    assert all((part["accuracy"] is None) == (part["videos"] == 0) for part in table)


def test_calibration_by_hand() -> None:
    scores = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [1.0, 0.0]])
    found = calibration(ViewScores(torch.arange(4), torch.tensor([0, 1, 1, 1]), scores), bins=2)
    assert found["ece"] == pytest.approx(abs(0.5 - 3.4 / 4))
    assert [part["videos"] for part in found["calibration"]] == [0, 4]
    expected = -(math.log(0.9) + math.log(0.1) + math.log(0.6) + math.log(1e-12)) / 4
    assert found["nll"] == pytest.approx(expected)


@given(seed=st.integers(0, 99), used=st.sampled_from([7, 4]))
def test_scores_are_those_of_scikit_learn(seed: int, used: int) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    videos = random_videos(seed, used=used)
    label, score = videos.label_V.numpy(), videos.score_VL.double().numpy()
    guess, classes = score.argmax(axis=1), range(7)
    summary = summarise(videos, [str(one) for one in classes])
    there = sorted(set(label.tolist()))
    assert summary["classes_without_videos"] == 7 - len(there)
    recall = metrics.recall_score(label, guess, labels=there, average="macro", zero_division=0)
    assert summary["mean_class"] == pytest.approx(recall)
    if set(guess.tolist()) <= set(there):
        balanced = metrics.balanced_accuracy_score(label, guess)
        assert summary["mean_class"] == pytest.approx(balanced)
    for k in (1, 5):
        expected = metrics.top_k_accuracy_score(label, score, k=k, labels=classes)
        assert summary[f"top{k}"] == pytest.approx(expected)
    assert summary["confusion"] == metrics.confusion_matrix(label, guess, labels=classes).tolist()
    rows = score / score.sum(axis=1, keepdims=True)
    expected = metrics.log_loss(label, rows, labels=list(classes))
    assert calibration(videos)["nll"] == pytest.approx(expected, rel=1e-6)


def test_scores_that_are_not_finite_name_no_class() -> None:
    videos = ViewScores(torch.arange(2), torch.zeros(2).long(), torch.full((2, 3), torch.nan))
    assert math.isnan(top_accuracy(videos, 1)) and math.isnan(top_accuracy(videos, 3))


def test_intervals_are_scipys_on_the_same_draws() -> None:
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(1)
    label, right = rng.integers(0, 4, 90), rng.random(90) < 0.7
    other = rng.random(90) < 0.8

    def mean_class(rights: np.ndarray, labels: np.ndarray) -> float:
        return float(np.mean([rights[labels == one].mean() for one in np.unique(labels)]))

    def theirs(data: tuple, statistic: object) -> tuple[float, float]:
        found = stats.bootstrap(
            data, statistic, method="percentile", n_resamples=300, batch=1, paired=True,
            vectorized=False, rng=np.random.default_rng(5),
        )  # fmt: skip
        return tuple(found.confidence_interval)

    ours = accuracy_intervals(label, right, np.arange(90), seed=5, resamples=300)
    assert ours["top1_interval"] == pytest.approx(theirs((right.astype(float),), np.mean))
    assert ours["mean_class_interval"] == pytest.approx(theirs((right, label), mean_class))
    assert (ours["bootstrap"]["unit"], ours["bootstrap"]["units"]) == ("video", 90)
    gain = other.astype(float) - right
    found = difference_interval(right, other, np.arange(90), seed=5, resamples=300)
    assert found == pytest.approx(theirs((gain,), np.mean))


def test_segments_are_drawn_with_their_file() -> None:
    """Each file is wholly right or wholly wrong: ten segments of one say no more than one does."""
    rng = np.random.default_rng(2)
    right_U = rng.random(40) < 0.6
    alone = accuracy_intervals(np.zeros(40, int), right_U, np.arange(40), seed=0)
    many = accuracy_intervals(
        np.zeros(400, int), right_U.repeat(10), np.arange(40).repeat(10), seed=0
    )
    assert many["top1_interval"] == pytest.approx(alone["top1_interval"])
    assert (many["bootstrap"]["unit"], many["bootstrap"]["units"]) == ("file", 40)
    apart = accuracy_intervals(np.zeros(400, int), right_U.repeat(10), np.arange(400), seed=0)
    low, high = apart["top1_interval"]
    assert high - low < 0.5 * (alone["top1_interval"][1] - alone["top1_interval"][0])


def test_one_video_has_no_interval() -> None:
    found = accuracy_intervals(np.zeros(3, int), np.ones(3, bool), np.zeros(3, int), seed=0)
    assert found["top1_interval"] is found["mean_class_interval"] is None
    assert difference_interval(np.ones(1), np.ones(1), np.zeros(1, int), seed=0) is None


def test_intervals_follow_from_the_seed() -> None:
    rng = np.random.default_rng(3)
    given_ = rng.integers(0, 9, 500), rng.random(500) < 0.5, np.arange(500)
    one, same, other = (accuracy_intervals(*given_, seed=seed) for seed in (0, 0, 1))
    assert one == same
    assert one["mean_class_interval"] != other["mean_class_interval"]
