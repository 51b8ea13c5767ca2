import math
from collections import defaultdict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tatscli.evaluation.knn import CHUNK, knn_scores, whiten
from tatscli.evaluation.rank import effective_rank
from tatscli.evaluation.scores import (
    ViewScores,
    by_duration,
    group_accuracy,
    merge_views,
    summarise,
    top5_accuracy,
    top_accuracy,
)


def random_views(seed: int, rows: int, views: int, classes: int) -> ViewScores:
    generator = torch.Generator().manual_seed(seed)
    label_R = torch.randint(classes, (rows,), generator=generator)
    order_V = torch.randperm(rows * views, generator=generator)
    place_V = torch.arange(rows).repeat_interleave(views)[order_V]
    scores = torch.rand(rows * views, classes, generator=generator).softmax(dim=1)
    return ViewScores(place_V * 3 + 5, label_R[place_V], scores)


@given(st.integers(0, 99), st.integers(1, 9), st.integers(1, 4), st.integers(2, 7))
def test_views_are_merged_by_row_whatever_their_order(
    seed: int, rows: int, views: int, classes: int
) -> None:
    scores = random_views(seed, rows, views, classes)
    sums: dict[int, list[list[float]]] = defaultdict(list)
    for row, score in zip(scores.row_V.tolist(), scores.score_VL.tolist(), strict=True):
        sums[row].append(score)
    merged = merge_views(scores)
    assert merged.row_V.tolist() == sorted(sums)
    labels = dict(zip(scores.row_V.tolist(), scores.label_V.tolist(), strict=True))
    assert merged.label_V.tolist() == [labels[row] for row in sorted(sums)]
    for row, mean in zip(merged.row_V.tolist(), merged.score_VL, strict=True):
        expected = [sum(column) / views for column in zip(*sums[row], strict=True)]
        torch.testing.assert_close(mean, torch.tensor(expected))


def test_merging_can_turn_two_wrong_views_into_a_right_video() -> None:
    views = ViewScores(
        torch.tensor([4, 4]),
        torch.tensor([2, 2]),
        torch.tensor([[0.5, 0.1, 0.4], [0.1, 0.5, 0.4]]),
    )
    assert top_accuracy(views, 1) == 0.0
    assert top_accuracy(merge_views(views), 1) == 1.0


def test_summary_counts_by_hand() -> None:
    scores = torch.eye(3)[torch.tensor([0, 1, 1, 2, 0])] * 0.8 + 0.05
    videos = ViewScores(torch.arange(5), torch.tensor([0, 1, 0, 2, 2]), scores)
    summary = summarise(videos, ["a", "b", "c", "d"][:3])
    assert summary["top1"] == torch.tensor(3 / 5).item()
    assert summary["top5"] is None  # of three classes the right one is always among five
    assert summary["confusion"] == [[1, 1, 0], [0, 1, 0], [1, 0, 1]]
    assert summary["per_class"] == [
        {"class": "a", "videos": 2, "top1": 0.5},
        {"class": "b", "videos": 1, "top1": 1.0},
        {"class": "c", "videos": 2, "top1": 0.5},
    ]


@pytest.mark.parametrize("classes", [4, 5, 6])
def test_top_5_is_of_more_than_five_classes(classes: int) -> None:
    videos = ViewScores(torch.arange(2), torch.tensor([0, 1]), torch.eye(classes)[[0, 1]])
    expected = None if classes <= 5 else 1.0
    assert summarise(videos, list("abcdef"[:classes]))["top5"] == expected
    assert by_duration(videos, [1.0, 9.0], [0.0])["by_duration"][0]["top5"] == expected


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_scores_that_are_not_finite_answer_nothing(bad: float) -> None:
    score_VL = torch.full((3, 7), 0.1)
    score_VL[1] = bad
    videos = ViewScores(torch.arange(3), torch.arange(3), score_VL)
    assert math.isnan(top_accuracy(videos, 1)) and math.isnan(top5_accuracy(videos))
    assert math.isnan(group_accuracy(videos, {"verb": [0, 0, 0, 1, 1, 2, 2]})["verb"])
    assert math.isnan(effective_rank(score_VL))


def test_a_class_without_videos_has_no_accuracy() -> None:
    videos = ViewScores(torch.tensor([0]), torch.tensor([1]), torch.tensor([[0.1, 0.9]]))
    assert summarise(videos, ["empty", "full"])["per_class"][0]["top1"] is None


def test_neighbours_vote_by_the_published_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    query, stored = (torch.randn(n, 8, generator=generator) for n in (6, 30))
    labels = torch.randint(4, (30,), generator=generator)
    votes = knn_scores(
        query,
        stored,
        labels,
        query_row_R=torch.arange(100, 106),
        stored_row_Q=torch.arange(30),
        classes=4,
        neighbours=7,
        temperature=0.07,
    )
    for i in range(6):
        cosine = [
            (sum(a * b for a, b in zip(q, s, strict=True)) / (math.hypot(*q) * math.hypot(*s)), k)
            for k, s in enumerate(stored.tolist())
            for q in [query[i].tolist()]
        ]
        nearest = sorted(cosine, reverse=True)[:7]
        weights = [0.0] * 4
        for value, k in nearest:
            weights[int(labels[k])] += math.exp(value / 0.07)
        expected = torch.tensor([w / sum(weights) for w in weights])
        torch.testing.assert_close(votes[i], expected, rtol=1e-4, atol=1e-5)


def test_fewer_stored_videos_than_neighbours_all_vote_but_none_for_itself() -> None:
    def votes(row: int) -> list[float]:
        scores = knn_scores(
            torch.ones(1, 2),
            torch.ones(3, 2),
            torch.tensor([0, 1, 1]),
            query_row_R=torch.tensor([row]),
            stored_row_Q=torch.tensor([5, 6, 7]),
            classes=2,
            neighbours=20,
            temperature=1.0,
        )
        return scores[0].tolist()

    assert votes(9) == pytest.approx([1 / 3, 2 / 3])
    assert votes(5) == pytest.approx([0, 1])
    assert votes(6) == pytest.approx([1 / 2, 1 / 2])


def test_many_queries_are_compared_in_chunks_with_the_same_result() -> None:
    generator = torch.Generator().manual_seed(1)
    query, stored = (torch.randn(n, 4, generator=generator) for n in (CHUNK + 7, 20))
    rows = torch.arange(CHUNK + 7)

    def votes(part: slice) -> torch.Tensor:
        return knn_scores(
            query[part],
            stored,
            torch.arange(20) % 3,
            query_row_R=rows[part],
            stored_row_Q=torch.arange(20),
            classes=3,
            neighbours=5,
            temperature=0.1,
        )

    whole = votes(slice(None))
    torch.testing.assert_close(whole[-10:], votes(slice(-10, None)))
    torch.testing.assert_close(whole[:5], votes(slice(0, 5)))


@pytest.mark.parametrize("videos", [40, 4])  # more and fewer than the width
def test_whitened_features_compare_by_the_inverse_covariance(videos: int) -> None:
    generator = torch.Generator().manual_seed(2)
    mixing = torch.randn(5, 5, generator=generator, dtype=torch.float64)
    offset = 100 * torch.randn(5, generator=generator, dtype=torch.float64)
    stored, query = (
        torch.randn(n, 5, generator=generator, dtype=torch.float64) @ mixing + offset
        for n in (videos, 3)
    )
    white_stored, white_query = whiten(stored, query, 5)
    components = min(5, videos - 1)
    torch.testing.assert_close(
        white_stored.T @ white_stored / videos, torch.eye(components), rtol=0, atol=1e-5
    )
    mean = stored.mean(dim=0)
    precision = torch.linalg.pinv((stored - mean).T @ (stored - mean) / videos, rtol=1e-9)
    expected = (query - mean) @ precision @ (stored - mean).T
    torch.testing.assert_close(white_query @ white_stored.T, expected.float(), rtol=1e-4, atol=1e-4)


def test_whitening_keeps_the_widest_components_and_none_without_spread() -> None:
    generator = torch.Generator().manual_seed(3)
    stored = torch.randn(30, 4, generator=generator) * torch.tensor([1.0, 50.0, 0.0, 9.0])
    first, _ = whiten(stored, stored, 1)
    column = (stored[:, 1] - stored[:, 1].mean()) / stored[:, 1].std(correction=0)
    assert abs(float(first[:, 0] @ column) / 30) > 0.99
    assert whiten(stored, stored, 9)[0].shape == (30, 3)
    few, many = stored[:3], torch.randn(2, 4, generator=generator)
    assert [tuple(part.shape) for part in whiten(few, many, 9)] == [(3, 2), (2, 2)]


@given(
    seconds=st.lists(st.sampled_from([0.5, 1.0, 3.9, 4.0, 8.0, 31.9, 32.0, 500.0]), min_size=1),
    edges=st.sampled_from([[0.0, 4.0, 8.0, 16.0, 32.0], [4.0], [1.0, 8.0], [0.0]]),
)
def test_accuracy_by_duration_counts_every_video_once(
    seconds: list[float], edges: list[float]
) -> None:
    generator = torch.Generator().manual_seed(len(seconds))
    count = len(seconds)
    label = torch.randint(0, 7, (count,), generator=generator)
    videos = ViewScores(torch.arange(count), label, torch.rand(count, 7, generator=generator))
    found = by_duration(videos, seconds, edges)
    parts = found["by_duration"]
    assert [part["from"] for part in parts] == edges
    assert [part["to"] for part in parts] == [*edges[1:], None]
    assert found["shorter_than_all"] == sum(one < edges[0] for one in seconds)
    assert sum(part["videos"] for part in parts) + found["shorter_than_all"] == count
    for part in parts:
        end = float("inf") if part["to"] is None else part["to"]
        inside = [i for i, one in enumerate(seconds) if part["from"] <= one < end]
        assert part["videos"] == len(inside)
        if not inside:
            assert part["top1"] is None and part["top5"] is None
            continue
        order = videos.score_VL.argsort(dim=1, descending=True).tolist()
        for k in (1, 5):
            right = sum(int(label[i]) in order[i][:k] for i in inside)
            assert part[f"top{k}"] == pytest.approx(right / len(inside))


@given(st.integers(0, 99), st.integers(1, 9), st.integers(2, 7))
def test_a_group_scores_the_sum_of_its_classes(seed: int, rows: int, classes: int) -> None:
    videos = merge_views(random_views(seed, rows, 2, classes))
    members = torch.randint(3, (classes,), generator=torch.Generator().manual_seed(seed)).tolist()
    right = 0
    for label, scores in zip(videos.label_V.tolist(), videos.score_VL.tolist(), strict=True):
        sums: dict[int, float] = defaultdict(float)
        for member, score in zip(members, scores, strict=True):
            sums[member] += score
        right += max(sums, key=lambda one: sums[one]) == members[label]
    found = group_accuracy(videos, {"verb": members, "same": list(range(classes))})
    assert found["verb"] == pytest.approx(right / rows)
    assert found["same"] == pytest.approx(top_accuracy(videos, 1))
    assert group_accuracy(videos, {}) == {}
