"""Walk over the headers of a tar. Imports nothing of the package.

Three times as fast as Python's tarfile, because only name, kind and size of a member are read. Refused here
and not there are a header that is cut off or garbled behind the first member, which tarfile takes for the
end, and sparse members, whose bytes are no plain range.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from typing import IO, Any, NamedTuple

BLOCK = 512
_ZEROS = bytes(BLOCK)
# Kinds of headers: files; directories, links and devices, which have no data; what goes before a member.
_FILES, _NO_DATA, _SPARSE = b"0\x007", b"123456", b"S"
_PAX, _PAX_GLOBAL, _LONG_NAME, _PREFIXES = b"xX", b"g", b"L", b"xXgLK"
# Most bytes of a header that goes before a member, and of a read that is thrown away.
_MOST_PREFIX_BYTES, _SKIP_BYTES = 16 << 20, 1 << 20


class TarMember(NamedTuple):
    """A member of a tar. Its bytes in the tar, headers included, are those from `start` to `stop`."""

    name: str
    start: int
    offset: int  # of its data
    size: int
    stop: int
    is_file: bool


class TarWalker:
    """The members of a tar, one after the other.

    Parameters
    ----------
    content : file
        The tar, open for reading, uncompressed.
    size : int, optional
        Its bytes, where it can seek: then data is passed over. Otherwise it is read from beginning to end.

    Raises
    ------
    tarfile.ReadError
        While it is walked over: when it is no tar, ends too early, or has a sparse member.

    Examples
    --------
    >>> import io
    >>> stream = io.BytesIO()
    >>> with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
    ...     info = tarfile.TarInfo("a.txt")
    ...     info.size = 5
    ...     tar.addfile(info, io.BytesIO(b"a cat"))
    >>> walker = TarWalker(io.BytesIO(stream.getvalue()))
    >>> [(member.name, member.stop, walker.read(member)) for member in walker]
    [('a.txt', 1024, b'a cat')]
    """

    def __init__(self, content: IO[bytes] | Any, size: int | None = None) -> None:
        self._content, self._size = content, size
        self._position = 0  # of the stream, where it cannot seek
        self._global_name: str | None = None

    def __iter__(self) -> Iterator[TarMember]:
        position = 0
        while True:
            member = self._next(position)
            if member is None:
                return
            if self._size is not None and member.stop > self._size:
                raise tarfile.ReadError("unexpected end of data")
            yield member
            position = member.stop

    def read(self, member: TarMember) -> bytes:
        """Data of a member; of one gone by only where the tar can seek."""
        return self._read(member.offset, member.size)

    def _next(self, position: int) -> TarMember | None:
        start = position
        name: str | None = None
        size: int | None = None
        while True:
            block = self._read_header(position, position > start)
            if block is None:
                return None
            kind, given = block[156:157], _read_number(block[124:136], position)
            offset = position + BLOCK
            if kind in _PREFIXES:
                if given > _MOST_PREFIX_BYTES:
                    raise tarfile.ReadError(f"invalid header at byte {position}")
                body = self._read(offset, given)
                position = offset + _round_up(given)
                if kind == _LONG_NAME:
                    name = _decode(body)
                elif kind == _PAX_GLOBAL:  # holds for all that follow, and belongs to none
                    self._global_name = _read_pax(body, offset).get("path", self._global_name)
                    if name is None and size is None:
                        start = position
                elif kind in _PAX:
                    fields = _read_pax(body, offset)
                    name = fields.get("path", name)
                    size = int(fields["size"]) if "size" in fields else size
                continue
            if kind == _SPARSE:
                raise tarfile.ReadError(f"the member at byte {start} is sparse")
            if name is None:
                name = self._global_name
            if name is None:
                name = _decode(block[:100])
                if block[345]:
                    name = f"{_decode(block[345:500])}/{name}"
            is_file = kind in _FILES and not (kind == b"\0" and name.endswith("/"))
            size = 0 if kind in _NO_DATA else given if size is None else size
            return TarMember(name, start, offset, size, offset + _round_up(size), is_file)

    def _read_header(self, position: int, must_be: bool) -> bytes | None:
        """A header that is whole; None at the end of the tar."""
        block = self._read(position, BLOCK, whole=False)
        if len(block) < BLOCK:
            if block or must_be:
                raise tarfile.ReadError("unexpected end of data")
            if position == 0:
                raise tarfile.ReadError("empty file")
            return None
        if block == _ZEROS:
            if must_be:
                raise tarfile.ReadError(f"invalid header at byte {position}")
            return None
        total = _read_number(block[148:156], position)
        bare = block[:148] + b" " * 8 + block[156:]
        found = sum(bare)
        # Some old programs added the bytes as signed numbers.
        if total != found and total != found - 256 * sum(byte > 127 for byte in bare):
            raise tarfile.ReadError(f"invalid header at byte {position}")
        return block

    def _read(self, position: int, n_bytes: int, whole: bool = True) -> bytes:
        if self._size is not None:
            self._content.seek(position)
        else:
            if position < self._position:
                raise ValueError("a stream that cannot seek has passed this member")
            self._skip(position - self._position)
        body = self._content.read(n_bytes)
        while 0 < len(body) < n_bytes:  # a pipe gives what it has
            more = self._content.read(n_bytes - len(body))
            if not more:
                break
            body += more
        self._position = position + len(body)
        if whole and len(body) < n_bytes:
            raise tarfile.ReadError("unexpected end of data")
        return body

    def _skip(self, n_bytes: int) -> None:
        while n_bytes > 0:
            read = len(self._content.read(min(n_bytes, _SKIP_BYTES)))
            if not read:
                raise tarfile.ReadError("unexpected end of data")
            n_bytes -= read


def _round_up(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _decode(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _read_number(field: bytes, position: int) -> int:
    """A number in octal digits, or in the bytes themselves, where it is too large for the digits."""
    try:
        if field[0] == 0x80:
            return int.from_bytes(field[1:], "big")
        number = int(field.partition(b"\0")[0].strip() or b"0", 8)
        if number >= 0:
            return number
    except ValueError:
        pass
    raise tarfile.ReadError(f"invalid header at byte {position}")


def _read_pax(body: bytes, position: int) -> dict[str, str]:
    """The records of a pax header: each its length in digits, a space, name=value and a line feed."""
    fields: dict[str, str] = {}
    at = 0
    while at < len(body) and body[at]:
        digits, _, _ = body[at : at + 20].partition(b" ")
        if not digits.isdigit() or not len(digits) + 2 < int(digits) <= len(body) - at:
            raise tarfile.ReadError(f"invalid header at byte {position}")
        record = body[at + len(digits) + 1 : at + int(digits) - 1].decode("utf-8", "surrogateescape")
        name, equals, value = record.partition("=")
        if not equals or (name == "size" and not value.isdecimal()):
            raise tarfile.ReadError(f"invalid header at byte {position}")
        if name.startswith("GNU.sparse."):
            raise tarfile.ReadError(f"the member at byte {position} is sparse")
        fields[name] = value.rstrip("/") if name == "path" else value
        at += int(digits)
    return fields
