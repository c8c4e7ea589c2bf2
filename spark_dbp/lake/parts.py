"""The parts in which a long step does its work, so that a killed run loses only those under way.

Imports `files`, `marks` and `table_files`; never pyspark.

::

    tables/<table>_parts/<made of>/<part>/           what a part wrote
    tables/<table>_parts/<made of>/<part>.json       its mark, written last

`<made of>` is a hash of all that the rows of a part depend on, except for the files that they come from. So
parts of an earlier attempt are taken over as far as their files are unchanged.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any
from uuid import uuid4

from spark_dbp.lake import files
from spark_dbp.lake.marks import hash_value
from spark_dbp.lake.table_files import map_in_threads


@dataclass(frozen=True, order=True)
class InputFile:
    """A file of the input as it was when its rows were counted.

    Attributes
    ----------
    path : str
    size : int
        Bytes.
    changed : int
        When, in microseconds.
    rows : int
    """

    path: str
    size: int
    changed: int
    rows: int


@dataclass(frozen=True, order=True)
class Piece:
    """Rows `start` to `stop` of a file."""

    file: InputFile
    start: int
    stop: int

    @property
    def is_whole(self) -> bool:
        """Whether it is all rows of the file."""
        return self.start == 0 and self.stop == self.file.rows


@dataclass(frozen=True)
class FinishedPart:
    """What a part wrote.

    Attributes
    ----------
    path : str
        Directory of its files.
    pieces : list of Piece
        The rows of the input that it went over.
    counts : dict of str to int
        What its writer counted.
    """

    path: str
    pieces: list[Piece]
    counts: dict[str, int] = field(default_factory=dict)


def plan_parts(
    input_files: Iterable[InputFile], done: Iterable[Piece], n_rows: int, *, most_ranges: int | None = None
) -> list[list[Piece]]:
    """Share the rows that are not done yet among parts of about `n_rows` rows.

    Parameters
    ----------
    input_files : iterable of InputFile
    done : iterable of Piece
    n_rows : int
        Rows of a part. Small files are put together, large ones are cut.
    most_ranges : int, optional
        Most parts into which a file is cut, where each of them reads it from its beginning.

    Returns
    -------
    list of list of Piece

    Examples
    --------
    >>> a, b, c = (InputFile(name, 1, 1, rows) for name, rows in (("a", 25), ("b", 4), ("c", 5)))
    >>> parts = plan_parts([a, b, c], [Piece(a, 0, 10)], 10)
    >>> [[(piece.file.path, piece.start, piece.stop) for piece in part] for part in parts]
    [[('a', 10, 17)], [('a', 17, 25)], [('b', 0, 4), ('c', 0, 5)]]
    """
    covered: dict[InputFile, list[Piece]] = {}
    for piece in done:
        covered.setdefault(piece.file, []).append(piece)
    parts: list[list[Piece]] = []
    held: list[Piece] = []
    for file in sorted(input_files):
        for start, stop in _find_gaps(file.rows, covered.get(file, ())):
            n_parts = max(1, -(-(stop - start) // max(1, n_rows)))
            n_parts = min(n_parts, most_ranges or n_parts)
            if n_parts == 1:
                if held and sum(piece.stop - piece.start for piece in held) + stop - start > n_rows:
                    parts.append(held)
                    held = []
                held.append(Piece(file, start, stop))
                continue
            cuts = [start + (stop - start) * number // n_parts for number in range(n_parts + 1)]
            parts += [[Piece(file, one, two)] for one, two in pairwise(cuts)]
    return [*parts, held] if held else parts


def _find_gaps(n_rows: int, done: Sequence[Piece]) -> list[tuple[int, int]]:
    gaps, at = [], 0
    for piece in sorted(done):
        if piece.start > at:
            gaps.append((at, piece.start))
        at = max(at, piece.stop)
    return [*gaps, (at, n_rows)] if at < n_rows else gaps


class PartStore:
    """The parts that attempts at a step have finished so far.

    Parameters
    ----------
    path : str
        Directory of the parts of a table, whatever they are made of.
    made_of : object
        All that the rows depend on, but for the files that they come from; JSON.
    """

    def __init__(self, path: str, made_of: Any) -> None:
        self.path = path
        self._folder = files.join(path, hash_value(made_of)[:16])

    def list_finished(self, current: Iterable[InputFile]) -> list[FinishedPart]:
        """Parts of earlier attempts whose files are all among `current`, unchanged. Others are deleted."""
        known, found = set(current), []
        names = files.list_names(self._folder)
        marks = [name for name in names if name.endswith(".json")]
        marked = set()
        for name, part in zip(marks, map_in_threads(self._read, marks), strict=True):
            if part is not None and all(piece.file in known for piece in part.pieces):
                found.append(part)
                marked |= {name, name.removesuffix(".json")}
        # What was being written when the run was killed, or is of no use any more. Marks go first.
        for name in sorted(set(names) - marked, key=lambda name: not name.endswith(".json")):
            files.delete(files.join(self._folder, name))
        return found

    def _read(self, name: str) -> FinishedPart | None:
        try:
            mark = json.loads(files.read_bytes(files.join(self._folder, name)))
            pieces = [Piece(InputFile(**piece.pop("file")), **piece) for piece in mark["pieces"]]
            return FinishedPart(files.join(self._folder, mark["path"]), pieces, mark["counts"])
        except (ValueError, TypeError, KeyError):
            return None  # not written by this program

    def new_directory(self) -> str:
        """Path of a directory for a part that does not exist yet."""
        return files.join(self._folder, uuid4().hex[:12])

    def mark(self, part: FinishedPart) -> None:
        """Note that a part is finished."""
        name = part.path.rpartition("/")[2]
        mark = {"path": name, "pieces": [asdict(piece) for piece in part.pieces], "counts": part.counts}
        files.write_bytes(files.join(self._folder, f"{name}.json"), json.dumps(mark).encode())

    def delete(self) -> None:
        """Delete all parts, whatever they are made of."""
        files.delete(self.path)
