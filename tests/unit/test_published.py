"""The mark of what a run was published to."""

from __future__ import annotations

import pytest

from spark_dbp.errors import InputError
from spark_dbp.lake import files
from spark_dbp.lake.cleaning import clean
from spark_dbp.lake.published import PUBLISHED, find_same_run, read_published, write_published
from spark_dbp.lake.store import RUN_JSON, open_run_directory

RUN = {"tables": {"keep_list": "tables/keep_list/1"}, "digests": {"keep_list": "d"}, "config": {"x": 1}}


def test_the_mark_is_read_as_it_was_written(tmp_path):
    assert read_published(str(tmp_path)) == {}
    mark = {"a.b.c": {"run_id": None, "points_to": ["tables/keep_list/1"]}}
    write_published(str(tmp_path), mark)
    assert read_published(str(tmp_path)) == mark


@pytest.mark.parametrize("content", [b"", b"{", b"7", b"\xff"])
def test_a_mark_that_cannot_be_read(tmp_path, content):
    """Then nothing is deleted either."""
    (tmp_path / "tables/keep_list/1").mkdir(parents=True)
    (tmp_path / PUBLISHED).write_bytes(content)
    with pytest.raises(InputError, match=rf"{PUBLISHED} cannot be read"):
        read_published(str(tmp_path))
    with pytest.raises(InputError, match=rf"{PUBLISHED} cannot be read"):
        clean(str(tmp_path))
    assert (tmp_path / "tables/keep_list/1").exists()


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({}, True),
        ({"committed_at": 1}, True),
        ({"config": {}}, False),
        ({"digests": {}}, False),
        ({"tables": {}}, False),
    ],
)
def test_a_run_that_changes_nothing_keeps_its_id(tmp_path, change, same):
    with open_run_directory(str(tmp_path / "run")) as directory:
        first = directory.commit(RUN)
        second = directory.commit({**RUN, **change})
    assert (first["run_id"] == second["run_id"]) is same


@pytest.mark.parametrize("content", [b"{", b"[]", b"{}", b'{"run_id": "x"}'])
def test_a_run_json_of_something_else(tmp_path, content):
    assert find_same_run(str(tmp_path / RUN_JSON), RUN) is None
    files.write_bytes(str(tmp_path / RUN_JSON), content)
    assert find_same_run(str(tmp_path / RUN_JSON), RUN) is None
