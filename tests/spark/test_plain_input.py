"""Input that workers read themselves gives what it gives when Spark reads it; and when they leave it to Spark."""

from __future__ import annotations

import logging
import math
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import config_of, make_embeddings, make_keys

from spark_dbp import RunConfig, build_samples, run, verify
from spark_dbp.engine import file_scan
from spark_dbp.engine.file_scan import FileScan, NotPlainError
from spark_dbp.errors import InputError
from spark_dbp.io.sources import Source

N, DIM = 120, 6
KEYS, EMBEDDINGS = make_keys(N), make_embeddings(N, DIM, 4)
LISTS = pa.list_(pa.float32())
READ_BY_WORKERS, READ_BY_SPARK = "workers read the input themselves", "Spark reads the input"


def write(path: Path, n_files: int = 3, **columns: object) -> Path:
    """Several files of several row groups."""
    table = pa.table({"key": KEYS, "embedding": pa.array(EMBEDDINGS.tolist(), LISTS), **columns})
    path.mkdir()
    for number in range(n_files):
        part = table.slice(number * N // n_files, N // n_files)
        pq.write_table(part, path / f"{number}.parquet", row_group_size=15)
    return path


def test_a_codec_that_only_workers_have(spark, tmp_path):
    source = write(tmp_path / "in")
    for file in source.iterdir():
        pq.write_table(pq.read_table(file), file, compression="brotli")
    done = run_on(spark, source, tmp_path / "run")
    assert done.document["rows"]["samples"] == N


def test_files_with_short_and_long_texts(spark, tmp_path, caplog):
    """As pandas wrote them before and after version 3; a task reads several files."""
    source = write(tmp_path / "in")
    file = next(source.iterdir())
    table = pq.read_table(file)
    pq.write_table(table.set_column(0, "key", table.column("key").cast(pa.large_string())), file)
    with caplog.at_level(logging.INFO, "spark_dbp"):
        done = run_on(spark, source, tmp_path / "run")
    assert done.document["rows"]["samples"] == N
    assert "could not read" not in caplog.text


def run_on(spark, source, out, **sections):
    engine = sections.pop("engine", "arrow")
    values = {**config_of(source, out, **{"cluster": {"n_clusters": 4}, **sections}), "engine": engine}
    return run(RunConfig.from_dict(values), spark)


KINDS = {
    "floats": {},
    "doubles": {"embedding": pa.array(EMBEDDINGS.astype(np.float64).tolist(), pa.list_(pa.float64()))},
    "fixed size": {"embedding": pa.array(EMBEDDINGS.tolist(), pa.list_(pa.float32(), DIM))},
    "large": {
        "embedding": pa.array(EMBEDDINGS.tolist(), pa.large_list(pa.float32())),
        "key": pa.array(KEYS, pa.large_string()),
    },
    "bytes": {"embedding": [row.tobytes() for row in EMBEDDINGS]},
    "numbers as keys": {"key": pa.array(range(N), pa.int64())},
    "decimals as keys": {"key": [Decimal(i) / 8 for i in range(N)]},
}


@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=[] if k == "floats" else pytest.mark.slow) for k in KINDS]
)
def test_the_same_as_spark_reads(spark, tmp_path, monkeypatch, caplog, kind):
    source = write(tmp_path / "in", **KINDS[kind])
    with caplog.at_level(logging.INFO):
        by_workers = run_on(spark, source, tmp_path / "workers")
    assert READ_BY_WORKERS in caplog.text
    assert (
        by_workers.document["digests"]
        == run_on(spark, source, tmp_path / "sql", engine="sql").document["digests"]
    )

    def refuse(*_):
        raise NotPlainError("not today")

    monkeypatch.setattr(Source, "plan_scan", refuse)
    caplog.clear()
    with caplog.at_level(logging.INFO):
        by_spark = run_on(spark, source, tmp_path / "spark")
    assert f"{READ_BY_SPARK}: not today" in caplog.text
    assert by_spark.document["digests"] == by_workers.document["digests"]


@pytest.mark.slow
def test_clustered_data_is_written_once(spark, tmp_path, monkeypatch):
    """Its bad rows are left out and counted; samples and assignments are the same files."""
    monkeypatch.setattr(file_scan, "_FEW_BYTES", 1)
    cluster = pa.array([None if i == 3 else -1 if i == 40 else i % 4 for i in range(N)], pa.int32())
    distance = [math.nan if i == 77 else 0.01 * i for i in range(N)]
    np.save(tmp_path / "centroids.npy", EMBEDDINGS[:4])
    source = write(tmp_path / "in", cluster=cluster, distance=distance)
    given = {
        "cluster_id": "cluster", "distance_to_centroid": "distance", "on_bad_rows": "drop",
        "centroids": str(tmp_path / "centroids.npy"),
    }  # fmt: skip
    done = [
        run_on(spark, source, tmp_path / engine, engine=engine, cluster={"n_clusters": None}, input=given)
        for engine in ("arrow", "sql")
    ]
    by_workers, by_spark = done
    assert by_workers.table_path("samples") == by_workers.table_path("assignments")
    assert by_workers.document["rows"]["samples"] == N - 3
    for name in ("assignments", "cluster_stats", "quotas", "keep_list"):
        assert by_workers.document["digests"][name] == by_spark.document["digests"][name]
    assert by_workers.document["accounting"] == by_spark.document["accounting"]
    for one in done:
        assert len(verify(one, spark)) == 9
    again = run_on(spark, source, tmp_path / "arrow", cluster={"n_clusters": None}, input=given)
    assert again.document["reused_stages"] == list(again.document["stages"])
    with pytest.raises(InputError) as caught:
        run_on(
            spark,
            source,
            tmp_path / "refused",
            cluster={"n_clusters": None},
            input={**given, "on_bad_rows": "fail"},
        )
    for words in (
        "null cluster_id: 1 row, such as key",
        "below 0",
        "NaN",
        repr(KEYS[3]),
        repr(KEYS[40]),
        repr(KEYS[77]),
    ):
        assert words in str(caught.value)
    assert not (tmp_path / "refused/tables").exists()


@pytest.mark.parametrize("clustered", [False, True])
def test_a_key_in_two_files(spark, tmp_path, monkeypatch, clustered):
    monkeypatch.setattr(file_scan, "_FEW_BYTES", 1)
    keys = [*KEYS[:-1], KEYS[0]]
    np.save(tmp_path / "centroids.npy", EMBEDDINGS[:4])
    source = write(tmp_path / "in", key=keys, cluster=[i % 4 for i in range(N)], distance=[0.5] * N)
    given = {
        "cluster_id": "cluster",
        "distance_to_centroid": "distance",
        "centroids": str(tmp_path / "centroids.npy"),
    }
    sections = {"cluster": {"n_clusters": None}, "input": given} if clustered else {}
    with pytest.raises(InputError, match=rf"1 key is not unique, such as '{KEYS[0]}' \(2 times\)"):
        run_on(spark, source, tmp_path / "run", **sections)


def rewrite(path: Path, **columns: object) -> None:
    table = pq.read_table(path)
    for name, values in columns.items():
        table = table.set_column(table.column_names.index(name), name, values)
    pq.write_table(table, path)


def as_category(source: Path) -> None:
    frame = pd.read_parquet(source / "1.parquet")
    frame["key"] = frame["key"].astype("category")
    frame.to_parquet(source / "1.parquet")


def other_case(source: Path) -> None:
    pq.write_table(
        pq.read_table(source / "2.parquet").rename_columns(["Key", "embedding"]), source / "2.parquet"
    )


NOT_PLAIN = {
    "filter": (lambda source: None, {"filter": "key <> ''"}, "it is filtered"),
    "SQL": (
        lambda source: None,
        {"key": {"sql": "concat(key, '')"}},
        "no column of its own|has another type",
    ),
    "categories": (as_category, {}, "column 'key' of .*1.parquet has another type"),
    "another case": (other_case, {}, "column 'key' of .*2.parquet has another type"),
}


@pytest.mark.parametrize(
    "what", [pytest.param(k, marks=[] if k == "filter" else pytest.mark.slow) for k in NOT_PLAIN]
)
def test_what_only_spark_reads(spark, tmp_path, caplog, what):
    expected = run_on(spark, write(tmp_path / "plain"), tmp_path / "expected").document["digests"]
    source = write(tmp_path / "in")
    change, given, words = NOT_PLAIN[what]
    change(source)
    with caplog.at_level(logging.INFO):
        done = run_on(spark, source, tmp_path / "run", input=given)
    [told] = [r.getMessage() for r in caplog.records if READ_BY_SPARK in r.getMessage()]
    assert any(part in told for part in words.split("|")) or all(part in told for part in words.split(".*"))
    assert done.document["digests"]["keep_list"] == expected["keep_list"]


@pytest.mark.slow
def test_folders_name_a_column(spark, tmp_path, caplog):
    """It is in no file; or a file has another value of it, which Spark passes over."""
    write(tmp_path / "in", n_files=1, part=["x"] * N)
    (tmp_path / "in/part=7").mkdir()
    (tmp_path / "in/0.parquet").rename(tmp_path / "in/part=7/0.parquet")
    with caplog.at_level(logging.INFO):
        done = run_on(
            spark,
            tmp_path / "in",
            tmp_path / "run",
            dedup={"exact": {"columns": ["part"]}},
            prune={"keep_ratio": 1.0},
            cluster={"n_clusters": 1},
        )
    assert f"{READ_BY_SPARK}: column 'part' comes from names of folders" in caplog.text
    assert done.document["rows"]["duplicates"] == N - 1


@pytest.mark.slow
def test_where_workers_fail_spark_reads(spark, tmp_path, monkeypatch, caplog):
    source = write(tmp_path / "in")
    plan = FileScan.plan

    def plan_to_fail(self, names, function):
        def failing(batches):
            yield from function(batches)
            raise OSError("no rights here")

        return plan(self, names, failing)

    monkeypatch.setattr(FileScan, "plan", plan_to_fail)
    with caplog.at_level(logging.INFO):
        done = run_on(spark, source, tmp_path / "run")
    assert "workers could not read the input themselves (" in caplog.text
    assert "no rights here" in caplog.text
    assert len(verify(done, spark)) == 9


def test_a_damaged_file_is_named(spark, tmp_path):
    source = write(tmp_path / "in")
    content = bytearray((source / "1.parquet").read_bytes())
    content[200:1200] = b"\xff" * 1000
    (source / "1.parquet").write_bytes(content)
    with pytest.raises(InputError, match=r"1\.parquet"):
        run_on(spark, source, tmp_path / "run")


def test_files_that_change_before_workers_read_them(spark, tmp_path, monkeypatch):
    source = write(tmp_path / "in")
    original = build_samples.plan_ingest

    def plan(rows, **more):
        if more.get("scan") is not None:
            rewrite(source / "2.parquet", key=pa.array([f"other {i}" for i in range(N // 3)]))
        return original(rows, **more)

    monkeypatch.setattr(build_samples, "plan_ingest", plan)
    with pytest.raises(InputError, match="changed while it was read"):
        run_on(spark, source, tmp_path / "run")
