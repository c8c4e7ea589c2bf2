"""What Spark's daemon prints in a worker whose task was given up."""

from __future__ import annotations

import traceback

import pytest

from spark_dbp.engine import compat


@pytest.mark.parametrize(
    ("error", "is_told"),
    [(BrokenPipeError(), False), (ConnectionResetError(), False), (ValueError("x"), True)],
)
def test_only_lost_connections_are_not_told(monkeypatch, capsys, error, is_told):
    monkeypatch.setattr(traceback, "print_exc", traceback.print_exc)  # restored at the end
    compat._be_quiet_when_given_up.__wrapped__()
    try:
        raise error
    except Exception:
        traceback.print_exc()
    assert ("Traceback" in capsys.readouterr().err) == is_told
