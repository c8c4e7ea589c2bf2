"""Encoders as a user would write them, good and bad ones, for ``python:sample_encoders.NAME``."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np


def look(image: Any) -> np.ndarray:
    """Six numbers of a picture: mean and deviation of each channel."""
    pixels = np.asarray(image, dtype=np.float64)
    return np.concatenate([pixels.mean((0, 1)) + 1, pixels.std((0, 1)) + 1])


class Means:
    """Takes a list of PIL images."""

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale
        self.device = None

    def load(self, device: str) -> None:
        self.device = device

    def __call__(self, images: list) -> np.ndarray:
        assert self.device is not None
        assert all(image.mode == "RGB" for image in images)
        return np.stack([look(image) for image in images]) * self.scale


class Prepared:
    """Prepares arrays on the reading threads; notes what it was called with."""

    batch_size = 4
    calls: list = []  # noqa: RUF012
    alive = 0
    most_alive = 0
    lock = threading.Lock()
    loads = 0

    def load(self, device: str) -> None:
        type(self).loads += 1

    def prepare(self, image: Any) -> np.ndarray:
        return np.asarray(image.resize((8, 8)), np.float32).transpose(2, 0, 1) + 1

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        assert isinstance(pixels, np.ndarray) and pixels.flags.c_contiguous
        self.calls.append(len(pixels))
        return pixels.mean((2, 3))


class Lengths:
    """Takes texts; the vector tells the length and the first letter."""

    batch_size = 4
    batches: list = []  # noqa: RUF012

    def __call__(self, texts: list[str]) -> np.ndarray:
        self.batches.append([len(text) for text in texts])
        return np.array([[len(text), ord(text[0]), 1.0] for text in texts])


class Small(Lengths):
    """Has memory for three items only."""

    def __call__(self, texts: list[str]) -> np.ndarray:
        if len(texts) > 3:
            import torch

            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return super().__call__(texts)


class Tiny:
    def __call__(self, texts: list[str]) -> np.ndarray:
        raise MemoryError


class Weird:
    """Fails for one item; NaN, Inf and zeros for others."""

    def __call__(self, texts: list[str]) -> np.ndarray:
        if "fail" in texts:
            raise ValueError("weird item")
        values = {"nan": np.nan, "inf": np.inf, "zero": 0.0}
        return np.array([[values.get(text, 1.0)] * 3 for text in texts])


class WithFile:
    def __init__(self, path: str) -> None:
        self.files = [path]

    def __call__(self, texts: list[str]) -> np.ndarray:
        return np.ones((len(texts), 2))


class OneRowLess:
    def __call__(self, items: list) -> np.ndarray:
        return np.ones((len(items) - 1, 3))


class ThreeAxes:
    def __call__(self, items: list) -> np.ndarray:
        return np.ones((len(items), 3, 3))


class AList:
    def __call__(self, items: list) -> list:
        return [[1.0, 2.0] for _ in items]


class NotANumber:
    def __call__(self, items: list) -> np.ndarray:
        return np.full((len(items), 3), np.nan)


class Words:
    def __call__(self, items: list) -> np.ndarray:
        return np.array([["a", "b"]] * len(items))


class Growing:
    def __init__(self) -> None:
        self.dimension = 2

    def __call__(self, items: list) -> np.ndarray:
        self.dimension += 1
        return np.ones((len(items), self.dimension))


class Fails:
    def __call__(self, items: list) -> np.ndarray:
        raise ZeroDivisionError("by nothing")


class Shapes:
    def prepare(self, image: Any) -> np.ndarray:
        return np.asarray(image, np.float32)

    def __call__(self, items: Any) -> np.ndarray:
        return np.ones((len(items), 3))


class NotCallable:
    pass


not_a_class = 3
