"""`ema`: what a slow copy of the encoder makes of the whole clip (data2vec, V-JEPA).

The encoder's own exponential moving average sees all tokens, without gradient; its features at the
hidden ones are what is predicted. data2vec (Baevski et al. 2022, arXiv 2202.03555) averages its
last blocks, each normalised; V-JEPA (Bardes et al. 2024, arXiv 2404.08471) takes the last and
compares in L1.

Shapes: B batch, N tokens of a clip, M picked, D encoder width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tatscli.data.clip import Clip, ClipForm, pick
from tatscli.engine.part import Lesson, load_weights
from tatscli.errors import RecipeError
from tatscli.nn.averaged import Averaged, ramped
from tatscli.nn.vit import Encoder
from tatscli.recipe import schema
from tatscli.targets.base import Target
from tatscli.targets.features import smooth_l1_BM, standardised


class EmaTarget(Target):
    """Features of the encoder's moving average.

    Attributes:
        average: The slow encoder; `follow` makes it.
    """

    config: schema.EmaTarget
    rounds = True
    average: Averaged[Encoder]

    def __init__(self, config: schema.EmaTarget, *, form: ClipForm) -> None:
        super().__init__(config, form=form)
        self._encoder: tuple[Encoder, ...] = ()  # in a tuple, where torch looks for no submodule
        self._spread: Tensor | None = None

    def follow(self, encoder: Encoder) -> None:
        """Start as a copy of the encoder.

        Raises:
            RecipeError: If it has fewer blocks than are to be averaged.
        """
        if self.config.layers > encoder.depth:
            raise RecipeError(
                f"`targets`: an `ema` with `layers: {self.config.layers}` averages more blocks "
                f"than the encoder's {encoder.depth}",
                hint=f"at most {encoder.depth}; 1 takes the last block alone",
            )
        self.predicts = encoder.width
        self.average = Averaged(encoder)
        self._encoder = (encoder,)

    @torch.no_grad()
    def of(self, clip: Clip, index_BM: Tensor) -> Tensor:
        """Return the features of the tokens: (B, M, D), float32."""
        network = self.average.network
        tokens_BND = network.embed(clip.cubes())
        if self.config.norm == "final":
            features_BMD = pick(network(tokens_BND), index_BM).float()
        else:
            first = network.depth - self.config.layers
            features_BMD = torch.zeros((), device=clip.device)
            for number, block_BND in enumerate(network.by_block(tokens_BND)):
                if number >= first:
                    features_BMD = features_BMD + standardised(pick(block_BND, index_BM))
            features_BMD = standardised(features_BMD)
        self._spread = features_BMD.flatten(0, 1).std(dim=0, correction=0).mean()
        return features_BMD

    def error(self, prediction_BMD: Tensor, values_BMD: Tensor) -> Tensor:
        """Return the smooth L1 distance of each token, the mean over its features: (B, M)."""
        return smooth_l1_BM(prediction_BMD, values_BMD, self.config.beta)

    def momentum(self, done: int, total: int) -> float:
        """Return the momentum after step `done` of `total`, from 1: the last one's is the end."""
        config = self.config
        share = (done - 1) / max(1, total - 1)
        return ramped(config.momentum, config.momentum_end, share, cosine=config.ramp == "cosine")

    def after_step(self, done: int, total: int) -> Lesson:
        """Follow the encoder by a step.

        Returns:
            Metrics: `momentum`, and `spread`, the deviation of the targets' features over the
            tokens of a batch: near 0 all are alike, and the encoder has collapsed.
        """
        momentum = self.momentum(done, total)
        self.average.follow(self._encoder[0], momentum)
        metrics: dict[str, Tensor | float] = {"momentum": momentum}
        if self._spread is not None:
            metrics["spread"] = self._spread
        return Lesson(metrics)

    def tensors(self) -> dict[str, Tensor]:
        """Return the slow encoder's weights."""
        return dict(self.average.network.state_dict())

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `tensors` returned."""
        load_weights(self.average.network, tensors)
