"""Trained tokenizers, opened by what a recipe says of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from tatscli.engine.checkpoint import Checkpoint, restore_part
from tatscli.engine.part import Weights
from tatscli.errors import CheckpointError
from tatscli.nn.load import open_checkpoint
from tatscli.recipe import schema
from tatscli.tokenizer.base import Tokenizer, TrainedTokenizer
from tatscli.tokenizer.build import build_tokenizer
from tatscli.tokenizer.diffusers import open_diffusers
from tatscli.tokenizer.taming import open_taming

OPENERS: dict[str, Callable[[Path], tuple[Tokenizer, str]]] = {
    "run": lambda path: open_run(path)[:2],
    "diffusers": open_diffusers,
    "taming": open_taming,
}
"""By `tokenizer.kind`: from a path to a tokenizer and the SHA-256 of its weights."""


def open_tokenizer(source: schema.TrainedTokenizer) -> tuple[Tokenizer, str]:
    """Open a trained tokenizer, in evaluation mode and without gradient.

    Returns:
        The tokenizer on the CPU, and the SHA-256 of its weights.

    Raises:
        CheckpointError: If there is none at `source.path`, or it is of another kind.
    """
    # Its weights are read, not made: neither where the system around it is built, nor with random
    # numbers that its other parts would miss.
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        tokenizer, digest = OPENERS[source.kind](Path(source.path))
    return tokenizer.eval().requires_grad_(False), digest


def open_run(path: Path) -> tuple[TrainedTokenizer, str, Checkpoint]:
    """Open a tokenizer that `tats pretrain` trained.

    Raises:
        CheckpointError: If `path` holds no such run.
    """
    hint = (
        "train one with `tats pretrain tokenizer/vq`, or one with scores with "
        "`tats pretrain lvmae/tokenizer`"
    )
    if not path.exists():
        raise CheckpointError(f"there is no tokenizer at `{path}`", hint=hint)
    run = open_checkpoint(path)
    if run.checkpoint.kind != "tokenizer" or run.recipe.tokenizer is None:
        raise CheckpointError(
            f"`{path}` is a {run.checkpoint.kind} run, not a tokenizer", hint=hint
        )
    tokenizer = build_tokenizer(run.recipe)
    restore_part("model", Weights(tokenizer), run.checkpoint)
    return tokenizer, run.checkpoint.file_digest(), run.checkpoint
