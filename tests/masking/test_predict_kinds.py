"""What each predict-selection chooses, against loops and patterns written by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tatscli.data.clip import Clip, ClipForm
from tatscli.data.motion import MotionField
from tatscli.draws import Draws
from tatscli.errors import DataError
from tatscli.masking.plan import MaskPlan
from tatscli.nn.vit import Encoder
from tests.fields import motion_of
from tests.masking.kinds import Grid, clip_of, mask_of, motion_on, selection_of


def hidden_but(grid: Grid, clips: int, *shown: int) -> MaskPlan:
    """Make a plan that predicts all tokens but the few shown."""
    tokens = grid[0] * grid[1] * grid[2]
    return MaskPlan.from_visible(torch.tensor([shown]).expand(clips, -1), tokens)


def chosen(plan: MaskPlan, tokens: int) -> Tensor:
    """Return the predicted tokens as a mask (B, N)."""
    mask = torch.zeros(plan.predict_BM.shape[0], tokens, dtype=torch.bool)
    return mask.scatter_(1, plan.predict_BM, True)


def select(
    kind: str,
    grid: Grid,
    plan: MaskPlan,
    *,
    motion: MotionField | None = None,
    clip: Clip | None = None,
    **words: Any,
) -> Tensor:
    """Return what a selection over a plan predicts, as a mask (B, N)."""
    predict_BM = plan.predict_BM
    selection = selection_of(kind, grid, predict_BM.shape[1], **words)
    made = selection.select(plan, clip or clip_of(grid, len(predict_BM), motion=motion), Draws(0))
    return chosen(made, grid[0] * grid[1] * grid[2])


def test_random_chooses_every_hidden_token_equally_often() -> None:
    grid = (2, 2, 3)
    shown = select("random", grid, hidden_but(grid, 20_000, 0, 7), budget=3)
    share = shown.float().mean(dim=0)
    expected = torch.full((12,), 0.3)
    expected[[0, 7]] = 0
    torch.testing.assert_close(share, expected, atol=0.015, rtol=0)


@pytest.mark.parametrize("budget", [1, 9, 30])
def test_flow_alone_is_the_fastest_hidden_tokens(budget: int) -> None:
    grid = (4, 3, 5)
    motion, masker = motion_on(grid, 6), mask_of("random", grid, 0.75)
    plan = masker.plan(clip_of(grid, 6), Draws(0))
    got = select("flow", grid, plan, motion=motion, budget=budget, random=0.0)
    for clip in range(6):
        speed = [
            sum(float(motion.speed_BThw[clip, t, y, x]) for t in (2 * s, 2 * s + 1))
            for s in range(4)
            for y in range(3)
            for x in range(5)
        ]
        hidden = plan.predict_BM[clip].tolist()
        fastest = sorted(hidden, key=lambda n: -speed[n])[:budget]
        assert got[clip].nonzero().flatten().tolist() == sorted(fastest)


def test_two_thirds_of_flow_move_most_and_the_rest_is_any() -> None:
    grid = (2, 3, 5)
    one = motion_on(grid, 1)
    many = one.each(lambda tensor: tensor.expand(12_000, *tensor.shape[1:]))
    plan = hidden_but(grid, 12_000, 3, 20)
    share = select("flow", grid, plan, motion=many, budget=15).float().mean(dim=0)
    hidden = sorted(set(range(30)) - {3, 20}, key=lambda n: -one.magnitude_BN(2)[0, n])
    expected = torch.zeros(30)
    expected[hidden[:10]] = 1
    expected[hidden[10:]] = 5 / 18
    torch.testing.assert_close(share, expected, atol=0.02, rtol=0)


def test_the_random_part_does_not_depend_on_who_of_equals_came_first() -> None:
    grid = (1, 3, 5)
    speed = torch.tensor([0.0] + [2.0] * 4 + [1.0] * 5 + [0.0] * 5).reshape(1, 1, 3, 5)
    motion = motion_of(torch.zeros(20_000, 1, 3, 5, 2), speed_BThw=speed.expand(20_000, -1, -1, -1))
    plan = hidden_but(grid, 20_000, 0)
    share = select("flow", grid, plan, motion=motion, budget=6, random=2 / 3)
    rest = 4 / 12  # two of the fastest four, then four of the other twelve
    expected = torch.tensor([0.0] + [0.5 + 0.5 * rest] * 4 + [rest] * 10)
    torch.testing.assert_close(share.float().mean(dim=0), expected, atol=0.015, rtol=0)


def test_the_budget_of_lvmae_is_divided_two_to_one() -> None:
    for budget, salient in ((234, 156), (235, 157), (3, 2), (2, 1), (1, 1)):
        assert selection_of("flow", (8, 14, 14), 1408, budget=budget).salient == salient


def test_flow_is_random_where_nothing_moves_or_is_known() -> None:
    grid = (2, 3, 4)
    for missing in (False, True):
        speed = motion_on(grid, 1).speed_BThw if missing else torch.zeros(1, 4, 3, 4)
        motion = motion_of(
            torch.zeros(12_000, 4, 3, 4, 2),
            speed_BThw=speed.expand(12_000, -1, -1, -1),
            missing_B=torch.full((12_000,), missing),
        )
        plan = hidden_but(grid, 12_000, 0, 1, 2, 3)
        share = select("flow", grid, plan, motion=motion, budget=8)
        expected = torch.tensor([0.0] * 4 + [0.4] * 20)
        torch.testing.assert_close(share.float().mean(dim=0), expected, atol=0.02, rtol=0)


def test_flow_cannot_do_without_motion() -> None:
    with pytest.raises(DataError, match=r"`predict.kind: flow` needs motion"):
        select("flow", (2, 2, 2), hidden_but((2, 2, 2), 1, 0))


@pytest.mark.parametrize("slices", [1, 4])
def test_everest_is_the_largest_changes_of_real_embeddings(slices: int) -> None:
    torch.manual_seed(0)
    grid = (slices, 3, 4)
    encoder = Encoder(width=24, depth=1, heads=2, grid=grid, tubelet=2, patch=4)
    video = torch.randint(256, (3, 3, 2 * slices, 12, 16), dtype=torch.uint8)
    clip = ClipForm(grid, 2, 4).clip(video, embed=encoder.embed)
    plan = hidden_but(grid, 3, 0, 5)
    got = select("everest", grid, plan, clip=clip, budget=7, random=0.0)
    if slices == 1:
        assert (got.sum(dim=1) == 7).all()
        return
    weight = encoder.patch_embed.proj.weight.detach().permute(0, 2, 3, 4, 1).flatten(1)
    cubes = clip.cubes()
    for one in range(3):
        change = {}
        for n in plan.predict_BM[one].tolist():
            after = n if n >= 12 else n + 12
            change[n] = float((weight @ (cubes[one, after] - cubes[one, after - 12])).norm())
        # The first slice repeats the second's numbers: compare values, not who of a pair is taken.
        taken = sorted(change[n] for n in got[one].nonzero().flatten().tolist())
        assert taken == pytest.approx(sorted(change.values())[-7:], rel=1e-4)


def starts(got: Tensor, pattern: Tensor) -> list[int]:
    """Tell from which start, a row of the pattern, the tokens of each clip were chosen.

    Either all that is predicted belongs to the pattern, or all of the pattern is predicted.
    """
    budget = int(got[0].sum())
    found = []
    for clip in got:
        fits = [
            start
            for start, row in enumerate(pattern)
            if int((clip & row).sum()) == min(budget, int(row.sum()))
        ]
        assert len(fits) == 1
        found.extend(fits)
    return found


@pytest.mark.parametrize(("slices", "every"), [(8, 7), (7, 3), (4, 7), (6, 2)])
def test_uniform_takes_whole_slices_a_period_apart(slices: int, every: int) -> None:
    grid = (slices, 2, 3)
    hidden = ~torch.eye(6 * slices, dtype=torch.bool)[0]
    slice_N = torch.arange(6 * slices) // 6
    firsts = min(every, slices)
    pattern = torch.stack([(slice_N % every == first) & hidden for first in range(firsts)])
    plan = hidden_but(grid, 600, 0)
    for budget in {int(row.sum()) for row in pattern}:
        got = select("uniform", grid, plan, every=every, budget=budget)
        counts = torch.tensor(starts(got, pattern)).bincount(minlength=firsts)
        assert (counts / 600 - 1 / firsts).abs().max() < 0.1


def test_uniform_thins_out_and_tops_up_at_random() -> None:
    grid = (4, 2, 5)
    for budget, inside, outside in ((5, 5, 0), (10, 10, 0), (16, 10, 6)):
        plan = hidden_but(grid, 4000, 39)
        got = select("uniform", grid, plan, every=4, budget=budget)
        counts = got.reshape(4000, 4, 10).sum(dim=2)
        first = counts.argmax(dim=1)
        whole = first < 3  # of the last slice one token is shown
        assert (counts[whole].max(dim=1).values == inside).all()
        rest = counts[whole].sum(dim=1) - counts[whole].max(dim=1).values
        assert (rest == outside).all()
        assert len(got.unique(dim=0)) > (3 if budget == 10 else 300)


PATTERNS = {  # of a cell, by the slice modulo 4, from one start; read off the published order
    0: ["##", ".."],
    1: ["#.", ".#"],
    2: ["..", "##"],
    3: [".#", "#."],
}


@pytest.mark.parametrize("grid", [(6, 4, 4), (5, 3, 5), (3, 1, 7), (4, 5, 1)])
def test_running_cells_are_the_pattern_by_hand(grid: Grid) -> None:
    slices, rows, columns = grid
    tokens = slices * rows * columns
    by_start = []
    for start in range(4):
        cells = [PATTERNS[(t + start) % 4] for t in range(slices)]
        by_start.append(
            [
                cells[t][y % 2][x % 2] == "#"
                for t in range(slices)
                for y in range(rows)
                for x in range(columns)
            ]
        )
    pattern = torch.tensor(by_start)
    # Nothing is shown but the last token, and the budget is half of what is hidden.
    plan = hidden_but(grid, 400, tokens - 1)
    pattern[:, -1] = False
    got = select("running_cell", grid, plan)
    counts = torch.tensor(starts(got, pattern)).bincount(minlength=4)
    assert (counts / 400 - 1 / 4).abs().max() < 0.1


def test_running_cells_predict_every_site_equally_often() -> None:
    grid = (8, 5, 6)  # two periods
    plan = hidden_but(grid, 4, 0)
    got = select("running_cell", grid, plan, budget=None).reshape(4, 8, 30)
    per_site = got.sum(dim=1)
    # The cells cut off at the odd border balance over a period; one token is shown, and the
    # budget of 119 of 239 leaves at most one token of the 120 out.
    assert (per_site == 4).sum() >= 4 * 30 - 8
    assert (per_site - 4).abs().max() <= 1
    neighbours = got[:, 1:] & got[:, :-1]
    assert 0.4 < float(neighbours.sum() / got[:, 1:].sum()) < 0.6  # it runs on by one place
