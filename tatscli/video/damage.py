"""What decoding errors mean for a file, in words."""

from __future__ import annotations

from collections import Counter


def damage(errors: Counter[str]) -> str | None:
    """Say what decoding errors mean, by how often each came; None without any."""
    return f"damaged, some frames are missing: {listed(errors)}" if errors else None


def listed(errors: Counter[str]) -> str:
    return "; ".join(
        f"{why} ({times} {'times' if times > 1 else 'time'})" for why, times in errors.items()
    )
