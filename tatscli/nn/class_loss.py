"""The loss of a classifier: cross entropy with soft labels, of one head or the sum of several.

Shapes: B batch, L classes, G members of a group of classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from tatscli.nn.classifier import ONE_HEAD
from tatscli.store.schema import ClassGroup


class ClassLoss(nn.Module):
    """Cross entropy of every head, its classes weighted, summed over the heads.

    With weights w it is that of `torch.nn.functional.cross_entropy(scores, labels, weight=w)` with
    soft labels: each clip gives -sum over classes of w x label x log-probability, and the mean is
    over clips, not over weights. Mixed and smoothed labels are weighted share by share.

    Args:
        groups: Of the classifier's heads, in their order; none for one head over the classes.
        weights: Of the classes of each head, or of `ONE_HEAD`; a head that is missing has none.
        smoothing: Share of a group's labels that is spread over all its members. Of one head over
            the classes labels are smoothed already.
    """

    def __init__(
        self,
        groups: Mapping[str, ClassGroup],
        weights: Mapping[str, Sequence[float]],
        *,
        smoothing: float,
    ) -> None:
        super().__init__()
        self.names = list(groups) or [ONE_HEAD]
        self.grouped = bool(groups)
        self.smoothing = smoothing
        self.sizes = {name: len(group.names) for name, group in groups.items()}
        for name in self.names:
            of_L = torch.tensor(groups[name].of) if self.grouped else None
            weight_G = torch.tensor(weights[name]) if name in weights else None
            self.register_buffer(f"{name}_L", of_L, persistent=False)
            self.register_buffer(f"{name}_weight_G", weight_G, persistent=False)

    def forward(
        self, scores: Sequence[Tensor], target_BL: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compare the scores of every head, (B, G) each, with soft labels of the classes.

        Returns:
            The loss, and with several heads `loss/<group>` of each.
        """
        return self.joined(self.by_clip(scores, target_BL))

    def joined(self, losses: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Make of the losses of clips what `forward` returns."""
        means = {name: loss_B.mean() for name, loss_B in losses.items()}
        loss = torch.stack([*means.values()]).sum()
        return loss, means if self.grouped else {}

    def by_clip(self, scores: Sequence[Tensor], target_BL: Tensor) -> dict[str, Tensor]:
        """Return the loss of every clip, (B,), by the name of its head, as `loss/<group>`."""
        losses = {}
        for name, score_BG in zip(self.names, scores, strict=True):
            label_BG = self.labels(name, target_BL)
            weight_G = getattr(self, f"{name}_weight_G")
            if weight_G is not None:
                label_BG = label_BG * weight_G
            log_BG = score_BG.float().log_softmax(dim=-1)
            losses[f"loss/{name}"] = -(label_BG * log_BG).sum(dim=-1)
        return losses

    def labels(self, name: str, target_BL: Tensor) -> Tensor:
        """Return the soft labels of a head, (B, G): the shares of a member's classes are summed."""
        if not self.grouped:
            return target_BL
        size = self.sizes[name]
        label_BG = target_BL.new_zeros(len(target_BL), size)
        label_BG = label_BG.index_add(1, self.get_buffer(f"{name}_L"), target_BL)
        return label_BG * (1 - self.smoothing) + self.smoothing / size
