"""Columns of the input: names, fields of structs, SQL; embeddings in every shape; SQL that is evaluated once."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import config_of, make_embeddings, make_keys

from spark_dbp import RunConfig, run
from spark_dbp.engine.expressions import check_expression, evaluate_calls
from spark_dbp.errors import ConfigError, InputError

N, DIM = 60, 8
KEYS = make_keys(N)
# Small whole numbers, which every type holds.
WHOLE = np.rint(make_embeddings(N, DIM, 3) * 8).astype(np.float32)
LISTS = pa.list_(pa.float32())


def of(values: object, type_: pa.DataType) -> dict:
    return {"embedding": pa.array(values, type_)}


def raw(dtype: str) -> dict:
    return of([row.astype(dtype).tobytes() for row in WHOLE], pa.binary())


ROWS = WHOLE.tolist()
STRUCT = pa.struct([("clip", LISTS), ("Model", pa.string())])
# What is written, and how the configuration names it.
SHAPES = {
    "int8": (of(WHOLE.astype(int).tolist(), pa.list_(pa.int8())), {}),
    "bigint": (of(WHOLE.astype(int).tolist(), pa.list_(pa.int64())), {}),
    "decimal": (of([[Decimal(int(x)) for x in row] for row in ROWS], pa.list_(pa.decimal128(23, 2))), {}),
    "1 x d": (of([[row] for row in ROWS], pa.list_(LISTS)), {}),
    "1 x 1 x d of integers": (of([[[[*map(int, row)]]] for row in ROWS], pa.list_(pa.list_(pa.list_(pa.int16())))), {}),
    "structs of one field": (
        of([[{"item": x} for x in row] for row in ROWS], pa.list_(pa.struct([("item", pa.float64())]))), {},
    ),
    "float64 bytes": (raw("<f8"), {"embedding_binary": "float64"}),
    "float16 bytes": (raw("<f2"), {"embedding_binary": "float16"}),
    "float32 bytes, named": (raw("<f4"), {"embedding_binary": "float32"}),
    "field of a struct": (
        {"features": pa.array([{"clip": row, "Model": "m"} for row in ROWS], STRUCT)}, {"embedding": "features.clip"},
    ),
    "field of structs in a list": (
        {"found": pa.array([[{"clip": row, "Model": "m"}] for row in ROWS], pa.list_(STRUCT))},
        {"embedding": "found.clip"},
    ),
    "a column with a dot": ({"features.clip": pa.array(ROWS, LISTS)}, {"embedding": "features.clip"}),
    "JSON": (
        {"text": [json.dumps(row) for row in ROWS]}, {"embedding": {"sql": "from_json(text, 'array<float>')"}},
    ),
    "a column a dimension": (
        {str(i): WHOLE[:, i] for i in range(DIM)},
        {"embedding": {"sql": "array(" + ", ".join(f"`{i}`" for i in range(DIM)) + ")"}},
    ),
    "SQL that is a name": (of(ROWS, LISTS), {"embedding": {"sql": "embedding"}}),
}  # fmt: skip
QUICK = {"decimal", "field of structs in a list"}


def write(path: Path, columns: dict, keys: object = KEYS) -> Path:
    path.mkdir()
    pq.write_table(pa.table({"key": keys, **columns}), path / "p.parquet")
    return path


def digest(spark, tmp_path: Path, source: Path, name: str = "run", **sections: dict) -> str:
    config = RunConfig.from_dict(config_of(source, tmp_path / name, cluster={"n_clusters": 3}, **sections))
    return run(config, spark).document["digests"]["keep_list"]


@pytest.fixture(scope="module")
def plain(spark, tmp_path_factory) -> str:
    tmp_path = tmp_path_factory.mktemp("plain")
    return digest(spark, tmp_path, write(tmp_path / "in", of(ROWS, LISTS)))


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in SHAPES]
)
def test_shapes_of_embeddings_give_the_same_run(spark, tmp_path, plain, name):
    columns, given = SHAPES[name]
    assert digest(spark, tmp_path, write(tmp_path / "in", columns), input=given) == plain


REFUSED = {
    "two lists": (
        of([[row, row] if i == 7 else [row] for i, row in enumerate(ROWS)], pa.list_(LISTS)), {},
        ["several lists", KEYS[7], "1 row"],
    ),
    "null in a struct": (
        of([[{"item": None if i == 7 else x} for x in row] for i, row in enumerate(ROWS)],
           pa.list_(pa.struct([("item", pa.float64())]))), {}, ["null inside", KEYS[7]],
    ),
    "structs of two fields": (
        of([[{"Re": x, "im": x} for x in row] for row in ROWS],
           pa.list_(pa.struct([("Re", pa.float64()), ("im", pa.float64())]))),
        {}, ["ARRAY<STRUCT<Re: DOUBLE, im: DOUBLE>>", "input.embedding: {sql:"],
    ),
    "a struct": (
        {"embedding": pa.array([{"clip": row, "Model": "m"} for row in ROWS], STRUCT)}, {},
        ["STRUCT<clip: ARRAY<FLOAT>, Model: STRING>", "input.embedding: embedding.clip"],
    ),
    "JSON, not told": ({"embedding": [json.dumps(row) for row in ROWS]}, {}, ["STRING", "from_json(`embedding`, 'array<float>')"]),
    "a column a dimension, not told": (
        {str(i): WHOLE[:, i] for i in range(DIM)}, {}, ["no column 'embedding'", "array(`0`, `1`, `2`"],
    ),
    "no such field": (
        {"features": pa.array([{"clip": row, "Model": "m"} for row in ROWS], STRUCT)},
        {"embedding": "features.clib"}, ["no column 'features.clib'", "did you mean 'features.clip'"],
    ),
    "float64 bytes, not told": (raw("<f8"), {}, ["hardly float32", "input.embedding_binary: float64"]),
    "float16 bytes, not told": (raw("<f2"), {}, ["hardly float32", "input.embedding_binary: float16"]),
    "float32 bytes as float64": (raw("<f4"), {"embedding_binary": "float64"}, ["hardly float64", "embedding_binary: float32"]),
    "bytes of anything": (
        of([np.random.default_rng(i).bytes(64) for i in range(N)], pa.binary()), {}, ["hardly float32", "arrays of numbers"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_what_mends_it(spark, tmp_path, name):
    columns, given, words = REFUSED[name]
    with pytest.raises(InputError) as caught:
        digest(spark, tmp_path, write(tmp_path / "in", columns), input=given)
    for word in words:
        assert word in str(caught.value)
    assert "view" not in str(caught.value)


@pytest.mark.slow
def test_keys_dedup_columns_and_clusters_by_sql_and_path(spark, tmp_path, plain):
    """Wherever a column is named, SQL and fields of structs do as well; also when the run goes on."""
    number = pa.array([int(key[5:12]) for key in KEYS])
    meta = pa.array([{"id": i // 2, "text": f"text {i} of many words"} for i in range(N)])
    source = write(tmp_path / "in", {**of(ROWS, LISTS), "number": number, "meta": meta})
    sql = {"sql": "concat('part/', lpad(cast(number as string), 7, '0'), '.jpg')"}
    assert digest(spark, tmp_path, source, input={"key": sql}) == plain
    dedup = {
        "exact": {"columns": ["meta.id"], "order_by": {"sql": "-number"}},
        "minhash": {"column": {"sql": "upper(meta.text)"}, "threshold": 0.99},
    }
    given = {"key": sql, "cluster_id": {"sql": "cast(meta.id % 3 as int)"}}
    config = RunConfig.from_dict(
        config_of(source, tmp_path / "all", cluster={"n_clusters": None}, input=given, dedup=dedup)
    )
    done = run(config, spark)
    again = run(config, spark)
    assert again.document["reused_stages"] == list(again.document["stages"])
    found = {row.key: row.duplicate_of for row in done.duplicates(spark).collect()}
    expected = {}
    for i in range(0, N, 2):  # of each pair, the one with the larger number comes first
        first, other = sorted((KEYS[i], KEYS[i + 1]), reverse=True)
        expected[other] = first
    assert found == expected


EVALUATED = "struct(current_date(), now(), current_timestamp, localtimestamp(), current_user, unix_timestamp(), " \
    "current_timezone(), DATE 'tomorrow', TIMESTAMP 'today', current_database())"  # fmt: skip


def test_what_depends_on_the_moment_is_evaluated_once(spark):
    """The literals mean the same in a session with another time zone."""
    before = spark.conf.get("spark.sql.session.timeZone")
    try:
        spark.conf.set("spark.sql.session.timeZone", "Asia/Tokyo")
        (first,) = evaluate_calls(spark, [EVALUATED]).values()
        at_once = spark.sql(f"SELECT {EVALUATED} AS s").collect()[0].s
        spark.conf.set("spark.sql.session.timeZone", "America/New_York")
        assert evaluate_calls(spark, [first]) == {first: first}
        later = spark.sql(f"SELECT {first} AS s").collect()[0].s
    finally:
        spark.conf.set("spark.sql.session.timeZone", before)
    for a, b in zip(at_once, later, strict=True):
        if isinstance(a, str | int):
            assert abs(a - b) < 60 if isinstance(a, int) else a == b
        else:
            assert type(a) is type(b)
            assert abs((a - b).total_seconds()) < 60


NOT_FIXED = {
    "rand() < 0.5": "another value each time",
    "length(uuid()) > 1": "another value each time",
    "input_file_name() like '%a%'": "_metadata.file_path",
    "monotonically_increasing_id() < 9": "another value each time",
    "key IN (SELECT 'a')": "reads another table",
    "max(key) > 'a'": "one value for each row",
    "row_number() over (order by key) < 9": "one value for each row",
    "explode(array(true))": "one value for each row",
    "nothing > 3": "nothing",
    "key >": "yntax",
}


@pytest.mark.parametrize("sql", NOT_FIXED)
def test_sql_without_a_fixed_value_is_refused(spark, sql):
    frame = spark.createDataFrame([("a",)], "key STRING")
    with pytest.raises(ConfigError) as caught:
        check_expression(frame, sql, "input.filter")
    assert NOT_FIXED[sql] in str(caught.value)
    assert f"input.filter {sql!r}" in str(caught.value)


@pytest.mark.parametrize("engine", ["arrow", "sql"])
def test_the_file_of_a_row(spark, tmp_path, engine):
    """In the filter and in the key. The column `_metadata` is hidden, until it is named."""
    source = write(tmp_path / "in", of(ROWS, LISTS))
    (source / "p.parquet").rename(source / "first.parquet")
    write(tmp_path / "other", of(ROWS, LISTS)).joinpath("p.parquet").rename(source / "second.parquet")
    given = {
        "filter": "_METADATA.file_path like '%first%'",
        "key": {"sql": "concat(_metadata.file_name, '/', key)"},
    }
    config = {**config_of(source, tmp_path / "run", cluster={"n_clusters": 2}, input=given), "engine": engine}
    done = run(RunConfig.from_dict(config), spark)
    found = sorted(row.key for row in done.assignments(spark).select("key").collect())
    assert found == sorted(f"first.parquet/{key}" for key in KEYS)


def test_sql_that_only_seems_to_name_the_file_of_a_row(spark):
    """On rows of no file, which have no such column: part of another name, and text."""
    frame = spark.createDataFrame([("a", "b")], "key STRING, image_metadata STRING")
    check_expression(frame, "image_metadata <> '_metadata.file_path'", "input.filter")
    with pytest.raises(ConfigError, match=r"input\.filter '_metadata\.file_path IS NULL': .*_metadata"):
        check_expression(frame, "_metadata.file_path IS NULL", "input.filter")


def stages(spark, config: RunConfig) -> list[str]:
    return run(config, spark).document["reused_stages"]


@pytest.mark.slow
def test_a_filter_by_date_reuses_today_only(spark, tmp_path):
    days = pa.array(np.arange(N, dtype=np.int32), pa.date32())
    source = write(tmp_path / "in", {**of(ROWS, LISTS), "day": days})

    def config(sql: str) -> RunConfig:
        return RunConfig.from_dict(
            config_of(source, tmp_path / "run", cluster={"n_clusters": 3}, input={"filter": sql})
        )

    assert stages(spark, config("day < current_date()")) == []
    assert "ingest" in stages(spark, config("day < current_date()"))
    filed = json.loads((tmp_path / "run/run.json").read_text())["config"]["input"]["filter"]
    assert filed.startswith("day < DATE '20")
    assert stages(spark, config("day < now()")) == []  # each run sees another moment


@pytest.mark.slow
def test_a_filter_is_evaluated_in_the_zone_of_the_session(spark, tmp_path):
    """On times at midnight of Tokyo; the zone is recorded, and another one makes another run."""
    times = pa.array([i * 3_600_000_000 for i in range(N)], pa.timestamp("us", tz="UTC"))
    source = write(tmp_path / "in", {**of(ROWS, LISTS), "at": times})
    sections = {
        "cluster": {"n_clusters": 2},
        "input": {"filter": "hour(at) < 12"},
        "trie": {"key": "concat(key, '')"},
    }
    config = RunConfig.from_dict(config_of(source, tmp_path / "run", **sections))
    before = spark.conf.get("spark.sql.session.timeZone")
    rows = {}
    try:
        for zone, offset in (("UTC", 0), ("Asia/Tokyo", 9), ("Asia/Tokyo", 9)):
            spark.conf.set("spark.sql.session.timeZone", zone)
            done = run(config, spark)
            rows[zone] = [row.key for row in done.assignments(spark).orderBy("key").collect()]
            assert rows[zone] == sorted(key for i, key in enumerate(KEYS) if (i + offset) % 24 < 12)
            assert done.document["session"] == {"spark.sql.session.timeZone": zone}
            assert spark.conf.get("spark.sql.session.timeZone") == zone
    finally:
        spark.conf.set("spark.sql.session.timeZone", before)
    assert done.document["reused_stages"] == list(done.document["stages"])
    assert rows["UTC"] != rows["Asia/Tokyo"]


@pytest.mark.slow
def test_settings_that_change_what_is_read_make_another_run(spark, tmp_path):
    """Bytes as text: the keys of the second run are other values of another type."""
    source = write(tmp_path / "in", of(ROWS, LISTS), pa.array([key.encode() for key in KEYS]))
    config = RunConfig.from_dict(config_of(source, tmp_path / "run", cluster={"n_clusters": 3}))
    run(config, spark)
    spark.conf.set("spark.sql.parquet.binaryAsString", "true")
    try:
        done = run(config, spark)
    finally:
        spark.conf.unset("spark.sql.parquet.binaryAsString")
    assert done.document["reused_stages"] == []
    assert dict(done.keep_list(spark).dtypes)["key"] == "string"


def test_a_name_that_is_a_column_and_a_function(spark, tmp_path):
    source = write(tmp_path / "in", {**of(ROWS, LISTS), "current_date": list(range(N))})
    with pytest.raises(ConfigError, match="column of the input, and a function"):
        digest(spark, tmp_path, source, input={"filter": "current_date > 3"})
    digest(
        spark, tmp_path, source, input={"filter": "`current_date` > 3 and current_date() > DATE '2020-01-01'"}
    )


def test_the_summary_tells_the_dimension(spark, tmp_path):
    source = write(tmp_path / "in", of(ROWS, LISTS))
    config = RunConfig.from_dict(config_of(source, tmp_path / "run", cluster={"n_clusters": 3}))
    assert "embeddings  8 dimensions" in str(run(config, spark).summary())
