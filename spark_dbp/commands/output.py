"""What commands print: one JSON document, or text, with colours on a terminal only. Imports `secrets`.

Colours need a terminal that is not TERM=dumb, and no NO_COLOR (https://no-color.org). What is piped or
written to a file is plain, and as wide as it gets.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import sys
from typing import IO, Any

from spark_dbp.secrets import redact

_BOLD, _RED, _GREEN, _YELLOW, _END = "\x1b[1m", "\x1b[1;31m", "\x1b[32m", "\x1b[33m", "\x1b[0m"
# Words at the beginning of a line, and how they are painted.
_WORDS = (
    (re.compile(r"^ok(?=  )", re.MULTILINE), _GREEN),
    (re.compile(r"^(?:warning|hint)(?=  )", re.MULTILINE), _YELLOW),
    (re.compile(r"^problem(?=  )", re.MULTILINE), _RED),
    (re.compile(r"^(?:what next|tables|published|narrowest and widest clusters)\b", re.MULTILINE), _BOLD),
    (re.compile(r"^(?:  to mend it:| {9}to mend it:)", re.MULTILINE), _BOLD),
)
_ERROR = re.compile(r"^spark-dbp:")
# What would move a terminal's cursor, or worse: a key or a path may hold anything.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def print_json(value: Any, *, redacts: bool = True) -> None:
    """Print one JSON document; numbers that JSON does not have become null.

    Parameters
    ----------
    value : Any
        Of JSON values.
    redacts : bool
        Whether secrets are blanked out; keys of samples are no secrets, and are told as they are.
    """
    ascii_only = not (sys.stdout.encoding or "").lower().startswith("utf")
    text = json.dumps(_to_json(value), indent=1, ensure_ascii=ascii_only, allow_nan=False)
    print(redact(text) if redacts else text)


def _to_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _to_json(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_to_json(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_text(text: str, *, redacts: bool = True) -> None:
    """Print a result for people to standard output."""
    text = redact(text) if redacts else text
    if has_colours(sys.stdout):
        text = paint(text)
    encoding = sys.stdout.encoding or "ascii"
    print(text.encode(encoding, "backslashreplace").decode(encoding))


def print_error(text: str) -> None:
    """Print an error to standard error."""
    text = redact(text)
    print(paint(text) if has_colours(sys.stderr) else text, file=sys.stderr)


def paint(text: str) -> str:
    """Colour words at the beginning of lines; what would steer the terminal is written out.

    Examples
    --------
    >>> paint("ok  keys\\x07")
    '\\x1b[32mok\\x1b[0m  keys\\\\x07'
    """
    text = _CONTROL.sub(lambda found: repr(found[0])[1:-1], text)
    text = _ERROR.sub(f"{_RED}\\g<0>{_END}", text)
    for pattern, colour in _WORDS:
        text = pattern.sub(f"{colour}\\g<0>{_END}", text)
    return text


def has_colours(stream: IO[str]) -> bool:
    """Whether `stream` is a terminal that may be given colours."""
    from spark_dbp.lake.progress import can_redraw

    return can_redraw(stream) and not os.environ.get("NO_COLOR")


def find_width() -> int | None:
    """Columns of the terminal that results go to; None where they go elsewhere."""
    try:
        return shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    except ValueError:  # it is closed
        return None
