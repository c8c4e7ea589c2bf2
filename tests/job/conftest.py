"""What the tests of the real command share."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from bad_inputs import PROCESSES, Done, in_a_process, in_this_process


@pytest.fixture
def command(request, capsys) -> Callable[[list], Done]:
    """Runs ``spark-dbp`` with arguments.

    By default its main() is called in this process, in the session that all tests share. With
    SPARK_DBP_TEST_PROCESSES=1 every call is a process of its own, which is what users start (half an hour), and
    10,000 files are read instead of 1,000.
    """
    if PROCESSES:
        return in_a_process
    session = request.getfixturevalue("spark")
    before = _settings(session)
    request.addfinalizer(lambda: _restore(session, before))
    return lambda arguments: in_this_process(arguments, capsys)


def _settings(session) -> dict:
    return {row.key: row.value for row in session.sql("SET").collect()}


def _restore(session, before: dict) -> None:
    """What the `spark` section of a case has set would hold for all tests that follow."""
    for name, value in _settings(session).items():
        if name not in before:
            session.conf.unset(name)
        elif before[name] != value:
            session.conf.set(name, before[name])
