"""SQL of the configuration: what in it depends on the moment, found without Spark."""

from __future__ import annotations

import pytest

from spark_dbp.engine.expressions import find_bare_names, find_calls, has_subquery

CALLS = {
    "day > current_date() - 30": ["current_date()"],
    "day > CURRENT_DATE - 30": ["current_date()"],
    "a < now ( ) and b = unix_timestamp()": ["now()", "unix_timestamp()"],
    "x = DATE'today' or x = timestamp 'Now'": ["DATE 'today'", "timestamp 'Now'"],
    "`now`() > a": ["now()"],
    "user = 'me' or user() = 'me'": ["user()", "user()"],
    # Not these.
    "current_date_of > 3": [],
    "`current_date` > 3": [],
    "a.current_date > 3": [],
    "current_date.x > 3": [],
    "now > 3": [],
    "unix_timestamp(day) > 3": [],
    "name = 'now()' or name = \"current_date\" or name = r'now()'": [],
    "name = 'it''s now()' and x = 'a\\'now()'": [],
    "a > 1 -- now()\n and b > 2 /* current_date() */": [],
    "DATE '2020-01-01' < day": [],
}


@pytest.mark.parametrize("sql", CALLS)
def test_calls_that_depend_on_the_moment(sql):
    assert find_calls(sql) == CALLS[sql]


def test_names_that_may_be_columns():
    assert find_bare_names("current_user = user and now() > current_timestamp") == [
        "current_user", "user", "current_timestamp",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "sql", ["key IN (SELECT key FROM t)", "( select 1 ) = a", "exists(with t as (select 1) select 1)"]
)
def test_subqueries(sql):
    assert has_subquery(sql)


@pytest.mark.parametrize(
    "sql", ["a = '(select 1)'", "exists(words, w -> w = 'x')", "`(select` = 1", "selected(1)"]
)
def test_no_subqueries(sql):
    assert not has_subquery(sql)
