"""Tokenizers: how frames become codes. A new quantizer is a file, its recipe section and a line
here; tokenizers made elsewhere are adapters, opened by `open_tokenizer`."""

from __future__ import annotations

from tatscli.tokenizer.fsq import FiniteScalar
from tatscli.tokenizer.quantize import Quantizer
from tatscli.tokenizer.vq import Codebook

QUANTIZERS: dict[str, type[Quantizer]] = {
    "vq": Codebook,
    "fsq": FiniteScalar,
}
