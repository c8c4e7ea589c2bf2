"""Connected components and MinHash deduplication against brute force."""

from __future__ import annotations

import random

import numpy as np
import pyarrow as pa
import pytest
from conftest import rows_of

from spark_dbp.engine import candidates
from spark_dbp.engine import components as components_module
from spark_dbp.engine.blocks import write_block
from spark_dbp.engine.components import find_components
from spark_dbp.errors import ConfigError, InputError
from spark_dbp.kernels.buckets import enter_bands, pair_in_buckets
from spark_dbp.kernels.signatures import cut_shingles
from spark_dbp.stages.minhash_dedup import minhash_dedup


def union_find(edges) -> dict:
    parent: dict = {}

    def root(node):
        while parent.setdefault(node, node) != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for a, b in edges:
        a, b = root(a), root(b)
        parent[max(a, b)] = min(a, b)
    return {node: root(node) for node in list(parent)}


def random_edges(seed: int) -> list[tuple[int, int]]:
    rng = random.Random(seed)
    return [(rng.randrange(400), rng.randrange(400)) for _ in range(260)]


@pytest.mark.parametrize("one_task", [0, pytest.param(500_000, marks=pytest.mark.long)])
@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=pytest.mark.slow) for kind in ("random", "strings", "none")],
)
def test_components_equal_union_find(spark, tmp_path, monkeypatch, kind, one_task):
    monkeypatch.setattr(components_module, "_ONE_TASK_PAIRS", one_task)
    edges = [] if kind == "none" else random_edges(1)
    type_ = "bigint"
    if kind == "strings":
        edges, type_ = [(f"é{a}", f"é{b}") for a, b in edges], "string"
    frame = spark.createDataFrame(edges, f"a {type_}, b {type_}").repartition(5, "a")
    expected = union_find((a, b) for a, b in edges if a != b)
    assert rows_of(find_components(frame, str(tmp_path))) == sorted(expected.items())


@pytest.mark.parametrize("one_task", [pytest.param(0, marks=pytest.mark.slow), 500_000])
def test_a_long_chain_and_a_large_star_finish_in_few_rounds(spark, tmp_path, monkeypatch, one_task):
    monkeypatch.setattr(components_module, "_ONE_TASK_PAIRS", one_task)
    from pyspark.sql import functions as F

    order = F.pmod(F.col("id") * 7919, F.lit(10_007))  # neighbours in the chain have far-apart numbers
    chain = spark.range(10_000).select(
        order.alias("a"), F.pmod((F.col("id") + 1) * 7919, F.lit(10_007)).alias("b")
    )
    star = spark.range(1, 100_001).select(
        (F.col("id") + 20_000).alias("a"), F.lit(20_000).cast("bigint").alias("b")
    )
    found = find_components(chain.unionByName(star), str(tmp_path))
    counts = {row["component"]: row["count"] for row in found.groupBy("component").count().collect()}
    assert counts == {0: 10_001, 20_000: 100_001}
    rounds = [int(p.name.removeprefix("round-")) for p in tmp_path.iterdir()]
    assert len(rounds) == 1 and rounds[0] <= 16 if one_task == 0 else not rounds  # log2(10,000) is 13


@pytest.mark.slow
@pytest.mark.parametrize("one_task", [0, 500_000])
@pytest.mark.parametrize(
    ("a", "b"),
    [
        # An hour apart, and the same time of day: summer time ends between them.
        ("timestamp_seconds(1699165800)", "timestamp_seconds(1699162200)"),
        ("double('NaN')", "1.5D"),
        ("-2.25BD", "-10.5BD"),
        ("X'FF'", "X'00'"),
    ],
)
def test_nodes_compare_as_in_spark(spark, tmp_path, monkeypatch, a, b, one_task):
    monkeypatch.setattr(components_module, "_ONE_TASK_PAIRS", one_task)
    zone = spark.conf.get("spark.sql.session.timeZone")
    spark.conf.set("spark.sql.session.timeZone", "America/New_York")
    try:
        found = find_components(spark.sql(f"SELECT {a} AS a, {b} AS b"), str(tmp_path))
        right = found.where(f"component = {b} AND node IN ({a}, {b})").select("node").distinct()
        assert (found.count(), right.count()) == (2, 2)
    finally:
        spark.conf.set("spark.sql.session.timeZone", zone)


def make_texts(n: int) -> list[str]:
    rng = random.Random(7)
    vocabulary = ["".join(rng.choices("abcdefghijklmnop", k=rng.randint(3, 9))) for _ in range(800)]
    texts = [" ".join(rng.choices(vocabulary, k=rng.randint(6, 14))) for _ in range(n)]
    for i in range(0, n, 4):  # near-copies of earlier texts, at various distances
        words = texts[rng.randrange(n)].split(" ")
        for _ in range(rng.randint(0, 2)):
            words[rng.randrange(len(words))] = rng.choice(vocabulary)
        texts[i] = " ".join(words)
    return texts


def brute_force(texts: dict[str, str], threshold: float) -> set[frozenset]:
    sets = {key: cut_shingles(" ".join(text.lower().split()), 5) for key, text in texts.items()}
    keys, pairs = list(texts), set()
    for i, a in enumerate(keys):
        for b in keys[:i]:
            common = len(sets[a] & sets[b])
            if common and common / (len(sets[a]) + len(sets[b]) - common) >= threshold:
                pairs.add(frozenset((a, b)))
    return pairs


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    return {f"k{i:04d}": text for i, text in enumerate(make_texts(1500))}


@pytest.fixture(scope="module")
def found(spark, texts, tmp_path_factory):
    frame = spark.createDataFrame(list(texts.items()), "key string, caption string")
    done = minhash_dedup(frame, column="caption", threshold=0.7, scratch=str(tmp_path_factory.mktemp("mh")))
    return rows_of(done)


def test_against_brute_force(texts, found):
    components = union_find(tuple(pair) for pair in brute_force(texts, 0.7))
    expected = {key: root for key, root in components.items() if key != root}
    assert len(expected) > 150
    got = {row[0]: row[1] for row in found}
    assert all(components.get(key) == components.get(of) for key, of in got.items())  # precision 1
    assert len(set(got) & set(expected)) >= 0.95 * len(expected)
    assert set(got) <= set(components)
    for key, of, method, similarity in found:
        a, b = (cut_shingles(" ".join(texts[k].lower().split()), 5) for k in (key, of))
        assert method == "minhash"
        assert similarity == pytest.approx(len(a & b) / len(a | b), abs=1e-6)
        assert of < key


@pytest.mark.slow
def test_the_same_for_any_partitioning(spark, texts, found, tmp_path):
    frame = spark.createDataFrame(sorted(texts.items(), reverse=True), "key string, caption string")
    again = minhash_dedup(
        frame.repartition(7, "caption"), column="caption", threshold=0.7, scratch=str(tmp_path)
    )
    assert rows_of(again) == found


@pytest.mark.long
def test_the_same_when_buckets_do_not_fit_a_worker(spark, texts, found, tmp_path, monkeypatch):
    """Parts above the limit go through Spark's sort: here all of them, or some."""
    frame = spark.createDataFrame(list(texts.items()), "key string, caption string")
    for name, most in [("all", 0), ("some", 20_000)]:
        monkeypatch.setattr(candidates, "_USUAL", 20_000)
        monkeypatch.setattr(candidates, "_MOST", most)
        again = minhash_dedup(frame, column="caption", threshold=0.7, scratch=str(tmp_path / name))
        assert rows_of(again) == found
        left = spark.read.parquet(str(tmp_path / name / "candidates")).where("entries IS NOT NULL")
        assert left.count() > 0


@pytest.mark.parametrize("threshold", [pytest.param(0.5, marks=pytest.mark.slow), 0.8])
def test_spark_sorts_large_buckets_to_the_same_pairs(spark, tmp_path, threshold):
    """With the same bound on the similarity, also where texts are longer than bits are many."""
    rng = np.random.default_rng(0)
    n = 300
    of_text = {
        "id": rng.permutation(n).astype(np.int64) - n // 2,
        "n_shingles": rng.integers(1, 200, n).astype(np.int32),
        "parity": rng.integers(-(2**63), 2**63 - 1, 20)[rng.integers(0, 20, n)],
    }
    entries = enter_bands(of_text, rng.integers(0, 30, (n, 2)))
    found = [
        pair
        for a, b in pair_in_buckets(entries, threshold)
        for pair in zip(a.tolist(), b.tolist(), strict=True)
    ]
    block = bytearray(write_block(pa.table(entries)))
    blocks = spark.createDataFrame([(block,)], "entries BINARY")
    by_spark = candidates._pair_by_sorting(blocks, threshold)
    assert sorted(map(tuple, by_spark.collect())) == sorted(found)
    assert 0 < len(found) < sum(len(a) for a, _ in pair_in_buckets(entries, -1.0))


@pytest.mark.slow
def test_compatible_characters_are_one(spark, tmp_path):
    rows = [("a", "The ﬁrst ＣＡＴ: №①"), ("b", "the first cat: no1"), ("c", "the first cat: no2!")]
    frame = spark.createDataFrame(rows, "key string, caption string")
    found = minhash_dedup(frame, column="caption", threshold=0.99, scratch=str(tmp_path / "1"))
    assert rows_of(found) == [("b", "a", "minhash", 1.0)]
    as_is = minhash_dedup(
        frame, column="caption", threshold=0.99, normalize=False, scratch=str(tmp_path / "2")
    )
    assert rows_of(as_is) == []


def test_text_that_is_not_utf8(spark, tmp_path):
    frame = spark.sql(
        "SELECT 'a' AS key, cast(X'61FF6261FF62' AS string) AS caption UNION ALL SELECT 'b', cast(X'61FF6261FF62' AS string) "
        "UNION ALL SELECT 'c', 'something else'"
    )
    found = minhash_dedup(frame, column="caption", scratch=str(tmp_path))
    assert rows_of(found) == [("b", "a", "minhash", 1.0)]


def test_equal_nulls_empty_and_survivors(spark, tmp_path):
    rows = [(f"s{i:05d}", "The  same caption, everywhere", 20_000 - i) for i in range(20_000)]
    rows += [("n1", None, 1), ("n2", None, 1), ("e1", "", 1), ("e2", " \t ", 1), ("e3", "", 1)]
    rows += [("x1", "the same caption, everywhere ", 0), ("y", "xy", 5), ("z", "XY", 4)]
    frame = spark.createDataFrame(rows, "key string, `the text.` string, age int")
    found = minhash_dedup(frame, column="the text.", order_by="age", scratch=str(tmp_path))
    of = {row["key"]: (row["duplicate_of"], row["similarity"]) for row in found.collect()}
    assert len(of) == 20_001
    assert of["s00000"] == ("x1", 1.0)
    assert of["y"] == ("z", 1.0)
    assert not {"n1", "n2", "e1", "e2", "e3", "x1", "z"} & set(of)


@pytest.mark.slow
def test_spaces_of_other_scripts_and_empty_tables(spark, tmp_path):
    rows = [
        ("a", "no break\u00a0and\u3000wide space"),
        ("b", "No break and wide space "),
        ("c", "\u3000"),
        ("d", "\u3000"),
    ]
    frame = spark.createDataFrame(rows, "key string, caption string")
    found = minhash_dedup(frame, column="caption", scratch=str(tmp_path / "1"))
    assert rows_of(found) == [("b", "a", "minhash", 1.0)]
    as_is = minhash_dedup(frame, column="caption", normalize=False, scratch=str(tmp_path / "3"))
    assert rows_of(as_is) == []  # also a text of nothing but spaces is empty
    assert rows_of(minhash_dedup(frame.where("false"), column="caption", scratch=str(tmp_path / "2"))) == []


def test_refused(spark, tmp_path):
    frame = spark.createDataFrame(
        [("a", "text", 1), ("b", "text", None)], "key string, caption string, age int"
    )
    with pytest.raises(
        InputError, match=r"dedup\.minhash\.column: there is no column 'captoin'.*\n.*did you mean 'caption'"
    ):
        minhash_dedup(frame, column="captoin", scratch=str(tmp_path))
    with pytest.raises(ConfigError, match=r"dedup\.minhash\.ngram 0 is outside 1 to 100"):
        minhash_dedup(frame, column="caption", ngram=0, scratch=str(tmp_path))
    with pytest.raises(ConfigError, match=r"dedup\.minhash\.tokens 'letters'"):
        minhash_dedup(frame, column="caption", tokens="letters", scratch=str(tmp_path))
    with pytest.raises(InputError, match="'age' is INT, not text"):
        minhash_dedup(frame, column="age", scratch=str(tmp_path))
    with pytest.raises(InputError, match=r"dedup\.minhash\.order_by: column 'age' is null in 1 rows"):
        minhash_dedup(frame, column="caption", order_by="age", scratch=str(tmp_path))
