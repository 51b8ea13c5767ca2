"""Limits of a device: stated peak, measured speed of a large matrix product, memory in use.

Peaks are from NVIDIA's data sheets, in dense FLOP/s (without sparsity) at the boost clock; for RTX
cards from the architecture whitepapers, with float32 accumulation.
"""

from __future__ import annotations

import math
import sys
import time
from dataclasses import dataclass

import torch

T = 1e12


@dataclass(frozen=True, slots=True)
class Peak:
    """FLOP/s of a GPU: bf16, fp16, TF32 (float32 products on tensor cores) and plain float32; None
    if it has no such units."""

    bf16: float | None
    fp16: float
    tf32: float | None
    fp32: float


PEAKS = {
    "H200": Peak(989 * T, 989 * T, 494 * T, 67 * T),
    "H100 NVL": Peak(835 * T, 835 * T, 417 * T, 60 * T),
    "H100 PCIE": Peak(756 * T, 756 * T, 378 * T, 51 * T),
    "H100": Peak(989 * T, 989 * T, 494 * T, 67 * T),
    "B200": Peak(2250 * T, 2250 * T, 1125 * T, 75 * T),
    "A100": Peak(312 * T, 312 * T, 156 * T, 19.5 * T),
    "A40": Peak(149.7 * T, 149.7 * T, 74.8 * T, 37.4 * T),
    "A30": Peak(165 * T, 165 * T, 82 * T, 10.3 * T),
    "A10G": Peak(70 * T, 70 * T, 35 * T, 35 * T),
    "A10": Peak(125 * T, 125 * T, 62.5 * T, 31.2 * T),
    "L40S": Peak(362 * T, 362 * T, 183 * T, 91.6 * T),
    "L40": Peak(181 * T, 181 * T, 90.5 * T, 90.5 * T),
    "L4": Peak(121 * T, 121 * T, 60 * T, 30.3 * T),
    "RTX 5090": Peak(209.5 * T, 209.5 * T, 104.8 * T, 104.8 * T),
    "RTX 4090": Peak(165.2 * T, 165.2 * T, 82.6 * T, 82.6 * T),
    "RTX 3090": Peak(71 * T, 71 * T, 35.6 * T, 35.6 * T),
    "V100": Peak(None, 125 * T, None, 15.7 * T),
    "T4": Peak(None, 65 * T, None, 8.1 * T),
}
"""By part of the name from `torch.cuda.get_device_name`; the first match counts, so longer names
come before shorter ones."""


def device_name(device: torch.device) -> str:
    """Return the name of a device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def peak_of(name: str, dtype: torch.dtype, *, tf32: bool = True) -> float | None:
    """Return the peak FLOP/s of a GPU by its name and a precision.

    Args:
        name: From `device_name`.
        dtype: Of the products.
        tf32: Whether float32 products may use tensor cores.

    Returns:
        None for a GPU that is not in the table, and for a precision that it lacks.
    """
    words = name.upper().replace("-", " ").split()
    for known, peak in PEAKS.items():
        wanted = known.split()
        if any(words[at : at + len(wanted)] == wanted for at in range(len(words))):
            if dtype == torch.bfloat16:
                return peak.bf16
            if dtype == torch.float16:
                return peak.fp16
            return peak.tf32 if tf32 and peak.tf32 is not None else peak.fp32
    return None


def known_peak(device: torch.device, dtype: torch.dtype) -> float | None:
    """Return the peak FLOP/s that a device's vendor states; None if unknown, as for every CPU."""
    if device.type != "cuda":
        return None
    # "highest" keeps float32 products off the tensor cores.
    tf32 = torch.get_float32_matmul_precision() != "highest"
    return peak_of(device_name(device), dtype, tf32=tf32)


def product_speed(device: torch.device, dtype: torch.dtype, *, seconds: float = 1.0) -> float:
    """Measure the FLOP/s of a large matrix product on a device, with torch's current threads.

    Args:
        device: To measure.
        dtype: Of both factors.
        seconds: How long to measure, at least.

    Returns:
        FLOP/s of the best round, which other programs disturb least.
    """
    side = 2048 if device.type == "cpu" else 8192
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    best, begun = float("inf"), time.perf_counter()
    with torch.no_grad():
        for number in range(1000):
            settle(device)
            started = time.perf_counter()
            left @ right
            settle(device)
            if number:  # the first round warms up
                best = min(best, time.perf_counter() - started)
            if number > 1 and time.perf_counter() - begun > seconds:
                break
    return 2 * side**3 / best


def settle(device: torch.device) -> None:
    """Wait until a device has finished its queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def peak_memory(device: torch.device) -> float:
    """Return the most memory used so far, in bytes, without waiting for the device.

    On CUDA by tensors since `forget_peak_memory`; on MPS what its driver holds now; on a CPU by
    this whole process since it began; not a number on Windows, which does not say.
    """
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    if device.type == "mps":
        return float(torch.mps.driver_allocated_memory())
    if sys.platform == "win32":
        return math.nan
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(most if sys.platform == "darwin" else most * 1024)  # Linux counts in KiB


def forget_peak_memory(device: torch.device) -> None:
    """Reset the peak, if the device supports that."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
