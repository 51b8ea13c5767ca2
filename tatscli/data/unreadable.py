"""Errors of a store or the JPEG decoder on unreadable bytes, as one error."""

from __future__ import annotations

from tatscli.errors import DataError, DecodeError

UNREADABLE = (DataError, OSError, RuntimeError, ValueError)


def unreadable(name: str, error: Exception) -> DecodeError:
    """Return the error that names the video, which training replaces by its neighbour."""
    hint = error.hint if isinstance(error, DataError) else None
    return DecodeError(f"`{name}` cannot be read: {error}", hint)
