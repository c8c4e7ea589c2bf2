"""Find pairs of texts that share a band. Imports numpy and `signatures`.

A **band** is the hash of some values of a text's signature. All texts with the same band form a **bucket**.
An **entry** says that one text has one band.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from spark_dbp.kernels.signatures import bound_similarities

# Each text is compared with at most this many texts of its bucket: those that follow it by id. Without a
# limit, the pairs of a bucket would grow with the square of its size.
NEIGHBOURS = 100
# Columns of an entry beside the band: the id, and what `bound_similarities` needs.
OF_TEXT = ["id", "n_shingles", "parity"]
# Bytes of an entry: three longs and an integer.
ENTRY_BYTES = 28
# Rounding can put an upper bound below the similarity, by at most this much.
ROUNDING = 1e-9

Entries = dict[str, "npt.NDArray[Any]"]


def enter_bands(of_text: Mapping[str, npt.NDArray[Any]], bands: npt.NDArray[np.int64]) -> Entries:
    """One entry for each band of each text.

    Parameters
    ----------
    of_text : mapping of str to ndarray of shape (n,)
        ``id``, ``n_shingles``, ``parity``.
    bands : ndarray of shape (n, n_bands), int64

    Returns
    -------
    dict of str to ndarray of shape (n * n_bands,)
        ``band``, and the three columns of the text.

    Examples
    --------
    >>> of_text = {"id": np.array([1, 2]), "n_shingles": np.array([4, 5]), "parity": np.array([0, 1])}
    >>> entries = enter_bands(of_text, np.array([[7, 8], [7, 9]]))
    >>> entries["band"].tolist(), entries["id"].tolist()
    ([7, 8, 7, 9], [1, 1, 2, 2])
    """
    repeated = {name: np.repeat(of_text[name], bands.shape[1]) for name in OF_TEXT}
    return {"band": bands.reshape(-1), **repeated}


def pair_in_buckets(
    entries: Entries, threshold: float
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Pairs of ids that share a band, as arrays. A pair that shares several bands comes several times.

    Parameters
    ----------
    entries : dict of str to ndarray
        From `enter_bands`. Each band that occurs has all its entries here.
    threshold : float
        Pairs whose upper bound (`bound_similarities`) is below it are left out.

    Yields
    ------
    a, b : ndarray of int64
        a is below b, and b is one of the `NEIGHBOURS` texts that follow a in the bucket.

    Examples
    --------
    >>> of_text = {"id": np.array([3, 1, 2]), "n_shingles": np.full(3, 9), "parity": np.array([0, 0, 63])}
    >>> entries = enter_bands(of_text, np.array([[7], [7], [7]]))
    >>> [(a.tolist(), b.tolist()) for a, b in pair_in_buckets(entries, 0.8)]
    [([], []), ([1], [3])]
    """
    order = np.argsort(entries["band"])
    band = entries["band"][order]
    # Most bands occur once. Only the others need their ids sorted.
    same = band[1:] == band[:-1]
    order = order[np.concatenate(([False], same)) | np.concatenate((same, [False]))]
    order = order[np.lexsort((entries["id"][order], entries["band"][order]))]
    band, ids, n_shingles, parity = (entries[name][order] for name in ("band", *OF_TEXT))
    for distance in range(1, NEIGHBOURS + 1):
        a = np.flatnonzero(band[distance:] == band[:-distance])
        if not len(a):
            return
        b = a + distance
        bounds = bound_similarities(n_shingles[a], parity[a], n_shingles[b], parity[b])
        likely = (bounds > threshold - ROUNDING) & (ids[a] != ids[b])
        yield ids[a[likely]], ids[b[likely]]
