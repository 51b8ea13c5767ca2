"""`future`: the first slices whole, a share of the later ones, and a gap that takes no part."""

from __future__ import annotations

import pytest
import torch

from tatscli.draws import Draws
from tatscli.errors import RecipeError
from tests.masking.kinds import clip_of, mask_of

GRID = (6, 3, 4)
SITES = 12


@pytest.mark.parametrize(("past", "gap", "ratio"), [(1, 0, 0.95), (2, 1, 0.75), (1, 4, 0.5)])
def test_the_past_is_seen_and_the_future_counted(past: int, gap: int, ratio: float) -> None:
    masker = mask_of("future", GRID, ratio, past=past, gap=gap)
    later = (6 - past - gap) * SITES
    shown = later * round(100 * (1 - ratio)) // 100
    assert (masker.visible, masker.predicted) == (past * SITES + shown, later - shown)
    plan = masker.plan(clip_of(GRID, 5), Draws(0))
    assert not plan.faulty_B(72).any()
    first = (past + gap) * SITES
    for visible, predict in zip(plan.visible_BK.tolist(), plan.predict_BM.tolist(), strict=True):
        assert visible[: past * SITES] == list(range(past * SITES))
        assert len(visible) == masker.visible
        # The rest of the clip is either shown or predicted, but for the gap, which is neither.
        assert sorted(visible[past * SITES :] + predict) == list(range(first, 72))


def test_published_counts() -> None:
    """A frame of 14 x 14 patches and 5 % of another: 9 tokens, as SiamMAE's ratio leaves."""
    assert mask_of("future", (2, 14, 14), 0.95).visible == 196 + 9


def test_every_later_token_is_as_likely_to_be_shown() -> None:
    masker = mask_of("future", (3, 2, 2), 0.75)
    plan = masker.plan(clip_of((3, 2, 2), 8000), Draws(0))
    shown = 1 - plan.hidden_BN(12).float().mean(dim=0)
    torch.testing.assert_close(shown[:4], torch.ones(4))
    torch.testing.assert_close(shown[4:], torch.full((8,), 0.25), atol=0.02, rtol=0)


def test_nothing_of_the_future_need_be_shown() -> None:
    masker = mask_of("future", (2, 2, 2), 0.95)
    assert (masker.visible, masker.predicted) == (4, 4)
    assert not masker.plan(clip_of((2, 2, 2), 2), Draws(0)).faulty_B(8).any()


def test_a_past_as_long_as_the_clip_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"`mask.past: 6` leaves nothing to predict of 6 slices"):
        mask_of("future", GRID, 0.5, past=6)
    with pytest.raises(RecipeError, match=r"`mask.past: 2` and `mask.gap: 4` leave nothing"):
        mask_of("future", GRID, 0.5, past=2, gap=4)
