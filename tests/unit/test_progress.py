"""The display of progress: a line on a terminal, plain lines in a log, nothing where Spark is silent."""

from __future__ import annotations

import io
import logging
import time

import pyarrow as pa
import pytest

from spark_dbp.lake import progress


class Terminal(io.StringIO):
    def __init__(self, is_terminal: bool) -> None:
        super().__init__()
        self.is_terminal = is_terminal

    def isatty(self) -> bool:
        return self.is_terminal


@pytest.fixture
def watched(monkeypatch, caplog, tmp_path):
    """Show a stage while one pass after the other notes its rows."""

    def show(passes, is_terminal):
        directory, stream = tmp_path / "progress", Terminal(is_terminal)
        monkeypatch.setattr(progress, "_RENEWED", 0.01)
        monkeypatch.setattr(progress, "_LOGGED", 0.01)
        monkeypatch.setattr("sys.stderr", stream)
        with (
            caplog.at_level(logging.INFO, "spark_dbp"),
            progress.show_progress("Assigning", str(directory), lambda: 1000),
        ):
            for tasks in passes:
                notes = progress.name_pass(str(directory))
                for batches in tasks:
                    rows = [pa.RecordBatch.from_pydict({"x": [0] * n}) for n in batches]
                    assert [b.num_rows for b in progress.report_progress(iter(rows), notes)] == batches
                wanted = f"{sum(map(sum, tasks)):,} of 1,000 rows"
                deadline = time.monotonic() + 10
                while wanted not in stream.getvalue() + " ".join(caplog.messages):
                    assert time.monotonic() < deadline
                    time.sleep(0.005)
        assert not directory.exists()
        return stream.getvalue()

    return show


@pytest.mark.parametrize("every", [-1.0, 100.0], ids=["noted after every batch", "noted at the end"])
def test_one_line_on_a_terminal(watched, caplog, monkeypatch, every):
    monkeypatch.setattr(progress, "_NOTED", every)
    written = watched([[[200, 50], [250]], [[100, 0, 7]]], True)
    assert "Assigning: 500 of 1,000 rows (50 %), 0:00" in written.split(progress.CLEAR_LINE)
    assert "Assigning: 107 of 1,000 rows (10 %), 0:00" in written.split(progress.CLEAR_LINE)
    assert "\n" not in written and written.endswith(progress.CLEAR_LINE)
    assert not caplog.messages


def test_plain_lines_in_a_log(watched, caplog):
    assert watched([[[750]]], False) == ""
    assert "  Assigning: 750 of 1,000 rows (75 %), 0:00" in caplog.messages


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_rounds_tell_what_is_left(clock):
    pace = progress.Pace(clock)
    clock.now += 50  # a sample is drawn first: no round
    pace.report_rounds("iterations", 0, 20)
    assert pace.estimate_left(clock.now) is None
    clock.now += 40
    pace.report_rounds("iterations", 4, 20)
    assert pace.estimate_left(clock.now) == 160  # 10 s each
    assert pace.estimate_left(clock.now + 4) == 156
    assert pace.estimate_left(clock.now + 30) == 150  # the fifth takes long
    clock.now += 160
    pace.report_rounds("iterations", 20, 20)
    assert pace.estimate_left(clock.now) == 0


def test_other_rounds_begin_anew(clock):
    pace = progress.Pace(clock)
    pace.report_rounds("iterations", 0, 2)
    clock.now += 100
    pace.report_rounds("iterations", 2, 2)
    pace.report_rounds("passes over all rows", 0, 10)
    assert pace.estimate_left(clock.now) is None
    clock.now += 30
    pace.report_rounds("passes over all rows", 1, 10)
    assert pace.estimate_left(clock.now) == 270


def test_parts_of_an_earlier_attempt_took_no_time(clock):
    pace = progress.Pace(clock)
    pace.report_rounds("parts", 80, 100)
    clock.now += 10
    pace.report_rounds("parts", 90, 100)
    assert pace.estimate_left(clock.now) == 10


@pytest.mark.parametrize(
    ("n_done", "n_rows", "spent", "left"),
    [
        (250, 1000, 10.0, 30.0),
        (1000, 1000, 10.0, 0.0),
        (1200, 1000, 10.0, 0.0),  # a task that ran twice counts twice
        (250, 1000, 1.0, None),  # too early
        (10, 1000, 10.0, None),  # too little
        (250, 0, 10.0, None),
        (None, 1000, 10.0, None),
        (0, 1000, 10.0, None),
    ],
)
def test_rows_tell_what_is_left_of_a_pass(clock, n_done, n_rows, spent, left):
    assert progress.Pace(clock).estimate_left(clock.now, n_done, n_rows, spent) == left


def test_rounds_are_shown(monkeypatch, caplog):
    monkeypatch.setattr(progress, "_LOGGED", 0.01)
    monkeypatch.setattr("sys.stderr", Terminal(False))
    with (
        caplog.at_level(logging.INFO, "spark_dbp"),
        progress.show_progress("Clustering", None, lambda: 0),
    ):
        progress.report_rounds("iterations", 3, 20)
        wait_for(lambda: "  Clustering: 3 of 20 iterations, 0:00" in caplog.messages)
    progress.report_rounds("iterations", 4, 20)  # nothing is shown any more


def test_rows_of_a_pass_before_the_rounds_are_not_shown(monkeypatch, caplog, tmp_path):
    directory = str(tmp_path / "progress")
    monkeypatch.setattr(progress, "_LOGGED", 0.01)
    monkeypatch.setattr("sys.stderr", Terminal(False))
    rows = [pa.RecordBatch.from_pydict({"x": [0] * 50})]
    with (
        caplog.at_level(logging.INFO, "spark_dbp"),
        progress.show_progress("Clustering", directory, lambda: 100),
    ):
        list(progress.report_progress(iter(rows), progress.name_pass(directory)))
        wait_for(lambda: "  Clustering: 50 of 100 rows (50 %), 0:00" in caplog.messages)
        time.sleep(0.05)
        progress.report_rounds("iterations", 1, 3)
        wait_for(lambda: "  Clustering: 1 of 3 iterations, 0:00" in caplog.messages)
        list(progress.report_progress(iter(rows), progress.name_pass(directory)))
        wait_for(lambda: "  Clustering: 1 of 3 iterations, 50 of 100 rows (50 %), 0:00" in caplog.messages)


def wait_for(is_there) -> None:
    deadline = time.monotonic() + 10
    while not is_there():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("why", ["quiet", "dumb"])
def test_no_line_on_a_terminal_that_wants_none(monkeypatch, caplog, why):
    stream, log = Terminal(True), logging.getLogger("spark_dbp")
    monkeypatch.setattr(progress, "_LOGGED", 0.01)
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setenv("TERM", "dumb" if why == "dumb" else "xterm")
    handler = progress.ProgressLogHandler(stream)
    handler.setLevel(logging.ERROR if why == "quiet" else logging.INFO)
    log.addHandler(handler)
    try:
        with (
            caplog.at_level(logging.INFO, "spark_dbp"),
            progress.show_progress("Clustering", None, lambda: 0),
        ):
            wait_for(lambda: "  Clustering: 0:00" in caplog.messages)
    finally:
        log.removeHandler(handler)
    assert "\r" not in stream.getvalue()
    assert ("Clustering" in stream.getvalue()) == (why == "dumb")  # a plain line


def test_a_log_file_gets_lines_while_the_terminal_shows_one(monkeypatch, caplog):
    stream = Terminal(True)
    for name in ("_LOGGED", "_RENEWED"):
        monkeypatch.setattr(progress, name, 0.01)
    monkeypatch.setattr("sys.stderr", stream)
    with caplog.at_level(logging.DEBUG, "spark_dbp"), progress.show_progress("Clustering", None, lambda: 0):
        wait_for(lambda: "  Clustering: 0:00" in caplog.messages)
    assert all(record.for_file for record in caplog.records)
    plain = progress.ProgressLogHandler(stream)
    stream.truncate(0)
    plain.handle(caplog.records[0])
    assert stream.getvalue() == ""


def test_a_note_that_cannot_be_written_does_no_harm(tmp_path):
    (tmp_path / "file").write_text("")
    rows = [pa.RecordBatch.from_pydict({"x": [1, 2]})]
    assert len(list(progress.report_progress(iter(rows), str(tmp_path / "file" / "notes")))) == 1


def test_a_message_takes_the_place_of_the_line():
    stream = Terminal(True)
    record = logging.LogRecord("spark_dbp", logging.INFO, "", 0, "done", (), None)
    progress.ProgressLogHandler(stream).emit(record)
    assert stream.getvalue() == progress.CLEAR_LINE + "done\n"
