"""Find and read the rows of numpy arrays in files, a range at a time.

Imports `files` and `errors`; pyarrow inside functions.

A header says where the rows lie, so a task reads just its own bytes. No array is ever unpickled.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from spark_dbp.errors import InputError, SparkDbpError
from spark_dbp.lake import files

if TYPE_CHECKING:
    import pyarrow as pa

# Bytes of the longest header that is read; numpy itself writes a few hundred.
_MOST_HEADER = 1 << 16
_AGAIN = "fetch or write the file again"


@dataclass(frozen=True)
class ArrayPlace:
    """Where the rows of an array lie.

    Attributes
    ----------
    path : str
        The file.
    dtype : str
        Of a value, as numpy writes it: ``<f2``, ``|S24``.
    shape : tuple of int
        (n,) or (n, dim).
    offset : int
        Bytes of the file before the first row; of a compressed member, bytes of its content.
    member : str or None
        Name of a compressed member of a zip, which can only be read from its beginning.
    """

    path: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    member: str | None = None

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return self.shape[0]

    @property
    def row_bytes(self) -> int:
        """Bytes of a row in the file."""
        return int(np.dtype(self.dtype).itemsize) * int(np.prod(self.shape[1:], dtype=np.int64))

    @property
    def name(self) -> str:
        """The file, and the member where it is one, for messages."""
        return f"{self.path}, array {self.member.removesuffix('.npy')!r}" if self.member else self.path


# Contents of files that Spark brought to this task, by their paths.
_brought: ContextVar[Mapping[str, bytes] | None] = ContextVar("brought", default=None)


@contextmanager
def serve_contents(contents: Mapping[str, bytes]) -> Iterator[None]:
    """Let `open_file` take these for the contents of files, by their paths."""
    before = _brought.set(contents)
    try:
        yield
    finally:
        _brought.reset(before)


@contextmanager
def open_file(path: str, what: str = "") -> Iterator[Any]:
    """A file of any store, open for reading at any place.

    Raises
    ------
    InputError
        When there is no such file, or it cannot be read.
    """
    brought = _brought.get() or {}
    if path in brought:
        import pyarrow as pa

        yield pa.BufferReader(brought[path])
        return
    try:
        with files.reached(path) as (filesystem, inner), filesystem.open_input_file(inner) as stream:
            yield stream
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"there is no file {path}{what}", mend="check the path") from None
    except (OSError, SparkDbpError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} cannot be read: {error}", mend="see that it may be read") from error


def find_npy(path: str) -> ArrayPlace:
    """Where the rows of a ``.npy`` file lie.

    Raises
    ------
    InputError
        When it is no such file, is cut off, or is of a form that is not read in place.
    """
    with open_file(path) as stream:
        dtype, shape, offset = _read_header(stream, path)
        place = ArrayPlace(path, dtype, shape, offset)
        _check_size(place, stream.size())
    return place


def find_npz(path: str, name: str) -> ArrayPlace:
    """Where the rows of an array of a ``.npz`` file lie.

    Raises
    ------
    InputError
        Also when the file has no array of this name.
    """
    with open_file(path) as stream:
        try:
            with zipfile.ZipFile(stream) as archive:
                return _find_member(archive, stream, path, name)
        except (zipfile.BadZipFile, struct.error, EOFError, NotImplementedError) as error:
            raise InputError(f"{path} is no whole .npz file: {error}", mend=_AGAIN) from None


def _find_member(archive: zipfile.ZipFile, stream: Any, path: str, name: str) -> ArrayPlace:
    known = [one.removesuffix(".npy") for one in archive.namelist()]
    if name not in known:
        raise InputError(f"{path} has no array {name!r}", mend=f"it has: {', '.join(known) or 'none'}")
    member = archive.namelist()[known.index(name)]
    info = archive.getinfo(member)
    what = f"{path}, array {name!r}"
    if info.flag_bits & 1:
        raise InputError(f"{what} is encrypted", mend="write the file again without a password")
    if info.compress_type != zipfile.ZIP_STORED:
        with archive.open(member) as content:
            dtype, shape, offset = _read_header(content, what)
        place = ArrayPlace(path, dtype, shape, offset, member)
        _check_size(place, info.file_size)
        return place
    stream.seek(info.header_offset)
    local = stream.read(30)
    start = info.header_offset + 30 + sum(struct.unpack("<HH", local[26:30]))
    stream.seek(start)
    dtype, shape, length = _read_header(stream, what)
    place = ArrayPlace(path, dtype, shape, start + length)
    _check_size(place, start + info.file_size, what)
    return place


def find_raw(path: str, dtype: str, shape: tuple[int, ...]) -> ArrayPlace:
    """Where the rows of a file without a header lie: a memmap, of which somebody must say type and shape.

    Raises
    ------
    InputError
        When the file has another number of bytes than an array of this type and shape.
    """
    place = ArrayPlace(path, np.dtype(dtype).str, shape, 0)
    with open_file(path) as stream:
        _check_size(place, stream.size())
    return place


def _read_header(stream: Any, what: str) -> tuple[str, tuple[int, ...], int]:
    """Type, shape, and bytes of the header; the stream stands at its beginning."""
    start = stream.read(8)
    if start[:6] != b"\x93NUMPY":
        raise InputError(f"{what} is no .npy array", mend="numpy.save writes such arrays")
    version = (start[6], start[7])
    size_bytes = 2 if version == (1, 0) else 4
    size = int.from_bytes(stream.read(size_bytes), "little")
    if version not in ((1, 0), (2, 0), (3, 0)) or size > _MOST_HEADER:
        raise InputError(
            f"{what} has a header of version {version[0]}.{version[1]} and {size:,} bytes, which is not read",
            mend="write it again with numpy.save, as an array of plain numbers or texts",
        )
    text = stream.read(size)
    if len(text) < size:
        raise InputError(f"{what} is cut off: its header ends early", mend=_AGAIN)
    read = np.lib.format.read_array_header_2_0
    try:  # numpy reads the header as a literal; versions 2 and 3 differ in the encoding of names alone
        shape, is_fortran, dtype = read(io.BytesIO(size.to_bytes(4, "little") + text))
    except ValueError as error:
        raise InputError(f"{what} has a header that cannot be read: {error}", mend=_AGAIN) from None
    _check_form(what, shape, is_fortran, dtype)
    return dtype.str, tuple(map(int, shape)), 8 + size_bytes + size


def _check_form(what: str, shape: tuple[int, ...], is_fortran: bool, dtype: np.dtype[Any]) -> None:
    if dtype.hasobject:
        raise InputError(
            f"{what} holds Python objects, which only pickle can read",
            mend="write it again as an array of numbers, or of texts of one length: array.astype('U')",
        )
    if dtype.names is not None or dtype.subdtype is not None:
        raise InputError(f"{what} holds records ({dtype})", mend="write each field as an array of its own")
    if dtype.byteorder == ">":
        raise InputError(
            f"{what} is big endian ({dtype.str})",
            mend="write it again as little endian: array.astype(array.dtype.newbyteorder('<'))",
        )
    if len(shape) not in (1, 2):
        raise InputError(f"{what} has {len(shape)} dimensions", mend="give an array of rows, or of values")
    if is_fortran and len(shape) == 2:
        raise InputError(
            f"{what} is in Fortran order: its rows do not lie together",
            mend="write it again in C order: numpy.ascontiguousarray(array)",
        )


def _check_size(place: ArrayPlace, n_bytes: int, what: str | None = None) -> None:
    wanted = place.offset + place.n_rows * place.row_bytes
    if n_bytes == wanted:
        return
    how = "is cut off" if n_bytes < wanted else "is longer than it says"
    shape = " x ".join(f"{size:,}" for size in place.shape)
    raise InputError(
        f"{what or place.name} {how}: it has {n_bytes:,} bytes, where {shape} values of {place.dtype} need "
        f"{wanted:,}",
        mend=f"{_AGAIN}, or see whether its type and shape are as given",
    )


class RowReader:
    """Reads rows of an array one after the other.

    Parameters
    ----------
    place : ArrayPlace
    start : int
        The first row.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.save(f"{folder}/x.npy", np.arange(6, dtype=np.float16).reshape(3, 2))
    ...     with RowReader(find_npy(f"{folder}/x.npy"), 1) as rows:
    ...         rows.read(2).tolist()
    [[2.0, 3.0], [4.0, 5.0]]
    """

    def __init__(self, place: ArrayPlace, start: int = 0) -> None:
        self._place = place
        self._row = start
        self._opened = ExitStack()

    def __enter__(self) -> RowReader:
        place = self._place
        with self._opened:
            stream = self._opened.enter_context(open_file(place.path))
            if place.member is not None:
                archive = self._opened.enter_context(zipfile.ZipFile(stream))
                stream = self._opened.enter_context(archive.open(place.member))
            stream.seek(place.offset + self._row * place.row_bytes)
            self._stream = stream
            self._opened = self._opened.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._opened.close()

    def read_at(self, row: int, n_rows: int) -> npt.NDArray[Any]:
        """Rows from any place on."""
        self._row = row
        self._stream.seek(self._place.offset + row * self._place.row_bytes)
        return self.read(n_rows)

    def read(self, n_rows: int) -> npt.NDArray[Any]:
        """The next rows: of shape (n_rows,) or (n_rows, dim), in the type that they have in the file.

        Raises
        ------
        InputError
            When the file ends before.
        """
        place = self._place
        if self._row + n_rows > place.n_rows:
            raise InputError(
                f"{place.name} has {place.n_rows:,} rows, no row {self._row + n_rows - 1:,}", mend=_AGAIN
            )
        try:
            content = self._stream.read(n_rows * place.row_bytes)
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise InputError(f"{place.name} is damaged: {error}", mend=_AGAIN) from None
        if len(content) < n_rows * place.row_bytes:
            raise InputError(f"{place.name} ends before row {self._row + n_rows:,}", mend=_AGAIN)
        self._row += n_rows
        return np.frombuffer(content, place.dtype).reshape(n_rows, *place.shape[1:])


def to_arrow(values: npt.NDArray[Any], name: str) -> pa.Array:
    """Rows of an array as a column: lists of float32, numbers, or texts.

    Parameters
    ----------
    values : ndarray of shape (n,) or (n, dim)
    name : str
        Of the file, for messages.

    Raises
    ------
    InputError
        For texts that are not UTF-8.

    Examples
    --------
    >>> to_arrow(np.array([b"a", b"bc"]), "k.npy").to_pylist()
    ['a', 'bc']
    >>> to_arrow(np.ones((1, 2), np.float16), "x.npy").to_pylist()
    [[1.0, 1.0]]
    """
    import pyarrow as pa

    if values.ndim == 2:
        n_rows, dim = values.shape
        flat = pa.array(np.ascontiguousarray(values, np.float32).reshape(-1))
        return pa.ListArray.from_arrays(pa.array(np.arange(n_rows + 1, dtype=np.int32) * dim), flat)
    if values.dtype.kind == "S":
        try:
            return pa.array(values.tolist(), pa.binary()).cast(pa.string())
        except pa.ArrowInvalid:
            raise InputError(f"{name} has texts that are not UTF-8", mend="write them in UTF-8") from None
    if values.dtype.kind == "U":
        return pa.array(values.tolist(), pa.string())
    return pa.array(values.astype(np.float32) if values.dtype == np.float16 else values)


def find_arrow_type(place: ArrayPlace) -> pa.DataType:
    """The type of the column that `to_arrow` makes of an array.

    Examples
    --------
    >>> find_arrow_type(ArrayPlace("x.npy", "<f2", (5, 10), 128))
    ListType(list<item: float>)
    """
    return to_arrow(np.zeros((0, *place.shape[1:]), place.dtype), place.name).type
