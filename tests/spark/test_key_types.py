"""Keys of every type through whole runs: each kept key is found by its value, none of the dropped is."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import oracle
import pyarrow as pa
import pyarrow.parquet as pq
import pyspark
import pytest
from conftest import config_of, make_embeddings, rows_of, write_table

from spark_dbp import (
    KeepTrie,
    RunConfig,
    build_keep_trie,
    check_samples,
    exact_dedup,
    ingest,
    minhash_dedup,
    prune_again,
    run,
    verify,
)
from spark_dbp.engine.compat import collect_arrow
from spark_dbp.errors import DamagedRunError, InputError
from spark_dbp.lake import files
from spark_dbp.stages.keep_trie import find_missing_keys

IS_SPARK_35 = pyspark.__version__.startswith("3.5.")
N, DIM = 60, 4
EMBEDDINGS = make_embeddings(N, DIM, 3)
MESSAGES = "spark_dbp"

# name: (SQL of the key of row `id`, its type)
KEYS = {
    "text": ("concat('kéy ', id)", "string"),
    "text that is not UTF-8": ("cast(unhex(concat('636166E9', hex(cast(id AS STRING)))) AS STRING)", "string"),
    "text as BINARY": ("cast(concat('k', id) AS BINARY)", "binary"),
    "UUIDs as BINARY": ("unhex(md5(cast(id AS STRING)))", "binary"),
    "boolean": ("id = 7", "boolean"),
    "tinyint": ("cast(id - 30 AS TINYINT)", "tinyint"),
    "smallint": ("cast(id * 1000 - 30000 AS SMALLINT)", "smallint"),
    "int": ("cast(id - 30 AS INT)", "int"),
    "bigint": ("id * 100000000000000003 - 3", "bigint"),
    "float": ("cast((id - 30) / 7 AS FLOAT)", "float"),
    "whole doubles": ("cast(10000000 + id AS DOUBLE)", "double"),
    "doubles": ("if(id = 0, double('NaN'), if(id = 1, double('-Infinity'), pow(10D, id - 30) / 3))", "double"),
    "decimal": ("cast(id - 30 AS DECIMAL(10,2)) / 4", "decimal(14,6)"),
    "long decimal": ("cast(id AS DECIMAL(38,18))", "decimal(38,18)"),
    "date": ("date_add(DATE'1969-12-01', cast(id AS INT))", "date"),
    "timestamp": ("timestamp_micros(id * 1000000000001 - 30000000000000)", "timestamp"),
    "timestamp without zone": (
        "TIMESTAMP_NTZ'1969-12-31 23:59:59.5' + make_dt_interval(0, cast(id AS INT), 0, 0.000007)", "timestamp_ntz"
    ),
    "interval": ("make_dt_interval(cast(id - 30 AS INT), 1, 1, 1.000001)", "interval day to second"),
}  # fmt: skip


def write_keys(spark, path: Path, sql: str) -> Path:
    """Rows of `key` and `embedding`, as Spark writes them."""
    rows = [(number, row.tolist()) for number, row in enumerate(EMBEDDINGS)]
    frame = spark.createDataFrame(rows, "id BIGINT, embedding ARRAY<FLOAT>").coalesce(2)
    frame.selectExpr(f"{sql} AS key", "embedding", "id").write.parquet(str(path))
    return path


def of_collect(frame) -> list:
    """Keys as `collect` gives them; times of type TIMESTAMP are in the zone of this process, without saying so."""
    is_timestamp = frame.schema["key"].dataType.simpleString() == "timestamp"
    return [row.key.astimezone() if is_timestamp else row.key for row in frame.select("key").collect()]


def of_pyarrow(table: pa.Table) -> list:
    """Keys as pyarrow gives them: as scalars, and where Python has such values, as these."""
    key = table.column("key")
    try:
        return [*key, *key.to_pylist()]
    except UnicodeDecodeError:
        return [*key, *key.cast(pa.binary()).to_pylist()]


def check(spark, done) -> None:
    trie = KeepTrie.open(done.path)
    kept, all_rows = done.keep_list(spark), done.assignments(spark)
    dropped = all_rows.join(kept.select("key"), "key", "left_anti")
    assert len(trie) == kept.count()
    assert dropped.count() == all_rows.count() - len(trie)
    assert trie.contains_many(of_pyarrow(pq.read_table(done.table_path("keep_list")))).all()
    assert not trie.contains_many(of_pyarrow(collect_arrow(dropped))).any()
    if "\ufffd" not in str(kept.first().key):  # such text is lost in what a classic session collects
        assert trie.contains_many(of_collect(kept)).all()
        assert not trie.contains_many(of_collect(dropped)).any()
    assert len(verify(done, spark)) == 9


# These differ from others in little: they are left to the longest tests.
# Of these a whole run is made; of all, a trie.
OF_RUNS = (
    "boolean",
    "doubles",
    "timestamp without zone",
    "interval",
    "text that is not UTF-8",
    "long decimal",
)
LONG = {"boolean", "text that is not UTF-8", "long decimal"}
NOT_AS_WRITTEN = {
    "text as BINARY": ("hexadecimal; look up bytes", "decode(key, 'utf-8')", "spark.sql.parquet.binaryAsString"),
    "float": ("numbers as Python writes them",),
    "doubles": ("numbers as Python writes them",),
    "decimal": ("numbers with 6 digits after the point",),
    "timestamp": ("microseconds since 1970 in UTC",),
}  # fmt: skip


@pytest.fixture(scope="module")
def keep_lists(spark, tmp_path_factory) -> str:
    """A table with a column for keys of each type."""
    path = str(tmp_path_factory.mktemp("keys") / "all")
    spark.range(0, N, 1, 2).selectExpr(
        *(f"{sql} AS `{name}`" for name, (sql, _) in KEYS.items())
    ).write.parquet(path)
    return path


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            n, marks=[] if n in ("text that is not UTF-8", "float", "timestamp") else pytest.mark.slow
        )
        for n in KEYS
        if n != "boolean"
    ],
)
def test_a_trie_of_any_type_finds_its_keys(spark, keep_lists, tmp_path, caplog, name):
    caplog.set_level(logging.INFO, MESSAGES)
    all_keys = spark.read.parquet(keep_lists).selectExpr(f"`{name}` AS key")
    kept = all_keys.where("xxhash64(key) > 0")
    n_kept = kept.count()
    build_keep_trie(kept, str(tmp_path), n_kept, shards=2)
    trie = KeepTrie.open(str(tmp_path))
    values = collect_arrow(all_keys.union(kept)).column("key")
    found = trie.contains_many(values)
    assert 0 < n_kept < N
    assert found[:N].sum() == n_kept
    assert found[N:].all()
    assert find_missing_keys(kept, trie, None).isEmpty()
    assert find_missing_keys(all_keys, trie, None).count() == N - n_kept
    said = caplog.text
    for words in NOT_AS_WRITTEN.get(name, ()):
        assert words in said
    if KEYS[name][1] == "string":
        assert "are stored as" not in said


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.long if n in LONG else pytest.mark.slow) for n in OF_RUNS]
)
def test_kept_keys_are_found_by_their_values_and_dropped_ones_are_not(spark, tmp_path, name):
    sql, key_type = KEYS[name]
    source = write_keys(spark, tmp_path / "in", sql)
    sections = {"cluster": {"n_clusters": 3}}
    if key_type == "boolean":
        two = {"filter": "id IN (6, 7)"}
        sections = {"input": two, "cluster": {"n_clusters": 1}, "prune": {"keep_ratio": 0.5}}
    done = run(RunConfig.from_dict(config_of(source, tmp_path / "run", **sections)), spark)
    manifest = json.loads(Path(done.table_path("keep_trie"), "manifest.json").read_text())
    assert (manifest["key_type"], manifest["expression"]) == (key_type, None)
    check(spark, done)
    again = prune_again(done, str(tmp_path / "again"), ["prune.keep_ratio=0.6", "trie.shards=3"], spark)
    assert len(again.keep_trie()) == (1 if key_type == "boolean" else 36)
    check(spark, again)


@pytest.mark.slow
def test_verify_notices_a_trie_in_which_nothing_is_found(spark, tmp_path):
    """As tries of version 1 held DOUBLE keys: all texts are there, but under no text that a look-up makes."""
    source = write_keys(spark, tmp_path / "in", KEYS["whole doubles"][0])
    done = run(RunConfig.from_dict(config_of(source, tmp_path / "run", cluster={"n_clusters": 3})), spark)
    folder = Path(done.table_path("keep_trie"))
    for file in folder.iterdir():
        file.unlink()
    build_keep_trie(done.keep_list(spark), str(folder), 18, key="cast(key AS STRING)")
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "expression": None}))
    done.document["stages"]["keep_trie"]["files"]["keep_trie"] = files.list_sizes(str(folder))
    with pytest.raises(DamagedRunError, match=r"18 kept keys are not in it, such as '100000\d\d\.0'"):
        verify(done, spark)


@pytest.mark.slow
def test_with_an_expression_its_text_is_looked_up(spark, tmp_path):
    source = write_keys(spark, tmp_path / "in", KEYS["text as BINARY"][0])
    sections = {"cluster": {"n_clusters": 3}, "trie": {"key": "decode(key, 'utf-8')"}}
    done = run(RunConfig.from_dict(config_of(source, tmp_path / "run", **sections)), spark)
    kept = [row.key for row in done.keep_list(spark).collect()]
    assert done.keep_trie().contains_many(kept).all()
    assert done.keep_trie().contains_many([key.decode() for key in kept]).all()
    with pytest.raises(TypeError, match=r"the texts of trie\.key"):
        done.keep_trie().contains_many([7])
    assert len(verify(done, spark)) == 9


@pytest.mark.parametrize(
    ("sql", "named"),
    [
        ("INTERVAL '1' MONTH * id", "INTERVAL YEAR TO MONTH"),
        ("array(id)", "ARRAY<BIGINT>"),
        ("map(id, id)", "MAP<BIGINT, BIGINT>"),
        ("NULL", "VOID"),
    ],
)
def test_types_that_cannot_be_keys_are_refused_before_anything_is_read(spark, sql, named):
    frame = spark.range(1).selectExpr(f"{sql} AS key", "array(1F) AS embedding")
    with pytest.raises(InputError, match=f"input.key: a column of type {named}"):
        ingest(frame)


# Keys that are not UTF-8.


def latin_1(texts: list[bytes]) -> pa.Array:
    offsets = np.cumsum([0, *map(len, texts)]).astype(np.int32)
    return pa.Array.from_buffers(
        pa.string(), len(texts), [None, pa.py_buffer(offsets), pa.py_buffer(b"".join(texts))]
    )


CAFE = [b"caf\xe9-%04d" % number for number in range(N)]


@pytest.mark.slow
@pytest.mark.parametrize("groups", ["earlier", pytest.param("connected", marks=pytest.mark.long)])
def test_case_16_keys_not_utf8(spark, tmp_path, groups):
    """Through every deduplication; the columns that these look at are not UTF-8 either."""
    embeddings = np.concatenate([EMBEDDINGS[:-10], EMBEDDINGS[:10]])  # the last ten are copies of the first
    text = latin_1(
        [b"l\xe9gende du fichier num\xe9ro %d" % (number * 7919 % 1000) for number in range(N - 1)]
        + [b"l\xe9gende du fichier num\xe9ro 0"]
    )
    source = write_table(
        tmp_path / "in",
        latin_1(CAFE),
        embeddings,
        2,
        hash=latin_1([b"\xe9%d" % max(1, n) for n in range(N)]),
        text=text,
    )
    dedup = {
        "exact": {"columns": ["hash"], "order_by": "text"},
        "minhash": {"column": "text", "threshold": 1.0, "order_by": "hash"},
        "semantic": {"eps": 0.0001, "n_clusters": 1, "groups": groups},
    }
    done = run(
        RunConfig.from_dict(config_of(source, tmp_path / "run", cluster={"n_clusters": 3}, dedup=dedup)),
        spark,
    )
    found = done.duplicates(spark).selectExpr("method", "cast(key AS BINARY)", "cast(duplicate_of AS BINARY)")
    pairs = {method: [] for method in ("exact", "minhash", "semantic")}
    for method, key, of in found.collect():
        pairs[method].append((CAFE.index(bytes(key)), CAFE.index(bytes(of))))
    assert pairs["exact"] == [(1, 0)]
    assert pairs["minhash"] == [(59, 0)]
    assert len(pairs["semantic"]) == 8
    assert {abs(a - b) for a, b in pairs["semantic"]} == {50}
    assert len(verify(done, spark)) == 9
    trie, kept = (
        done.keep_trie(),
        {bytes(row[0]) for row in done.keep_list(spark).selectExpr("cast(key AS BINARY)").collect()},
    )
    assert [key in trie for key in CAFE] == [key in kept for key in CAFE]
    assert [key.decode("utf-8", "surrogateescape") in trie for key in CAFE] == [key in kept for key in CAFE]


def bad_rows(spark):
    rows = spark.range(3).selectExpr(
        "cast(unhex('636166E9') AS STRING) AS key", "array(0F, 0F) AS embedding", "id"
    )
    return ingest(rows).localCheckpoint()


def test_messages_show_keys_that_are_not_utf8(spark):
    bad = bad_rows(spark)
    with pytest.raises(InputError, match=r"zero vector: 3 rows, such as key 'caf\ufffd', 'caf\ufffd'"):
        check_samples(bad)
    good = ingest(bad.selectExpr("key", "array(1F, 0F) AS embedding")).localCheckpoint()
    with pytest.raises(InputError, match=r"1 key is not unique, such as 'caf\ufffd' \(3 times\)"):
        check_samples(good)


# Collations, and CHAR.


def note_collation(table: pa.Table, *names: str) -> pa.Table:
    """`table` with the metadata by which Spark 4 notes a collation in a file."""
    fields = [
        {"name": name, "type": "string", "nullable": True, "metadata": {"__COLLATIONS": {name: "spark.UTF8_LCASE"}}}
        if name in names
        else {"name": name, "type": {"type": "array", "elementType": "float", "containsNull": True}, "nullable": True, "metadata": {}}
        for name in table.column_names
    ]  # fmt: skip
    noted = {
        "org.apache.spark.version": "4.0.0",
        "org.apache.spark.sql.parquet.row.metadata": json.dumps({"type": "struct", "fields": fields}),
    }
    return table.replace_schema_metadata(noted)


@pytest.mark.slow
def test_case_18_collated_key(spark, tmp_path, caplog):
    """By value everywhere: 'A' and 'a' are two keys, and two values of a column for deduplication."""
    caplog.set_level(logging.INFO, MESSAGES)
    keys = [f"{'kK'[number % 2]}{number // 2:04d}" for number in range(N)]
    hashes = [f"{'hH'[number % 2]}{number // 2}" for number in range(N - 2)] + ["h1", "H1"]
    embeddings = pa.array(EMBEDDINGS.tolist(), pa.list_(pa.float32()))
    table = pa.table(
        {"key": keys, "embedding": embeddings, "sha": hashes, "text": [f"{h} of a text {h}" for h in hashes]}
    )
    (tmp_path / "in").mkdir()
    pq.write_table(note_collation(table, "key", "sha", "text"), tmp_path / "in/0.parquet")
    collated = "" if IS_SPARK_35 else " collate UTF8_LCASE"
    assert dict(spark.read.parquet(str(tmp_path / "in")).dtypes)["key"] == f"string{collated}"
    dedup = {
        "exact": {"columns": ["sha"], "order_by": "text"},
        "minhash": {"column": "text", "normalize": False, "threshold": 1.0},
    }
    done = run(
        RunConfig.from_dict(
            config_of(tmp_path / "in", tmp_path / "run", cluster={"n_clusters": 3}, dedup=dedup)
        ),
        spark,
    )
    for name in ("samples", "assignments", "duplicates", "keep_list"):
        assert dict(done.table(name, spark).dtypes)["key"] == "string"
    pairs = rows_of(done.duplicates(spark).select("key", "duplicate_of"))
    assert pairs == sorted([(keys[-2], "k0001"), (keys[-1], "K0001")])
    left = [key for key in keys if key not in dict(pairs)]
    answer = oracle.run(left, EMBEDDINGS[: N - 2], n_clusters=3, n_iter=8, keep_ratio=0.3)
    assert rows_of(done.keep_list(spark)) == answer.keep_list
    kept = {row[0] for row in answer.keep_list}
    assert [key in done.keep_trie() for key in keys] == [key in kept for key in keys]
    assert len(verify(done, spark)) == 9
    for column in ("key", "sha", "text"):
        assert (f"column '{column}' has the collation UTF8_LCASE" in caplog.text) == (not IS_SPARK_35)


@pytest.mark.slow
@pytest.mark.skipif(IS_SPARK_35, reason="Spark 3.5 has no collations")
def test_stages_alone_compare_by_value(spark, tmp_path):
    rows = [("A", "x"), ("a", "X"), ("b", "x"), ("B", "X")]
    frame = spark.createDataFrame(rows, "key STRING, text STRING").selectExpr(
        "key COLLATE UTF8_LCASE AS key", "text COLLATE UTF8_LCASE AS text",
        "array(named_struct('of', text COLLATE UTF8_LCASE)) AS nested",
    )  # fmt: skip
    expected = [("a", "B", "exact", 1.0), ("b", "A", "exact", 1.0)]
    assert rows_of(exact_dedup(frame, columns=["text"])) == expected
    assert rows_of(exact_dedup(frame, columns=["nested"], order_by="key")) == expected
    near = minhash_dedup(
        frame, column="text", normalize=False, order_by="key", scratch=str(tmp_path / "scratch")
    )
    assert rows_of(near.select("key", "duplicate_of")) == [row[:2] for row in expected]


def test_char_keys_are_said_to_be_padded(spark, tmp_path, caplog):
    caplog.set_level(logging.INFO, MESSAGES)
    spark.sql(
        f"CREATE TABLE padded (key CHAR(10), embedding ARRAY<FLOAT>) USING parquet LOCATION '{tmp_path}/padded'"
    )
    try:
        spark.sql("INSERT INTO padded VALUES ('a', array(1F)), ('b', array(2F))")
        samples = ingest(spark.table("padded"))
        assert samples.schema["key"].metadata == {}
        assert [row.key for row in samples.orderBy("key").collect()] == ["a" + " " * 9, "b" + " " * 9]
    finally:
        spark.sql("DROP TABLE padded")
    words = "input.key: column 'key' is CHAR(10), so Spark pads its keys with blanks"
    assert caplog.text.count(words) == 1
    assert "trie.key: rtrim(key)" in caplog.text
    ingest(spark.range(1).selectExpr("'a' AS key", "array(1F) AS embedding"))
    assert caplog.text.count("input.key") == 1
