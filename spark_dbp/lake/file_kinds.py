"""Say what a file is from its own bytes, for messages.

Imports `files` and `errors`; pyarrow inside functions.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

from spark_dbp.errors import SparkDbpError
from spark_dbp.lake import files, parquet_files

_HEAD = 512
# What files begin with. An archive of tar has its name further on.
_MAGIC = (
    (b"PAR1", "Parquet"),
    (b"PARE", "encrypted Parquet"),
    (b"ORC", "ORC"),
    (b"Obj\x01", "Avro"),
    (b"ARROW1", "Arrow IPC (Feather)"),
    (b"\xff\xff\xff\xff", "a stream of Arrow IPC"),
    (b"FEA1", "Feather (version 1)"),
    (b"\x1f\x8b", "gzip"),
    (b"BZh", "bzip2"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"PK\x03\x04", "a zip archive (.zip, .npz, .xlsx, .pt)"),
    (b"\x93NUMPY", "a .npy matrix"),
    (b"\x89HDF", "HDF5"),
    (b"SQLite format 3", "SQLite"),
    (b"SEQ", "a Hadoop SequenceFile"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"\x89PNG", "a PNG image"),
    (b"version https://git-lfs", "a pointer of Git LFS, not the file itself"),
)
_UNITS = {"milliseconds": "MILLIS", "microseconds": "MICROS", "nanoseconds": "NANOS"}
_PICKLE = re.compile(rb"\x80[\x02-\x05]")
_MARKUP = re.compile(rb"\s*<(\?xml|!doctype|html)", re.IGNORECASE)
_JSON = re.compile(rb"\s*[\[{]")


def recognize_bytes(head: bytes) -> str | None:
    """What a file that begins with `head` is; None where it cannot be told.

    Examples
    --------
    >>> recognize_bytes(b"Obj\\x01..."), recognize_bytes(b"key,embedding\\n1,2\\n"), recognize_bytes(b"\\x02")
    ('Avro', 'a text (CSV?)', None)
    """
    if not head:
        return "an empty file"
    for magic, name in _MAGIC:
        if head.startswith(magic):
            return name
    if head[257:262] == b"ustar":
        return "a tar archive"
    if not head.strip(b"\0"):
        return "only zero bytes so far (a copy that has not ended?)"
    if _PICKLE.match(head):
        return "a pickle"
    if _MARKUP.match(head):
        return "HTML or XML (the error page of a download?)"
    if _JSON.match(head):
        return "JSON"
    text = head.decode("utf-8", "replace")
    if len(head) == _HEAD:  # the last letter may be cut
        text = text.rstrip("\ufffd")
    if "\ufffd" in text or not all(char.isprintable() or char in "\t\r\n" for char in text):
        return None
    return "a text (CSV?)" if re.search("[,;\t|]", text) else "a text"


def recognize_file(uri: str) -> str | None:
    """What the file at `uri` is by its first bytes; None where that, or the file, cannot be read here."""
    for path in dict.fromkeys((uri, unquote(uri))):
        try:
            return recognize_bytes(files.read_start(path, _HEAD))
        except (OSError, SparkDbpError):
            continue
    return None


def open_footer(uri: str) -> Any:
    """The pyarrow ParquetFile at `uri`, of which only the schema may be asked.

    pyarrow ends the process when asked for the pages of an encrypted column.

    Raises
    ------
    OSError, SparkDbpError, pyarrow.ArrowException
        When this process cannot read the file, or it is no Parquet.
    """
    try:
        return parquet_files.open_parquet(uri)
    except FileNotFoundError:
        return parquet_files.open_parquet(unquote(uri))


def name_type(leaf: Any) -> str:
    """Parquet's name of the type of a column that is not nested.

    Parameters
    ----------
    leaf : pyarrow.parquet.ColumnSchema
    """
    import json

    details = json.loads(leaf.logical_type.to_json())
    kind = str(details["Type"]).upper()
    if kind == "NULL":
        return "null"
    if kind in ("TIMESTAMP", "TIME"):
        return f"{kind}({_UNITS[details['timeUnit']]})"
    if kind == "DECIMAL":
        return f"DECIMAL({leaf.precision},{leaf.scale})"
    if kind == "INT":
        return f"{'' if details['isSigned'] else 'U'}INT{details['bitWidth']}"
    if kind == "NONE":
        length = f"({leaf.length})" if leaf.physical_type == "FIXED_LEN_BYTE_ARRAY" else ""
        return f"{leaf.physical_type}{length}"
    return kind


def iter_leaves(footer: Any) -> Iterator[Any]:
    """The columns of a ParquetFile that are not nested, in their order."""
    for number in range(len(footer.schema)):
        yield footer.schema.column(number)


def find_column_type(uri: str, column: str) -> str | None:
    """Parquet's name of the type of the column `column` (its first word, for nested ones) in a file.

    Returns
    -------
    str or None
        ``TIMESTAMP(NANOS)``, ``LIST of FLOAT``; None where there is no such column, or the file cannot be
        read here.
    """
    for path, kind in list_column_types(uri) or []:
        if path == column:
            return kind
        if path.startswith((f"{column}.list.", f"{column}.bag.")):
            return f"LIST of {kind}"
        if path.startswith(f"{column}."):
            return "STRUCT or MAP"
    return None


def list_column_types(uri: str) -> list[tuple[str, str]] | None:
    """Columns of a Parquet file that are not nested, as ``(a.list.element, FLOAT)``.

    Returns
    -------
    list of tuple or None
        None where the file cannot be read here.
    """
    import pyarrow as pa

    try:
        return [(leaf.path, name_type(leaf)) for leaf in iter_leaves(open_footer(uri))]
    except (OSError, SparkDbpError, pa.ArrowException):
        return None
