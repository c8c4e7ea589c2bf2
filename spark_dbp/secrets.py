"""Blank out secrets in whatever is shown or written down: messages, logs, run.json. Imports re and logging.

Secrets are recognised by name (``...secret.key``, ``password=``, ``sig=``), and by where they stand in a URI
(``s3://KEY:SECRET@bucket``).
"""

from __future__ import annotations

import logging
import re
from typing import Any

HIDDEN = "(redacted)"

# `tokens` is a setting of MinHash, and a tokenizer is a part of a model: no secrets.
_WORDS = (
    r"(?:secret|passw(?:or)?d|passphrase|pwd|token(?!s\b|iz)|credential|signature|(?<![a-z])sas(?![a-z])"
    r"|(?:access|account|private|api|encryption).?key)"
)
_NAME = re.compile(_WORDS, re.IGNORECASE)
_ASSIGNED = re.compile(
    rf"((?:[\w.-]*{_WORDS}[\w.-]*|(?<![\w.])sig)=)(?:\"[^\"]*\"|'[^']*'|[^\s&;,'\"]+)", re.IGNORECASE
)
# What stands before the @ of a URI: a user and a password, or the token of an https address. A colon and a
# number are a host and a port, not a password. The container in abfss://container@account has no colon.
_IN_URI = re.compile(r"(?<=://)[^/@\s:'\"]+:(?!\d+(?:/|$))[^\s'\",]+(?=@)|(?<=https://)[^/@\s:'\"]+(?=@)")


def is_secret_name(name: str) -> bool:
    """Whether a setting of this name holds a secret.

    Examples
    --------
    >>> is_secret_name("spark.hadoop.fs.s3a.secret.key"), is_secret_name("spark.sql.ansi.enabled")
    (True, False)
    >>> is_secret_name("hub_token"), is_secret_name("tokenizers")
    (True, False)
    """
    return bool(_NAME.search(name))


def redact(value: Any) -> Any:
    """Blank out the secrets in `value`, a text or nested mappings and lists of texts.

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


# Every module of the package logs to this logger. A filter here works for any handler that a user adds.
logging.getLogger("spark_dbp").addFilter(_Redacting())
