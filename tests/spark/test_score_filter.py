"""The score filter against plain loops: which rows pass, whatever their scores, groups, keys and partitions."""

from __future__ import annotations

import datetime
import math
import random
from decimal import Decimal
from fractions import Fraction
from itertools import groupby

import numpy as np
import pyarrow as pa
import pytest
from conftest import rows_of

from spark_dbp import clip_score, score_filter
from spark_dbp.engine import highest
from spark_dbp.engine.highest import GROUP, SCORE, count_to_keep, keep_highest
from spark_dbp.errors import ConfigError, InputError
from spark_dbp.kernels import vectors as vectors_kernel
from spark_dbp.stages.clip_score import _multiply
from spark_dbp.stages.score_filter import find_passing, to_score

NAN, INF = math.nan, math.inf


def expect(rows: list[tuple], fraction: str) -> list:
    """Keys that pass, of rows (key, score, group): one group after the other, sorted as Python sorts."""

    def name(row: tuple) -> str:  # repr tells None and NaN apart; 0.0 and -0.0 are one group
        return repr(row[2] + 0.0 if isinstance(row[2], float) else row[2])

    scored = [row for row in rows if row[1] is not None and row[1] == row[1]]
    kept = []
    for _, members in groupby(sorted(scored, key=name), key=name):
        best = sorted(members, key=lambda row: (-row[1], row[0]))
        kept += [row[0] for row in best[: math.floor(Fraction(fraction) * len(best))]]
    return sorted(kept)


def keys_of(frame) -> list:
    return sorted(row["key"] for row in frame.select("key").collect())


SCORES = {
    "double": [0.25, 0.5, 0.5, NAN, None, INF, -INF, 0.0, -0.0, 1e-300, 0.1],
    "float": [0.25, 0.5, 0.5, NAN, None, INF, -INF, 0.0, -0.0],
    "bigint": [2**53, 2**53 + 1, -(2**63), 2**63 - 1, None, 0, 0],
    "tinyint": [-128, 127, 0, 0, None],
    "decimal(38,2)": [Decimal(10**35) / 100, Decimal(10**35 + 1) / 100, Decimal("-0.01"), Decimal(0), None],
}
GROUPS = {
    "string": ["a", "b", None, "", "a lone one"],
    "double": [1.5, NAN, 0.0, -0.0, None],
    "date": [datetime.date(2020, 1, 1), datetime.date(1600, 1, 1), None],
    "binary": [b"\xff", b"", None],
    "boolean": [True, False, None],
}
KEYS = {
    "string": lambda i: f"part/{i * 37 % 1009:04d}.jpg",
    "bigint": lambda i: i * 37 % 1009 - 500,
    "binary": lambda i: b"\xe9%d" % i,
    "timestamp_ntz": lambda i: datetime.datetime(2020, 1, 1) + datetime.timedelta(seconds=i * 37 % 1009),
}


def make_rows(seed: int, n: int, score: str, group: str, key: str) -> list[tuple]:
    rng = random.Random(seed)
    return [(KEYS[key](i), rng.choice(SCORES[score]), rng.choice(GROUPS[group])) for i in range(n)]


@pytest.mark.parametrize(
    ("seed", "score", "group", "key", "fraction"),
    [
        pytest.param(0, "double", "string", "string", "0.5", marks=pytest.mark.slow),
        pytest.param(1, "float", "double", "bigint", "0.29", marks=pytest.mark.slow),
        (2, "bigint", "date", "binary", "0.3"),
        pytest.param(3, "tinyint", "binary", "timestamp_ntz", "1.0", marks=pytest.mark.slow),
        pytest.param(4, "decimal(38,2)", "boolean", "string", "0.01", marks=pytest.mark.slow),
        pytest.param(5, "double", "double", "string", "0.123456789012345", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("within", ["nothing", "few groups", "many groups"])
def test_the_highest_pass(spark, tmp_path, monkeypatch, seed, score, group, key, fraction, within):
    if within == "many groups":
        monkeypatch.setattr(highest, "_FEW_GROUPS", 0)
    rows = make_rows(seed, 300, score, group, key)
    schema = f"key {key}, `the.score` {score}, g {group}"
    expected = expect(rows if within != "nothing" else [(*row[:2], None) for row in rows], fraction)
    settings = {
        "column": "the.score",
        "keep_fraction": float(fraction),
        "within": "g" if within != "nothing" else None,
    }
    for n, partitions in enumerate((1, 7)):
        random.Random(n).shuffle(rows)
        frame = spark.createDataFrame(rows, schema).repartition(partitions)
        passed = score_filter(frame, **settings, scratch=str(tmp_path / str(n)))
        assert keys_of(passed) == expected
        assert passed.columns == frame.columns


@pytest.mark.parametrize(
    ("partitions", "few"),
    [
        (3, 10_000),
        (3, 0),
        *(pytest.param(n, few, marks=pytest.mark.slow) for n in (1, 40) for few in (10_000, 0)),
    ],
)
def test_ranges_that_cut_groups_anywhere(spark, tmp_path, monkeypatch, partitions, few):
    """One group over many ranges beside many of one row; all scores are equal, so that keys decide."""
    monkeypatch.setattr(highest, "_FEW_GROUPS", few)
    n = 2000
    rows = [(i, 1.0, 0 if i % 2 else i) for i in range(n)]
    frame = spark.createDataFrame(rows, f"key BIGINT, {SCORE} DOUBLE, {GROUP} INT")
    settings = {"spark.sql.shuffle.partitions": str(partitions), "spark.sql.adaptive.enabled": "false"}
    before = {name: spark.conf.get(name) for name in settings}
    try:
        for name, value in settings.items():
            spark.conf.set(name, value)
        grouped = keep_highest(frame, Fraction(2, 5), str(tmp_path / "a"))
        assert keys_of(grouped.rows) == expect(rows, "0.4") == [0, *range(1, 798, 2)]
        assert (grouped.n_rows, grouped.n_groups, grouped.n_empty) == (400, 1000, 999)
        alone = keep_highest(frame.drop(GROUP), Fraction(2, 5), str(tmp_path / "b"))
        assert keys_of(alone.rows) == list(range(800))
        assert (alone.n_rows, alone.n_groups, alone.n_empty) == (800, 1, 0)
    finally:
        for name, value in before.items():
            spark.conf.set(name, value)


def test_no_task_gets_a_whole_group(spark, tmp_path):
    """All rows are one group and have one score: the ranges are about equal all the same."""
    frame = spark.range(40_000).selectExpr("id AS key", f"1.0D AS {SCORE}", f"'a' AS {GROUP}")
    before = spark.conf.get("spark.sql.adaptive.enabled")
    spark.conf.set("spark.sql.adaptive.enabled", "false")  # it puts small ranges together
    try:
        kept = keep_highest(frame, Fraction(1, 4), str(tmp_path))
        assert kept.rows.agg({"key": "max"}).collect()[0][0] == 9_999
        ranges = spark.read.parquet(str(tmp_path / "score_ranges")).groupBy("range_number").count().collect()
    finally:
        spark.conf.set("spark.sql.adaptive.enabled", before)
    assert len(ranges) == 4
    assert max(row["count"] for row in ranges) < 20_000


def test_no_rows_and_no_scores(spark, tmp_path):
    for n, (score, within) in enumerate([("NULL", None), ("double('nan')", "g")]):
        frame = spark.range(5).selectExpr("id AS key", f"CAST({score} AS DOUBLE) AS s", "1 AS g")
        for m, given in enumerate((frame, frame.where("key < 0"))):
            scratch = str(tmp_path / f"{n}-{m}")
            passed = score_filter(given, column="s", keep_fraction=1.0, within=within, scratch=scratch)
            assert keys_of(passed) == []


@pytest.mark.parametrize(
    "written", ["0.1", "0.3", "0.29", "1.0", "0.12345678901234567", "1e-09", "1e-300", "5e-324"]
)
def test_the_number_to_keep_is_exact(spark, written):
    totals = [0, 1, 3, 10, 100, 10**9, 10**9 - 1, 12345678901, 2**63 - 1]
    frame = spark.createDataFrame([(n,) for n in totals], "n BIGINT")
    fraction = Fraction(repr(float(written)))
    for ansi in ("true", "false"):
        before = spark.conf.get("spark.sql.ansi.enabled")
        spark.conf.set("spark.sql.ansi.enabled", ansi)
        try:
            counted = frame.select("n", count_to_keep(fraction, "n")).collect()
        finally:
            spark.conf.set("spark.sql.ansi.enabled", before)
        assert {row[0]: row[1] for row in counted} == {n: math.floor(fraction * n) for n in totals}


@pytest.mark.parametrize(
    ("score", "at_least", "expected"),
    [
        ("double", 0.25, [0.25, 0.5, 0.5, INF]),
        ("double", 0.0, [0.25, 0.5, 0.5, INF, 0.0, -0.0, 1e-300, 0.1]),
        ("float", 0.25, [0.25, 0.5, 0.5, INF]),
        ("bigint", 2**53, [2**53, 2**53 + 1, 2**63 - 1]),
        ("bigint", -1e300, [2**53, 2**53 + 1, -(2**63), 2**63 - 1, 0, 0]),
        ("bigint", 0.5, [2**53, 2**53 + 1, 2**63 - 1]),
        ("tinyint", 127.5, []),
        ("tinyint", -0.5, [127, 0, 0]),
        ("decimal(38,2)", -0.01, [Decimal(10**35) / 100, Decimal(10**35 + 1) / 100, Decimal("-0.01"), Decimal(0)]),
        ("decimal(38,2)", -0.009, [Decimal(10**35) / 100, Decimal(10**35 + 1) / 100, Decimal(0)]),
    ],
)  # fmt: skip
def test_at_least_does_not_round(spark, score, at_least, expected):
    frame = spark.createDataFrame(list(enumerate(SCORES[score])), f"key INT, s {score}")
    passed = score_filter(frame, column="s", at_least=at_least)
    assert [row.s for row in passed.orderBy("key").collect()] == expected
    n_null, n_nan = SCORES[score].count(None), sum(s != s for s in SCORES[score])
    found = find_passing(frame.select("key", to_score(frame, "s").alias(SCORE)), at_least=at_least)
    refused = len(SCORES[score]) - n_null - n_nan - len(expected)
    assert found.n_rows == len(expected)
    assert found.left_out == {"score null": n_null, "score NaN": n_nan, "score_filter": refused}


def test_expr(spark):
    frame = spark.createDataFrame(
        [(1, 0.5, (1,)), (2, None, (2,)), (3, 0.1, None)], "key INT, s DOUBLE, a STRUCT<b: INT>"
    )
    assert keys_of(score_filter(frame, expr="s > 0.3 -- the good ones")) == [1]
    assert keys_of(score_filter(frame, expr="A.b >= 1")) == [1, 2]
    found = find_passing(frame.selectExpr("key", f"s > 0.3 AS {SCORE}"))
    assert (found.n_rows, found.left_out) == (1, {"score_filter null": 1, "score_filter": 1})


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "exactly one of expr and column"),
        ({"expr": "true", "column": "s"}, "exactly one of expr and column"),
        ({"column": "s"}, "nothing is given with column"),
        ({"column": "s", "at_least": 1, "keep_fraction": 0.5}, "keep_fraction and at_least is given with column"),
        ({"expr": "true", "at_least": 0}, "at_least is given with expr"),
        ({"column": "s", "keep_fraction": 0.0, "scratch": "x"}, "not in"),
        ({"column": "s", "at_least": NAN}, "is no number"),
        ({"column": "s", "keep_fraction": 0.5}, "needs scratch"),
        ({"column": "s", "at_least": 0.5, "within": "t"}, "within goes with keep_fraction"),
        ({"column": "t", "at_least": 0.5}, r"'t' is STRING, not a number(?s:.*)cast\(t as double\)"),
        ({"column": "none", "at_least": 0.5}, "no column 'none'"),
        ({"column": "s", "keep_fraction": 0.5, "within": "m", "scratch": "x"}, "'m' is MAP"),
        ({"expr": "s"}, "is DOUBLE, not a boolean"),
        ({"expr": "nope > 1"}, "nope"),
        ({"expr": "max(s) > 1"}, "one value for each row"),
        ({"expr": "rand() > 0.5"}, "another value each time"),
    ],
)  # fmt: skip
def test_what_is_refused(spark, settings, words):
    frame = spark.createDataFrame(
        [(1, 0.5, "a", {"a": 1})], "key INT, s DOUBLE, t STRING, m MAP<STRING, INT>"
    )
    with pytest.raises((ConfigError, InputError), match=words):
        score_filter(frame, **settings)


# The score of images and texts.


def vectors_of(spark, rows: dict[str, np.ndarray | None]):
    given = [(key, None if row is None else np.asarray(row, "<f4").tobytes()) for key, row in rows.items()]
    return spark.createDataFrame(given, "key STRING, vector BINARY")


def test_clip_score_is_the_cosine(spark):
    rng = np.random.default_rng(0)
    image, text = rng.standard_normal((2, 50, 48))
    keys = [f"k{i:02d}" for i in range(50)]
    one = vectors_of(
        spark, {**dict(zip(keys, image, strict=True)), "alone": image[0], "null": None, "zero": 0 * image[0]}
    )
    two = vectors_of(
        spark, {**dict(zip(keys, text, strict=True)), "other": text[0], "null": text[0], "zero": text[0]}
    )
    found = dict(rows_of(clip_score(one, two)))
    expected = (image * text).sum(axis=1) / np.linalg.norm(image, axis=1) / np.linalg.norm(text, axis=1)
    assert [found.pop(key) for key in keys] == pytest.approx(expected.tolist(), abs=1e-7)
    assert found == dict.fromkeys(["alone", "null", "other", "zero"])
    again = dict(rows_of(clip_score(two.repartition(5), one.repartition(3))))
    assert {key: again[key] for key in keys} == {
        key: score for key, score in rows_of(clip_score(one, two)) if key in keys
    }
    identical = [row.score for row in clip_score(one, one).where("key LIKE 'k%'").collect()]
    assert identical == pytest.approx([1.0] * 50, abs=1e-6)


def test_clip_score_of_other_dimensions_is_refused(spark):
    one, two = vectors_of(spark, {"a": np.ones(3)}), vectors_of(spark, {"a": np.ones(4)})
    with pytest.raises(InputError, match="of image have 3 dimensions, those of text 4"):
        clip_score(one, two)
    assert rows_of(clip_score(one.where("false"), two)) == [("a", None)]


def test_clip_score_takes_rows_in_slices(monkeypatch):
    monkeypatch.setattr(vectors_kernel, "_TILE_BYTES", 200)
    rows = np.random.default_rng(0).standard_normal((2, 20, 6)).astype("<f4")
    image, text = (
        pa.array([None if i == n else row.tobytes() for i, row in enumerate(m)]) for n, m in enumerate(rows)
    )
    found = _multiply(pa.concat_arrays([image[:3], image])[3:], text)
    unit = rows / np.linalg.norm(rows, axis=2, keepdims=True)
    assert np.isnan(found[:2]).all()
    assert found[2:] == pytest.approx((unit[0] * unit[1]).sum(axis=1)[2:], abs=1e-6)
