"""tats: a command-line toolkit for masked video modelling.

`tatscli.load(PATH)` gives a trained run as a torch module (`tatscli.api`).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from tatscli.api import VideoModel

__version__ = "0.1.0"


def load(
    path: str | os.PathLike[str], *, device: str | torch.device = "auto", checkpoint: str = "last"
) -> VideoModel:
    """Load a trained run, ready to use; see `tatscli.api.load`."""
    from tatscli.api import load as load_model  # here: importing tatscli imports no torch

    return load_model(path, device=device, checkpoint=checkpoint)
