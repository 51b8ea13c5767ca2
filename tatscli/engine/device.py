"""The choice of device and precision, with reasons."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from pathlib import Path

import torch

from tatscli.errors import UsageError

CPU_BF16 = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16", "svebf16")
"""What torch and /proc/cpuinfo call the instructions that multiply bf16 numbers."""


def choose_device(choice: str) -> tuple[torch.device, str]:
    """Return the device for `run.device` and why it was chosen.

    Raises:
        UsageError: If it does not name a device, or the device does not exist.
    """
    if choice == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda"), "CUDA is available"
        if torch.backends.mps.is_available():
            return torch.device("mps"), "MPS is available"
        return torch.device("cpu"), "no GPU was found"
    kind, _, number = choice.partition(":")
    there = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": torch.backends.mps.is_available()}
    numbered = kind == "cuda" and number.isdecimal()
    if kind not in there or (":" in choice and not numbered):
        raise UsageError(
            f"`{choice}` is not a device; choose `auto`, `cpu`, `cuda`, `mps` or `cuda:N`",
            hint="`cuda:0` is the first GPU that torch sees",
        )
    if not there[kind]:
        raise UsageError(
            f"`run.device: {choice}` is not available on this machine",
            hint="`tats env` shows what torch sees; `run.device=auto` takes what is there",
        )
    if numbered and int(number) >= there[kind]:
        count = there[kind]
        names = "only `cuda:0`" if count == 1 else f"`cuda:0` to `cuda:{count - 1}`"
        raise UsageError(
            f"`run.device: {choice}` does not exist: torch sees {count} "
            f"GPU{'' if count == 1 else 's'}, {names}",
            hint="`CUDA_VISIBLE_DEVICES` limits which GPUs torch sees, and numbers them from 0",
        )
    return torch.device(kind, int(number)) if numbered else torch.device(kind), (
        "set in the recipe"
    )


def choose_precision(choice: str, device: torch.device) -> tuple[torch.dtype, str]:
    """Return the autocast dtype for `run.precision` and why it was chosen.

    On a CPU `auto` is fp32, which is fastest for small models and gives the same numbers on every
    CPU; where bf16 may be faster, the reason says so.
    """
    named = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
    if choice != "auto":
        return named[choice], "set in the recipe"
    if device.type == "cuda":
        if computes_bf16(device):
            return torch.bfloat16, "the GPU supports bf16"
        return torch.float32, "the GPU does not support bf16; `run.precision=fp16` may be faster"
    reason = f"the default on {device.type}"
    if device.type == "cpu" and computes_bf16(device):
        reason += ", which also supports bf16: faster for models from ViT-tiny on"
    return torch.float32, reason


def slow_precision(dtype: torch.dtype, device: torch.device) -> str | None:
    """Say that a precision is slower on a device than fp32, if it is."""
    if dtype == torch.float16 and device.type == "cpu":
        return "`run.precision: fp16` is many times slower than fp32 on a CPU: for tests only"
    if dtype == torch.bfloat16 and device.type in ("cpu", "cuda") and not computes_bf16(device):
        what = "CPU" if device.type == "cpu" else "GPU"
        return (
            f"`run.precision: bf16` is slower than fp32 here: this {what} lacks bf16 instructions"
        )
    return None


def set_tf32(allowed: bool) -> None:
    """Let GPUs multiply float32 matrices, and convolve, as TF32; or not."""
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed


def computes_bf16(device: torch.device) -> bool:
    """Whether a GPU or CPU has instructions for bf16; torch emulates it elsewhere."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and any(one in cpu_features() for one in CPU_BF16)


@lru_cache(maxsize=1)
def cpu_features() -> frozenset[str]:
    """Name the features of this machine's CPU, as far as torch or Linux tells them."""
    if hasattr(torch.cpu, "get_capabilities"):  # torch 2.12
        return frozenset(name for name, there in torch.cpu.get_capabilities().items() if there)
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:
        return frozenset()
    lines = (line.partition(":") for line in text.splitlines())
    return frozenset(
        word
        for key, _, words in lines
        if key.strip() in ("flags", "Features")
        for word in words.split()
    )


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


def at_least_float32(value: torch.Tensor) -> torch.Tensor:
    """Return half-precision numbers as float32, others as they are: for softmax, norms and losses,
    which a GPU's autocast widens by itself and a CPU's does not."""
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value


def autocast_now(device: torch.device) -> AbstractContextManager[object]:
    """Return a context that brings back the autocast of this moment."""
    kind = device.type
    if not torch.amp.is_autocast_available(kind):
        return nullcontext()
    dtype, enabled = torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)
    return torch.autocast(kind, dtype=dtype, enabled=enabled)
