"""The text under which a trie stores a key: one for each key, whatever its type. Imports numpy and `errors`.

`write_key_texts` makes the texts of a column of keys; `KeyText.encode` makes that of a single value that is
looked up. Both make the same text of the same key. pyarrow is imported inside functions.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from uuid import UUID

import numpy as np

from spark_dbp.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa

# For a value that its column cannot hold, such as 2.55 among DECIMAL(3,1): no key has the empty text there.
_NO_KEY = b""
_WHOLE_NUMBER = re.compile(r"0|-?[1-9][0-9]{0,307}")
_WHOLE_TYPES, _FLOAT_TYPES, _BYTES_TYPES = (
    (int, np.integer),
    (float, np.floating),
    (bytes, bytearray, memoryview),
)
_EPOCH = datetime(1970, 1, 1)
_MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True)
class KeyText:
    """How keys of one type are stored and looked up.

    Attributes
    ----------
    convert : callable
        Makes the text of a value that is no str; None for a value of a type that is not looked up here.
    values : str
        What can be looked up, for messages.
    stored : str
        What the text is, for messages; empty where it is the key as everyone would write it.
    encode_str : callable
        Makes the text that a str stands for: usually it is the text.
    holds : str
        What the trie holds, for messages.
    """

    convert: Callable[[Any], bytes | None]
    values: str
    stored: str = ""
    encode_str: Callable[[str], bytes] = str.encode
    holds: str = ""

    def encode(self, key: Any) -> bytes:
        """Make the text of a value that is looked up.

        Raises
        ------
        TypeError
            For a value of a type that is no key here. It says what to pass.

        Examples
        --------
        >>> open_key_text("double").encode(10_000_000), open_key_text("binary").encode(b"\\x0f")
        (b'10000000.0', b'0f')
        """
        if isinstance(key, str):
            try:
                return self.encode_str(key)
            except UnicodeEncodeError:
                return _encode_surrogates(key)
        text = self.convert(key)
        if text is not None:
            return text
        if hasattr(key, "as_py"):  # a scalar of pyarrow; text need not be UTF-8 in it
            try:
                return self.encode(key.as_py())
            except UnicodeDecodeError:
                return self.encode(key.as_buffer().to_pybytes())
        raise TypeError(
            f"the trie holds {self.holds}; {type(key).__name__} {str(key)[:80]!r} cannot be one: "
            f"pass {self.values}"
        )


def find_key_text(key_type: str) -> KeyText | None:
    """How keys of a type are stored and looked up; None for a type that cannot be a key.

    Parameters
    ----------
    key_type : str
        As Spark's ``simpleString`` writes it: ``bigint``, ``decimal(10,2)``.

    Returns
    -------
    KeyText or None

    Examples
    --------
    >>> find_key_text("decimal(10,2)").encode(7), find_key_text("array<int>")
    (b'7.00', None)
    """
    if re.match("interval (day|hour|minute|second)", key_type):
        return KeyText(_encode_interval, "timedelta, or int or str of microseconds", "microseconds")
    name, _, arguments = key_type.replace(" ", "(").partition("(")
    if name == "decimal":
        return _decimal_text(int(arguments.rstrip(")").split(",")[1]))
    return _KEY_TEXTS.get(name)


def open_key_text(key_type: str, expression: str | None = None) -> KeyText:
    """How the keys of a trie are looked up.

    Parameters
    ----------
    key_type : str
        Type of the key column.
    expression : str, optional
        ``trie.key``. Then the trie holds its texts instead of the keys, and they are looked up.

    Returns
    -------
    KeyText

    Raises
    ------
    InputError
        For a type that is not known.
    """
    if expression is not None:
        return replace(_TEXT, holds=f"the texts of trie.key {expression!r}")
    form = find_key_text(key_type)
    if form is None:
        raise InputError(
            f"the trie says that its keys have the type {key_type!r}, which is not known here",
            mend="read it with the version of spark-dbp that wrote it",
        )
    return replace(form, holds=f"keys of type {key_type.upper()}")


def write_key_texts(keys: pa.Array, key_type: str) -> pa.Array:
    """The texts of a column of keys.

    Parameters
    ----------
    keys : pyarrow.Array
        As Spark or Parquet give them to a worker; none is null.
    key_type : str

    Returns
    -------
    pyarrow.Array
        BINARY.

    Examples
    --------
    >>> import pyarrow as pa
    >>> write_key_texts(pa.array([1e7, 0.5]), "double").to_pylist()
    [b'10000000.0', b'0.5']
    """
    import pyarrow as pa

    kind = keys.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return keys.cast(pa.binary())
    if pa.types.is_timestamp(kind) or pa.types.is_duration(kind):
        keys = keys.cast(pa.int64())  # of microseconds, and in UTC, whatever the zone of the session
    elif not (pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_date(kind)):
        form = open_key_text(key_type)
        return pa.array([form.encode(key) for key in keys.to_pylist()], pa.binary())
    return keys.cast(pa.string()).cast(pa.binary())


def list_key_values(keys: pa.Array, key_type: str) -> list[Any]:
    """The keys as Python's values; those that Python has no value for, as str of their texts.

    These are texts that are not UTF-8, and dates after the year 9999.
    """
    try:
        return list(keys.to_pylist())
    except (ValueError, OverflowError):
        texts = write_key_texts(keys, key_type).to_pylist()
        return [text.decode("utf-8", "surrogateescape") for text in texts]


def _encode_surrogates(text: str) -> bytes:
    try:
        return text.encode("utf-8", "surrogateescape")  # as Python decodes names that are not UTF-8
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")


def _is_whole(key: Any) -> bool:
    return isinstance(key, _WHOLE_TYPES) and not isinstance(key, bool)


def _encode_bytes(key: Any) -> bytes | None:
    return bytes(key) if isinstance(key, _BYTES_TYPES) else None


def _encode_binary(key: Any) -> bytes | None:
    content = key.bytes if isinstance(key, UUID) else _encode_bytes(key)
    return None if content is None else content.hex().encode()


def _encode_binary_str(text: str) -> bytes:
    # A UUID as it is usually written: the same hexadecimal digits with four hyphens.
    return str.encode(text.replace("-", "").lower() if len(text) == 36 else text)


def _encode_integer(key: Any) -> bytes | None:
    return str(int(key)).encode() if _is_whole(key) else None


def _encode_boolean(key: Any) -> bytes | None:
    return str(bool(key)).lower().encode() if isinstance(key, bool | np.bool_) else None


def _encode_float(key: Any) -> bytes | None:
    """What `repr` writes: 7, 7.0 and ``numpy.float32(7)`` are one number, and so are 0.0 and -0.0."""
    if isinstance(key, _FLOAT_TYPES):
        number = float(key)
    elif not _is_whole(key):
        return None
    elif abs(int(key)) >= 1 << 1024 or (number := float(int(key))) != int(key):
        return _NO_KEY
    return repr(number + 0.0).encode()


def _encode_float_str(text: str) -> bytes:
    # Numbers that pandas has made of integers are in names without their ".0".
    whole = _encode_float(int(text)) if _WHOLE_NUMBER.fullmatch(text) else None
    return str.encode(text) if whole is None else whole


def _decimal_text(scale: int) -> KeyText:
    def encode(key: Any) -> bytes | None:
        if not isinstance(key, Decimal):
            if not _is_whole(key):
                return None
            key = Decimal(int(key))
        if not key.is_finite() or key.adjusted() > 38:
            return _NO_KEY
        text = f"{key if key else Decimal(0):.{scale}f}"
        return text.encode() if Decimal(text) == key else _NO_KEY

    return KeyText(
        encode, "Decimal, int or str", f"numbers with {scale} digits after the point" if scale else ""
    )


def _encode_date(key: Any) -> bytes | None:
    if isinstance(key, np.datetime64) and np.datetime_data(key)[0] == "D" and not np.isnat(key):
        return str(key).encode()
    return key.isoformat().encode() if isinstance(key, date) and not isinstance(key, datetime) else None


def _encode_timestamp(key: Any) -> bytes | None:
    # pandas' NaT is a datetime, and equals nothing.
    if not isinstance(key, datetime) or key != key or key.utcoffset() is None:
        return None
    return _count_microseconds(key, key - _EPOCH.replace(tzinfo=timezone.utc))


def _encode_wall_clock(key: Any) -> bytes | None:
    if isinstance(key, np.datetime64) and not np.isnat(key):
        exact = key.astype("datetime64[us]")
        return str(exact.astype(np.int64)).encode() if exact == key else _NO_KEY
    if not isinstance(key, datetime) or key != key or key.tzinfo is not None:
        return None
    return _count_microseconds(key, key - _EPOCH)


def _encode_interval(key: Any) -> bytes | None:
    if isinstance(key, timedelta) and key == key:
        return _count_microseconds(key, key)
    return _encode_integer(key)


def _count_microseconds(key: Any, since: Any) -> bytes:
    # Timestamps and intervals of pandas have nanoseconds too; no key of Spark has.
    exact = not getattr(key, "nanosecond", getattr(key, "nanoseconds", 0))
    return str(int(since // _MICROSECOND)).encode() if exact else _NO_KEY


def _convert_as_version_1(key: Any) -> bytes | None:
    if isinstance(key, _BYTES_TYPES):
        return None  # it would have to be known whether the keys are text or BINARY
    return str(key).encode("utf-8", "surrogateescape")


# Tries of version 1 do not say of which type their keys are.
VERSION_1 = KeyText(
    _convert_as_version_1,
    "str (bytes can be looked up in a trie that this version writes: spark-dbp select)",
    holds="keys of a type that an earlier version did not write down",
)
_TEXT = KeyText(_encode_bytes, "str or bytes")
_WHOLE = KeyText(_encode_integer, "int or str")
_FLOAT = KeyText(
    _encode_float, "float, int or str", "numbers as Python writes them: 10000000.0, 1e-07", _encode_float_str
)
_KEY_TEXTS = {
    "string": _TEXT,
    "varchar": _TEXT,
    "char": _TEXT,
    "binary": KeyText(
        _encode_binary, "bytes, uuid.UUID, or str in hexadecimal", "hexadecimal", _encode_binary_str
    ),
    "boolean": KeyText(_encode_boolean, "bool or str"),
    "tinyint": _WHOLE,
    "smallint": _WHOLE,
    "int": _WHOLE,
    "bigint": _WHOLE,
    "float": _FLOAT,
    "double": _FLOAT,
    "date": KeyText(_encode_date, "datetime.date or str (2024-05-17)"),
    "timestamp": KeyText(
        _encode_timestamp,
        "a datetime with a zone (those of Spark's collect() are in local time: key.astimezone()), "
        "or str of microseconds since 1970",
        "microseconds since 1970 in UTC",
    ),
    "timestamp_ntz": KeyText(
        _encode_wall_clock,
        "a datetime without a zone, or str of microseconds since 1970",
        "microseconds since 1970 by the same clock",
    ),
}
