"""Where messages go while a command runs: the terminal, a log file.

Imports `errors` and `secrets`; others in functions.
"""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

from spark_dbp.errors import ConfigError
from spark_dbp.secrets import redact

log = logging.getLogger("spark_dbp")


@contextmanager
def keep_logs(
    arguments: Sequence[str], *, debug: bool = False, quiet: bool = False, log_file: str | None = None
) -> Iterator[None]:
    """Show messages on standard error, and append all of them to a file.

    Parameters
    ----------
    arguments : sequence of str
        The command line, for the file.
    debug, quiet : bool
        More on standard error than usual; or errors only.
    log_file : str, optional
        Everything goes there, and what a local Java says.

    Raises
    ------
    ConfigError
        When the file cannot be written.
    """
    from spark_dbp.engine.java_output import tidy_java_output
    from spark_dbp.lake.progress import ProgressLogHandler

    shown = ProgressLogHandler(sys.stderr)
    shown.setFormatter(logging.Formatter("%(asctime)s  %(message)s", datefmt="%H:%M:%S"))
    shown.setLevel(logging.ERROR if quiet else logging.DEBUG if debug else logging.INFO)
    handlers: list[logging.Handler] = [shown]
    if log_file is not None:
        handlers.append(_open_file(log_file))
    before = log.level
    for handler in handlers:
        log.addHandler(handler)
    log.setLevel(logging.DEBUG if debug or log_file is not None else logging.INFO)
    if log_file is not None:
        from spark_dbp.settings import redact_arguments

        note(f"spark-dbp {shlex.join(redact_arguments(arguments))}")
    try:
        with (
            tidy_java_output(shows_all=debug, keeps_all=log_file is not None),
            _take_warnings(handlers) if quiet or log_file is not None else nullcontext(),
            nullcontext() if debug else _show_others(logging.ERROR if quiet else logging.WARNING),
        ):
            yield
    finally:
        for handler in handlers:
            log.removeHandler(handler)
        log.setLevel(before)
        for handler in handlers[1:]:
            handler.close()


@contextmanager
def _show_others(level: int) -> Iterator[None]:
    """Show what other libraries log, but for what Py4J says of a Ctrl-C: stack traces, to the root logger."""
    root, shown = logging.getLogger(), logging.StreamHandler()
    shown.setLevel(level)
    shown.addFilter(lambda record: record.name.partition(".")[0] not in ("root", "py4j", "py", "spark_dbp"))
    root.addHandler(shown)
    try:
        yield
    finally:
        root.removeHandler(shown)


@contextmanager
def _take_warnings(handlers: Sequence[logging.Handler]) -> Iterator[None]:
    """Let warnings of Python's libraries go where messages go."""
    warned = logging.getLogger("py.warnings")
    propagates, warned.propagate = warned.propagate, False
    for handler in handlers:
        warned.addHandler(handler)
    for redacting in log.filters:
        warned.addFilter(redacting)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        warned.propagate = propagates
        for handler in handlers:
            warned.removeHandler(handler)
        for redacting in log.filters:
            warned.removeFilter(redacting)


def note(text: str) -> None:
    """Write to the log file only, if there is one."""
    log.debug("%s", text, extra={"for_file": True})


class _FileHandler(logging.FileHandler):
    """A full disk must not bury what the command says under traces: it is told once."""

    has_failed = False

    def close(self) -> None:
        """Close the file; what cannot be written even now is said, too."""
        try:
            super().close()
        except OSError:
            self.handleError(None)

    def handleError(self, record: logging.LogRecord | None) -> None:
        """Say once that the file cannot be written."""
        if not self.has_failed:
            self.has_failed = True
            error = sys.exc_info()[1]
            print(redact(f"spark-dbp: cannot write --log-file {self.baseFilename}: {error}"), file=sys.stderr)


def _open_file(path: str) -> logging.Handler:
    from spark_dbp.exchange.out_place import list_runs_above

    try:
        place = Path(path).expanduser()
        if runs := list_runs_above(place):
            raise ConfigError(
                f"--log-file {path} lies in the run directory {runs[0]}, which holds the run's own files",
                mend="name a file elsewhere",
            )
        handler = _FileHandler(place, encoding="utf-8", errors="backslashreplace")
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"--log-file {path}: it cannot be written: {getattr(error, 'strerror', None) or error}",
            mend="name a file in a directory that is there and may be written to",
        ) from None
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    return handler
