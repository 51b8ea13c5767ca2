"""`everest` keeps the tokens that change most, against a loop and on a rendered patch."""

from __future__ import annotations

import pytest
import torch

from tatscli.data.clip import ClipForm
from tatscli.draws import Draws
from tatscli.errors import RecipeError
from tatscli.masking.saliency import descending, embedding_change_BN
from tatscli.nn.vit import Encoder
from tests.masking.kinds import clip_of, mask_of, tokens_on


def loop_change(tokens_BND: torch.Tensor, slices: int) -> torch.Tensor:
    """Count distances token by token in double precision."""
    B, N, _ = tokens_BND.shape
    sites = N // slices
    change = torch.zeros(B, N, dtype=torch.float64)
    for b in range(B):
        for t in range(slices):
            for s in range(sites):
                after = max(t, 1)  # the first slice borrows the second's
                now, before = (
                    tokens_BND[b, after * sites + s],
                    tokens_BND[b, (after - 1) * sites + s],
                )
                change[b, t * sites + s] = (now.double() - before.double()).square().sum().sqrt()
    return change


def test_the_change_is_the_distance_to_the_slice_before() -> None:
    tokens = tokens_on((4, 3, 2), 3)
    torch.testing.assert_close(embedding_change_BN(tokens, 4).double(), loop_change(tokens, 4))
    assert embedding_change_BN(tokens.bfloat16(), 4).dtype == torch.float32
    assert not embedding_change_BN(tokens.requires_grad_(), 4).requires_grad
    assert embedding_change_BN(tokens, 1).eq(0).all()


def test_equal_scores_are_ordered_by_noise() -> None:
    score = torch.tensor([[1.0, 3.0, 1.0, 3.0, 0.0]])
    noise = torch.tensor([[0.2, 0.1, 0.3, 0.9, 0.5]])
    assert descending(score, noise).tolist() == [[3, 1, 2, 0, 4]]


@pytest.mark.parametrize(("ratio", "keep"), [(0.9, 0.3), (0.75, 0.5), (0.5, 0.99)])
def test_the_most_changed_tokens_are_shown_or_predicted_and_no_others(
    ratio: float, keep: float
) -> None:
    grid = (5, 4, 4)
    tokens = tokens_on(grid, 6)
    masker = mask_of("everest", grid, ratio, keep=keep)
    plan = masker.plan(clip_of(grid, tokens=tokens), Draws(0))
    change = loop_change(tokens, 5)
    kept = torch.cat([plan.visible_BK, plan.predict_BM], dim=1)
    assert kept.shape[1] == int(80 * keep + 1e-9)
    for clip in range(6):
        inside = change[clip, kept[clip]].min()
        others = sorted(set(range(80)) - set(kept[clip].tolist()))
        assert inside >= change[clip, others].max() - 1e-6


def test_the_published_counts() -> None:
    masker = mask_of("everest", (8, 14, 14), 0.9, keep=0.3)
    assert (masker.visible, masker.predicted) == (156, 470 - 156)


def test_among_the_kept_chance_decides_who_is_shown() -> None:
    grid = (3, 2, 5)
    tokens = tokens_on(grid, 1).expand(5000, -1, -1)
    plan = mask_of("everest", grid, 0.8, keep=0.5).plan(clip_of(grid, tokens=tokens), Draws(0))
    shown = (~plan.hidden_BN(30)).float().mean(dim=0)
    # 6 of 15 kept; a tie between the first two slices may leave a place to either of a pair.
    always = shown[shown > 0.3]
    assert len(always) in (14, 15) and (always - 0.4).abs().max() < 0.03


def test_a_patch_that_changes_is_found_and_still_ground_is_dropped() -> None:
    torch.manual_seed(0)
    encoder = Encoder(width=24, depth=1, heads=2, grid=(4, 6, 6), tubelet=2, patch=4)
    video = torch.randint(256, (1, 3, 1, 24, 24), dtype=torch.uint8).repeat(1, 1, 8, 1, 1)
    video[..., 8:16, 8:16] = torch.randint(256, (1, 3, 8, 8, 8))  # 4 of 36 sites change
    masker = mask_of("everest", (4, 6, 6), 0.95, keep=0.1)
    with torch.no_grad():
        plan = masker.plan(ClipForm((4, 6, 6), 2, 4).clip(video, embed=encoder.embed), Draws(0))
    sites = torch.cat([plan.visible_BK, plan.predict_BM], dim=1) % 36
    assert set(sites.flatten().tolist()) <= {14, 15, 20, 21}


def test_a_single_slice_knows_no_change_and_is_masked_at_random() -> None:
    grid = (1, 4, 5)
    clip = clip_of(grid, tokens=tokens_on(grid, 4000))
    plan = mask_of("everest", grid, 0.75, keep=0.5).plan(clip, Draws(0))
    shown = (~plan.hidden_BN(20)).float().mean(dim=0)
    torch.testing.assert_close(shown, torch.full((20,), 0.25), atol=0.03, rtol=0)


def test_keeping_only_what_is_shown_is_refused() -> None:
    # Allowed by the recipe, as 0.3 > 0.25, but of 9 tokens both are 2.
    with pytest.raises(RecipeError, match=r"`mask.keep: 0.3` keeps 2 of 9 tokens") as found:
        mask_of("everest", (1, 3, 3), 0.75, keep=0.3)
    assert found.value.hint == "keep at least 0.3333"
