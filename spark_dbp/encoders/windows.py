"""Cut a stream of Arrow batches into windows of items, whatever its batches are.

Imports numpy, pyarrow and `columns`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from spark_dbp.columns import PROBLEM

ITEM = "item"
# Rows without an item to encode (bad already) that a window may hold beside those that have one.
_MOST_IDLE_ROWS = 4096


@dataclass
class Window:
    """Rows that follow one another, and which of them have an item to encode.

    Attributes
    ----------
    pieces : list of pyarrow.RecordBatch
        The rows, as slices of what came in.
    n_rows : int
    places : list of (array, int, int)
        For each item to encode: the array it is in, its number there, and the row of the window.
    problems : list of (int, str)
        Rows that are bad already, and why.
    """

    pieces: list[pa.RecordBatch] = field(default_factory=list)
    n_rows: int = 0
    places: list[tuple[pa.Array, int, int]] = field(default_factory=list)
    problems: list[tuple[int, str]] = field(default_factory=list)

    def add(self, piece: pa.RecordBatch, good: npt.NDArray[np.int64], null_reason: str) -> None:
        """Add rows; `good` are the numbers of those with an item."""
        items = piece.column(ITEM)
        self.places += [(items, int(number), self.n_rows + int(number)) for number in good]
        if len(good) < len(piece):
            told = piece.column(PROBLEM) if PROBLEM in piece.schema.names else None
            for number in np.setdiff1d(np.arange(len(piece)), good):
                reason = told[int(number)].as_py() if told is not None else None
                self.problems.append((self.n_rows + int(number), reason or null_reason))
        self.pieces.append(piece)
        self.n_rows += len(piece)


def cut_windows(batches: Iterator[pa.RecordBatch], n_items: int, null_reason: str) -> Iterator[Window]:
    """Windows of `n_items` items each, but the last; rows that are bad already come along.

    Parameters
    ----------
    batches : iterator of pyarrow.RecordBatch
        With a column ``item``, and ``problem`` if some rows are bad already. Of any size.
    n_items : int
        To encode, in a window.
    null_reason : str
        Of rows without an item.

    Examples
    --------
    >>> batch = pa.record_batch({"item": ["a", None, "b", "c"]})
    >>> [(w.n_rows, w.problems) for w in cut_windows(iter([batch, batch]), 2, "null text")]
    [(3, [(1, 'null text')]), (2, []), (3, [(0, 'null text')])]
    """
    window = Window()
    for batch in batches:
        good = _find_items(batch)
        start = 0
        while start < len(batch):
            first = int(np.searchsorted(good, start))
            room = n_items - len(window.places)
            last = first + room  # the first item that is one too many
            end = int(good[last - 1]) + 1 if last <= len(good) else len(batch)
            end = min(end, start + n_items + _MOST_IDLE_ROWS - window.n_rows)
            end = max(end, start + 1)
            inside = good[first : int(np.searchsorted(good, end))] - start
            window.add(batch.slice(start, end - start), inside, null_reason)
            start = end
            if len(window.places) >= n_items or window.n_rows >= n_items + _MOST_IDLE_ROWS:
                yield window
                window = Window()
    if window.n_rows:
        yield window


def _find_items(batch: pa.RecordBatch) -> npt.NDArray[np.int64]:
    """Numbers of the rows that have an item and no problem."""
    has_item = np.asarray(batch.column(ITEM).is_valid().to_numpy(zero_copy_only=False), dtype=bool)
    if PROBLEM in batch.schema.names:
        has_item = has_item & np.asarray(
            batch.column(PROBLEM).is_null().to_numpy(zero_copy_only=False), dtype=bool
        )
    return np.flatnonzero(has_item)


def join_columns(window: Window) -> dict[str, Any]:
    """The columns that travel through, by name: all but the item and the problem."""
    schema = window.pieces[0].schema
    joined = {}
    for number, name in enumerate(schema.names):
        if name in (ITEM, PROBLEM):
            continue
        arrays = [piece.column(number) for piece in window.pieces]
        joined[name] = arrays[0] if len(arrays) == 1 else pa.concat_arrays(arrays)
    return joined
