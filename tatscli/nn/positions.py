"""Position embeddings of tokens, computed or taken over from another grid.

A training that begins from a run on another token grid keeps that run's codes, interpolated: a
weight that has learned what a place means finds it again. LVMAE (Gundavarapu et al. 2024, arXiv
2411.13683) needs positions from 8 to 64 slices; how it gets them is not published.

Shapes: N tokens of a clip, K of them, D width; t, h, w slices, rows and columns.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tatscli.data.clip import check_range

Grid = tuple[int, int, int]

_TABLE = "table_ND"


def sine_cosine_table(positions: int, width: int) -> Tensor:
    """Return the fixed position code (positions, width), float32.

    Entry j of position p is sin (even j) or cos (odd j) of p / 10000^(2 floor(j / 2) / width): the
    1-D form over the running token index, as VideoMAE uses it for space and time at once.
    """
    column = torch.arange(width, dtype=torch.float64)
    period = 10000.0 ** (2 * (column // 2) / width)
    angle = torch.arange(positions, dtype=torch.float64)[:, None] / period
    return torch.where(column % 2 == 0, angle.sin(), angle.cos()).float()


def interpolated(table_ND: Tensor, before: Grid, grid: Grid) -> Tensor:
    """Bring position codes from one grid to another, trilinearly: (N of the new one, D), float32.

    Tokens are cells, and the outer edges of both grids coincide (`align_corners=False`); beyond the
    middle of an outer cell its code goes on unchanged. An axis of equal size stays as it is.
    """
    table_1Dthw = table_ND.float().T.unflatten(1, before)[None]
    resized_1Dthw = F.interpolate(table_1Dthw, size=grid, mode="trilinear", align_corners=False)
    return resized_1Dthw[0].flatten(1).T.contiguous()


class Positions(nn.Module):
    """The position codes of a grid's tokens; nothing of them is learned.

    As built they are VideoMAE's for the grid, and a checkpoint has nothing of them. Codes taken
    over from another grid (`nn/load.py`) are in the state dict from then on, so that whoever loads
    it has the same ones. A state dict without any brings VideoMAE's back.

    Args:
        grid: Tokens along time, height and width.
        width: Width D of a code.
    """

    table_ND: Tensor

    def __init__(self, grid: Grid, width: int) -> None:
        super().__init__()
        self.grid = grid
        self.width = width
        self.register_buffer(_TABLE, self.made(grid), persistent=False)

    def made(self, grid: Grid) -> Tensor:
        """Return VideoMAE's codes of any grid: (N, D)."""
        return sine_cosine_table(grid[0] * grid[1] * grid[2], self.width)

    @property
    def kept(self) -> bool:
        """Whether the codes are others than VideoMAE's, and so part of the state dict."""
        return _TABLE not in self._non_persistent_buffers_set

    def forward(self, index_NK: Tensor | None = None) -> Tensor:
        """Return the codes of tokens by index, (..., K, D); None means all, in order: (N, D).

        Raises:
            ValueError: If, on the CPU, the grid has no such token.
        """
        if index_NK is None:
            return self.table_ND
        check_range("index_NK", index_NK, len(self.table_ND))
        return self.table_ND[index_NK]

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Take the codes that there are, or make VideoMAE's: torch's rules know neither."""
        given = state_dict.get(prefix + _TABLE)
        if given is not None and given.shape != self.table_ND.shape:
            error_msgs.append(
                f"positions {prefix + _TABLE} have shape {tuple(given.shape)}, and the grid "
                f"{' x '.join(map(str, self.grid))} needs {tuple(self.table_ND.shape)}"
            )
            return
        if given is None and not self.kept:
            return
        # In its place, so that whoever holds the tensor, and its device, stays right.
        with torch.no_grad():
            self.table_ND.copy_(self.made(self.grid) if given is None else given)
        self.register_buffer(_TABLE, self.table_ND, persistent=given is not None)


def position_tables(module: nn.Module) -> dict[str, Positions]:
    """Return the positions inside a module by the name of their codes in its state dict."""
    return {
        f"{name}.{_TABLE}" if name else _TABLE: one
        for name, one in module.named_modules()
        if isinstance(one, Positions)
    }


def carried_over(
    module: nn.Module, given: dict[str, Tensor], before: Grid
) -> tuple[dict[str, Tensor], str]:
    """Bring the positions among a module's weights from the grid they belong to onto its own.

    Args:
        module: What the weights are for.
        given: Weights by name. Positions that are not among them are VideoMAE's of their grid.
        before: The grid they were trained on.

    Returns:
        The weights, as they were where the grids are the same; and what was done in words, empty
        where it was nothing.
    """
    done, words = dict(given), ""
    for name, positions in position_tables(module).items():
        if positions.grid == before:
            continue
        made_ND = positions.made(before)
        table_ND = given.get(name, made_ND)
        if table_ND.shape == made_ND.shape:  # else whoever compares shapes refuses it
            done[name] = interpolated(table_ND, before, positions.grid)
            words = moved_words(before, positions.grid)
    return done, words


def moved_words(before: Grid, grid: Grid) -> str:
    """Say that positions go from one grid to another; nothing where it is the same."""
    if before == grid:
        return ""
    there, here = (" x ".join(map(str, one)) for one in (before, grid))
    return f"positions of {there} tokens interpolated to {here}"
