"""`input.table`: the run reads one version of the table, knows it again, and notices when it cannot.

Iceberg tables are real, on the lane that has the jar (`make test-spark35`). No package carries the jar of Delta:
there a session that answers as Delta's documentation shows stands for it.
"""

from __future__ import annotations

import logging
from types import SimpleNamespace
from uuid import uuid4

import pytest
from conftest import ICEBERG_JAR, config_of, make_embeddings, make_keys, rows_of, write_table

from spark_dbp import RunConfig, run, verify
from spark_dbp.engine import catalog
from spark_dbp.engine.catalog import TableVersion, describe_table, find_version, read_version
from spark_dbp.errors import InputError
from spark_dbp.io import sources
from spark_dbp.io.sources import Source

needs_iceberg = pytest.mark.skipif(not ICEBERG_JAR, reason="needs Iceberg's jar: make test-spark35")
N = 60


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return write_table(tmp_path_factory.mktemp("in") / "in", make_keys(N), make_embeddings(N, 4, 3))


def config(table: str, out, **given) -> RunConfig:
    values = config_of("x", out, cluster={"n_clusters": 3})
    return RunConfig.from_dict(values | {"input": {"table": table, **given}})


def more_rows(spark, n: int = 5):
    return spark.range(n).selectExpr(
        "concat('new', id) AS key", "array(1F, 2F, 3F, cast(id AS FLOAT)) AS embedding"
    )


def write_while_read(monkeypatch, write) -> None:
    """Another program writes to the table after the run has opened it, and before it reads the rows."""
    read = Source.read_rows

    def read_rows(self):
        write()
        return read(self)

    monkeypatch.setattr(Source, "read_rows", read_rows)


# Plain Parquet tables.


@pytest.fixture
def table(spark, rows, tmp_path):
    name = f"t{uuid4().hex[:8]}"
    spark.sql(
        f"CREATE TABLE {name} USING parquet LOCATION '{tmp_path}/table' AS SELECT * FROM parquet.`{rows}`"
    )
    yield name
    spark.sql(f"DROP TABLE {name}")


@pytest.mark.slow
def test_files_that_another_program_adds_are_seen(spark, table, tmp_path):
    """Although the session remembers which files the table had."""
    done = run(config(table, tmp_path / "run"), spark)
    assert done.document["input"]["version"] is None
    assert done.document["input"]["files"] >= 1
    more_rows(spark).coalesce(1).write.parquet(str(tmp_path / "more"))
    (part,) = (tmp_path / "more").glob("*.parquet")
    part.rename(tmp_path / "table" / part.name)
    assert sources.open_source(spark, table=table, columns=["key"]).snapshot.rows == N + 5


@pytest.mark.slow
def test_a_plain_table_that_changes_is_noticed(spark, table, tmp_path, monkeypatch):
    write_while_read(monkeypatch, lambda: more_rows(spark).write.insertInto(table))
    with pytest.raises(InputError, match=rf"input.table {table} changed while it was read"):
        run(config(table, tmp_path / "run"), spark)


# Iceberg.


@pytest.fixture
def lake(spark, rows):
    schema = f"lake.s{uuid4().hex[:8]}"
    spark.sql(f"CREATE SCHEMA {schema}")
    spark.sql(f"CREATE TABLE {schema}.`my images` USING iceberg AS SELECT * FROM parquet.`{rows}`")
    yield f"{schema}.`my images`"
    spark.sql(f"DROP TABLE {schema}.`my images` PURGE")
    spark.sql(f"DROP SCHEMA {schema}")


def newest(spark, table: str) -> str:
    found = spark.sql(
        f"SELECT snapshot_id FROM {table}.snapshots ORDER BY committed_at DESC LIMIT 1"
    ).collect()
    return f"Iceberg snapshot {found[0][0]}"


@needs_iceberg
def test_the_snapshot_is_the_version_of_the_input(spark, lake, tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="spark_dbp")
    first = run(config(lake, tmp_path / "run"), spark)
    seen = first.document["input"]
    assert (seen["version"], seen["rows"]) == (newest(spark, lake), N)
    assert seen["bytes"] > N * 16
    assert any(seen["version"] in check for check in verify(first, spark))
    again = run(config(lake, tmp_path / "run"), spark)
    assert again.document["reused_stages"] == list(first.document["stages"])
    more_rows(spark).writeTo(lake).append()
    caplog.clear()
    grown = run(config(lake, tmp_path / "run"), spark)
    assert grown.document["input"]["rows"] == N + 5
    assert grown.document["input"]["version"] == newest(spark, lake) != seen["version"]
    assert "the input.version" in caplog.text


@needs_iceberg
def test_what_is_committed_meanwhile_does_not_matter(spark, lake, tmp_path, monkeypatch):
    calm = run(config(lake, tmp_path / "calm"), spark)
    version = newest(spark, lake)

    def write():
        more_rows(spark).writeTo(lake).append()
        spark.sql(f"DELETE FROM {lake} WHERE key < 'part/05'")

    write_while_read(monkeypatch, write)
    done = run(config(lake, tmp_path / "run"), spark)
    assert done.document["digests"] == calm.document["digests"]
    assert done.document["input"]["version"] == version != newest(spark, lake)
    assert spark.read.table(lake).count() < N


@needs_iceberg
def test_deleted_rows_are_not_read(spark, lake, tmp_path):
    spark.sql(
        f"ALTER TABLE {lake} SET TBLPROPERTIES ('write.delete.mode' = 'merge-on-read', 'format-version' = '2')"
    )
    left = [row for row in rows_of(spark.read.table(lake).select("key")) if row[0] != make_keys(N)[3]]
    spark.sql(f"DELETE FROM {lake} WHERE key = '{make_keys(N)[3]}'")
    assert spark.sql(f"SELECT * FROM {lake}.files WHERE content <> 0").count() == 1
    done = run(config(lake, tmp_path / "run"), spark)
    assert done.document["input"]["rows"] == N - 1
    assert rows_of(done.assignments(spark).select("key")) == left


@needs_iceberg
def test_a_column_that_was_renamed_since(spark, lake, tmp_path, monkeypatch):
    """The snapshot has the old name, so the table is read as it is, and looked at again."""
    spark.sql(f"ALTER TABLE {lake} RENAME COLUMN key TO uid")
    done = run(config(lake, tmp_path / "run", key="uid"), spark)
    assert done.document["input"]["version"] == newest(spark, lake)
    write_while_read(
        monkeypatch, lambda: more_rows(spark).withColumnRenamed("key", "uid").writeTo(lake).append()
    )
    with pytest.raises(
        InputError, match=r"changed while it was read: Iceberg snapshot \d+ \(60 rows\) before"
    ):
        run(config(lake, tmp_path / "again", key="uid"), spark)


@needs_iceberg
def test_a_version_has_the_metadata_columns(spark, lake):
    frame = read_version(spark, lake, find_version(spark, lake))
    assert frame.where("_file LIKE '%.parquet'").count() == N


@needs_iceberg
def test_a_table_without_a_snapshot_has_no_rows(spark, lake, tmp_path):
    empty = lake.replace("my images", "empty")
    spark.sql(f"CREATE TABLE {empty} (key STRING, embedding ARRAY<FLOAT>) USING iceberg")
    with pytest.raises(InputError, match="no rows"):
        run(config(empty, tmp_path / "run"), spark)
    spark.sql(f"DROP TABLE {empty}")


@needs_iceberg
def test_where_a_catalog_tells_less(spark, lake, monkeypatch):
    """The snapshot from the table `refs`; the size of the rows from the rows."""
    known, ask = find_version(spark, lake), catalog.describe_table

    def describe(session, name):
        info = ask(session, name)
        info.properties.pop("current-snapshot-id")
        return info

    monkeypatch.setattr(catalog, "describe_table", describe)
    assert find_version(spark, lake) == known
    frame = read_version(spark, lake, known)
    shown = sources._snapshot_of_version(frame, TableVersion("iceberg", known.number))
    assert shown.bytes > N * 16
    assert (shown.digest, shown.rows) == (sources._snapshot_of_version(frame, known).digest, N)


# Delta.


class Delta:
    """Answers to the questions about a Delta table, as its documentation shows them."""

    def __init__(self, **answers):
        self.answers, self.asked = answers, []

    def sql(self, text: str):
        self.asked.append(text)
        for start, rows in self.answers.items():
            if text.startswith(start.replace("_", " ")):
                return Answer(rows, self)
        raise AssertionError(text)


class Answer:
    def __init__(self, rows, session):
        self.rows, self.session = rows, session
        self.schema = SimpleNamespace(simpleString=lambda: "struct<key:string>")

    def select(self, *names):
        return Answer([tuple(row[name] for name in names) for row in self.rows], self.session)

    def collect(self):
        return self.rows


def delta(version: int = 7, table_id: str = "f1d2") -> Delta:
    described = [("key", "string", None), ("Provider", "int", None), ("", "", "")]
    described += [
        ("# Detailed Table Information", "", ""),
        ("Type", "MANAGED", ""),
        ("Provider", "delta", ""),
    ]
    return Delta(
        DESCRIBE_TABLE_EXTENDED=described,
        SHOW_TBLPROPERTIES=[("delta.minReaderVersion", "1")],
        DESCRIBE_HISTORY=[{"version": version, "operation": "WRITE"}],
        DESCRIBE_DETAIL=[{"id": table_id, "format": "delta", "numFiles": 3, "sizeInBytes": 4096}],
        SELECT=[("a",)],
    )


def test_the_version_of_a_delta_table():
    session = delta()
    found = find_version(session, "main.images.`my table`")
    assert found == TableVersion("delta", 7, "f1d2", files=3, bytes=4096)
    assert str(found) == "Delta version 7"
    assert session.asked[2:] == [
        "DESCRIBE HISTORY `main`.`images`.`my table` LIMIT 1",
        "DESCRIBE DETAIL `main`.`images`.`my table`",
    ]
    read_version(session, "main.images.`my table`", found)
    assert session.asked[-1] == "SELECT * FROM `main`.`images`.`my table` VERSION AS OF 7"
    info = describe_table(session, "x")
    assert (info.kind, info.provider, info.columns) == (
        "MANAGED",
        "delta",
        (("key", "string"), ("Provider", "int")),
    )


@pytest.mark.parametrize(
    ("other", "same"), [(delta(), True), (delta(version=8), False), (delta(table_id="0000"), False)]
)
def test_a_delta_table_is_known_again(other, same):
    """By its id too: a table that is dropped and made anew counts from 0 again."""
    frame = SimpleNamespace(count=lambda: 60)
    first, second = (
        sources._snapshot_of_version(frame, find_version(session, "t")) for session in (delta(), other)
    )
    assert (first == second) is same


def test_a_history_that_may_not_be_seen(spark, caplog):
    """The table is then read as any other."""
    from pyspark.errors import AnalysisException

    class Denied(Delta):
        def sql(self, text):
            if text.startswith("DESCRIBE HISTORY"):
                raise AnalysisException("[INSUFFICIENT_PERMISSIONS] no MODIFY on t")
            return super().sql(text)

    caplog.set_level(logging.INFO, logger="spark_dbp")
    assert find_version(Denied(**delta().answers), "t") is None
    assert "the version of t is not known: no MODIFY on t" in caplog.text


def test_no_right_to_read(spark, tmp_path, monkeypatch):
    """As Unity Catalog refuses it (its message, raised here in Spark's place)."""
    from pyspark.errors import AnalysisException

    def refuse(*_):
        raise AnalysisException(
            "[INSUFFICIENT_PERMISSIONS] Insufficient privileges: no SELECT on Table 'a.b.c'."
        )

    monkeypatch.setattr(type(spark.read), "table", refuse)
    with pytest.raises(InputError, match=r"no right to read \(input.table a.b.c\): .*no SELECT on Table"):
        run(config("a.b.c", tmp_path / "run"), spark)
    assert not (tmp_path / "run").exists()
