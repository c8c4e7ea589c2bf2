"""Show how far a long step has come. Imports `files` and `errors`.

Workers tell the driver how many rows they have read by the names of empty files below the run directory. No
other way from a worker to the driver works on every platform. On a terminal, one line below the log is
updated. Elsewhere, a line goes to the log now and then.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from uuid import uuid4

from spark_dbp.errors import SparkDbpError
from spark_dbp.lake import files

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger("spark_dbp")

# Seconds between two lines on a terminal, and in a log; between two notes of a worker on a disk, and in an
# object store, where each note, and each look at them, is a request that costs money.
_RENEWED, _LOGGED, _NOTED, _NOTED_IN_STORE = 0.5, 30.0, 2.0, 30.0
CLEAR_LINE = "\r\x1b[K"


class ProgressLogHandler(logging.StreamHandler):
    """Log to standard error. A message overwrites the line of progress, which then appears below it."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one message."""
        if self.stream.isatty():
            self.stream.write(CLEAR_LINE)
        super().emit(record)


def name_pass(directory: str) -> str:
    """Path of a new directory for the notes of one pass over a table. Later passes sort last."""
    return files.join(directory, f"{time.time_ns():020d}-{uuid4().hex[:8]}")


def report_progress(batches: Iterator[pa.RecordBatch], notes: str) -> Iterator[pa.RecordBatch]:
    """Pass on the same batches, and note in the directory `notes` how many rows have passed."""
    pause = _NOTED if files.is_local(notes) else _NOTED_IN_STORE
    task, n_rows, before, at = uuid4().hex, 0, None, time.monotonic()
    for batch in batches:
        yield batch
        n_rows += batch.num_rows
        if time.monotonic() - at > pause:
            before, at = _note(notes, task, n_rows, before), time.monotonic()
    _note(notes, task, n_rows, before)


def _note(notes: str, task: str, n_rows: int, before: str | None) -> str:
    path = files.join(notes, f"{task}-{n_rows}")
    try:
        files.touch(path)
        if before is not None and before != path:
            files.delete(before)
    except (OSError, SparkDbpError):
        return path  # a task must not fail for the sake of a display
    return path


def count_reported_rows(directory: str) -> int | None:
    """Rows that the workers have read in the latest pass; None before the first note."""
    passes = files.list_names(directory)
    if not passes:
        return None
    of_task: dict[str, int] = {}
    for name in files.list_names(files.join(directory, passes[-1])):
        task, _, n_rows = name.rpartition("-")
        of_task[task] = max(int(n_rows), of_task.get(task, 0))
    return sum(of_task.values())


@contextmanager
def show_progress(title: str, directory: str, count_rows: Callable[[], int]) -> Iterator[None]:
    """Show how many rows the workers have read, until the code inside ends.

    Parameters
    ----------
    title : str
        What is being done.
    directory : str
        Where workers leave their notes, with one directory for each pass. It is deleted at the end.
    count_rows : callable
        Returns the rows of one pass, 0 where that is not known yet.
    """
    done = threading.Event()
    watching = threading.Thread(target=_watch, args=(title, directory, count_rows, done), daemon=True)
    watching.start()
    try:
        yield
    finally:
        done.set()
        watching.join()
        try:
            files.delete(directory)
        except (OSError, SparkDbpError) as error:
            log.warning("cannot delete %s: %s", directory, error)


def _watch(title: str, directory: str, count_rows: Callable[[], int], done: threading.Event) -> None:
    on_terminal = sys.stderr.isatty()
    started, n_done = time.monotonic(), None
    pause, looked = 0.0 if files.is_local(directory) else _NOTED_IN_STORE / 2, started
    while not done.wait(_RENEWED if on_terminal else _LOGGED):
        try:
            if time.monotonic() - looked >= pause:
                looked = time.monotonic()
                n_done = count_reported_rows(directory)
        except (OSError, SparkDbpError):  # a note was deleted in between, or the store does not answer
            continue
        text = describe(title, n_done, count_rows(), time.monotonic() - started)
        if on_terminal:
            sys.stderr.write(CLEAR_LINE + text)
            sys.stderr.flush()
        else:
            log.info("  %s", text)
    if on_terminal:
        sys.stderr.write(CLEAR_LINE)
        sys.stderr.flush()


def describe(title: str, n_done: int | None, n_rows: int, seconds: float) -> str:
    """One line of progress.

    Parameters
    ----------
    title : str
    n_done : int or None
        Rows read so far; None where that is not known. A task that ran twice counts twice.
    n_rows : int
        Rows to read.
    seconds : float
        Time since the step began.

    Examples
    --------
    >>> describe("Assigning", 750_000, 2_000_000, 75.2)
    'Assigning: 750,000 of 2,000,000 rows (37 %), 1:15'
    """
    minutes, seconds = divmod(int(seconds), 60)
    rows = ""
    if n_done is not None and n_rows:
        n_done = min(n_done, n_rows)
        rows = f" {n_done:,} of {n_rows:,} rows ({100 * n_done // n_rows} %),"
    return f"{title}:{rows} {minutes}:{seconds:02d}"
