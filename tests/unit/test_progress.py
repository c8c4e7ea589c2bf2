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


def test_a_note_that_cannot_be_written_does_no_harm(tmp_path):
    (tmp_path / "file").write_text("")
    rows = [pa.RecordBatch.from_pydict({"x": [1, 2]})]
    assert len(list(progress.report_progress(iter(rows), str(tmp_path / "file" / "notes")))) == 1


def test_a_message_takes_the_place_of_the_line():
    stream = Terminal(True)
    record = logging.LogRecord("spark_dbp", logging.INFO, "", 0, "done", (), None)
    progress.ProgressLogHandler(stream).emit(record)
    assert stream.getvalue() == progress.CLEAR_LINE + "done\n"
