"""`frame` hides whole slices, every set of them equally often."""

from __future__ import annotations

import math

import pytest

from tatscli.draws import Draws
from tatscli.errors import RecipeError
from tests.masking.kinds import clip_of, mask_of


@pytest.mark.parametrize(("ratio", "shown"), [(0.9, 1), (0.875, 1), (0.75, 2), (0.125, 7)])
def test_slices_are_hidden_whole(ratio: float, shown: int) -> None:
    masker = mask_of("frame", (8, 3, 4), ratio)
    plan = masker.plan(clip_of((8, 3, 4), 50), Draws(0))
    hidden = plan.hidden_BN(96).reshape(50, 8, 12)
    assert (hidden.all(dim=2) | ~hidden.any(dim=2)).all()
    assert (hidden.all(dim=2).sum(dim=1) == 8 - shown).all()


def test_every_set_of_slices_is_equally_likely() -> None:
    plan = mask_of("frame", (5, 1, 2), 0.6).plan(clip_of((5, 1, 2), 20_000), Draws(0))
    sets, counts = (plan.visible_BK // 2).unique(dim=0, return_counts=True)
    assert len(sets) == math.comb(5, 2)
    assert (counts / 20_000 - 0.1).abs().max() < 0.01


def test_a_ratio_that_hides_no_slice_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"`mask.ratio: 0.2` hides none of the 4 slices") as found:
        mask_of("frame", (4, 3, 3), 0.2)
    assert found.value.hint is not None and "0.25" in found.value.hint
    with pytest.raises(RecipeError, match="hides none of the 1 slices"):
        mask_of("frame", (1, 3, 3), 0.9)
