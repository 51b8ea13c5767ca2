"""Token dropping in fine-tuning and evaluation: what a fixed mask hides is never encoded.

Shapes: B batch, C channels, T frames, H and W pixels, N tokens of a clip, K kept.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
from torch import Tensor

from tatscli.data.clip import Clip
from tatscli.data.motion import MotionField
from tatscli.draws import Draws
from tatscli.errors import RecipeError
from tatscli.masking import build_masker
from tatscli.masking.plan import MaskPlan
from tatscli.nn.vit import Encoder
from tatscli.recipe.schema import FixedMask, Recipe
from tatscli.seeding import seed_of
from tatscli.system.system import build_form


class TokenDrop:
    """Keeps the tokens that a mask shows.

    Args:
        config: The recipe's `finetune.drop` or `evaluate.drop`.
        key: Which of the two; for messages.
        recipe: Says how clips are cut, and the seed.
        encoder: Embeds patches, for a mask that needs them.

    Raises:
        RecipeError: If the mask would keep nothing, or leave nothing out.
    """

    def __init__(self, config: FixedMask, *, key: str, recipe: Recipe, encoder: Encoder) -> None:
        try:
            self.masker = build_masker(config, grid=recipe.grid, width=encoder.width)
        except RecipeError as error:
            raise RecipeError(error.message.replace("`mask.", f"`{key}."), error.hint) from None
        self.key = key
        self.form = build_form(recipe)
        self.encoder = encoder
        self.seed = recipe.run.seed

    @property
    def kept(self) -> int:
        """Tokens of a clip that are kept, K."""
        return self.masker.visible

    @property
    def needs_motion(self) -> bool:
        """Whether clips must bring their motion."""
        return self.masker.needs_motion

    def to(self, device: torch.device) -> TokenDrop:
        """Move what has tensors to a device."""
        self.masker.to(device)
        self.form.to(device)
        return self

    @torch.no_grad()
    def plan(self, video_BCTHW: Tensor, motion: MotionField | None, draws: Draws) -> MaskPlan:
        """Draw what is kept of a batch of uint8 video: its visible tokens."""
        clip = Clip(self.form, self.form.cut(video_BCTHW), motion=motion, embed=self.encoder.embed)
        return self.masker.plan(clip, draws)

    def fixed(
        self,
        video_BCTHW: Tensor,
        motion: MotionField | None,
        rows: Sequence[int],
        views: Sequence[int],
    ) -> Tensor:
        """Return what is kept of views: int64 (B, K), ascending.

        Those of a view depend only on the seed, its row and its number, not on the batch or the
        number of processes.
        """
        kept = []
        for place, (row, view) in enumerate(zip(rows, views, strict=True)):
            draws = Draws(seed_of("drop", self.seed, row, view))
            one = slice(place, place + 1)
            own = None if motion is None else motion.each(operator.itemgetter(one))
            plan = self.plan(video_BCTHW[one], own, draws)
            kept.append(plan.visible_BK)
        return torch.cat(kept)
