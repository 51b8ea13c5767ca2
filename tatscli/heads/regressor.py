"""`regressor`: MAM2's, latents of hidden tokens regressed, then decoded, once for each target.

MAM2 (Song et al. 2022, arXiv 2210.05234) publishes the three parts and the two decoders; the
regressor is CAE's (arXiv 2202.03026), from the same group. Widths and depths are recipe keys.

Shapes: B batch, K visible, M predicted, D encoder width, C values predicted.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from tatscli.data.clip import Clip
from tatscli.heads.base import Auxiliary, Encode, Head, HeadOutput
from tatscli.heads.decoder import decoded_together, decoder_width
from tatscli.masking.plan import MaskPlan
from tatscli.nn.regressor import MaskedDecoder, Regressor
from tatscli.nn.vit import Encoder
from tatscli.recipe import schema


class RegressorHead(Head):
    """Cross-attention regressor as wide as the encoder, and decoders that see hidden tokens only.

    Raises:
        RecipeError: If the decoders' width is not a multiple of their heads.
    """

    config: schema.RegressorHead

    def __init__(
        self, config: schema.RegressorHead, *, encoder: Encoder, predicts: Sequence[int]
    ) -> None:
        super().__init__(config, encoder=encoder, predicts=predicts)
        self.ignores_latents = config.regressor_depth == 0
        width, heads = decoder_width(config, encoder)
        self.regressor = Regressor(
            width=encoder.width,
            depth=config.regressor_depth,
            heads=encoder.heads,
            grid=encoder.grid,
            mlp_hidden=encoder.mlp,
            layer_scale=config.layer_scale,
        )
        self.decoders = nn.ModuleList(
            MaskedDecoder(
                width=width,
                depth=config.depth,
                heads=heads,
                outs=outs,
                grid=encoder.grid,
                input_width=encoder.width,
            )
            for outs in decoded_together(config, self.predicts)
        )

    def forward(
        self, clip: Clip, latents_BKD: Tensor, plan: MaskPlan, encode: Encode
    ) -> HeadOutput:
        """Regress the latents of the hidden tokens and decode them, once in every decoder.

        With `alignment`, the mean squared distance of the regressed latents from what the encoder
        itself makes of the hidden tokens comes as an error of that name.
        """
        regressed_BMD = self.regressor(latents_BKD, plan.visible_BK, plan.predict_BM)
        predictions: list[Tensor] = []
        for decoder in self.decoders:
            predictions += decoder(regressed_BMD, plan.predict_BM)
        if not self.config.alignment:
            return HeadOutput(predictions)
        encoded_BMD = encode(plan.predict_BM)
        distance = (regressed_BMD.float() - encoded_BMD.float()).square().mean()
        return HeadOutput(predictions, {"alignment": Auxiliary(distance, self.config.alignment)})
