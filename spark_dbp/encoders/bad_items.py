"""Why an item has no vector: a fixed list of short reasons. Imports nothing of the package."""

from __future__ import annotations

NULL_IMAGE = "null image"
EMPTY_IMAGE = "empty image"
UNDECODABLE = "not an image that can be decoded"
TRUNCATED = "truncated image"
TOO_LARGE = "more than max_pixels"
TOO_NARROW = "more than 200 times as long as wide"
DEEP_PIXELS = "pixels of 32 bits a channel"
NULL_TEXT = "null text"
EMPTY_TEXT = "empty text"
NO_SUCH_FILE = "file not found"
UNREADABLE = "file cannot be read"

# Beside these, the reasons of `kernels.vectors` for NaN and zero vectors.
REASONS = (
    NULL_IMAGE,
    EMPTY_IMAGE,
    UNDECODABLE,
    TRUNCATED,
    TOO_LARGE,
    TOO_NARROW,
    DEEP_PIXELS,
    NULL_TEXT,
    EMPTY_TEXT,
    NO_SUCH_FILE,
    UNREADABLE,
)


class BadItemError(Exception):
    """An item has no vector; the others are not concerned.

    Parameters
    ----------
    reason : str
        One of `REASONS`, or a short text of the caller's own: rows are counted by it.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
