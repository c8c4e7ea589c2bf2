"""Blank out secrets in whatever is shown or written down: messages, logs, run.json. Imports re and logging.

Secrets are told by their names (``...secret.key``, ``password=``, ``sig=``) and by their place in a URI
(``s3://KEY:SECRET@bucket``).
"""

from __future__ import annotations

import logging
import re
from typing import Any

HIDDEN = "(redacted)"

# `tokens` is a setting of MinHash.
_WORDS = (
    r"(?:secret|passw(?:or)?d|passphrase|pwd|token(?!s\b)|credential|signature|(?<![a-z])sas(?![a-z])"
    r"|(?:access|account|private|api|encryption).?key)"
)
_NAME = re.compile(_WORDS, re.IGNORECASE)
_ASSIGNED = re.compile(
    rf"((?:[\w.-]*{_WORDS}[\w.-]*|(?<![\w.])sig)=)(?:\"[^\"]*\"|'[^']*'|[^\s&;,'\"]+)", re.IGNORECASE
)
# What stands before the @ of a URI: user and password (no host and port), or the token of a web address. A
# container of abfss:// has no colon.
_IN_URI = re.compile(r"(?<=://)[^/@\s:'\"]+:(?!\d+(?:/|$))[^\s'\",]+(?=@)|(?<=https://)[^/@\s:'\"]+(?=@)")


def is_secret_name(name: str) -> bool:
    """Whether a setting of this name holds a secret.

    Examples
    --------
    >>> is_secret_name("spark.hadoop.fs.s3a.secret.key"), is_secret_name("spark.sql.ansi.enabled")
    (True, False)
    """
    return bool(_NAME.search(name))


def redact(value: Any) -> Any:
    """`value`, a text or nested mappings and lists of texts, with its secrets blanked out.

    Examples
    --------
    >>> redact("cannot open s3://AKIA:abc/def@bucket/x?sig=123&se=4")
    'cannot open s3://(redacted)@bucket/x?sig=(redacted)&se=4'
    >>> redact({"fs.s3a.secret.key": "abc", "path": "abfss://container@account/x"})
    {'fs.s3a.secret.key': '(redacted)', 'path': 'abfss://container@account/x'}
    """
    if isinstance(value, str):
        return _ASSIGNED.sub(rf"\g<1>{HIDDEN}", _IN_URI.sub(HIDDEN, value))
    if isinstance(value, dict):
        return {
            name: HIDDEN if is_secret_name(str(name)) and item is not None else redact(item)
            for name, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [redact(item) for item in value]
    return value


class _Redacting(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = redact(record.getMessage()), None
        return True


# Every module of the package logs to this logger: whatever handlers a user gives it, no secret passes.
logging.getLogger("spark_dbp").addFilter(_Redacting())
