"""Write the clusters of SemDeDup: an array of texts a cluster. Imports `columns`, `key_files` and `errors`.

::

    sorted_clusters/cluster_7.npy    m x 4 texts: key, row, distance to the centroid, cluster

Rows come sorted by cluster, then from the farthest on. The width of an array and its length are in its
header, so they are asked of Spark first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from spark_dbp.columns import CLUSTER_ID, DISTANCE
from spark_dbp.exchange.key_files import Refusals, find_no_text, make_header
from spark_dbp.exchange.written_keys import WRITTEN

if TYPE_CHECKING:
    import pyarrow as pa

ROW = "row"
# Numpy makes texts of numbers this long, and what reads these files cuts keys to it.
LEAST_WIDTH = 32
ENDS_WITH_ZERO = "end with a character of code 0, which numpy's texts cannot"
_AT_ONCE = 65_536


def write_clusters(
    batches: Iterable[pa.RecordBatch],
    folder: Path,
    sizes: Mapping[int, tuple[int, int]],
    clusters: Iterable[int],
    *,
    as_bytes: bool,
) -> int:
    """Write an array for each cluster.

    Parameters
    ----------
    batches : iterable of RecordBatch
        ``written`` BINARY, ``cluster_id`` INT, ``distance_to_centroid`` FLOAT, and ``row`` BIGINT, which may
        be null; sorted by cluster.
    folder : Path
    sizes : mapping of int to (int, int)
        By cluster the number of its rows, and the width of its longest key in characters or bytes.
    clusters : iterable of int
        All clusters; those that have no rows get an empty array.
    as_bytes : bool
        Whether the texts are bytes (``S``), not characters (``U``).

    Returns
    -------
    int
        Number of rows.

    Raises
    ------
    InputError
        When keys cannot be held by numpy's texts.
    """
    place = folder / "sorted_clusters"
    place.mkdir()
    refusals, n_rows, at, stream = Refusals("semdedup"), 0, -1, None
    for cluster in clusters:
        if cluster not in sizes:
            np.save(place / f"cluster_{cluster}.npy", np.array([]))
    try:
        for batch in batches:
            n_rows += batch.num_rows
            keys = batch.column(WRITTEN)
            for what, is_bad in (find_no_text(keys) if not as_bytes else {}).items():
                refusals.note(what, keys.filter(is_bad))
            _note_zeros(keys, refusals)
            if refusals:
                continue
            ids = batch.column(CLUSTER_ID).to_numpy()
            starts = [0, *(np.flatnonzero(np.diff(ids)) + 1).tolist()]
            for start, stop in zip(starts, [*starts[1:], len(ids)], strict=True):
                if ids[start] != at:
                    if stream is not None:
                        stream.close()
                    at = int(ids[start])
                    stream = (place / f"cluster_{at}.npy").open("wb")
                    stream.write(make_header(_find_dtype(sizes[at][1], as_bytes), sizes[at][0], 4))
                _write_rows(stream, batch.slice(start, stop - start), _find_dtype(sizes[at][1], as_bytes))
    finally:
        if stream is not None:
            stream.close()
    refusals.raise_any(n_rows)
    return n_rows


def _find_dtype(width: int, as_bytes: bool) -> np.dtype[Any]:
    return np.dtype(f"{'S' if as_bytes else '<U'}{max(LEAST_WIDTH, width)}")


def _note_zeros(keys: pa.Array, refusals: Refusals) -> None:
    import pyarrow.compute as pc

    has_zero = pc.match_substring_regex(keys, r"\x00\z")
    if pc.any(has_zero).as_py():
        refusals.note(ENDS_WITH_ZERO, keys.filter(has_zero))


def _write_rows(stream: BinaryIO | None, rows: pa.RecordBatch, dtype: np.dtype[Any]) -> None:
    import pyarrow as pa

    assert stream is not None
    for start in range(0, rows.num_rows, _AT_ONCE):
        part = rows.slice(start, _AT_ONCE)
        keys = part.column(WRITTEN) if dtype.kind == "S" else part.column(WRITTEN).cast(pa.string())
        texts = np.empty((part.num_rows, 4), dtype)
        texts[:, 0] = keys.to_pylist()
        numbers = part.column(ROW).to_pylist()
        texts[:, 1] = ["" if number is None else str(number) for number in numbers]
        # The shortest digits that are this number of 32 bits.
        texts[:, 2] = part.column(DISTANCE).to_numpy().astype("U32")
        texts[:, 3] = part.column(CLUSTER_ID).to_numpy().astype("U32")
        stream.write(texts.tobytes())
