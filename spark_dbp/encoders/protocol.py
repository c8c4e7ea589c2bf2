"""What an encoder is to the rest of the package. Imports numpy and `errors`."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from spark_dbp.errors import ConfigError

FloatArray = npt.NDArray[np.float32]


class Encoder(Protocol):
    """A model, loaded on a device.

    Attributes
    ----------
    name : str
        As the user gave it, for messages.
    device : str
        ``cpu``, ``cuda:N`` or ``mps``.
    dtype : str
        In which the model computes.
    batch_size : int
        Items at once where the user names no number.
    """

    name: str
    device: str
    dtype: str
    batch_size: int

    def prepare(self, item: Any) -> Any:
        """One item as `encode` takes it; called on several threads at once.

        Parameters
        ----------
        item : PIL.Image.Image or str
            An image is RGB.

        Returns
        -------
        ndarray of float32, shape (channels, height, width), or str
            A ``python:`` encoder may return anything.
        """
        ...

    def encode(self, batch: Any) -> FloatArray:
        """The embeddings of a batch; called on one thread.

        Parameters
        ----------
        batch : ndarray of float32, shape (n, channels, height, width), or list of str
            What `prepare` returned, n items.

        Returns
        -------
        ndarray of float32, shape (n, dim)
        """
        ...


def check_options(name: str, options: Any, known: tuple[str, ...]) -> None:
    """Refuse options that an encoder does not know.

    Raises
    ------
    ConfigError
    """
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ConfigError(
            f"embed.options.{unknown[0]} means nothing to the encoder {name}",
            mend=f"it takes: {', '.join(known) or 'no options'}",
        )


def check_embeddings(name: str, found: Any, n_items: int, dimension: int | None) -> FloatArray:
    """What an encoder returned as a float32 matrix, refused where it is none.

    Parameters
    ----------
    name : str
        Of the encoder.
    found : object
        What it returned.
    n_items : int
        How many items it was given.
    dimension : int, optional
        Of the embeddings before, if there are any.

    Returns
    -------
    ndarray of float32, shape (n_items, dim)

    Raises
    ------
    ConfigError

    Examples
    --------
    >>> check_embeddings("python:m.E", np.zeros((2, 3)), 2, None).shape
    (2, 3)
    >>> check_embeddings("python:m.E", np.zeros((1, 3)), 2, None)
    Traceback (most recent call last):
    spark_dbp.errors.ConfigError: ...
    """
    mend = f"embed.encoder must return one array of numbers of shape ({n_items}, dim) for {n_items} items"
    if not isinstance(found, np.ndarray):
        raise ConfigError(f"the encoder {name} returned a {type(found).__name__}, not an array", mend=mend)
    if found.ndim != 2 or found.shape[1] == 0:
        raise ConfigError(f"the encoder {name} returned an array of shape {found.shape}", mend=mend)
    if len(found) != n_items:
        raise ConfigError(f"the encoder {name} returned {len(found)} rows for {n_items} items", mend=mend)
    if found.dtype.kind not in "fiu":
        raise ConfigError(f"the encoder {name} returned an array of {found.dtype}", mend=mend)
    if dimension is not None and found.shape[1] != dimension:
        raise ConfigError(
            f"the encoder {name} returned embeddings of {found.shape[1]} values after some of {dimension}",
            mend="all embeddings of one encoder must have the same number of values",
        )
    return np.ascontiguousarray(found, dtype=np.float32)
