"""`Joint`: a classifier and a masked autoencoder on one encoder.

Shapes: B batch, C channels, T frames, L classes.
"""

from __future__ import annotations

from torch import Tensor, nn

from tatscli.data.clip import Clip
from tatscli.heads.base import HeadOutput
from tatscli.masking.plan import MaskPlan
from tatscli.nn.classifier import Classifier
from tatscli.system.autoencoder import MaskedAutoencoder


class Joint(nn.Module):
    """Both in one module and one call, so that a wrapper that averages gradients over processes
    sees one forward pass for each backward pass.

    The encoder's last norm, which the classifier passes over, is the autoencoder's: it trains.

    Args:
        classifier: Scores whole clips; its encoder is shared.
        autoencoder: Sees visible tokens through the same encoder.
    """

    def __init__(self, classifier: Classifier, autoencoder: MaskedAutoencoder) -> None:
        super().__init__()
        assert classifier.encoder is autoencoder.encoder
        self.classifier = classifier
        self.autoencoder = autoencoder
        self.leaves_parameters_out = autoencoder.leaves_parameters_out
        autoencoder.encoder.norm.requires_grad_(True)

    def forward(
        self, video_BCTHW: Tensor, clip: Clip, plan: MaskPlan
    ) -> tuple[list[Tensor], HeadOutput]:
        """Score a standardised video by every head, and predict the tokens of a clip that the plan
        asks for."""
        return self.classifier(video_BCTHW, by_head=True), self.autoencoder(clip, plan)

    @property
    def layers(self) -> int:
        """The last layer, that of the heads."""
        return self.classifier.layers

    def layer_of(self, name: str) -> int:
        """Return a parameter's layer, for layer decay; the shared ones have the classifier's."""
        own = "classifier."
        return (
            self.classifier.layer_of(name.removeprefix(own))
            if name.startswith(own)
            else (self.layers)
        )
