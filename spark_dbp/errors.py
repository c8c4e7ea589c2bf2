"""Errors that the user can act on. Imports `secrets`.

Every message says what is wrong, where (file, column, key, setting), and what mends it. The command line
returns ``exit_code``.
"""

from __future__ import annotations

from spark_dbp.secrets import redact


class SparkDbpError(Exception):
    """Base of all errors raised on purpose.

    Parameters
    ----------
    what : str
        What is wrong and where.
    mend : str, optional
        What the user can do about it.

    Examples
    --------
    >>> str(InputError("table has no rows", mend="check input.path"))
    'table has no rows\\n  to mend it: check input.path'
    """

    exit_code = 1

    def __init__(self, what: str, mend: str = "") -> None:
        # Every message passes here, so no path, setting or text of Spark can bring a secret into one.
        self.what = redact(what)
        self.mend = redact(mend)
        super().__init__(self.what + (f"\n  to mend it: {self.mend}" if mend else ""))


class ConfigError(SparkDbpError):
    """The configuration or the command line is wrong (exit code 2)."""

    exit_code = 2


class InputError(SparkDbpError):
    """The input data is refused (exit code 3)."""

    exit_code = 3


class InfeasibleError(InputError):
    """There are too few or too many rows for the quotas that were asked for (exit code 3)."""


class DamagedRunError(InputError):
    """A finished run is not as its run.json says, or its tables contradict each other (exit code 3)."""


class ConflictError(SparkDbpError):
    """Another run holds the run directory, or conflicts with it (exit code 4)."""

    exit_code = 4
