"""The run directory: commits, reuse, locks, what is refused."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

import pytest

from spark_dbp import files, store
from spark_dbp.errors import ConfigError, ConflictError, InputError
from spark_dbp.runs import open_run


def build(content: bytes, calls: list):
    def write(writer):
        calls.append(content)
        files.write_bytes(files.join(writer.new_directory("numbers"), "data"), content)
        writer.report("numbers", rows=len(content), digest="d")

    return write


def test_a_stage_is_reused_only_for_the_same_inputs(tmp_path):
    calls: list = []
    path = str(tmp_path / "run")
    for depends, content in [([1], b"one"), ([1], b"one"), ([2], b"two")]:
        with store.opened(path) as run:
            stage = run.stage("count", "Counting", depends, build(content, calls))
            assert files.read_bytes(files.join(run.at(stage.tables["numbers"]), "data")) == content
            run.commit({"summary": {}})
    assert calls == [b"one", b"two"]
    assert open_run(path).document["rows"] == {"numbers": 3}
    assert not (tmp_path / "run" / "lock.json").exists()


def test_a_stage_whose_tables_are_gone_is_computed_anew(tmp_path):
    calls: list = []
    for _ in range(2):
        with store.opened(str(tmp_path / "run")) as run:
            stage = run.stage("count", "Counting", 1, build(b"x", calls))
            table = run.at(stage.tables["numbers"])
        files.delete_tree(table)
    assert len(calls) == 2


def test_a_failed_stage_leaves_nothing(tmp_path):
    def fail(writer):
        files.write_bytes(files.join(writer.new_directory("numbers"), "data"), b"half")
        raise InputError("no good")

    with pytest.raises(InputError), store.opened(str(tmp_path / "run")) as run:
        run.stage("count", "Counting", 1, fail)
    assert list(tmp_path.iterdir()) == []


def test_a_mark_of_another_version_is_not_trusted(tmp_path):
    calls: list = []
    with store.opened(str(tmp_path / "run")) as run:
        run.stage("count", "Counting", 1, build(b"x", calls))
    (tmp_path / "run/stages/count.json").write_text('{"unknown": 1}')
    with store.opened(str(tmp_path / "run")) as run:
        run.stage("count", "Counting", 1, build(b"x", calls))
    assert len(calls) == 2


def test_directories_that_hold_something_else(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with (
        pytest.raises(ConfigError, match=r"holds something that is not a run: thesis\.tex"),
        store.opened(str(tmp_path)),
    ):
        pass
    with pytest.raises(ConfigError, match="is a file"), store.opened(str(tmp_path / "thesis.tex")):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_second_run_in_the_same_directory_is_refused_and_names_the_owner(tmp_path):
    path = str(tmp_path / "run")
    with (
        store.opened(path),
        pytest.raises(ConflictError, match=f"process {os.getpid()}") as caught,
        store.opened(path),
    ):
        pass
    assert caught.value.exit_code == 4
    assert not (tmp_path / "run").exists()


def test_the_lock_of_a_dead_run_is_removed(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True
    )
    (tmp_path / "run").mkdir()
    lock = tmp_path / "run" / "lock.json"
    lock.write_text(json.dumps({"host": socket.gethostname(), "pid": int(done.stdout), "since": 0}))
    with store.opened(str(tmp_path / "run")):
        assert json.loads(lock.read_text())["pid"] == os.getpid()
    lock.parent.mkdir(exist_ok=True)
    lock.write_text(json.dumps({"host": "elsewhere", "pid": 1, "since": 0}))
    with pytest.raises(ConflictError, match="on elsewhere"), store.opened(str(tmp_path / "run")):
        pass


@pytest.mark.parametrize("content", ["{", "[]", '{"tables": {}}'])
def test_open_run_refuses_what_is_no_run(tmp_path, content):
    with pytest.raises(InputError, match="no finished run"):
        open_run(tmp_path)
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(InputError, match=r"not a run\.json"):
        open_run(tmp_path)


@pytest.mark.parametrize(
    ("path", "base"),
    [
        ("/data/runs/a/tables/x", "/data/runs/b"),
        ("s3://bucket/runs/a/tables/x", "s3://bucket/runs/b"),
        ("s3://other/x", "s3://bucket/runs/b"),
        ("/data/x", "s3://bucket/b"),
    ],
)
def test_relative_paths_resolve_to_where_they_came_from(path, base):
    assert files.resolve(base, files.relative(path, base)) == path
