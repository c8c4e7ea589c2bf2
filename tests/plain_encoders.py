"""Encoders of a few lines, as a user may bring them (``python:plain_encoders.WordCounts``).

They write down what they encode, so that tests see what was encoded again.
"""

from __future__ import annotations

import os
import time
import zlib
from pathlib import Path

import numpy as np


class _Noted:
    def __init__(
        self,
        notes: str = "",
        stop_after: int = 0,
        files: tuple[str, ...] = (),
        seconds: float = 0,
        api_token: str = "",
    ) -> None:
        self.notes, self.stop_after, self.files, self.seconds = notes, stop_after, list(files), seconds

    def note(self, items: list) -> None:
        time.sleep(self.seconds * len(items))
        if not self.notes:
            return
        with Path(self.notes, str(os.getpid())).open("a") as file:
            for item in items:
                file.write(f"{zlib.crc32(item.encode() if isinstance(item, str) else item.tobytes())}\n")
        if self.stop_after and count_notes(self.notes) >= self.stop_after:
            raise RuntimeError("the encoder was told to stop here")


def count_notes(folder: str | Path) -> int:
    """How many items were encoded, without those with which encoders are tried."""
    return sum(len(path.read_text().splitlines()) for path in Path(folder).iterdir())


class WordCounts(_Noted):
    """Texts: words, hashed into 32 dimensions."""

    def __call__(self, texts: list[str]) -> np.ndarray:
        self.note(texts)
        found = np.zeros((len(texts), 32), np.float32)
        for row, text in zip(found, texts, strict=True):
            row[0] = 0.5
            for word in text.split():
                row[zlib.crc32(word.encode()) % 32] += 1
        return found


class Thumbnails(_Noted):
    """Images: 4 x 4 pixels, and a constant."""

    def __call__(self, images: list) -> np.ndarray:
        self.note([np.asarray(image) for image in images])
        small = [np.asarray(image.resize((4, 4)), np.float32).ravel() for image in images]
        return np.concatenate([np.stack(small), np.full((len(images), 1), 50, np.float32)], axis=1)


class Wrong:
    """Returns what no encoder should."""

    def __init__(self, how: str) -> None:
        self.how = how

    def __call__(self, items: list) -> object:
        n = len(items)
        return {
            "rows": np.ones((n + 1, 4), np.float32),
            "shape": np.ones((n, 4, 4), np.float32),
            "flat": np.ones(n, np.float32),
            "nan": np.full((n, 4), np.nan, np.float32),
            "list": [[1.0]] * n,
            "text": "no array",
            "none": None,
        }[self.how]


class WordsAsThumbnails(_Noted):
    """Texts: the colour that they name, as `Thumbnails` sees an image of that colour."""

    def __call__(self, texts: list[str]) -> np.ndarray:
        self.note(texts)
        of = {"red": (200, 30, 30), "green": (20, 180, 40), "blue": (10, 20, 220)}
        found = [next((of[word] for word in text.split() if word in of), (99, 99, 99)) for text in texts]
        return np.stack([np.array([*(list(colour) * 16), 50], np.float32) for colour in found])
