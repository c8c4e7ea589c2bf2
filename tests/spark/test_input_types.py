"""Parquet types that Spark does not know, files without rows, half floats: what is read, and as what."""

from __future__ import annotations

import logging
import uuid
from decimal import Decimal
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyspark
import pytest
from conftest import write_table

from spark_dbp import ingest
from spark_dbp.engine.compat import read_setting
from spark_dbp.errors import InputError
from spark_dbp.io import footers
from spark_dbp.io.footers import read_columns, read_parquet
from spark_dbp.io.sources import open_source
from spark_dbp.kernels.vectors import to_matrix
from spark_dbp.lake.file_kinds import open_footer

IS_SPARK_35 = pyspark.__version__.startswith("3.5.")
N = 6
KEYS = [f"k{number}" for number in range(N)]
ROWS = np.random.default_rng(0).normal(size=(N, 4)).astype(np.float32)
ID_BYTES = [uuid.UUID(int=7 * number).bytes for number in range(N)]
# The pyarrow beside Spark 3.5 cannot write the type.
IDS = pa.array(ID_BYTES, pa.uuid() if hasattr(pa, "uuid") else pa.binary(16))
TIMES = pa.array(np.arange(N), pa.timestamp("ns"))
NANOS = "spark.sql.legacy.parquet.nanosAsLong"


def halves(rows: np.ndarray) -> pa.Array:
    return pa.array([row.astype(np.float16) for row in rows], pa.list_(pa.float16()))


def of(inner: pa.Array) -> pa.Array:
    """Lists of one value each."""
    return pa.ListArray.from_arrays(pa.array(range(len(inner) + 1), pa.int32()), inner)


def write_interval(path: Path) -> None:
    """No writer in Python has the type; here it is written into the footer."""
    write_table(path, KEYS, ROWS, iv=pa.array([bytes(12)] * N, pa.binary(12)))
    file = path / "00000.parquet"
    raw = file.read_bytes()
    length = int.from_bytes(raw[-8:-4], "little") + 2
    name, typed = b"\x18\x02iv\x00", b"\x18\x02iv\x25\x2a\x00"
    assert raw.count(name) == 1
    file.write_bytes(raw[:-8].replace(name, typed) + length.to_bytes(4, "little") + b"PAR1")


# name: (columns, what is left out)
UNKNOWN = {
    "nanoseconds": ({"t": TIMES}, {("t",): "TIMESTAMP(NANOS)"}),
    "nanoseconds in lists": ({"t": of(TIMES)}, {("t",): "TIMESTAMP(NANOS) in a list"}),
    "time": ({"t": pa.array(np.arange(N), pa.time64("us"))}, {("t",): "TIME(MICROS)"}),
    "time in milliseconds": ({"t": pa.array(np.arange(N, dtype="i4"), pa.time32("ms"))}, {("t",): "TIME(MILLIS)"}),
    "60 digits": ({"d": pa.array([Decimal(1)] * N, pa.decimal256(60, 2))}, {("d",): "DECIMAL(60,2)"}),
    "a field of a struct": (
        {"s": pa.StructArray.from_arrays([TIMES, pa.array(KEYS)], ["t", "name"])},
        {("s", "t"): "TIMESTAMP(NANOS)"},
    ),
    "uuid": ({"u": IDS}, {}),
    "uuid in lists": ({"u": of(IDS)}, {}),
    "interval": (None, {("iv",): "INTERVAL"}),
    "names in two cases": ({"foo": KEYS, "FOO": KEYS}, {("foo",): "name in another case", ("FOO",): "name in another case"}),
}  # fmt: skip
if not hasattr(pa, "uuid"):
    del UNKNOWN["uuid"], UNKNOWN["uuid in lists"]
if not IS_SPARK_35:  # which cannot read a footer that has the type
    UNKNOWN["half floats"] = ({"h": pa.array(np.zeros(N, np.float16))}, {("h",): "FLOAT16"})
    UNKNOWN["half floats in lists"] = ({"h": halves(ROWS)}, {})


QUICK = {"nanoseconds", "uuid", "interval"}  # the others in `make test-all`


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in UNKNOWN]
)
def test_a_column_of_an_unknown_type_fails_nothing(spark, tmp_path, name):
    columns, left_out = UNKNOWN[name]
    write_interval(tmp_path) if columns is None else write_table(tmp_path, KEYS, ROWS, **columns)
    with pytest.raises(Exception, match=r"."):
        _ = spark.read.parquet(str(tmp_path)).schema  # else the case shows nothing
    frame = read_parquet(spark, [str(tmp_path)], ["key", "embedding"])
    assert sorted(row.key for row in frame.select("key", "embedding").collect()) == KEYS
    assert frame.count() == N
    found = read_columns(open_footer(str(tmp_path / "00000.parquet")), partial(read_setting, spark))
    assert {path: str(unread) for path, unread in found.unread.items()} == left_out


def test_types_are_those_that_spark_would_take(spark, tmp_path):
    """Of a file in which Spark knows all of them."""
    table = {
        "a map": pa.array([[("a", 1)]] * N, pa.map_(pa.string(), pa.int32())),
        "struct": pa.array([{"a": 1, "b.c": [1.5]}] * N),
        "lists of lists": pa.array([[[1]]] * N, pa.list_(pa.list_(pa.int16()))),
        "fixed list": pa.array([[1.0, 2.0]] * N, pa.list_(pa.float64(), 2)),
        "dictionary": pa.array(KEYS).dictionary_encode(),
        "large": pa.array(KEYS, pa.large_string()),
        "binary": pa.array([b"a"] * N),
        "fixed": pa.array([b"abc"] * N, pa.binary(3)),
        "date": pa.array([1] * N, pa.date32()),
        "nothing": pa.nulls(N),
        "digits": pa.array([Decimal("1.5")] * N, pa.decimal128(20, 3)),
        "few digits": pa.array([Decimal("1.5")] * N, pa.decimal128(5, 1)),
        "all digits": pa.array([Decimal("0.5")] * N, pa.decimal128(38, 38)),
        "yes": pa.array([True] * N),
        "span": pa.array(np.arange(N), pa.duration("us")),
        **{str(t): pa.array(np.arange(N).astype(str(t).replace("halffloat", "f2"))) for t in (
            pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()
        )},
        **{f"at {unit} {zone}": pa.array(np.arange(N), pa.timestamp(unit, zone))
           for unit in ("ms", "us") for zone in (None, "UTC")},
    }  # fmt: skip
    write_table(tmp_path, KEYS, ROWS, **table)
    file = str(tmp_path / "00000.parquet")
    for settings in (
        {},
        {"spark.sql.parquet.binaryAsString": "true", "spark.sql.parquet.inferTimestampNTZ.enabled": "false"},
    ):
        for setting, value in settings.items():
            spark.conf.set(setting, value)
        try:
            found = read_columns(open_footer(file), partial(read_setting, spark))
            expected = spark.read.parquet(file).schema
        finally:
            for setting in settings:
                spark.conf.unset(setting)
        assert found.unread == {}
        assert found.schema == expected


@pytest.mark.slow
def test_columns_that_spark_wrote_stay_what_they_are(spark, tmp_path):
    """Vectors of pyspark.ml, and names in two cases."""
    from pyspark.ml.linalg import Vectors

    rows = [(key, Vectors.dense(row.tolist()), key, key) for key, row in zip(KEYS, ROWS, strict=True)]
    frame = spark.createDataFrame(rows, ["key", "embedding", "x", "y"])
    spark.conf.set("spark.sql.caseSensitive", "true")
    try:
        frame.withColumnRenamed("y", "X").coalesce(1).write.parquet(str(tmp_path / "in"))
    finally:
        spark.conf.unset("spark.sql.caseSensitive")
    source = open_source(spark, paths=[str(tmp_path / "in")], columns=["key", "embedding"])
    assert source.frame.columns == ["key", "embedding"]
    assert source.frame.schema["embedding"].dataType == frame.schema["embedding"].dataType
    assert ingest(source.frame).where("problem is null").count() == N


@pytest.mark.slow
@pytest.mark.parametrize(
    ("columns", "read", "words"),
    [
        ({"t": TIMES}, ["t"], ["'t'", "00000.parquet", "TIMESTAMP(NANOS)", f"--set {NANOS}=true"]),
        ({"t": of(TIMES)}, ["t"], ["'t'", "TIMESTAMP(NANOS) in a list"]),
        ({"t": pa.array(np.arange(N), pa.time64("ns"))}, ["t"], ["TIME(NANOS)", "write it as a timestamp"]),
        (None, ["iv"], ["INTERVAL", "write it as text"]),
        ({"foo": KEYS, "FOO": KEYS}, ["FOO"], ["'FOO' only in case", "spark.sql.caseSensitive: true"]),
        (
            {"s": pa.StructArray.from_arrays([TIMES, pa.array(KEYS)], ["t", "name"])}, ["s"],
            ["'s.t'", "TIMESTAMP(NANOS)"],
        ),
    ],
)  # fmt: skip
def test_a_column_that_the_job_needs_is_refused_by_name(spark, tmp_path, columns, read, words):
    write_interval(tmp_path) if columns is None else write_table(tmp_path, KEYS, ROWS, **columns)
    with pytest.raises(InputError) as caught:
        open_source(spark, paths=[str(tmp_path)], columns=["key", *read])
    for word in ["input.path", *words]:
        assert word in str(caught.value)


def test_a_filter_on_a_column_that_is_left_out(spark, tmp_path, caplog):
    write_table(tmp_path, KEYS, ROWS, at=TIMES)
    source = {"paths": [str(tmp_path)], "columns": ["key", "embedding"]}
    with pytest.raises(InputError, match=r"input.filter .*'at' of .*TIMESTAMP\(NANOS\)"):
        open_source(spark, predicate="at > '2024-01-01'", **source)
    with caplog.at_level(logging.INFO, "spark_dbp"):
        opened = open_source(spark, predicate="key <> 'at'", **source)  # a text, not the column
        opened.check_unchanged(N)
    assert opened.read_rows().count() == N
    assert [message for message in caplog.messages if "left out" in message] == [
        "  left out, because Spark does not read them: 'at' (TIMESTAMP(NANOS); --set "
        f"{NANOS}=true (it is then a BIGINT), or write it in microseconds)"
    ]
    spark.conf.set(NANOS, "true")
    try:
        assert open_source(spark, predicate="at >= 3", **source).read_rows().count() == N - 3
    finally:
        spark.conf.unset(NANOS)


@pytest.mark.slow
def test_where_only_spark_reads_the_files(spark, tmp_path, monkeypatch):
    """Then the table is refused, with Spark's reason and a mend."""

    def fail(uri: str) -> None:
        raise OSError("no credentials")

    write_table(tmp_path / "a", KEYS, ROWS, t=TIMES)
    write_table(tmp_path / "b", KEYS, ROWS, t=pa.array(np.arange(N), pa.time64("ns")))
    monkeypatch.setattr(footers, "open_footer", fail)
    for name, words in (("a", ["NANOS", f"--set {NANOS}=true"]), ("b", ["TIME", "write that column"])):
        with pytest.raises(InputError) as caught:
            open_source(spark, paths=[str(tmp_path / name)], columns=["key"])
        for word in ["cannot read input.path", *words]:
            assert word in str(caught.value)
        assert "Py4J" not in str(caught.value)


def test_the_usual_path_reads_no_footer(spark, tmp_path, monkeypatch):
    monkeypatch.delattr(footers, "open_footer")
    write_table(tmp_path, KEYS, ROWS, n_files=3)
    assert open_source(spark, paths=[str(tmp_path)], columns=["key"]).snapshot.files == 3


@pytest.mark.skipif(not hasattr(pa, "uuid"), reason="this pyarrow cannot write a UUID")
def test_case_24_uuid_key(spark, tmp_path, caplog):
    write_table(tmp_path, IDS, ROWS)
    with caplog.at_level(logging.INFO, "spark_dbp"):
        source = open_source(spark, paths=[str(tmp_path)], columns=["key", "embedding"])
    assert "  column 'key' is a UUID: read as its 16 bytes (BINARY)" in caplog.messages
    keys = {bytes(row.key) for row in ingest(source.frame).where("problem is null").collect()}
    assert keys == {uuid.UUID(int=7 * number).bytes for number in range(N)}


@pytest.mark.skipif(IS_SPARK_35, reason="Spark 3.5 cannot read a footer with FLOAT16")
def test_half_floats_in_lists(spark, tmp_path):
    """As the embedding, also in lists of fixed size, with bad values among them."""
    rows = [*halves(ROWS).to_pylist(), None, [np.float16("nan")] * 4, [None, *ROWS[0, 1:].astype(np.float16)]]
    keys = [*KEYS, "null", "nan", "null inside"]
    write_table(tmp_path, keys, pa.array(rows, pa.list_(pa.float16())))
    source = open_source(spark, paths=[str(tmp_path)], columns=["key", "embedding"])
    found = {row.key: row for row in ingest(source.frame).collect()}
    assert {key: row.problem for key, row in found.items() if row.problem} == {
        "null": "null embedding", "nan": "NaN or Inf in the embedding", "null inside": "null inside the embedding",
    }  # fmt: skip
    vectors = to_matrix(pa.array([bytes(found[key].vector) for key in KEYS], pa.binary()))
    as_read = ROWS.astype(np.float16).astype(np.float64)
    np.testing.assert_allclose(vectors, as_read / np.linalg.norm(as_read, axis=1, keepdims=True), atol=1e-6)


EMPTY = {
    "without types": pa.table({"key": pa.nulls(0), "embedding": pa.nulls(0)}),
    "with other types": pa.table({"key": pa.array([], pa.float64()), "embedding": pa.array([], pa.string())}),
    "with a type that Spark does not know": pa.table({"key": IDS[:0], "embedding": TIMES[:0]}),
    "with fewer columns": pa.table({"other": pa.array([], pa.int32())}),
}


@pytest.mark.parametrize("name", EMPTY)
@pytest.mark.parametrize("place", ["00000 a%b.parquet", pytest.param("zz.parquet", marks=pytest.mark.slow)])
def test_case_31_empty_pandas_part(spark, tmp_path, name, place):
    """The types are those of the files with rows, wherever the one without lies."""
    write_table(tmp_path, KEYS, ROWS)
    (tmp_path / "00000.parquet").rename(tmp_path / "0001 {x}[1].parquet")
    pq.write_table(EMPTY[name], tmp_path / place)
    source = open_source(spark, paths=[str(tmp_path)], columns=["key", "embedding"])
    assert ingest(source.frame).where("problem is null").count() == N
    source.check_unchanged(N)


@pytest.mark.slow
def test_columns_from_folders_stay(spark, tmp_path):
    for number in range(2):
        half = slice(number * 3, number * 3 + 3)
        write_table(tmp_path / f"day={number + 1}", KEYS[half], ROWS[half], t=TIMES[half])
    source = open_source(spark, paths=[str(tmp_path)], columns=["key", "day"])
    days = {(row.key, row.day) for row in source.frame.select("key", "day").collect()}
    assert days == {(key, 1 + number // 3) for number, key in enumerate(KEYS)}
