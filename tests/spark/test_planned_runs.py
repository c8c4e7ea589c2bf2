"""What a plan says before a run, against what the run then does: reuse, rows, bytes; and what a session adds."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from conftest import ROOT, VIEW, config_of, make_embeddings, make_keys, write_table

from spark_dbp import Run, RunConfig, plan, run
from spark_dbp.engine import hadoop, storage
from spark_dbp.engine.hadoop import has_jvm
from spark_dbp.errors import ConfigError, DamagedRunError, InputError
from spark_dbp.explore.plan import make
from spark_dbp.explore.plan.planned import Plan
from spark_dbp.explore.plan.seen import OnlySparkError

N, DIM, K = 4000, 16, 12
# Of the bytes that a run writes, a plan may be off by this share; tables this small are mostly footer.
NEAR, SMALL = 0.2, 1000


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Paths as Spark writes them are part of what a run depends on, so this one has characters that it escapes."""
    return tmp_path_factory.mktemp("plan of ü & 1%")


@pytest.fixture(scope="module")
def config(folder: Path) -> RunConfig:
    numbers = pa.array(np.arange(N) % 3950)
    write_table(folder / "in", make_keys(N), make_embeddings(N, DIM, K), n_files=3, number=numbers)
    return RunConfig.from_dict(config_of(folder / "in", folder / "run", cluster={"n_iter": 3}))


@pytest.fixture(scope="module")
def first(config: RunConfig, spark) -> tuple[Plan, Run]:
    planned = plan(config)
    assert not Path(config.output.path).exists()
    return planned, run(config, spark)


def test_rows_and_bytes_are_those_of_the_run(first: tuple[Plan, Run]):
    planned, done = first
    stages = done.document["stages"]
    for step in planned.steps:
        assert step.judged.status == "new"
        for name, table in step.tables.items():
            assert table.rows.n == done.document["rows"][name], name
            written = stages[step.judged.step.name]["bytes"][name]
            assert abs(table.bytes - written) < max(NEAR * written, SMALL), name
    assert planned.to_dict()["input"]["rows"] == N
    assert planned.quotas.is_ok


def reused_of(planned: Plan) -> list[str]:
    return [step.judged.step.name for step in planned.steps if step.judged.is_reused]


def status_of(planned: Plan) -> dict[str, str]:
    return {step.judged.step.name: step.judged.status for step in planned.steps}


def test_nothing_is_computed_again(first: tuple[Plan, Run], config: RunConfig, spark):
    """With a session and without: the same files, types and settings, told by the same code as in a run."""
    for planned in (plan(config), plan(config, spark)):
        assert set(status_of(planned).values()) == {"reused"}
        assert planned.bytes_written == 0
        assert planned.has_run
    assert not any(step.judged.if_same for step in plan(config, spark).steps)


CHANGES = [
    (["prune.temperature=0.3", "trie.shards=2"], {"quota": "changed", "select": "follows", "keep_trie": "changed"}),
    (["prune.seed=5", "cluster.n_iter=2"], {"cluster": "changed", "assign": "follows", "select": "changed"}),
    (["dedup.exact.columns=[number]"], {"ingest": "changed", "exact_dedup": "new", "cluster": "changed"}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "expected"), [*CHANGES[:-1], pytest.param(*CHANGES[-1], marks=pytest.mark.slow)]
)
def test_what_is_reused_is_what_the_run_reuses(
    first: tuple[Plan, Run], config: RunConfig, spark, settings: list[str], expected: dict[str, str]
):
    changed = config.with_settings(settings)
    planned = plan(changed)
    found = status_of(planned)
    assert {name: found[name] for name in expected} == expected
    done = run(changed, spark)
    assert reused_of(planned) == done.document["reused_stages"]
    for step in planned.steps:
        for name, table in step.tables.items():
            rows = done.document["rows"][name]
            assert rows <= table.rows.n if table.rows.kind == "at most" else rows == table.rows.n


def test_folders_that_name_a_column(folder: Path, spark):
    """Their types, and SQL, only Spark knows; what is reused is told all the same."""
    for lang in ("de", "en"):
        keys = [f"{lang}{number}" for number in range(40)]
        write_table(folder / "parts" / f"lang={lang}", keys, make_embeddings(40, 4, 3))
    given = config_of(folder / "parts", folder / "of_parts", cluster={"n_clusters": 3, "n_iter": 1})
    given["input"] |= {"key": {"sql": "concat(lang, key)"}, "filter": "lang > 'a'"}
    config = RunConfig.from_dict({**given, "dedup": {"exact": {"columns": ["lang", "key"]}}})
    planned = plan(config)
    assert {count.rows.kind for step in planned.steps for count in step.tables.values()} >= {"at most"}
    run(config, spark)
    for again in (plan(config), plan(config, spark)):
        assert set(status_of(again).values()) == {"reused"}


def test_a_damaged_table_is_made_again(first: tuple[Plan, Run], config: RunConfig, spark):
    done = run(config, spark)
    Path(done.list_files("quotas")[0]).unlink()
    planned = plan(config)
    found = status_of(planned)
    assert found.pop("quota") == "damaged"
    assert set(found.values()) == {"reused"}
    assert reused_of(planned) == run(config, spark).document["reused_stages"]


def test_damaged_statistics_are_said(first: tuple[Plan, Run], config: RunConfig, spark):
    """Of a file with other bytes in it but as many, marks see nothing."""
    path = Path(run(config, spark).list_files("cluster_stats")[0])
    content = path.read_bytes()
    path.write_bytes(bytes(len(content)))
    try:
        with pytest.raises(DamagedRunError, match="cluster_stats of the run cannot be read"):
            plan(config.with_settings(["prune.temperature=0.2"]))
    finally:
        path.write_bytes(content)


def test_a_changed_input_is_told(first: tuple[Plan, Run], config: RunConfig, folder: Path):
    path = folder / "in" / "more.parquet"
    path.write_bytes((folder / "in" / "00000.parquet").read_bytes())
    step = plan(config).steps[0]
    path.unlink()
    assert step.judged.status == "changed"
    assert "the input.rows" in step.judged.changed
    assert plan(config).steps[0].judged.is_reused


# With a session.


def test_a_view_is_counted_and_sql_is_checked(config: RunConfig, folder: Path, spark):
    spark.read.parquet(str(folder / "in")).createOrReplaceTempView("planned_view")
    given = config.with_settings(
        ["input.path=null", "input.table=planned_view", f"output.path={folder}/of_view"]
    )
    found = plan(given, spark).to_dict()
    assert (found["input"]["rows"], found["input"]["looked_at_by"]) == (N, "a Spark session")
    assert found["input"]["dimension"] == DIM
    assert found["not_checked"] == []
    assert not (folder / "of_view").exists()
    for setting, error, words in (
        ("input.filter=width > 3", ConfigError, "input.filter"),
        ("trie.key=uid", ConfigError, "trie.key"),
        ("input.key={sql: array(key)}", InputError, "cannot be a key"),
        ("score_filter.expr=length(key)", ConfigError, "not a boolean"),
        ("input.table=nowhere.t", InputError, "no such table"),
    ):
        with pytest.raises(error, match=words):
            plan(given.with_settings([setting]), spark)


def test_a_store_that_only_spark_reaches(viewed: Path, spark):
    """The session lends its file system; the engine is said to be `sql`."""
    write_table(viewed / "planned", make_keys(60), make_embeddings(60, 4, 3), n_files=2)
    given = config_of(f"{VIEW}/planned", f"{VIEW}/planned_run", cluster={"n_clusters": 3})
    planned = plan(RunConfig.from_dict(given), spark)
    found = planned.to_dict()
    assert (found["input"]["rows"], found["input"]["dimension"]) == (60, 4)
    assert found["engine"]["name"] == "sql"
    # So it is once more, when this process has been lent the file system.
    assert plan(RunConfig.from_dict(given), spark).to_dict()["engine"]["name"] == "sql"
    assert not (viewed / "planned_run").exists()


def test_settings_of_the_session_are_compared(first: tuple[Plan, Run], config: RunConfig, spark):
    run(config, spark)
    named = config.with_settings(["spark.spark.sql.session.timeZone=Asia/Tokyo"])
    step = plan(named).steps[0]
    assert step.judged.changed == ["spark.sql.session.timeZone"]


@pytest.mark.parametrize("hangs", ["both", "session"])
def test_a_store_that_does_not_answer_a_session_either(
    config: RunConfig, folder: Path, spark, hangs: str, monkeypatch
):
    if not has_jvm(spark):
        pytest.skip("only a session with a JVM here can be asked beforehand")

    def wait(*_args: object) -> bool:
        time.sleep(3)
        return True

    monkeypatch.setattr(storage, "_PATIENCE", 0.2)
    monkeypatch.setattr(make, "look", refuse)
    monkeypatch.setattr(hadoop, "open_hadoop", wait)
    monkeypatch.setattr(storage.files, "exists", wait if hangs == "both" else lambda _: True)
    given = ["input.cluster_id=number", "input.centroids=s3://silent/c.npy", "cluster.n_clusters=null"]
    begun = time.monotonic()
    words = r"input\.centroids s3://silent/c\.npy: this process .*no answer within"
    with pytest.raises(ConfigError, match=words) as error:
        plan(config.with_settings([*given, f"output.path={folder}/of_silent"]), spark)
    assert "spark.hadoop.fs" in error.value.mend
    assert time.monotonic() - begun < 3


def refuse(*_args: object) -> None:
    raise OnlySparkError("it is not reached")


def test_nested_vectors_are_seen_through_a_session(folder: Path, config: RunConfig, spark):
    """Whoever looks sees the same dimension."""
    nested = "transform(array(embedding), x -> x) AS embedding"
    spark.read.parquet(str(folder / "in")).selectExpr("key", nested).createOrReplaceTempView("planned_nested")
    given = config.with_settings(
        ["input.path=null", "input.table=planned_nested", f"output.path={folder}/of_nested"]
    )
    planned = plan(given, spark)
    assert planned.seen.dimension == DIM
    assert not planned.assumes


def test_a_session_of_a_plan_leaves_nothing(tmp_path: Path):
    """Its warehouse is elsewhere, and it ends; a table of the catalog is not there, which is said."""
    (tmp_path / "c.yaml").write_text(
        "input: {table: default.nowhere}\noutput: {path: run}\ncluster: {n_clusters: 3}\n"
        "prune: {keep_ratio: 0.2}\n"
    )
    before = sorted(tmp_path.rglob("*"))
    done = subprocess.run(
        [sys.executable, "-m", "spark_dbp", "plan", "c.yaml"],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name != "SPARK_REMOTE"}
        | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 3, done.stderr
    assert "no such table" in done.stderr
    assert sorted(tmp_path.rglob("*")) == before
