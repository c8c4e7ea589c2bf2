"""A dataset whose columns lie in several files: how its rows are shared among tasks, and read.

Imports `row_files` and `errors`; pyarrow inside functions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from spark_dbp.errors import InputError
from spark_dbp.io.formats.row_files import RowFile

if TYPE_CHECKING:
    import pyarrow as pa

# Most rows and bytes in a batch. Least and most bytes that a task reads, about. As they lie in the files.
_BATCH_ROWS, _BATCH_BYTES, _FEW_BYTES, _TASK_BYTES = 16_384, 8 << 20, 8 << 20, 64 << 20


@dataclass(frozen=True)
class Part:
    """Files whose rows lie beside one another.

    Attributes
    ----------
    files : tuple of RowFile
    """

    files: tuple[RowFile, ...]

    def __post_init__(self) -> None:
        first, taken = self.files[0], dict[str, str]()
        for file in self.files:
            if file.n_rows != first.n_rows:
                raise InputError(
                    f"{first.name} has {first.n_rows:,} rows, {file.name} {file.n_rows:,}: they cannot be "
                    "paired",
                    mend="fetch or write both again, from the same samples in the same order",
                )
            for name in file.columns:
                if name in taken:
                    raise InputError(
                        f"{file.name}: a column {name!r} is in {taken[name]} too",
                        mend="rename it, or name the columns that you want with input.options.columns",
                    )
                taken[name] = file.name

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return self.files[0].n_rows

    @property
    def row_bytes(self) -> int:
        """Bytes of a row in all files."""
        return sum(file.row_bytes for file in self.files)

    @property
    def paths(self) -> list[str]:
        """All files."""
        return sorted({path for file in self.files for path in file.paths})

    @property
    def columns(self) -> dict[str, pa.DataType]:
        """All columns, and their types."""
        return {name: data_type for file in self.files for name, data_type in file.columns.items()}


@dataclass(frozen=True)
class Range:
    """Rows `start` to `stop` of the part `number`."""

    number: int
    start: int
    stop: int


def find_schema(parts: Sequence[Part]) -> pa.Schema:
    """Columns of all parts. One of which a part has only nulls is of the type that it has in others.

    Raises
    ------
    InputError
        When two parts have other columns, or a column is of another type.
    """
    import pyarrow as pa

    first = dict(parts[0].columns)
    for part in parts[1:]:
        columns = part.columns
        for name, data_type in columns.items():
            if first.get(name) == pa.null():
                first[name] = data_type
        names = sorted(set(first) ^ set(columns)) or [
            name for name, data_type in first.items() if columns[name] not in (data_type, pa.null())
        ]
        if not names:
            continue
        name = names[0]
        one, other = (str(columns.get(name, "not there")) for columns in (first, part.columns))
        raise InputError(
            f"{part.files[-1].name}: column {name!r} is {other}, and {one} in {parts[0].files[-1].name}",
            mend="write the files alike, or name the columns that you want with input.options.columns",
        )
    return pa.schema([(name, pa.string() if t == pa.null() else t) for name, t in first.items()])


def share_rows(parts: Sequence[Part], n_tasks: int = 1, few_bytes: int = _FEW_BYTES) -> list[list[Range]]:
    """Rows for each of about `n_tasks` tasks, but for more or fewer where these would be large or tiny.

    A row group is read by one task, for it would be decoded by each. An array that is compressed as well.

    Examples
    --------
    >>> from spark_dbp.io.formats.arrays import ArrayPlace
    >>> from spark_dbp.io.formats.row_files import ArrayFile
    >>> part = Part((ArrayFile(ArrayPlace("a.npy", "<f4", (5000, 1000), 128), "embedding"),))
    >>> share_rows([part], 2)
    [[Range(number=0, start=0, stop=2500)], [Range(number=0, start=2500, stop=5000)]]
    """
    n_bytes = sum(part.n_rows * max(1, part.row_bytes) for part in parts)
    task_bytes = max(few_bytes, min(_TASK_BYTES, -(-n_bytes // n_tasks)))
    tasks: list[list[Range]] = []
    held = task_bytes
    for number, part in enumerate(parts):
        row_bytes = max(1, part.row_bytes)
        # Of several files that may not be cut anywhere, the one with the fewest pieces.
        cuts = min((file.ends for file in part.files if file.ends), key=len, default=())
        step = max(1, task_bytes // row_bytes)
        start = 0
        for stop in cuts or (*range(step, part.n_rows, step), part.n_rows):
            size = (stop - start) * row_bytes
            if not tasks or held + size > task_bytes:
                tasks.append([])
                held = 0
            tasks[-1].append(Range(number, start, stop))
            held += size
            start = stop
    return tasks


def read_range(part: Part, place: Range, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Batches of some rows of a part, with the columns `names`.

    Raises
    ------
    InputError
        When a file ends early, or holds what it should not.
    """
    import pyarrow as pa

    row_bytes = 1
    with ExitStack() as opened:
        columns = []
        for file in part.files:
            wanted = [name for name in names if name in file.columns]
            if not wanted:
                continue
            columns.append(opened.enter_context(file.open(place.start, place.stop, wanted)))
            row_bytes += file.row_bytes
        at_once = max(1, min(_BATCH_ROWS, _BATCH_BYTES // row_bytes))
        for start in range(place.start, place.stop, at_once):
            n_rows = min(at_once, place.stop - start)
            found = {name: value for one in columns for name, value in one.read(n_rows).items()}
            yield pa.RecordBatch.from_pydict({name: found[name] for name in names})
