"""Show how far a long step has come, and about how long it still takes. Imports `files` and `errors`.

Workers tell the driver how many rows they have read by the names of empty files below the run directory. No
other way from a worker to the driver works on every platform. What the driver itself counts, such as
iterations of k-means, it reports by `report_rounds`. On a terminal, one line below the log is updated.
Elsewhere, a line goes to the log now and then.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import IO, TYPE_CHECKING
from uuid import uuid4

from spark_dbp.errors import SparkDbpError
from spark_dbp.lake import files

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger("spark_dbp")

# Seconds between two lines on a terminal, and in a log; between two notes of a worker on a disk, and in an
# object store, where each note, and each look at them, is a request that costs money.
_RENEWED, _LOGGED, _NOTED, _NOTED_IN_STORE = 0.5, 30.0, 2.0, 30.0
# What is left is not estimated before so many seconds, and so large a share of the work: the first rows come
# late, because tasks start.
_LEAST_SECONDS, _LEAST_SHARE = 3.0, 0.02
CLEAR_LINE = "\r\x1b[K"
_WIDE = 1000  # columns of what does not say its width
# Marks a message that only a log file takes: the terminal shows the same in another way.
FOR_FILE = {"for_file": True}


def can_redraw(stream: IO[str]) -> bool:
    """Whether `stream` is a terminal on which a line can be written over."""
    try:
        return stream.isatty() and os.environ.get("TERM") != "dumb"
    except ValueError:  # it is closed
        return False


class ProgressLogHandler(logging.StreamHandler):
    """Log to standard error. A message overwrites the line of progress, which then appears below it."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one message, unless it is for a log file only."""
        if getattr(record, "for_file", False):
            return
        if can_redraw(self.stream):
            self.stream.write(CLEAR_LINE)
        super().emit(record)


def _is_quiet() -> bool:
    """Whether the command line was asked to show no messages."""
    shown = [one.level for one in log.handlers if isinstance(one, ProgressLogHandler)]
    return bool(shown) and min(shown) > logging.INFO


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


def count_reported_rows(directory: str) -> tuple[float, int] | None:
    """When the latest pass began, in seconds of `time.time`, and the rows that were read in it, or None."""
    passes = files.list_names(directory)
    if not passes:
        return None
    of_task: dict[str, int] = {}
    for name in files.list_names(files.join(directory, passes[-1])):
        task, _, n_rows = name.rpartition("-")
        of_task[task] = max(int(n_rows), of_task.get(task, 0))
    return int(passes[-1].partition("-")[0]) / 1e9, sum(of_task.values())


class Pace:
    """How fast a step comes on, and so what is left of it.

    Parameters
    ----------
    clock : callable
        Returns seconds.

    Examples
    --------
    >>> now = iter([0.0, 10.0, 40.0]).__next__
    >>> pace = Pace(now)
    >>> pace.report_rounds("iterations", 0, 20)
    >>> pace.report_rounds("iterations", 5, 20)
    >>> pace.estimate_left(40.0)
    90.0
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.started = clock()
        self.rounds: tuple[str, int, int] | None = None
        # When the rounds began, and how many of them were done then; when the last one ended.
        self.rounds_began, self._done_before, self._ended = self.started, 0, self.started

    def report_rounds(self, units: str, n_done: int, n_rounds: int) -> None:
        """Note that so many rounds are done. Others, or fewer than before, begin anew."""
        now = self.clock()
        if self.rounds is None or self.rounds[0] != units or n_done < self.rounds[1]:
            self.rounds_began, self._done_before = now, n_done
        self.rounds, self._ended = (units, n_done, n_rounds), now

    def estimate_left(
        self, now: float, n_done: int | None = None, n_rows: int = 0, spent: float = 0.0
    ) -> float | None:
        """Seconds that are left: of all rounds, or else of this pass. None where that is not known.

        Parameters
        ----------
        now : float
            By the clock.
        n_done, n_rows : int
            Rows of this pass: that are read, and to be read.
        spent : float
            Seconds since the pass began.
        """
        if self.rounds is not None:
            took, n_taken = self._ended - self.rounds_began, self.rounds[1] - self._done_before
            if n_taken <= 0 or now - self.rounds_began < _LEAST_SECONDS:
                return None
            each = took / n_taken
            # The round under way has had some of its time; it may take longer than the others did.
            return max(0.0, each * (self.rounds[2] - self.rounds[1]) - min(now - self._ended, each))
        share = min(1.0, n_done / n_rows) if n_done and n_rows else 0.0
        if spent < _LEAST_SECONDS or share < _LEAST_SHARE:
            return None
        return spent * (1 - share) / share


# What is shown at the moment; one step is at work at a time.
_shown: list[Pace] = []


def report_rounds(units: str, n_done: int, n_rounds: int) -> None:
    """Tell the display how many rounds of the step at work are done; does nothing where none is shown.

    Parameters
    ----------
    units : str
        What the rounds are: ``iterations``, ``parts``.
    n_done : int
        0 when they begin: from then on their time counts.
    n_rounds : int
        At most so many: a step may end sooner.
    """
    for pace in _shown[-1:]:
        pace.report_rounds(units, n_done, n_rounds)


@contextmanager
def show_progress(title: str, directory: str | None, count_rows: Callable[[], int]) -> Iterator[None]:
    """Show how many rows the workers have read, until the code inside ends.

    Parameters
    ----------
    title : str
        What is being done.
    directory : str or None
        Where workers leave their notes, with one directory for each pass. It is deleted at the end. None
        where there are none, but `report_rounds` tells.
    count_rows : callable
        Returns the rows of one pass, 0 where that is not known yet.
    """
    done, pace = threading.Event(), Pace()
    _shown.append(pace)
    watching = threading.Thread(target=_watch, args=(title, directory, count_rows, done, pace), daemon=True)
    watching.start()
    try:
        yield
    finally:
        done.set()
        watching.join()
        _shown.remove(pace)
        try:
            if directory is not None:
                files.delete(directory)
        except (OSError, SparkDbpError) as error:
            log.warning("cannot delete %s: %s", directory, error)


def _watch(
    title: str, directory: str | None, count_rows: Callable[[], int], done: threading.Event, pace: Pace
) -> None:
    on_terminal = can_redraw(sys.stderr) and not _is_quiet()
    n_done, begun = None, 0.0
    pause = 0.0 if directory is None or files.is_local(directory) else _NOTED_IN_STORE / 2
    looked = logged = pace.started
    while not done.wait(_RENEWED if on_terminal else _LOGGED):
        now = pace.clock()
        try:
            if directory is not None and now - looked >= pause:
                looked = now
                seen = count_reported_rows(directory)
                if seen is not None:
                    begun, n_done = seen
        except (OSError, SparkDbpError):  # a note was deleted in between, or the store does not answer
            continue
        n_rows, age = count_rows(), time.time() - begun
        left = pace.estimate_left(now, n_done, n_rows, age)
        # A pass that is older than the rounds is over: they are of something else.
        is_over = pace.rounds is not None and age > now - pace.rounds_began
        n_shown = None if is_over else n_done
        text = describe(title, n_shown, n_rows, now - pace.started, pace.rounds, left)
        if not on_terminal:
            log.info("  %s", text)
            continue
        width = _find_width()
        if len(text) >= width and pace.rounds is not None:  # what is left says more than the rows do
            text = describe(title, None, n_rows, now - pace.started, pace.rounds, left)
        sys.stderr.write(CLEAR_LINE + (text if len(text) < width else f"{text[: width - 4]}..."))
        sys.stderr.flush()
        if now - logged >= _LOGGED:  # a log file has no line that is written over
            logged = now
            log.debug("  %s", text, extra=FOR_FILE)
    if on_terminal:
        sys.stderr.write(CLEAR_LINE)
        sys.stderr.flush()


def _find_width() -> int:
    """Columns of the terminal: only one line can be written over."""
    with suppress(OSError, ValueError):
        return os.get_terminal_size(sys.stderr.fileno()).columns or _WIDE
    return _WIDE


def describe(
    title: str,
    n_done: int | None,
    n_rows: int,
    seconds: float,
    rounds: tuple[str, int, int] | None = None,
    left: float | None = None,
) -> str:
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
    rounds : (str, int, int), optional
        What the rounds are, how many are done, and how many there are at most.
    left : float, optional
        Seconds that are left.

    Examples
    --------
    >>> describe("Assigning", 750_000, 2_000_000, 75.2, left=125.3)
    'Assigning: 750,000 of 2,000,000 rows (37 %), 1:15, about 2:05 left'
    >>> describe("Clustering", None, 0, 40, ("iterations", 5, 20), 120)
    'Clustering: 5 of 20 iterations, 0:40, about 2:00 left'
    """
    parts = []
    if rounds is not None:
        units, done, n_rounds = rounds
        parts.append(f"{done:,} of {n_rounds:,} {units}")
    if n_done is not None and n_rows:
        n_done = min(n_done, n_rows)
        parts.append(f"{n_done:,} of {n_rows:,} rows ({100 * n_done // n_rows} %)")
    parts.append(format_time(seconds))
    if left is not None and left >= 1:
        parts.append(f"about {format_time(left)} left")
    return f"{title}: {', '.join(parts)}"


def format_time(seconds: float) -> str:
    """Minutes and seconds, or hours too.

    Examples
    --------
    >>> format_time(75.2), format_time(3_725)
    ('1:15', '1:02:05')
    """
    minutes, rest = divmod(int(seconds), 60)
    hours, of_hour = divmod(minutes, 60)
    return f"{hours}:{of_hour:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
