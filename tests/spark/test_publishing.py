"""Runs as tables of a catalog: whole, named as ours, replaced one by one, finished by a rerun.

Spark's own catalog holds Parquet tables; on the lane that has Iceberg's jar, the same tests write Iceberg tables.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest
from bad_inputs import IS_SPARK_35
from conftest import ICEBERG_JAR, ROOT, config_of, make_embeddings, make_keys, rows_of, write_table

from spark_dbp import Run, RunConfig, open_run, prune_again, publishing, run
from spark_dbp.engine import catalog_writer
from spark_dbp.errors import ConfigError, ConflictError, SparkDbpError
from spark_dbp.explore.verdicts import publish_verdicts
from spark_dbp.lake.cleaning import clean
from spark_dbp.publishing import TABLES

N = 60
OF_A_RUN = ["cluster_stats", "quotas", "keep_list"]


@dataclass
class Place:
    """A schema of the test's own, and what is published there."""

    spark: object
    schema: str
    format: str

    @property
    def settings(self) -> dict:
        return {"table": f"{self.schema}.p", "table_format": self.format}

    @property
    def overrides(self) -> list[str]:
        return [f"output.{name}={value}" for name, value in self.settings.items()]

    def name(self, table: str) -> str:
        return f"{self.schema}.p_{table}"

    def read(self, table: str):
        return self.spark.read.table(self.name(table))

    def properties(self, table: str) -> dict:
        return {
            row.key: row.value for row in self.spark.sql(f"SHOW TBLPROPERTIES {self.name(table)}").collect()
        }

    def list(self) -> set[str]:
        rows = self.spark.sql(f"SHOW TABLES IN {self.schema}").collect()
        return {row.tableName.removeprefix("p_") for row in rows if not row.isTemporary}


@pytest.fixture(params=["parquet", *(["iceberg"] if ICEBERG_JAR else [])])
def place(request, spark, tmp_path):
    """Of both formats."""
    if request.param == "iceberg":
        schema, location = f"lake.s{uuid4().hex[:8]}", ""
    else:
        schema, location = f"spark_catalog.s{uuid4().hex[:8]}", f"LOCATION '{tmp_path}/schema'"
    spark.sql(f"CREATE SCHEMA {schema} {location}")
    found = Place(spark, schema, request.param)
    yield found
    for table in found.list():
        kind = "VIEW" if table == "kept" else "TABLE"
        spark.sql(f"DROP {kind} {schema}.{table if table == 'input' else f'p_{table}'}")
    spark.sql(f"DROP SCHEMA {schema}")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    rows = make_embeddings(N, 4, 3)
    rows[50:] = rows[:10]
    return write_table(tmp_path_factory.mktemp("in") / "in", make_keys(N), rows, number=list(range(N)))


@pytest.fixture(scope="module")
def base(spark, source, tmp_path_factory):
    """A run that was not published."""
    return run(config(source, tmp_path_factory.mktemp("base") / "run"), spark)


def config(source, out, **sections: dict) -> RunConfig:
    sections = {"cluster": {"n_clusters": 3, "n_iter": 2}, "prune": {"keep_ratio": 0.3}} | sections
    return RunConfig.from_dict(config_of(source, out, **sections))


@pytest.fixture
def published(spark, source, base, place, tmp_path):
    """The same run, published: its steps are reused."""
    shutil.copytree(base.path, tmp_path / "run")
    return run(config(source, tmp_path / "run", output=place.settings), spark)


def check_published(place: Place, done: Run, tables: list[str] = OF_A_RUN) -> None:
    """Each table holds what the run's does, and names the run."""
    for table in tables:
        assert rows_of(place.read(table)) == rows_of(done.table(table, place.spark)), table
        properties = place.properties(table)
        assert properties["spark_dbp.run_id"] == done.document["run_id"]
        assert properties["spark_dbp.digest"] == done.document["digests"][table]
        assert properties["spark_dbp.run"] == done.path
    assert {table for table in done.published() if table != "kept"} == set(tables)


def test_tables_of_a_run(spark, place, published, base):
    check_published(place, published)
    assert place.list() == set(OF_A_RUN)
    assert published.document["digests"] == base.document["digests"]
    described = {
        row.col_name: row.data_type
        for row in spark.sql(f"DESCRIBE TABLE EXTENDED {place.name('keep_list')}").collect()
    }
    assert published.document["run_id"] in described["Comment"]
    assert described["Provider"] == place.format
    if place.format == "parquet":
        assert described["Location"] == f"file:{published.table_path('keep_list')}"
    assert f"  keep_list             {place.name('keep_list')}" in str(published.summary())


@pytest.mark.slow
def test_verdicts_are_published_on_demand(spark, source, place, published, tmp_path):
    """They stay when the same run is published again, and go with it when another one takes its place."""
    with pytest.raises(ConfigError, match=r"has no output\.table"):
        publish_verdicts(Run(published.path, {**published.document, "config": {**published.document["config"],
                         "output": {"path": published.path}}}), None, spark)  # fmt: skip
    if place.format == "parquet":
        with pytest.raises(ConfigError, match="point to directories"):
            publish_verdicts(published, None, spark)
    out, again = (
        (str(tmp_path / name) if place.format == "parquet" else None) for name in ("verdicts", "again")
    )
    written = publish_verdicts(published, out, spark)
    assert written.path == place.name("verdicts")
    assert rows_of(place.read("verdicts").select("key")) == sorted((key,) for key in make_keys(N))
    assert place.properties("verdicts")["spark_dbp.run_id"] == published.document["run_id"]
    publish_verdicts(published, again, spark)
    assert (
        place.read("verdicts").where("verdict = 'kept'").count() == published.document["accounting"]["kept"]
    )
    run(config(source, published.path, output=place.settings), spark)
    assert place.list() == {*OF_A_RUN, "verdicts"}
    run(config(source, published.path, output=place.settings, prune={"keep_ratio": 0.5}), spark)
    assert place.list() == set(OF_A_RUN)
    with pytest.raises(ConflictError, match=f"and not of .*run {published.document['run_id']}"):
        publish_verdicts(published, None if out is None else str(tmp_path / "x"), spark)
    assert place.list() == set(OF_A_RUN)
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
def test_a_rerun_changes_nothing(spark, source, place, published, monkeypatch):
    for name in ("point_external_table", "replace_table", "replace_view"):
        monkeypatch.setattr(publishing, name, None)
    mark = Path(published.path, "published.json")
    before = (mark.read_bytes(), mark.stat().st_mtime_ns)
    again = run(config(source, published.path, output=place.settings), spark)
    assert again.document["run_id"] == published.document["run_id"]
    assert (mark.read_bytes(), mark.stat().st_mtime_ns) == before
    check_published(place, again)


@pytest.mark.slow
def test_what_was_dropped_is_published_again(spark, source, place, published):
    spark.sql(f"DROP TABLE {place.name('quotas')}")
    check_published(place, run(config(source, published.path, output=place.settings), spark))


class CutOffError(Exception):
    pass


def cut_off(monkeypatch, after: int) -> list[str]:
    """Publishing ends when so many tables were written, as when the process is killed."""
    wrote, write = [], publishing._publish_table

    def publish(job, target, run, table):
        if len(wrote) == after:
            raise CutOffError
        done = write(job, target, run, table)
        wrote.append(table)
        return done

    monkeypatch.setattr(publishing, "_publish_table", publish)
    return wrote


@pytest.mark.parametrize("after", [2, *(pytest.param(n, marks=pytest.mark.slow) for n in (0, 1))])
def test_cut_off(spark, source, base, place, tmp_path, monkeypatch, after):
    """The keep list comes last; the same command publishes the rest and computes nothing."""
    shutil.copytree(base.path, tmp_path / "run")
    wanted = config(source, tmp_path / "run", output=place.settings)
    with monkeypatch.context() as patch:
        wrote = cut_off(patch, after)
        with pytest.raises(CutOffError):
            run(wanted, spark)
    assert place.list() == set(wrote) == set(OF_A_RUN[:after])
    assert open_run(tmp_path / "run").published() == {}
    done = run(wanted, spark)
    assert done.document["reused_stages"] == list(done.document["stages"])
    check_published(place, done)


@pytest.mark.slow
@pytest.mark.parametrize("after", [0, 2, 3])
def test_replacing_is_cut_off(spark, source, place, published, monkeypatch, after):
    """Readers see whole tables all the time, and `clean` deletes nothing that a table points to."""
    other = config(source, published.path, output=place.settings, prune={"keep_ratio": 0.5})
    old = rows_of(place.read("keep_list"))
    with monkeypatch.context() as patch:
        cut_off(patch, after)
        if after == 3:  # all tables, but not the mark
            patch.setattr(publishing, "_publish_view", lambda *_: (_ for _ in ()).throw(CutOffError))
        with pytest.raises(CutOffError):
            run(other, spark)
    assert open_run(published.path).document["accounting"]["kept"] == 30
    deleted = [path for path, _ in clean(published.path)]
    spark.catalog.refreshTable(place.name("keep_list"))
    assert rows_of(place.read("keep_list")) == old if after < 3 else place.read("keep_list").count() == 30
    done = run(other, spark)
    check_published(place, done)
    assert place.read("keep_list").count() == 30
    if place.format == "parquet":
        assert not any("/tables/keep_list/" in path for path in deleted)
        deleted = [path for path, _ in clean(published.path)]  # now no table points to the first keep list
    assert any("/tables/keep_list/" in path for path in deleted)
    check_published(place, done)


@pytest.mark.slow
def test_an_error_says_what_to_do(spark, source, base, place, tmp_path, monkeypatch):
    from pyspark.errors import AnalysisException

    def refuse(*_, **__):
        raise AnalysisException("the store is full")

    shutil.copytree(base.path, tmp_path / "run")
    wanted = config(source, tmp_path / "run", output=place.settings)
    with monkeypatch.context() as patch:
        for name in ("point_external_table", "replace_table"):
            patch.setattr(publishing, name, refuse)
        with pytest.raises(SparkDbpError) as caught:
            run(wanted, spark)
    assert (
        f"the run is finished, but not wholly published to output.table {place.schema}.p" in caught.value.what
    )
    assert "the store is full" in caught.value.what
    assert "run the same command" in caught.value.mend
    check_published(place, run(wanted, spark))


@pytest.mark.slow
def test_another_type_of_key(spark, source, place, published, tmp_path):
    """Columns change with the run; of a Parquet table they cannot be altered."""
    numbers = config(source, tmp_path / "numbers", output=place.settings, input={"key": "number"})
    check_published(place, run(numbers, spark))
    assert dict(place.read("keep_list").dtypes)["key"] == "bigint"
    assert place.list() == set(OF_A_RUN)


@pytest.mark.slow
def test_duplicates_come_and_go(spark, source, place, base, tmp_path):
    exact = {"exact": {"columns": [{"sql": "number % 50"}]}}
    with_some = config(source, tmp_path / "with", output=place.settings, dedup=exact)
    done = run(with_some, spark)
    check_published(place, done, [*TABLES])
    assert place.read("duplicates").count() == 10
    without = prune_again(base, str(tmp_path / "without"), place.overrides, spark)
    check_published(place, without)
    assert place.list() == set(OF_A_RUN)


@pytest.mark.slow
def test_pruning_again_publishes_only_where_it_is_told(spark, place, published, tmp_path):
    kept = rows_of(place.read("keep_list"))
    half = prune_again(published, str(tmp_path / "half"), ["prune.keep_ratio=0.5"], spark)
    assert half.config().output.table is None
    assert half.published() == {}
    assert rows_of(place.read("keep_list")) == kept
    if place.format == "parquet":  # the clusters' statistics stay where they are, in the first run
        named = prune_again(
            published, str(tmp_path / "named"), ["prune.keep_ratio=0.5", *place.overrides], spark
        )
        check_published(place, named)
        assert place.read("keep_list").count() == 30
        assert published.table_path("cluster_stats") == named.table_path("cluster_stats")


@pytest.mark.parametrize(
    "table", ["keep_list", *(pytest.param(t, marks=pytest.mark.slow) for t in [*TABLES[:3], "kept"])]
)
def test_what_is_not_ours_stays(spark, place, source, tmp_path, table):
    """Seen before anything is read."""
    if table == "kept" and place.format == "parquet":
        spark.sql(f"CREATE VIEW {place.name(table)} AS SELECT 7 AS precious")
    else:
        spark.sql(f"CREATE TABLE {place.name(table)} USING {place.format} AS SELECT 7 AS precious")
    with pytest.raises(ConfigError, match=rf"p_{table} is there, and is not replaced"):
        run(config("/no/such/input", tmp_path / "run", output=place.settings), spark)
    assert place.list() == {table}
    assert [row.precious for row in place.read(table).collect()] == [7]
    assert not (tmp_path / "run").exists()
    if table == "kept" and place.format == "iceberg":
        spark.sql(f"DROP TABLE {place.name(table)}")


def test_nothing_of_a_refused_run_is_left(spark, place, tmp_path):
    """Also not the table by which it was seen that tables can be made there."""
    with pytest.raises(SparkDbpError, match="no such path"):
        run(config("/no/such/input", tmp_path / "run", output=place.settings), spark)
    assert place.list() == set()
    assert not (tmp_path / "run").exists()


def test_no_right_to_create(spark, place, tmp_path, monkeypatch):
    """As Unity Catalog refuses it (its message, raised here in Spark's place)."""
    from pyspark.errors import AnalysisException

    from spark_dbp.engine import catalog_target

    def refuse(*_, **__):
        raise AnalysisException(
            "[INSUFFICIENT_PERMISSIONS] User does not have CREATE TABLE on Schema 'main.x'."
        )

    for name in ("create_external_table", "replace_table"):
        monkeypatch.setattr(catalog_target, name, refuse)
    with pytest.raises(ConfigError) as caught:
        run(config("/no/such/input", tmp_path / "run", output=place.settings), spark)
    assert "a table cannot be made there: User does not have CREATE TABLE" in caught.value.what
    assert "must be granted" in caught.value.mend


@pytest.mark.slow
def test_a_managed_table_is_not_pointed_elsewhere(spark, place, source, base, tmp_path):
    if place.format == "iceberg":
        return
    spark.sql(
        f"CREATE TABLE {place.name('quotas')} USING parquet TBLPROPERTIES ('spark_dbp.run_id' = 'x') AS SELECT 7 AS n"
    )
    with pytest.raises(ConfigError, match="is a managed table"):
        prune_again(base, str(tmp_path / "again"), place.overrides, spark)
    assert place.read("quotas").count() == 1


@pytest.mark.parametrize("table_format", ["delta", "iceberg"])
def test_keys_of_a_type_that_the_format_lacks(spark, table_format):
    from pyspark.sql import types as T

    from spark_dbp.engine.catalog_target import Target, check_key_type

    target = Target(spark, "a.b.c", table_format, "/x")
    check_key_type(target, T.DecimalType(9, 2))
    check_key_type(None, T.DayTimeIntervalType())
    check_key_type(Target(spark, "a.b.c", "parquet", "/x"), T.DayTimeIntervalType())
    with pytest.raises(
        ConfigError, match=rf"input.key is INTERVAL DAY TO SECOND, a type that {table_format}"
    ):
        check_key_type(target, T.DayTimeIntervalType())


@pytest.mark.slow
def test_a_lock_that_was_lost_publishes_nothing(spark, place, source, base, tmp_path, monkeypatch):
    from spark_dbp.errors import ConflictError
    from spark_dbp.lake.store import RunDirectory

    def lost(self):
        raise ConflictError("another run has taken the directory", mend="wait")

    shutil.copytree(base.path, tmp_path / "run")
    monkeypatch.setattr(RunDirectory, "check_lock", lost)
    with pytest.raises(ConflictError, match="has taken the directory"):
        run(config(source, tmp_path / "run", output=place.settings), spark)
    assert place.list() == set()


def test_a_catalog_in_memory_is_said_to_be_so(spark, place, tmp_path, caplog):
    with pytest.raises(SparkDbpError, match="no such path"):
        run(config("/no/such/input", tmp_path / "run", output=place.settings), spark)
    assert ("keeps its catalog in memory" in caplog.text) is (place.format == "parquet")


CONNECT = """
import json, sys
from spark_dbp import RunConfig, prune_again, run, start_local_session
from spark_dbp.errors import SparkDbpError

config = json.loads(sys.argv[1])
spark = start_local_session({"spark.remote": "local[2]", "spark.sql.shuffle.partitions": "2"})
location = config["output"]["path"] + "-schema"
spark.sql(f"CREATE SCHEMA spark_catalog.s LOCATION '{location}'")
spark.sql(f"CREATE TABLE spark_catalog.s.input USING parquet LOCATION '{config['input'].pop('path')}'")
config["input"]["table"] = "s.input"
done = run(RunConfig.from_dict(config), spark)
told = {"session": type(spark).__module__, "published": done.published()}
told["again"] = run(RunConfig.from_dict(config), spark).document["run_id"] == done.document["run_id"]
settings = ["prune.keep_ratio=0.5", "output.table=spark_catalog.s.p"]
prune_again(done, config["output"]["path"] + "-half", settings, spark)
told["rows"] = [spark.table(f"s.p_{name}").count() for name in ("keep_list", "kept")]
told["refused"] = []
for table, format in (("no.such.p", "parquet"), ("spark_catalog.s.q", "delta"), ("spark_catalog.s.q", "iceberg")):
    config["output"].update(table=table, table_format=format)
    try:
        run(RunConfig.from_dict(config), spark)
    except SparkDbpError as error:
        told["refused"].append(error.what)
told["left"] = sorted(row.tableName for row in spark.sql("SHOW TABLES IN s").collect())
print("RESULT", json.dumps(told))
"""


@pytest.mark.slow
@pytest.mark.skipif(IS_SPARK_35, reason="pyspark 3.5 cannot start a Connect server")
def test_on_connect(source, tmp_path, connect_port):
    values = config_of(source, tmp_path / "run", cluster={"n_clusters": 3})
    values["output"]["table"] = "spark_catalog.s.p"
    done = subprocess.run(
        [sys.executable, "-c", CONNECT, json.dumps(values)],
        capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.split("RESULT ", 1)[1].splitlines()[0])
    assert told["session"].startswith("pyspark.sql.connect")
    assert set(told["published"]) == {*OF_A_RUN, "kept"}
    assert told["again"]
    assert told["rows"] == [30, 30]
    assert told["refused"] == [
        "output.table no.such.p: the session knows no catalog no",
        "output.table spark_catalog.s.q: this session does not know the format delta",
        "output.table spark_catalog.s.q: this session does not know the format iceberg",
    ]
    assert told["left"] == ["input", "p_cluster_stats", "p_keep_list", "p_kept", "p_quotas"]


# The view.


@pytest.fixture
def table(spark, source, place):
    """The input as a table of the same catalog, with columns named as those of the keep list."""
    if place.format == "iceberg":
        pytest.skip("a Hadoop catalog has no views")
    name = f"{place.schema}.input"
    rows = spark.read.parquet(str(source)).selectExpr(
        "key",
        "embedding",
        "number AS rank",
        "named_struct('a.b', key) AS s",
        "number % 2 AS half",
        "key AS `the key`",
    )
    rows.write.format("parquet").saveAsTable(name)
    return name


KEYS = {
    "column": "key",
    "quoted": "the key",
    "field": "s.a.b",
    "sql": {"sql": "concat(key, rank)"},
    "number": {"sql": "cast(rank AS INT)"},
}


@pytest.mark.slow
@pytest.mark.parametrize("key", KEYS)
def test_the_view_has_the_kept_rows(spark, table, place, tmp_path, key):
    given = {"path": None, "table": table, "key": KEYS[key], "filter": "half = 0 -- only these"}
    done = run(config("x", tmp_path / "run", input=given, output=place.settings), spark)
    assert done.published()["kept"] == place.name("kept")
    view = place.read("kept")
    assert view.columns == spark.read.table(table).columns
    kept = {str(row.key) for row in done.keep_list(spark).collect()}
    sql = {"column": "key", "quoted": "`the key`", "field": "s.`a.b`"}.get(key) or KEYS[key]["sql"]
    found = view.selectExpr(f"CAST({sql} AS STRING) AS k", "half").collect()
    assert sorted(row.k for row in found) == sorted(kept)
    assert {row.half for row in found} == {0}
    assert place.properties("kept")["spark_dbp.run_id"] == done.document["run_id"]


@pytest.mark.slow
def test_a_view_of_an_earlier_input_goes(spark, table, place, base, source, tmp_path):
    given = {"path": None, "table": table}
    run(config("x", tmp_path / "run", input=given, output=place.settings), spark)
    assert place.list() >= {"kept"}
    prune_again(base, str(tmp_path / "files"), place.overrides, spark)
    assert place.list() == {"input", *OF_A_RUN}


@pytest.mark.slow
def test_a_temporary_view_as_input(spark, source, place, tmp_path, caplog):
    """No lasting view can be made of it; the tables are."""
    spark.read.parquet(str(source)).createOrReplaceTempView("passing")
    given = {"path": None, "table": "passing"}
    with caplog.at_level("WARNING", logger="spark_dbp"):
        done = run(config("x", tmp_path / "run", input=given, output=place.settings), spark)
    assert "p_kept is not made: " in caplog.text
    check_published(place, done)
    assert "kept" not in done.published()


@pytest.mark.slow
def test_the_mark_names_what_tables_point_to(place, published):
    mark = json.loads(Path(published.path, "published.json").read_text())[f"{place.schema}.p"]
    tables = published.document["tables"]
    assert mark["points_to"] == ([tables[name] for name in OF_A_RUN] if place.format == "parquet" else [])


def test_texts_in_sql(spark):
    for text in ["it's", "a\\b", "${spark.app.name}", 'say "x"', "é\n"]:
        assert spark.sql(f"SELECT {catalog_writer.quote_text(text)}").collect()[0][0] == text
