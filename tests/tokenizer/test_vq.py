"""The moving-average codebook against vector-quantize-pytorch, step by step."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from vector_quantize_pytorch import VectorQuantize

from tatscli.tokenizer.vq import Codebook, _drawn, nearest


def pair(cosine: bool) -> tuple[Codebook, VectorQuantize]:
    """Ours and the library's, with the same codes to begin with."""
    torch.manual_seed(0)
    theirs = VectorQuantize(
        dim=6,
        codebook_size=12,
        decay=0.9,
        commitment_weight=0.25,
        kmeans_init=False,
        threshold_ema_dead_code=0,
        use_cosine_sim=cosine,
        rotation_trick=False,
    ).train()
    ours = Codebook(12, 6, cosine=cosine, decay=0.9, kmeans=0, restart=0).train()
    ours.code_KC.copy_(theirs._codebook.embed[0])
    ours.sum_KC.copy_(theirs._codebook.embed_avg[0])
    ours.count_K.copy_(theirs._codebook.cluster_size[0])
    return ours, theirs


@pytest.mark.parametrize("cosine", [False, True])
def test_ten_updates_are_the_librarys(cosine: bool) -> None:
    ours, theirs = pair(cosine)
    for number in range(10):
        torch.manual_seed(number)
        given = torch.randn(3, 40, 6) + torch.randn(6)
        mine, other = given.clone().requires_grad_(), given.clone().requires_grad_()
        found = ours(mine)
        wanted, indices, loss = theirs(other)
        assert torch.equal(found.codes, indices)
        torch.testing.assert_close(found.vectors_C, wanted, atol=1e-6, rtol=0)
        torch.testing.assert_close(found.losses["commitment"], loss.sum(), atol=1e-6, rtol=0)
        (found.vectors_C.square().sum() + found.losses["commitment"]).backward()
        (wanted.square().sum() + loss.sum()).backward()
        if not cosine:  # the library passes the gradient by its scaling to length 1
            torch.testing.assert_close(mine.grad, other.grad, atol=1e-6, rtol=0)
        book = theirs._codebook
        torch.testing.assert_close(ours.code_KC, book.embed[0], atol=1e-6, rtol=0)
        torch.testing.assert_close(ours.count_K, book.cluster_size[0], atol=1e-6, rtol=0)
        torch.testing.assert_close(ours.sum_KC, book.embed_avg[0], atol=1e-6, rtol=1e-6)


def test_nearest_is_the_least_distance() -> None:
    torch.manual_seed(0)
    given, codes = torch.randn(200, 5), torch.randn(30, 5)
    assert torch.equal(nearest(given, codes), torch.cdist(given, codes).argmin(dim=1))


def clusters() -> Tensor:
    """Eight places, 40 vectors close to each."""
    torch.manual_seed(1)
    return (torch.randn(8, 1, 3) * 5 + torch.randn(8, 40, 3) * 0.01).flatten(0, 1)


def test_kmeans_finds_clusters_in_the_first_batch_and_only_there() -> None:
    given = clusters()
    book = Codebook(32, 3, kmeans=10, restart=0).train()
    assert not book.begun
    found = book(given)
    assert book.begun
    away = (found.vectors_C - given).norm(dim=1)
    assert away.max() < 1  # every cluster has a code: 32 are drawn among 8
    before = book.code_KC.clone()
    book(given + 1)
    assert not torch.equal(book.code_KC, before)
    assert (book.code_KC - before).norm(dim=1).max() < 0.5  # followed, not begun anew


def test_evaluation_changes_nothing() -> None:
    book = Codebook(16, 3, restart=0.1).train()
    book(clusters())
    before = {name: value.clone() for name, value in book.state_dict().items()}
    book.eval()(clusters() + 3)
    assert all(torch.equal(value, before[name]) for name, value in book.state_dict().items())


def test_dead_codes_start_again_at_vectors_of_the_batch() -> None:
    given = clusters()
    book = Codebook(16, 3, kmeans=0, decay=0.5, restart=0.2).train()
    book.code_KC[8:] = 1000.0
    book.sum_KC[8:] = 1000.0
    for _ in range(4):
        book(given)
    assert book.code_KC.abs().max() < 100
    away = torch.cdist(book.code_KC[8:], given).min(dim=1).values
    assert away.max() < 2


@pytest.mark.parametrize(("count", "number"), [(320, 16), (320, 320), (7, 7), (1, 5), (12, 30)])
def test_vectors_are_drawn_evenly_and_once_while_there_are_enough(count: int, number: int) -> None:
    torch.manual_seed(0)
    for _ in range(5):
        place = _drawn(torch.arange(float(count))[:, None], number)[:, 0]
        assert len(place.unique()) == min(count, number)
        gaps = place.sort().values.diff()
        if number <= count:
            assert gaps.max() <= 3 * count / number


def test_a_vector_that_is_not_finite_leaves_the_codebook_finite() -> None:
    book = Codebook(8, 3, restart=0.2).train()
    book(clusters())
    broken = clusters()
    broken[5] = torch.nan
    book(broken)
    assert book.code_KC.isfinite().all()
    assert book.sum_KC.isfinite().all()


def test_a_first_batch_that_is_not_finite_begins_nothing() -> None:
    book = Codebook(8, 3, restart=0).train()
    broken = clusters()
    broken[5] = torch.inf
    book(broken)
    assert not book.begun
    assert book.code_KC.isfinite().all()
    book(clusters())
    assert book.begun


def test_a_resumed_codebook_does_not_begin_again() -> None:
    book = Codebook(8, 3, restart=0).train()
    book(clusters())
    again = Codebook(8, 3, restart=0).train()
    again.load_state_dict(book.state_dict())
    torch.manual_seed(7)
    book(clusters() + 1)
    torch.manual_seed(8)
    again(clusters() + 1)
    assert torch.equal(book.code_KC, again.code_KC)
