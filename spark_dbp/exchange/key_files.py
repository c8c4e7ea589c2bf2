"""Write sorted keys to one file, and refuse those that its form cannot hold. Imports numpy and `errors`.

pyarrow is used inside functions. A file is written to a local path, from beginning to end; only the length in
the header of an array is filled in last. See docs/formats.md for the forms.
"""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import numpy.typing as npt

from spark_dbp.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa

# Examples in a message, of how many keys of a batch, and characters that are shown of one.
_EXAMPLES, _LOOKED_AT, _SHOWN = 5, 100, 80
_HEX_DIGITS = 32
SUBSET = np.dtype("u8,u8")
NULL, TWICE, NOT_TEXT = "are null", "are written by more than one row", "are not UTF-8"
LINE_END, NOT_HEX = (
    "hold a newline or a carriage return",
    f"are not {_HEX_DIGITS} hexadecimal digits",
)
_MENDS = {
    NULL: "use coalesce() in --key",
    TWICE: "give --key an expression that is another one for every row",
    NOT_TEXT: "write them as text, such as --key \"hex(key)\"",
    LINE_END: "write them in another way, such as --key \"base64(key)\"",
    NOT_HEX: "--key gives an expression that is the uid, such as \"lower(hex(key))\" for uids as 16 bytes; "
    "or write another format",
}  # fmt: skip


class Refusals:
    """What is wrong with keys: how many, and some of them."""

    def __init__(self, form: str) -> None:
        self.form = form
        self.counts: Counter[str] = Counter()
        self._examples: dict[str, list[str]] = {}

    def __bool__(self) -> bool:
        return bool(self.counts)

    def note(self, what: str, keys: pa.Array, n_keys: int | None = None) -> None:
        """Note keys that are wrong, or the first ones of them and their number."""
        n_keys = len(keys) if n_keys is None else n_keys
        if not n_keys:
            return
        self.counts[what] += n_keys
        shown = self._examples.setdefault(what, [])
        if len(shown) < _EXAMPLES:
            new = dict.fromkeys(show_key(key) for key in keys[:_LOOKED_AT].to_pylist())
            shown += [key for key in new if key not in shown][: _EXAMPLES - len(shown)]

    def raise_any(self, n_keys: int) -> None:
        """Raise what was noted, if anything was.

        Raises
        ------
        InputError
        """
        if not self.counts:
            return
        lines = []
        for what, n in self.counts.items():
            examples = "" if what == NULL else f", such as {', '.join(self._examples[what])}"
            lines.append(f"{n:,} of {n_keys:,} keys {what}{examples}")
        raise InputError(
            f"--to {self.form}: " + "\n  - ".join(["", *lines] if len(lines) > 1 else lines),
            mend="; ".join(_MENDS.get(what, "write another format") for what in self.counts),
        )


def show_key(key: Any) -> str:
    """A key for a message: text where its bytes are text, and not too long."""
    text = key.decode("utf-8", "replace") if isinstance(key, bytes) else key
    if isinstance(text, str):
        return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")
    return repr(text)


class KeySink(ABC):
    """Takes sorted keys, batch by batch; writes them, or notes what is wrong with them.

    Parameters
    ----------
    form : str
        Name of the format, for messages.
    """

    def __init__(self, form: str) -> None:
        self.refusals = Refusals(form)
        self.n_keys = 0
        self._last: Any = None

    def add(self, keys: pa.Array) -> None:
        """Write the next keys. They are sorted, so that equal ones follow one another."""
        self.n_keys += len(keys)
        if keys.null_count:
            self.refusals.note(NULL, keys.filter(keys.is_null()))
            keys = keys.drop_null()
        if not len(keys):
            return
        self._note_equal(keys)
        for what, is_bad in self.find_bad(keys).items():
            self.refusals.note(what, keys.filter(is_bad))
        if self.goes_on():
            self.write(keys)

    def goes_on(self) -> bool:
        """Whether keys are still written: not once the file will be refused."""
        return not self.refusals

    def _note_equal(self, keys: pa.Array) -> None:
        import pyarrow.compute as pc

        if keys[0].as_py() == self._last:  # of the batch before
            self.refusals.note(TWICE, keys[:1])
        same = pc.equal(keys[1:], keys[:-1])
        if pc.any(same).as_py():
            self.refusals.note(TWICE, keys[1:].filter(same))
        self._last = keys[-1].as_py()

    @abstractmethod
    def find_bad(self, keys: pa.Array) -> dict[str, pa.Array]:
        """Which keys are wrong, as arrays of BOOLEAN by what is wrong. Only what occurs is named."""

    @abstractmethod
    def write(self, keys: pa.Array) -> None:
        """Write keys, none of which is wrong."""

    @abstractmethod
    def end(self) -> None:
        """Finish the file."""

    def finish(self) -> int:
        """Finish the file. Returns the number of keys in it.

        Raises
        ------
        InputError
            When some keys cannot be written. It says how many, with examples.
        """
        self.refusals.raise_any(self.n_keys)
        self.end()
        return self.n_keys


class FileSink(KeySink):
    """The same for a file.

    Parameters
    ----------
    form : str
    path : Path
    """

    def __init__(self, form: str, path: Path) -> None:
        super().__init__(form)
        self.stream: BinaryIO = path.open("wb")

    def end(self) -> None:
        """Finish the file."""
        self.stream.close()


class LineSink(FileSink):
    """A key a line, as UTF-8."""

    def find_bad(self, keys: pa.Array) -> dict[str, pa.Array]:
        """Keys that are no text, or more than one line."""
        import pyarrow.compute as pc

        found = find_no_text(keys)
        has_end = pc.match_substring_regex(keys, "[\r\n]")
        return {**found, **({LINE_END: has_end} if pc.any(has_end).as_py() else {})}

    def write(self, keys: pa.Array) -> None:
        """Write a line for each."""
        self.stream.write(b"\n".join(keys.to_pylist()) + b"\n")


class ArraySink(FileSink):
    """A numpy array of one dimension: its header, with the length filled in at the end, and its values."""

    dtype: np.dtype[Any]

    def __init__(self, form: str, path: Path) -> None:
        super().__init__(form, path)
        self.stream.write(make_header(self.dtype, 0))

    def end(self) -> None:
        """Fill in the length."""
        header = make_header(self.dtype, self.n_keys)
        if len(header) != len(make_header(self.dtype, 0)):
            raise RuntimeError("the header of the array has grown")
        self.stream.seek(0)
        self.stream.write(header)
        super().end()


class SubsetSink(ArraySink):
    """DataComp's subset: the two halves of each uid as numbers."""

    dtype = SUBSET

    def find_bad(self, keys: pa.Array) -> dict[str, pa.Array]:
        """Keys that are no uid."""
        import pyarrow as pa
        import pyarrow.compute as pc

        is_hex = pc.match_substring_regex(keys, r"\A[0-9a-f]{32}\z")
        if pc.all(is_hex).as_py():
            return {}
        return {NOT_HEX: pa.array(~is_hex.to_numpy(zero_copy_only=False))}

    def write(self, keys: pa.Array) -> None:
        """Write the numbers."""
        self.stream.write(parse_uids(b"".join(keys.to_pylist())).tobytes())


class NumberSink(ArraySink):
    """Whole numbers of 64 bits."""

    dtype = np.dtype("<i8")

    def find_bad(self, keys: pa.Array) -> dict[str, pa.Array]:
        """None: Spark has made them BIGINT."""
        return {}

    def write(self, keys: pa.Array) -> None:
        """Write the numbers."""
        self.stream.write(keys.to_numpy().astype("<i8").tobytes())


def find_no_text(keys: pa.Array) -> dict[str, pa.Array]:
    """Which keys of a column of bytes are not UTF-8."""
    import pyarrow as pa

    try:
        keys.cast(pa.string()).validate(full=True)
    except pa.ArrowInvalid:
        return {NOT_TEXT: pa.array([not _is_text(key) for key in keys.to_pylist()])}
    return {}


def _is_text(key: bytes) -> bool:
    try:
        key.decode()
    except UnicodeDecodeError:
        return False
    return True


def make_header(dtype: np.dtype[Any], *shape: int) -> bytes:
    """The bytes with which ``np.save`` begins an array in C order."""
    sink = io.BytesIO()
    described = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(sink, described)
    return sink.getvalue()


def parse_uids(text: bytes) -> npt.NDArray[Any]:
    """The numbers of uids of 32 hexadecimal digits each that follow one another.

    Examples
    --------
    >>> parse_uids(b"000000000000000a00000000000000ff").tolist()
    [(10, 255)]
    """
    halves = np.frombuffer(bytes.fromhex(text.decode()), ">u8").astype("<u8")
    return halves.view(SUBSET)
