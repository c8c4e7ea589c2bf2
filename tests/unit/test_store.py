"""The run directory: commits, reuse, locks, what is refused."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest

from spark_dbp.errors import ConfigError, ConflictError, InputError, SparkDbpError
from spark_dbp.lake import files, store
from spark_dbp.lake.cleaning import clean
from spark_dbp.runs import open_run

DOCUMENT: dict = {"summary": {}, "config": {}, "accounting": {}}


def build(content: bytes, calls: list):
    def write(writer):
        calls.append(content)
        files.write_bytes(files.join(writer.new_directory("numbers"), "data"), content)
        writer.report("numbers", rows=len(content), digest="d")

    return write


def test_a_stage_is_reused_only_for_the_same_inputs(tmp_path):
    calls: list = []
    path = str(tmp_path / "run")
    for depends, content in [({"n": 1}, b"one"), ({"n": 1}, b"one"), ({"n": 2}, b"two")]:
        with store.open_run_directory(path) as run:
            stage = run.reuse_or_build("count", "Counting", depends, build(content, calls))
            assert files.read_bytes(files.join(run.at(stage.tables["numbers"]), "data")) == content
            run.commit(DOCUMENT)
    assert calls == [b"one", b"two"]
    assert open_run(path).document["rows"] == {"numbers": 3}
    assert not (tmp_path / "run" / "lock.json").exists()


def test_a_stage_whose_tables_are_gone_is_computed_anew(tmp_path):
    calls: list = []
    for _ in range(2):
        with store.open_run_directory(str(tmp_path / "run")) as run:
            stage = run.reuse_or_build("count", "Counting", {"n": 1}, build(b"x", calls))
            table = run.at(stage.tables["numbers"])
        files.delete(table)
    assert len(calls) == 2


def test_a_failed_stage_leaves_nothing(tmp_path):
    def fail(writer):
        files.write_bytes(files.join(writer.new_directory("numbers"), "data"), b"half")
        raise InputError("no good")

    with pytest.raises(InputError), store.open_run_directory(str(tmp_path / "run")) as run:
        run.reuse_or_build("count", "Counting", {"n": 1}, fail)
    assert list(tmp_path.iterdir()) == []


def test_a_mark_of_another_version_is_not_trusted(tmp_path):
    calls: list = []
    with store.open_run_directory(str(tmp_path / "run")) as run:
        run.reuse_or_build("count", "Counting", {"n": 1}, build(b"x", calls))
    (tmp_path / "run/stages/count.json").write_text('{"unknown": 1}')
    with store.open_run_directory(str(tmp_path / "run")) as run:
        run.reuse_or_build("count", "Counting", {"n": 1}, build(b"x", calls))
    assert len(calls) == 2


def test_directories_that_hold_something_else(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with (
        pytest.raises(ConfigError, match=r"holds something that is not a run: thesis\.tex"),
        store.open_run_directory(str(tmp_path)),
    ):
        pass
    with (
        pytest.raises(ConfigError, match="is a file"),
        store.open_run_directory(str(tmp_path / "thesis.tex")),
    ):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_what_changed_is_named(tmp_path, caplog):
    caplog.set_level(logging.INFO, "spark_dbp")
    path = str(tmp_path / "run")
    for settings in ({"a": 1, "b": {"c": 2}}, {"a": 1, "b": {"c": 3}}):
        with store.open_run_directory(path) as run:
            run.reuse_or_build("count", "Counting", {"settings": settings, "the input": "x"}, build(b"x", []))
    assert "Counting: computed anew, for settings.b.c changed" in caplog.text
    mark = tmp_path / "run/stages/count.json"
    mark.write_text(json.dumps({**json.loads(mark.read_text()), "version": "0.0.1", "fingerprint": "old"}))
    with store.open_run_directory(path) as run:
        run.reuse_or_build("count", "Counting", {"settings": settings, "the input": "x"}, build(b"x", []))
    assert "computed anew, for it was made by version 0.0.1 of spark-dbp" in caplog.text


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda table: (table / "data").unlink(), "file 'data' is missing"),
        (lambda table: (table / "data").write_bytes(b"xx"), "file 'data' has 2 bytes where 1 were written"),
        (lambda table: (table / "part-9.parquet").write_bytes(b""), "'part-9.parquet' does not belong to it"),
    ],
)
def test_a_stage_whose_files_are_not_as_written_is_computed_anew(tmp_path, caplog, damage, words):
    caplog.set_level(logging.INFO, "spark_dbp")
    calls: list = []
    tables = []
    for _ in range(2):
        with store.open_run_directory(str(tmp_path / "run")) as run:
            stage = run.reuse_or_build("count", "Counting", {}, build(b"x", calls))
            tables.append(Path(run.at(stage.tables["numbers"])))
        if len(tables) == 1:
            damage(tables[0])
    assert len(calls) == 2
    assert words in caplog.text
    assert tables[0] != tables[1]
    assert (tables[1] / "data").read_bytes() == b"x"


def test_files_that_spark_does_not_read_are_no_damage(tmp_path):
    calls: list = []
    for _ in range(2):
        with store.open_run_directory(str(tmp_path / "run")) as run:
            table = Path(
                run.at(run.reuse_or_build("count", "Counting", {}, build(b"x", calls)).tables["numbers"])
            )
        for name in ("_SUCCESS", ".data.crc"):
            (table / name).touch()
    assert len(calls) == 1


def test_what_a_failed_attempt_left_is_no_part_of_a_table_and_no_damage(tmp_path, caplog):
    """Files that are there from the start, and are not named; not those that come later."""
    caplog.set_level(logging.INFO, "spark_dbp")
    calls: list = []

    def write(writer):
        calls.append(1)
        path = writer.new_directory("numbers")
        for name in ("data", "left"):
            files.write_bytes(files.join(path, name), b"x")
        writer.report("numbers", rows=1, names=["data"])

    for _ in range(2):
        with store.open_run_directory(str(tmp_path / "run")) as run:
            step = run.reuse_or_build("count", "Counting", {}, write)
            table = Path(run.at(step.tables["numbers"]))
            run.commit(DOCUMENT)
    assert len(calls) == 1
    assert (step.files, step.bytes) == ({"numbers": {"data": 1}}, {"numbers": 1})
    assert step.ignored == {"numbers": ["left"]}
    assert "1 files are no part of it, such as left" in caplog.text
    assert open_run(tmp_path / "run").document["stages"]["count"]["ignored"] == step.ignored
    (table / "left").unlink()  # who left it may clear it away
    with store.open_run_directory(str(tmp_path / "run")) as run:
        run.reuse_or_build("count", "Counting", {}, write)
    assert len(calls) == 1
    (table / "later").write_bytes(b"x")
    with store.open_run_directory(str(tmp_path / "run")) as run:
        run.reuse_or_build("count", "Counting", {}, write)
    assert len(calls) == 2
    assert "file 'later' does not belong to it" in caplog.text


def test_a_file_that_was_written_and_is_not_there_fails_the_step(tmp_path):
    def write(writer):
        files.write_bytes(files.join(writer.new_directory("numbers"), "data"), b"x")
        writer.report("numbers", rows=1, names=["data", "gone"])

    with (
        pytest.raises(SparkDbpError, match="file 'gone' was written and is not there"),
        store.open_run_directory(str(tmp_path / "run")) as run,
    ):
        run.reuse_or_build("count", "Counting", {}, write)
    assert list(tmp_path.iterdir()) == []


def test_a_mark_that_names_no_such_files_is_read(tmp_path):
    """As earlier versions wrote it."""
    calls: list = []
    for _ in range(2):
        with store.open_run_directory(str(tmp_path / "run")) as run:
            run.reuse_or_build("count", "Counting", {}, build(b"x", calls))
        mark = tmp_path / "run/stages/count.json"
        document = json.loads(mark.read_text())
        document.pop("ignored", None)
        document.pop("bytes", None)
        mark.write_text(json.dumps(document))
    assert len(calls) == 1


def test_forget(tmp_path):
    calls: list = []
    for _ in range(2):
        with store.open_run_directory(str(tmp_path / "run")) as run:
            run.forget()
            run.reuse_or_build("count", "Counting", {}, build(b"x", calls))
            run.commit(DOCUMENT)
    assert len(calls) == 2


# Cleaning.


def finished(path: Path, content: bytes = b"x") -> Path:
    """A run with one stage; where its table lies."""
    with store.open_run_directory(str(path)) as run:
        stage = run.reuse_or_build("count", "Counting", {"content": content.decode()}, build(content, []))
        run.commit(DOCUMENT)
        return Path(run.at(stage.tables["numbers"]))


def stage_at(table: Path) -> store.FinishedStep:
    """A stage of another run whose table is `table`."""
    return store.FinishedStep(
        "count", "f", tables={"numbers": str(table)}, files={"numbers": files.list_sizes(str(table))}
    )


def test_stages_of_another_run_are_taken_over_all_or_none(tmp_path):
    good, bad = finished(tmp_path / "good"), finished(tmp_path / "bad")
    stages = [stage_at(good), stage_at(bad)]
    (bad / "data").unlink()
    with (
        pytest.raises(InputError, match="'data' is missing"),
        store.open_run_directory(str(tmp_path / "derived")) as derived,
    ):
        derived.adopt(stages)
    assert not (tmp_path / "derived").exists()
    assert not (tmp_path / "good/derived").exists()


def test_clean_deletes_what_nothing_names_and_only_that(tmp_path):
    path = tmp_path / "run"
    old, new = finished(path, b"old"), finished(path, b"new")
    debris = [old, path / "tables/gone/20200101T000000-aa", new / "_draft-1", new / "_temporary"]
    debris += [path / ".progress/1", path / ".run.json.1234abcd", path / "stages/.count.json.1234abcd"]
    for folder in debris:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "part-0.parquet").write_bytes(b"half")
    would = clean(str(path), dry_run=True)
    assert all(folder.exists() for folder in debris)
    assert clean(str(path)) == would
    assert dict(would)[str(debris[1])] == 4
    assert not any(folder.exists() for folder in debris)
    assert (new / "data").read_bytes() == b"new"
    assert not (path / "tables/gone").exists()
    assert open_run(path).document["tables"]["numbers"].endswith(new.name)
    assert clean(str(path)) == []


def test_clean_keeps_what_a_derived_run_uses_until_that_is_gone(tmp_path):
    old = finished(tmp_path / "run", b"old")
    with store.open_run_directory(str(tmp_path / "derived")) as derived:
        derived.adopt([stage_at(old)])
        derived.commit(DOCUMENT)
    finished(tmp_path / "run", b"new")
    assert clean(str(tmp_path / "run")) == []
    assert old.exists()
    shutil.rmtree(tmp_path / "derived")
    clean(str(tmp_path / "run"))
    assert not old.exists()
    assert not (tmp_path / "run/derived").exists()


def test_clean_keeps_what_a_run_derived_from_a_derived_run_uses(tmp_path):
    """The second one shares tables of two directories, and the first one may be gone."""
    old = finished(tmp_path / "run", b"old")
    own = finished(tmp_path / "first")
    with store.open_run_directory(str(tmp_path / "second")) as second:
        second.adopt([stage_at(old), stage_at(own)])
        second.commit(DOCUMENT)
    finished(tmp_path / "run", b"new")
    finished(tmp_path / "first", b"new")
    assert len(list((tmp_path / "run/derived").iterdir())) == 1
    assert len(list((tmp_path / "first/derived").iterdir())) == 1
    assert clean(str(tmp_path / "run")) == clean(str(tmp_path / "first")) == []
    assert old.exists()
    assert own.exists()


def test_clean_leaves_hidden_files_of_others(tmp_path):
    finished(tmp_path / "run")
    for name in (".git/HEAD", ".nfs0001", "stages/.nfs0002"):
        (tmp_path / "run" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "run" / name).touch()
    assert clean(str(tmp_path / "run")) == []
    assert (tmp_path / "run/.git/HEAD").exists()


def test_clean_refuses(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(InputError, match="no run directory"):
            clean(str(path))
    finished(tmp_path / "run")
    with store.open_run_directory(str(tmp_path / "run")), pytest.raises(ConflictError):
        clean(str(tmp_path / "run"))
    (tmp_path / "run/stages/count.json").write_text("{")
    (tmp_path / "run/tables/gone/1").mkdir(parents=True)
    with pytest.raises(InputError, match=r"count\.json cannot be read"):
        clean(str(tmp_path / "run"))
    assert (tmp_path / "run/tables/gone/1").exists()


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
    assert files.resolve(base, files.make_relative(path, base)) == path
