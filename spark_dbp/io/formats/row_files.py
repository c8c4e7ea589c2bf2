"""Files whose rows lie beside those of other files: arrays, Parquet, lines of text.

Imports `arrays`, `parquet_files`, `errors`; pyarrow inside functions.

Each is opened at some row and then gives its columns, so many rows at a time.
"""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from spark_dbp.errors import InputError
from spark_dbp.io.formats.arrays import ArrayPlace, RowReader, find_arrow_type, open_file, to_arrow
from spark_dbp.lake import files, parquet_files

if TYPE_CHECKING:
    import pyarrow as pa

# Bytes of a batch that is read of a Parquet file.
_BATCH_ROWS, _BATCH_BYTES = 16_384, 16 << 20
# Lines of a text between two places that are noted.
_NOTED_LINES = 65_536


class Columns(Protocol):
    """An open file."""

    def read(self, n_rows: int) -> dict[str, pa.Array]:
        """The next rows."""
        ...


class Opened:
    """An open file whose rows a function reads."""

    def __init__(self, read: Callable[[int], dict[str, pa.Array]]) -> None:
        self.read = read


class RowFile(ABC):
    """A file, or what else has a row for each of some samples.

    Attributes
    ----------
    n_rows : int
    path : str
    columns : mapping of str to DataType
        Columns that it has, and their types.
    """

    n_rows: int
    path: str
    columns: Mapping[str, pa.DataType]

    @property
    def name(self) -> str:
        """For messages."""
        return self.path

    @property
    def paths(self) -> tuple[str, ...]:
        """All files that are read for it."""
        return (self.path,)

    @property
    def row_bytes(self) -> int:
        """Bytes of a row, where it has large ones."""
        return 0

    @property
    def ends(self) -> tuple[int, ...]:
        """Rows before which several tasks may cut it, the last one its end; empty where that is anywhere."""
        return ()

    @abstractmethod
    def open(self, start: int, stop: int, names: Sequence[str]) -> AbstractContextManager[Columns]:
        """Columns `names`, from the row `start`; no row from `stop` on will be read."""


@dataclass(frozen=True)
class PlacedFile(RowFile):
    """A file whose rows are those of an array."""

    place: ArrayPlace

    @property
    def name(self) -> str:
        """For messages."""
        return self.place.name

    @property
    def path(self) -> str:  # type: ignore[override]
        """The file."""
        return self.place.path

    @property
    def n_rows(self) -> int:  # type: ignore[override]
        """Number of rows."""
        return self.place.n_rows

    @property
    def row_bytes(self) -> int:
        """As `RowFile` says."""
        return self.place.row_bytes


@dataclass(frozen=True)
class ArrayFile(PlacedFile):
    """An array, as the column `column`."""

    column: str

    @property
    def ends(self) -> tuple[int, ...]:
        """As `RowFile` says: what is compressed is read from its beginning."""
        return () if self.place.member is None else (self.n_rows,)

    @property
    def columns(self) -> dict[str, pa.DataType]:  # type: ignore[override]
        """The column, and its type."""
        return {self.column: find_arrow_type(self.place)}

    @contextmanager
    def open(self, start: int, stop: int, names: Sequence[str]) -> Iterator[Columns]:
        """As `RowFile` says."""
        with RowReader(self.place, start) as rows:
            yield Opened(lambda n_rows: {self.column: to_arrow(rows.read(n_rows), self.name)})


@dataclass(frozen=True)
class Constant(RowFile):
    """One value for all rows, as the column `column`: of what a folder is named."""

    column: str
    value: int
    n_rows: int
    path: str

    @property
    def columns(self) -> dict[str, pa.DataType]:  # type: ignore[override]
        """The column, and its type."""
        import pyarrow as pa

        return {self.column: pa.int32()}

    @contextmanager
    def open(self, start: int, stop: int, names: Sequence[str]) -> Iterator[Columns]:
        """As `RowFile` says."""
        import pyarrow as pa

        yield Opened(
            lambda n_rows: {self.column: pa.array(np.full(n_rows, self.value, np.int32), pa.int32())}
        )


@dataclass(frozen=True)
class TableFile(RowFile):
    """A Parquet file.

    Attributes
    ----------
    path : str
    groups : tuple of int
        Rows of its row groups.
    columns : dict of str to DataType
        Columns that are taken, by the names that they get, and the types that they get.
    given : dict of str to str
        Their names in the file, where these are others.
    bits : tuple of str
        Those that hold the bits of float16 as whole numbers.
    """

    path: str
    groups: tuple[int, ...]
    columns: Mapping[str, pa.DataType]
    given: Mapping[str, str] = field(default_factory=dict)
    bits: tuple[str, ...] = ()

    @property
    def n_rows(self) -> int:  # type: ignore[override]
        """Number of rows."""
        return sum(self.groups)

    @property
    def ends(self) -> tuple[int, ...]:
        """As `RowFile` says: a row group is decoded as a whole."""
        return tuple(np.cumsum([rows for rows in self.groups if rows]).tolist())

    @contextmanager
    def open(self, start: int, stop: int, names: Sequence[str]) -> Iterator[Columns]:
        """As `RowFile` says."""
        ends = np.cumsum(self.groups)
        first, last = np.searchsorted(ends, [start, stop - 1], side="right")
        wanted = {name: self.given.get(name, name) for name in names}
        columns, groups = list(dict.fromkeys(wanted.values())), list(range(int(first), int(last) + 1))
        with open_file(self.path) as source:
            yield self._read_batches(
                parquet_files.iter_open_parquet(
                    source, columns, _BATCH_ROWS, _BATCH_BYTES, groups, files.is_local(self.path)
                ),
                start - int(ends[first - 1] if first else 0),
                wanted,
            )

    def _read_batches(
        self, batches: Iterator[pa.RecordBatch], skipped: int, wanted: Mapping[str, str]
    ) -> Columns:
        import pyarrow as pa

        held: list[pa.RecordBatch] = []

        def read(n_rows: int) -> dict[str, pa.Array]:
            nonlocal skipped
            try:
                while sum(batch.num_rows for batch in held) < n_rows + skipped:
                    held.append(next(batches))
            except (StopIteration, OSError, pa.ArrowException) as error:
                raise InputError(
                    f"{self.name} cannot be read: {error or 'it ends early'}",
                    mend="fetch or write the file again",
                ) from error
            table = pa.Table.from_batches(held)
            rows, rest = table.slice(skipped, n_rows), table.slice(skipped + n_rows)
            held[:], skipped = rest.to_batches(), 0
            found = {new: rows.column(given).combine_chunks() for new, given in wanted.items()}
            for name in self.bits:
                if name in found:
                    found[name] = _take_bits(found[name])
            return {name: convert_column(value, self.columns[name]) for name, value in found.items()}

        return Opened(read)


def find_table(
    path: str,
    wanted: Sequence[str] | None = None,
    given: Mapping[str, str] | None = None,
    *,
    further: Sequence[str] = (),
    bits: Sequence[str] = (),
) -> TableFile:
    """Look into the footer of a Parquet file.

    Parameters
    ----------
    path : str
    wanted : sequence of str, optional
        Columns that are taken, by the names that they get. By default all.
    given : mapping of str to str, optional
        Their names in the file, where these are others.
    further : sequence of str
        Columns that are taken too where the file has them.
    bits : sequence of str
        Columns where lists of UINT16 are the bits of float16.

    Raises
    ------
    InputError
        When it is no Parquet file, or lacks a column, or one has a type that Spark does not have.
    """
    import pyarrow as pa

    try:
        footer = parquet_files.open_unencrypted(path)
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"there is no file {path}", mend="check the path") from None
    except (OSError, pa.ArrowException) as error:
        raise InputError(
            f"{path} is no whole Parquet file: {error}", mend="fetch or write the file again"
        ) from error
    fields = footer.schema_arrow
    renamed = {old: new for new, old in (given or {}).items() if old in fields.names}
    found: dict[str, str] = {}
    for name in fields.names:
        new = renamed.get(name, name)
        if new in found:
            raise InputError(
                f"{path} has columns {found[new]!r} and {name!r}, which both would be named {new!r}",
                mend="rename one of them",
            )
        found[new] = name
    names = list(found) if wanted is None else [*wanted, *(name for name in further if name in found)]
    columns: dict[str, pa.DataType] = {}
    of_bits: list[str] = []
    for name in dict.fromkeys(names):
        if name not in found:
            old = (given or {}).get(name, name)
            raise InputError(f"{path} has no column {old!r}", mend=f"it has: {', '.join(fields.names[:30])}")
        data_type = fields.field(found[name]).type
        is_bits = name in bits and getattr(data_type, "value_type", None) == pa.uint16()
        plain = pa.list_(pa.float32()) if is_bits else find_plain_type(data_type)
        if plain is None:
            raise InputError(
                f"{path}: column {found[name]!r} is {data_type}, which Spark has no type for",
                mend="leave it out: name the columns that you want with input.options.columns",
            )
        columns[name] = plain
        of_bits += [name] if is_bits else []
    groups = tuple(footer.metadata.row_group(i).num_rows for i in range(footer.metadata.num_row_groups))
    return TableFile(path, groups, columns, {name: found[name] for name in columns}, tuple(of_bits))


def find_plain_type(data_type: pa.DataType) -> pa.DataType | None:
    """The type as which a column is handed on, so that Spark has the same; None where there is none.

    Examples
    --------
    >>> import pyarrow as pa
    >>> find_plain_type(pa.uint16()), find_plain_type(pa.large_string()), find_plain_type(pa.time64("us"))
    (DataType(int32), DataType(string), None)
    >>> find_plain_type(pa.list_(pa.float16()))
    ListType(list<item: float>)
    """
    import pyarrow as pa

    plain = {
        pa.uint8(): pa.int16(),
        pa.uint16(): pa.int32(),
        pa.uint32(): pa.int64(),
        pa.uint64(): pa.decimal128(20, 0),
        pa.float16(): pa.float32(),
        pa.large_string(): pa.string(),
        pa.large_binary(): pa.binary(),
        pa.null(): pa.null(),  # `find_schema` knows what other files have
    }
    if data_type in plain:
        return plain[data_type]
    if pa.types.is_dictionary(data_type):
        return find_plain_type(data_type.value_type)
    if pa.types.is_timestamp(data_type):
        return pa.timestamp("us", tz=data_type.tz and "UTC")
    if (
        pa.types.is_list(data_type)
        or pa.types.is_large_list(data_type)
        or pa.types.is_fixed_size_list(data_type)
    ):
        inner = find_plain_type(data_type.value_type)
        return None if inner is None else pa.list_(inner)
    if pa.types.is_struct(data_type):
        fields = [(field.name, find_plain_type(field.type)) for field in data_type]
        return None if any(inner is None for _, inner in fields) else pa.struct(fields)
    is_plain = (
        pa.types.is_boolean(data_type)
        or pa.types.is_integer(data_type)
        or pa.types.is_floating(data_type)
        or pa.types.is_string(data_type)
        or pa.types.is_binary(data_type)
        or pa.types.is_date32(data_type)
        or pa.types.is_decimal128(data_type)
    )
    return data_type if is_plain else None


def convert_column(values: pa.Array, data_type: pa.DataType) -> pa.Array:
    """A column in its plain type. Times below a microsecond are cut off, as Spark has none."""
    import pyarrow as pa

    if values.type == data_type:
        return values
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    return values.cast(data_type, safe=not pa.types.is_timestamp(data_type))


def _take_bits(values: pa.Array) -> pa.Array:
    """Lists of float32, of lists of the bits of float16."""
    import pyarrow as pa

    flat = values.flatten()
    numbers = pa.array(
        flat.to_numpy(zero_copy_only=False).astype(np.uint16).view(np.float16).astype(np.float32)
    )
    lengths = values.value_lengths().fill_null(0).to_numpy()
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
    return pa.ListArray.from_arrays(offsets, numbers, mask=values.is_null() if values.null_count else None)


@dataclass(frozen=True)
class LineFile(RowFile):
    """A file of texts, one a line, as the column `column`.

    Attributes
    ----------
    path : str
    n_rows : int
    places : tuple of int
        Where each `_NOTED_LINES`-th line begins, from the first.
    column : str
    """

    path: str
    n_rows: int
    places: tuple[int, ...]
    column: str

    @property
    def columns(self) -> dict[str, pa.DataType]:  # type: ignore[override]
        """The column, and its type."""
        import pyarrow as pa

        return {self.column: pa.string()}

    @contextmanager
    def open(self, start: int, stop: int, names: Sequence[str]) -> Iterator[Columns]:
        """As `RowFile` says."""
        noted, rest = divmod(start, _NOTED_LINES)
        with ExitStack() as opened:
            stream = opened.enter_context(open_file(self.name))
            stream.seek(self.places[noted])
            lines = io.BufferedReader(stream, 1 << 20)
            for _ in range(rest):
                lines.readline()
            yield Opened(lambda n_rows: {self.column: self._read(lines, n_rows)})

    def _read(self, lines: Any, n_rows: int) -> pa.Array:
        import pyarrow as pa

        found = [lines.readline() for _ in range(n_rows)]
        try:
            return pa.array([line.decode().rstrip("\r\n") for line in found], pa.string())
        except UnicodeDecodeError:
            raise InputError(f"{self.name} is not UTF-8", mend="write it again in UTF-8") from None


def find_lines(path: str, column: str) -> LineFile:
    """Count the lines of a text file, and note where some begin. The last one may lack its end.

    Raises
    ------
    InputError
        When there is no such file.
    """
    places, n_lines, at, end = [0], 0, 0, b"\n"
    with open_file(path) as stream:
        while block := stream.read(8 << 20):
            ends = np.flatnonzero(np.frombuffer(block, np.uint8) == 10)
            first = -(n_lines + 1) % _NOTED_LINES  # of the ends that stand before a noted line
            places += (ends[first::_NOTED_LINES] + at + 1).tolist()
            n_lines += len(ends)
            at, end = at + len(block), block[-1:]
    return LineFile(path, n_lines + (end != b"\n"), tuple(places), column)
