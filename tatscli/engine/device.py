"""Which device and which precision, each with its reason."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from tatscli.errors import UsageError


def choose_device(choice: str) -> tuple[torch.device, str]:
    """Return the device for `run.device` and why it was chosen.

    Raises:
        UsageError: If a named device is not there.
    """
    if choice == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda"), "CUDA is available"
        if torch.backends.mps.is_available():
            return torch.device("mps"), "MPS is available"
        return torch.device("cpu"), "no GPU was found"
    there = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if not there[choice]:
        raise UsageError(
            f"`run.device: {choice}` is not available on this machine",
            hint="`tats env` shows what torch sees; `run.device=auto` takes what is there",
        )
    return torch.device(choice), "the recipe names it"


def choose_precision(choice: str, device: torch.device) -> tuple[torch.dtype, str]:
    """Return the autocast dtype for `run.precision` and why it was chosen."""
    if choice == "bf16":
        return torch.bfloat16, "the recipe names it"
    if choice == "fp32":
        return torch.float32, "the recipe names it"
    if device.type == "cuda" and torch.cuda.is_bf16_supported():
        return torch.bfloat16, "the GPU has bf16"
    return torch.float32, f"the default on {device.type}"


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """Return the context a forward pass runs in."""
    if dtype == torch.float32:
        return nullcontext()
    # A weight cast without gradient (maskers look at embeddings so) must not be reused with one.
    return torch.autocast(device.type, dtype=dtype, cache_enabled=False)


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """Return a context that autocast does not reach into; on a device without it, nothing."""
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def autocast_now(device: torch.device) -> AbstractContextManager[object]:
    """Return a context that brings back the autocast of this moment."""
    kind = device.type
    if not torch.amp.is_autocast_available(kind):
        return nullcontext()
    dtype, enabled = torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)
    return torch.autocast(kind, dtype=dtype, enabled=enabled)
