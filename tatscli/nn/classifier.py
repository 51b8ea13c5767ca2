"""Action classifier on top of the encoder: pool, norm, linear; by default VideoMAE's form.

Shapes: B batch, C channels, T frames, N tokens of a clip, K of them, D width, L classes, G members
of a group of classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from tatscli.engine.device import at_least_float32
from tatscli.errors import CheckpointError, RecipeError
from tatscli.jsonfiles import reason_of
from tatscli.nn.batch_norm import BatchNorm
from tatscli.nn.pool import EfficientPool
from tatscli.nn.vit import NORM_EPS, Block, Encoder, build_encoder
from tatscli.recipe import schema
from tatscli.recipe.derive import derive_batch
from tatscli.store.schema import ClassGroup

ONE_HEAD = "class"
"""What the head over the classes themselves is called."""


class Classifier(nn.Module):
    """Encoder over all tokens or some, pooling, `fc_norm`, dropout and a linear head, or one for
    each group of classes.

    The encoder's own last norm is passed over, as published; it is frozen here so that every
    parameter that trains gets a gradient.

    Where classes are combinations, such as a verb and a noun, a head for each group sees the same
    feature, and a class scores the product of what its members score: its output is the sum of
    their log-probabilities, so that softmax over the classes makes probabilities of it.

    Args:
        encoder: The pretrained (or fresh) encoder; used, not copied.
        classes: Number of labels.
        dropout: Dropout before the head.
        head_scale: Factor on the head's first weights, of deviation 0.02.
        form: How tokens become one feature, and what norm comes before the linear head. None is
            VideoMAE's form: mean pooling and LayerNorm. With `cls` a learned token, which no
            pretraining knows, goes through all blocks behind the clip's own and is read at the end.
        groups: The groups that have a head each; none for one head over the classes.

    Attributes:
        outputs: How many classes each head tells apart, by the name of its group or `ONE_HEAD`.

    Raises:
        RecipeError: If the queries of `form` cannot share the encoder's width.
    """

    cls_D: nn.Parameter | None
    head: nn.Linear | None
    heads: nn.ModuleDict | None

    def __init__(
        self,
        encoder: Encoder,
        classes: int,
        *,
        dropout: float = 0.0,
        head_scale: float = 0.001,
        form: schema.ClassHead | None = None,
        groups: Mapping[str, ClassGroup] | None = None,
    ) -> None:
        super().__init__()
        form = form or schema.ClassHead()
        width = encoder.width
        self.encoder = encoder
        self.encoder.norm.requires_grad_(False)
        self.fc_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.dropout = nn.Dropout(dropout)
        # What VideoMAE's form lacks is None, and has no tensors in a checkpoint.
        self.head = None if groups else _linear(width, classes, scale=head_scale)
        self.heads = None
        self.outputs = {ONE_HEAD: classes}
        if groups:
            self.outputs = {name: len(group.names) for name, group in groups.items()}
            self.heads = nn.ModuleDict(
                {n: _linear(width, size, scale=head_scale) for n, size in self.outputs.items()}
            )
            for name, group in groups.items():
                self.register_buffer(_member(name), torch.tensor(group.of), persistent=False)
        self.batch_norm = BatchNorm(width) if form.norm == "batch" else None
        self.pool = (
            EfficientPool(width, form.queries, key="finetune.head.queries")
            if form.pool == "attention"
            else None
        )
        # A vector, so that it is not decayed; it has no position, which tells it from the others.
        self.cls_D = nn.Parameter(0.02 * torch.randn(width)) if form.pool == "cls" else None

    def forward(
        self, video_BCTHW: Tensor, visible_BK: Tensor | None = None, *, by_head: bool = False
    ) -> Tensor | list[Tensor]:
        """Score a standardised video: (B, L); of some of its tokens, where they are named.

        Args:
            video_BCTHW: Standardised.
            visible_BK: Tokens to look at; None means all.
            by_head: Return the output of every head, (B, G) each, or of the one, in a list; that is
                what the loss wants.
        """
        tokens_BKD = self.encoder.embed(self.encoder.cubes(video_BCTHW, visible_BK))
        feature_BD = self.fc_norm(at_least_float32(self._pooled(tokens_BKD, visible_BK)))
        if self.batch_norm is not None:
            feature_BD = self.batch_norm(feature_BD)
        feature_BD = self.dropout(feature_BD)
        if self.heads is None:
            assert self.head is not None
            score_BL = self.head(feature_BD)
            return [score_BL] if by_head else score_BL
        scores = {name: head(feature_BD) for name, head in self.heads.items()}
        if by_head:
            return list(scores.values())
        return torch.stack(
            [
                score_BG.float().log_softmax(dim=-1)[:, self.get_buffer(_member(name))]
                for name, score_BG in scores.items()
            ]
        ).sum(dim=0)

    def _pooled(self, tokens_BKD: Tensor, visible_BK: Tensor | None) -> Tensor:
        """Run the blocks and make one feature of each clip: (B, D)."""
        if self.cls_D is not None:
            # `len` would fix the batch of an exported network.
            cls_B1D = self.cls_D.expand(tokens_BKD.shape[0], 1, -1)
            return self.encoder.features(tokens_BKD, visible_BK, extra_BED=cls_B1D)[:, -1]
        tokens_BKD = self.encoder.features(tokens_BKD, visible_BK)
        return tokens_BKD.mean(dim=1) if self.pool is None else self.pool(tokens_BKD)

    def freeze(self, what: str | int) -> int:
        """Freeze the patch embedding and blocks of the encoder: no gradient, no stochastic depth.

        Args:
            what: `none`, `encoder` for all blocks, or how many of them, from the first.

        Returns:
            How many weights are frozen.

        Raises:
            RecipeError: If there are fewer blocks.
        """
        encoder = self.encoder
        if what == "none":
            return 0
        count = encoder.depth if what == "encoder" else int(what)
        if count > encoder.depth:
            raise RecipeError(
                f"`finetune.freeze: {count}`: the encoder has only {encoder.depth} blocks",
                hint="`finetune.freeze=encoder` trains the head alone",
            )
        frozen: list[nn.Module] = [encoder.patch_embed]
        for block in encoder.blocks[:count]:
            assert isinstance(block, Block)
            block.drop_path.drops = False
            frozen.append(block)
        parameters = [one for module in frozen for one in module.parameters()]
        for parameter in parameters:
            parameter.requires_grad_(False)
        return sum(parameter.numel() for parameter in parameters)

    def last_blocks(self, count: int, *, frozen: str | int = "none") -> nn.ModuleList:
        """Return the encoder's last blocks, those that `finetune.reinit_blocks` means.

        Args:
            count: How many.
            frozen: `finetune.freeze`.

        Raises:
            RecipeError: If there are fewer blocks, or some of them are frozen.
        """
        depth = self.encoder.depth
        if count > depth:
            raise RecipeError(
                f"`finetune.reinit_blocks: {count}`: the encoder has only {depth} blocks",
                hint="`--scratch` starts from random weights",
            )
        if isinstance(frozen, int) and count + frozen > depth:
            raise RecipeError(
                f"`finetune.freeze: {frozen}` would freeze re-initialised blocks: with "
                f"`finetune.reinit_blocks: {count}`, {depth - count} of {depth} blocks keep their "
                "weights",
            )
        return self.encoder.blocks[depth - count :]

    @property
    def layers(self) -> int:
        """The last layer, the head's: depth + 1."""
        return self.encoder.depth + 1

    def layer_of(self, name: str) -> int:
        """Return a parameter's layer, for layer decay: from 0, the patch embedding, to `layers`.

        Whatever is new belongs to the last one, the learned token as well: nothing of it is there
        to be kept.
        """
        if name.startswith("encoder.patch_embed."):
            return 0
        if name.startswith("encoder.blocks."):
            return int(name.split(".")[2]) + 1
        return self.layers


def build_classifier(
    recipe: schema.Recipe, *, classes: int, groups: Mapping[str, ClassGroup] | None = None
) -> Classifier:
    """Build the classifier a recipe describes, with fresh weights.

    Args:
        recipe: Says how.
        classes: Number of labels.
        groups: Class groups of the store or checkpoint; `finetune.heads` chooses among them.

    Raises:
        RecipeError: If the recipe describes a tokenizer, or names groups that there are not.
    """
    if recipe.tokenizer is not None:
        raise RecipeError(
            "this recipe trains a tokenizer: it has no encoder to fine-tune",
            hint="fine-tune a masked autoencoder, such as one that predicts its codes",
        )
    settings = recipe.finetune
    return Classifier(
        build_encoder(recipe.model, recipe.grid, drop_path=settings.drop_path),
        classes,
        dropout=settings.head_dropout,
        head_scale=settings.head_scale,
        form=settings.head,
        groups=chosen_groups(settings.heads, groups or {}),
    )


def groups_of(meta: Mapping[str, Any]) -> dict[str, ClassGroup]:
    """Return the class groups that a checkpoint's `meta.json` holds; older ones hold none.

    Raises:
        CheckpointError: If they are damaged.
    """
    groups = meta.get("class_groups", {})
    try:
        return {name: ClassGroup.model_validate(group) for name, group in groups.items()}
    except ValidationError as error:
        raise CheckpointError(
            f"the `class_groups` of a checkpoint's `meta.json` cannot be read: {reason_of(error)}"
        ) from error


def chosen_groups(
    heads: list[str] | None, groups: Mapping[str, ClassGroup]
) -> dict[str, ClassGroup]:
    """Return the class groups that `finetune.heads` names: none where it is null.

    Raises:
        RecipeError: If there is no such group, or two classes have the same members in all of them.
    """
    if heads is None:
        return {}
    key = f"`finetune.heads: [{', '.join(heads)}]`"
    for name in heads:
        if name not in groups:
            known = ", ".join(f"`{one}`" for one in groups)
            raise RecipeError(
                f"{key}: the classes have no group `{name}`"
                + (f"; they have {known}" if groups else ": they are not combinations"),
                hint="groups come with the actions of EPIC-KITCHENS-100 and the dives of Diving48; "
                "run the same `tats prepare` again to add them to an older store",
            )
    combinations = set(zip(*(groups[name].of for name in heads), strict=True))
    classes = len(groups[heads[0]].of)
    if len(combinations) < classes:
        others = [name for name in groups if name not in heads]
        raise RecipeError(
            f"{key} distinguishes only {len(combinations)} of {classes} classes",
            hint="also name " + " and ".join(f"`{name}`" for name in others)
            if others
            else "classes of the same name cannot be told apart by their groups",
        )
    return {name: groups[name] for name in heads}


def refuse_lonely_views(recipe: schema.Recipe, *, world: int) -> None:
    """Refuse a BatchNorm over a single view, which would make every feature zero.

    Raises:
        RecipeError: If the micro-batches of all ranks together are one view.
    """
    settings = recipe.finetune
    views = derive_batch(settings.optim, world=world)[0] * settings.repeats * world
    if settings.head.norm == "batch" and views < 2:
        raise RecipeError(
            "`finetune.head.norm: batch` needs two views or more in a forward pass, and "
            f"`finetune.optim.batch_per_device: {settings.optim.batch_per_device}` makes one",
            hint="set `finetune.optim.batch_per_device=2` (and `total_batch` to a multiple), or "
            "`finetune.head.norm=layer`",
        )


def _linear(width: int, outputs: int, *, scale: float) -> nn.Linear:
    """Make a head that starts as VideoMAE's: deviation 0.02 x `scale`, no bias."""
    head = nn.Linear(width, outputs)
    nn.init.trunc_normal_(head.weight, std=0.02, a=-0.02, b=0.02)
    head.weight.data.mul_(scale)
    nn.init.zeros_(head.bias)
    return head


def _member(group: str) -> str:
    """Return the name of the buffer that holds each class's member of a group."""
    return f"{group}_L"
