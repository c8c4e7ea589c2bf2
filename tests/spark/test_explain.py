"""What became of rows: `explain`, `verdicts` and `diff` against a plain look at the tables of small runs."""

from __future__ import annotations

import copy
import json
import math
import shutil
from datetime import datetime, timezone
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import oracle
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT, VIEW, config_of, make_embeddings, make_keys, rows_of, write_table
from test_key_types import KEYS

from spark_dbp import Run, RunConfig, diff, explain, open_run, prune_again, run, verdicts
from spark_dbp.cli import main
from spark_dbp.engine.catalog_writer import RUN_ID
from spark_dbp.engine.compat import collect_arrow, collect_rows
from spark_dbp.errors import ConfigError, ConflictError, DamagedRunError, InputError
from spark_dbp.explore import key_lookup
from spark_dbp.explore import verdicts as verdicts_module
from spark_dbp.explore.explain import MOST_KEYS
from spark_dbp.explore.keys import make_key_frame, read_tokens, show_tokens, to_token
from spark_dbp.explore.verdicts import plan_verdicts, publish_verdicts, write_verdicts
from spark_dbp.stages.check_samples import bad_samples, good_samples

pytestmark = pytest.mark.slow

N, DIM = 240, 5
ODD = "a b/ü'`$\\%{0}\"<b>&.jpg"
EXACT, MINHASH, SEMANTIC = (20, 3), (21, 4), (22, 5)  # the row, and the one that it repeats
ZERO, SHORT, NO_KEY, FILTERED, NO_SCORE, LOW = 30, 31, 32, 33, 34, 35
LONG = "some words that say what a picture shows and go on for a while so that few of them hardly matter"


def make_input(path: Path) -> tuple[Path, list]:
    """One row for every reason."""
    embeddings = [row.tolist() for row in make_embeddings(N, DIM, 4, seed=7)]
    keys: list = [*make_keys(N - 1), ODD]
    texts = [f"{number} is a text of its own: {number * 7919 % 10_007} {number * 31}" for number in range(N)]
    scores: list = [1.0] * N
    shade = [number % 50 for number in range(N)]
    texts[EXACT[0]] = texts[EXACT[1]]
    texts[MINHASH[1]], texts[MINHASH[0]] = LONG, LONG + "!"
    embeddings[SEMANTIC[0]] = [2 * x for x in embeddings[SEMANTIC[1]]]
    embeddings[ZERO], embeddings[SHORT] = [0.0] * DIM, [1.0, 2.0]
    keys[NO_KEY], shade[FILTERED], scores[NO_SCORE], scores[LOW] = None, 99, None, 0.05
    more = {"text": texts, "score": scores, "shade": shade}
    source = write_table(path, pa.array(keys), pa.array(embeddings, pa.list_(pa.float32())), 3, **more)
    return source, keys


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_input(tmp_path_factory.mktemp("a b") / "in é")


@pytest.fixture(scope="module")
def keys(made):
    return made[1]


@pytest.fixture(scope="module")
def done(spark, made, tmp_path_factory) -> Run:
    return run(
        RunConfig.from_dict(
            config_of(
                made[0],
                tmp_path_factory.mktemp("runs") / "run *",
                input={"filter": "shade < 90", "on_bad_rows": "drop"},
                dedup={
                    "exact": {"columns": ["text"]},
                    "minhash": {"column": "text", "threshold": 0.7},
                    "semantic": {"eps": 1e-6, "n_clusters": 2},
                },
                score_filter={"column": "score", "at_least": 0.1},
                cluster={"n_clusters": 6},
            )
        ),
        spark,
    )


REASONS = {
    EXACT[0]: "exact duplicates",
    MINHASH[0]: "minhash duplicates",
    SEMANTIC[0]: "semantic duplicates",
    ZERO: "zero vector",
    SHORT: "embedding of another dimension",
    NO_KEY: "null key",
    FILTERED: "input.filter",
    NO_SCORE: "score null",
    LOW: "score_filter",
}


def ranks_by_hand(rows: list[tuple], which_to_keep: str, seed: int) -> dict:
    """Of every key its rank among all of its cluster, by sorting Python's tuples."""
    order = {
        "hard": lambda row: (-row[2], row[0]),
        "easy": lambda row: (row[2], row[0]),
        "random": lambda row: (oracle.spark_xxhash64(row[0], seed), row[0]),
        "stratified": lambda row: (-row[2], row[0]),
    }[which_to_keep]
    found = {}
    for cluster in {row[1] for row in rows}:
        members = sorted((row for row in rows if row[1] == cluster), key=order)
        found |= {row[0]: rank for rank, row in enumerate(members, start=1)}
    return found


def as_if(done: Run, **prune: object) -> Run:
    """The same tables, of a run that would have had other settings."""
    document = copy.deepcopy(done.document)
    document["config"]["prune"] |= prune
    return Run(done.path, document)


@pytest.mark.parametrize(
    "which",
    ["hard", "random", *(pytest.param(which, marks=pytest.mark.slow) for which in ("easy", "stratified"))],
)
def test_ranks_and_quotas_are_those_of_a_plain_sort(spark, done, which):
    rows = rows_of(done.assignments(spark))
    kept = {row[0] for row in rows_of(done.keep_list(spark))}
    ranks = ranks_by_hand(rows, which, 5)
    quotas = done.quotas().set_index("cluster_id")
    told = explain(
        as_if(done, which_to_keep=which, seed=5), [row[0] for row in rows], spark, look_at_input=False
    )
    assert len(told) == len(rows)
    for one, (key, cluster, distance) in zip(told, rows, strict=True):
        assert (one.key, one.cluster_id, one.distance_to_centroid) == (key, cluster, distance)
        assert (one.rank, one.n_items) == (ranks[key], quotas.n_items[cluster])
        assert (one.kept, one.reason) == (key in kept, "kept" if key in kept else "pruned")
        assert one.quota == quotas.quota[cluster]
        if which == "stratified":
            assert one.smallest_quota is one.keep_ratio is None
        else:
            assert one.smallest_quota == one.rank
            assert one.missed_by == max(0, one.rank - one.quota)
        if which == "hard":
            assert one.kept == (one.missed_by == 0)


def test_equal_distances_end_at_the_key(spark, done, tmp_path):
    """A thousand rows of four distances, one of them at the edge of a bin."""
    rng = np.random.default_rng(3)
    distance = rng.choice(np.array([0.25, np.nextafter(np.float32(0.25), 0), 1.5, 2.0], np.float32), 1000)
    clusters = rng.integers(0, 3, 1000).astype(np.int32)
    keys = [f"k{number}" for number in range(1000)]
    rows = pa.table({"key": keys, "cluster_id": clusters, "distance_to_centroid": distance})
    (tmp_path / "assignments").mkdir()
    pq.write_table(rows, tmp_path / "assignments/0.parquet")
    again = as_if(done)
    again.document["tables"]["assignments"] = str(tmp_path / "assignments")
    from spark_dbp import cluster_stats

    stats = cluster_stats(again.assignments(spark))
    stats.selectExpr("*", "0D AS d_inter", "0D AS complexity").write.parquet(str(tmp_path / "stats"))
    quotas = stats.selectExpr("cluster_id", "n_items", "1D AS weight", "1D AS target", "n_items AS quota")
    quotas.write.parquet(str(tmp_path / "quotas"))
    again.document["tables"] |= {"cluster_stats": str(tmp_path / "stats"), "quotas": str(tmp_path / "quotas")}
    again.document["accounting"]["dropped"] |= {"input.filter": 0}
    listed = list(zip(keys, clusters.tolist(), distance.tolist(), strict=True))
    for which in ("hard", "easy"):
        as_which = as_if(again, which_to_keep=which)
        told = explain(as_which, keys[:300], spark, look_at_input=False)
        by_hand = ranks_by_hand(listed, which, 0)
        assert [one.rank for one in told] == [by_hand[key] for key in keys[:300]]


def test_every_reason_is_told(spark, done, keys, made):
    named = [row for row in REASONS if keys[row] is not None]
    told = explain(done, [keys[row] for row in named], spark)
    assert [(one.key, one.reason) for one in told] == [(keys[row], REASONS[row]) for row in named]
    assert not any(one.kept for one in told)
    files = {
        key: str(path) for path in sorted(made[0].iterdir()) for key in pq.read_table(path)["key"].to_pylist()
    }
    for one in told:
        assert one.where == {
            "input": f"input.path {made[0]}", "file": files[one.key], "status": "unchanged", "why": ""
        }  # fmt: skip
        assert one.rank is None
        assert one.key in str(one)
        json.dumps(one.to_dict())
    by_row = dict(zip(named, told, strict=True))
    for (row, of), method in ((EXACT, "exact"), (MINHASH, "minhash"), (SEMANTIC, "semantic")):
        (link,) = by_row[row].duplicate_of
        assert (link["key"], link["method"]) == (keys[of], method)
        assert by_row[row].original.key == keys[of]
        assert by_row[row].original.reason in ("kept", "pruned")
        assert by_row[row].step == f"{method}_dedup"
    assert by_row[EXACT[0]].duplicate_of[0]["similarity"] == 1
    assert by_row[LOW].score == {"score": 0.05, "group": None, "limit": "at least 0.1 stays"}
    assert by_row[NO_SCORE].score["score"] is None
    assert "&#x27;" in explain(done, [ODD], spark, look_at_input=False)._repr_html_()
    assert "<b>" not in explain(done, [ODD], spark, look_at_input=False)._repr_html_().replace("<b></b>", "")


def test_chains_of_duplicates_are_followed_to_their_end(spark, done, tmp_path):
    chained = as_if(done)
    kept = rows_of(done.keep_list(spark))[0][0]
    rows = [("c1", "c2", "exact", 1.0), ("c2", "c3", "minhash", 0.9), ("c3", kept, "semantic", None)]
    spark.createDataFrame(
        rows, "key STRING, duplicate_of STRING, method STRING, similarity FLOAT"
    ).write.parquet(str(tmp_path / "duplicates"))
    chained.document["tables"]["duplicates"] = str(tmp_path / "duplicates")
    one, two = explain(chained, ["c1", "c3"], spark, look_at_input=False)
    assert [link["key"] for link in one.duplicate_of] == ["c2", "c3", kept]
    assert (one.reason, two.reason) == ("exact duplicates", "semantic duplicates")
    assert one.original.key == two.original.key == kept
    assert one.original.kept


def test_the_ratio_that_is_told_keeps_the_key_and_one_below_does_not(spark, done, tmp_path):
    told = explain(done, [row[0] for row in rows_of(done.assignments(spark))], spark, look_at_input=False)
    one = max((one for one in told if not one.kept), key=lambda one: one.missed_by / one.n_items)
    settings = [f"prune.keep_ratio={one.keep_ratio!r}"]
    again = prune_again(done, str(tmp_path / "again"), settings, spark)
    assert again.document["accounting"]["kept"] == one.n_keep
    (now,) = explain(again, [one.key], spark, look_at_input=False)
    assert (now.kept, now.rank, now.missed_by) == (True, one.rank, 0)
    less = prune_again(done, str(tmp_path / "less"), [f"prune.n_keep={one.n_keep * 19 // 20 - 1}"], spark)
    (now,) = explain(less, [one.key], spark)
    assert (now.kept, now.rank) == (False, one.rank)
    assert now.where["status"] == "unchanged"  # a run that shares tables of another one has its input too


# Keys of several rows: only good ones have keys of their own.


@pytest.fixture(scope="module")
def shared(spark, tmp_path_factory) -> Run:
    """Bad rows with the keys of good ones, and of one another; many filtered rows with one key."""
    good = [f"k{number:03d}" for number in range(80)]
    wrong = [None, [0.0] * 4, [1.0, 2.0]]
    bad = [(key, vector, 1) for key in [*good[:40], "bad"] for vector in wrong]
    bad += [("out", [1.0] * 4, 0)] * 40
    rows = [(k, v.tolist(), 1) for k, v in zip(good, make_embeddings(80, 4, 3), strict=True)] + bad
    rows = [rows[number] for number in np.random.default_rng(1).permutation(len(rows))]
    keys, vectors, passes = zip(*rows, strict=True)
    folder = tmp_path_factory.mktemp("shared")
    vectors = pa.array(vectors, pa.list_(pa.float32()))
    source = write_table(folder / "in", list(keys), vectors, 3, passes=list(passes))
    given = {"filter": "passes = 1", "on_bad_rows": "drop"}
    return run(
        RunConfig.from_dict(config_of(source, folder / "run", input=given, cluster={"n_clusters": 3})), spark
    )


def test_diff_tells_of_each_key_once(spark, shared, tmp_path):
    settings = ["prune.keep_ratio=0.4", "prune.which_to_keep=easy"]
    other = prune_again(shared, str(tmp_path / "other"), settings, spark)
    one, two = ({row[0] for row in rows_of(it.keep_list(spark))} for it in (shared, other))
    found = diff(shared, other, spark, out=str(tmp_path / "out"))
    assert (found.keys["both"], found.keys["gained"], found.keys["lost"]) == (
        len(one & two), len(two - one), len(one - two)
    )  # fmt: skip
    assert rows_of(spark.read.parquet(str(tmp_path / "out"))) == sorted(
        [(key, "gained", "pruned") for key in two - one] + [(key, "lost", "pruned") for key in one - two]
    )


def test_the_driver_gets_one_row_a_key(spark, shared, monkeypatch):
    most = []

    def collect(frame):
        most.append(len(found := collect_rows(frame)))
        return found

    monkeypatch.setattr(key_lookup, "collect_rows", collect)
    bad, out, good = explain(shared, ["bad", "out", "k000"], spark)
    assert (bad.reason, out.reason, good.cluster_id is not None) == (
        min("null embedding", "zero vector", "embedding of another dimension"), "input.filter", True
    )  # fmt: skip
    source = Path(shared.config().input.paths[0])
    files = [path for path in sorted(source.iterdir()) if "out" in pq.read_table(path)["key"].to_pylist()]
    assert len(files) > 1
    assert out.where["file"] == str(files[0])
    assert max(most) <= 3


def test_each_row_is_either_good_or_bad(spark):
    """Also one whose vector has no dimension, and no problem was noted."""
    rows = [
        ("a", 4, None),
        ("b", 3, None),
        ("c", None, None),
        ("d", 4, "zero vector"),
        (None, None, "null key"),
    ]
    samples = spark.createDataFrame(rows, "key STRING, dimension INT, problem STRING")
    good, bad = good_samples(samples, 4).collect(), bad_samples(samples, 4).collect()
    assert [row.key for row in good] == ["a"]
    other = "embedding of another dimension"
    assert {tuple(row) for row in bad} == {
        ("b", other),
        ("c", other),
        ("d", "zero vector"),
        (None, "null key"),
    }
    assert bad_samples(samples.select("key"), 4).count() == 0


# Keys that are not there.


def test_unknown_keys_have_near_misses(spark, done, keys, capsys):
    wrong = keys[7][:-5] + "X.jpg"
    told = explain(done, [wrong, keys[8].upper(), "zzz"], spark)
    assert [one.reason for one in told] == ["unknown"] * 3
    assert keys[7] in told[0].near_misses
    assert told[1].near_misses[0] == keys[8]
    assert told[2].near_misses == []
    assert main(["explain", done.path, keys[8], wrong, "--json"]) == 3
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert [one["reason"] for one in found][1] == "unknown"
    assert {"key", "kept", "reason", "cluster_id", "distance_to_centroid", "rank", "n_items", "quota"} <= set(
        found[0]
    )
    assert repr(wrong) in printed.err
    assert "did you mean" in printed.err


def test_without_the_input_as_it_was(spark, done, keys, made, tmp_path):
    """What the tables hold is told; of the rest it is said that, and why, nobody knows."""
    moved = as_if(done)
    moved.document["input"]["digest"] = "other"
    filtered, known = explain(moved, [keys[FILTERED], keys[8]], spark)
    assert filtered.reason == "unknown"
    assert "1 for 'input.filter'" in filtered.notes[0]
    assert known.where["status"] == "changed"
    assert "has changed since the run" in known.where["why"]
    assert known.rank is not None
    planned = plan_verdicts(moved, spark)
    assert planned.missing == {"input.filter": 1}
    assert planned.frame.count() == N - 1
    gone = as_if(done)
    gone.document["config"]["input"]["path"] = str(tmp_path / "gone")
    (filtered,) = explain(gone, [keys[FILTERED]], spark)
    assert "cannot be read any more" in filtered.where["why"]


# Verdicts.


@pytest.mark.parametrize("reads", ["workers", pytest.param("Spark", marks=pytest.mark.slow)])
def test_verdicts_account_for_every_row(spark, done, keys, monkeypatch, reads):
    if reads == "Spark":
        monkeypatch.setattr(verdicts_module, "find_problem_of_readers", lambda *_: "they cannot")
    frame = verdicts(done, spark)
    assert frame.columns == [
        "key", "verdict", "step", "reason", "cluster_id", "distance_to_centroid", "rank", "duplicate_of"
    ]  # fmt: skip
    rows = [row.asDict() for row in frame.collect()]
    account = done.document["accounting"]
    assert len(rows) == account["rows_in"] == N
    counted = {
        reason: sum(row["reason"] == reason for row in rows) for reason in {row["reason"] for row in rows}
    }
    assert counted == {name: n for name, n in {**account["dropped"], "kept": account["kept"]}.items() if n}
    by_key = {row["key"]: row for row in rows}
    assert set(by_key) == set(keys)
    for row, reason in REASONS.items():
        assert (by_key[keys[row]]["verdict"], by_key[keys[row]]["reason"]) == ("dropped", reason)
    assert by_key[keys[EXACT[0]]]["duplicate_of"] == keys[EXACT[1]]
    assert by_key[keys[LOW]]["step"] == "score_filter"
    assert by_key[keys[FILTERED]]["step"] == by_key[keys[ZERO]]["step"] == "ingest"
    clustered = rows_of(done.assignments(spark))
    ranks = ranks_by_hand(clustered, "hard", 0)
    for key, cluster, distance in clustered:
        row = by_key[key]
        assert (row["cluster_id"], row["distance_to_centroid"], row["rank"]) == (
            cluster,
            distance,
            ranks[key],
        )
    kept = {row[0] for row in rows_of(done.keep_list(spark))}
    assert {key for key, row in by_key.items() if row["verdict"] == "kept"} == kept


def test_verdicts_as_a_table(spark, done, tmp_path, capsys):
    out = tmp_path / "why not"
    assert main(["export", done.path, "--to", "verdicts", "--out", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["n_rows"], found["not_in_tables"], found["out"]) == (N, {}, str(out))
    assert spark.read.parquet(str(out)).count() == N
    with pytest.raises(ConflictError, match="is not empty"):
        write_verdicts(done, str(out), spark)
    damaged = as_if(done)
    damaged.document["accounting"]["kept"] += 1
    with pytest.raises(DamagedRunError, match="rows by reason"):
        write_verdicts(damaged, str(tmp_path / "damaged"), spark)
    assert [path.name for path in tmp_path.iterdir()] == ["why not"]  # no draft beside it either


def test_verdicts_appear_when_they_are_counted(spark, done, viewed, tmp_path, monkeypatch):
    count, seen = verdicts_module._count, []

    def look(run, planned, frame, place):
        seen.append(Path(place.replace(VIEW, str(viewed))).exists())
        return count(run, planned, frame, place)

    monkeypatch.setattr(verdicts_module, "_count", look)
    for place in (str(tmp_path / "local"), f"{VIEW}/verdicts"):
        assert write_verdicts(done, place, spark).path == place
        assert spark.read.parquet(place).count() == N
    assert seen == [False, False]


def test_verdicts_are_counted_before_they_take_a_place(spark, done, monkeypatch, tmp_path):
    """A copy of Delta or Iceberg replaces nothing unless the rows are those that run.json accounts for."""
    published = as_if(done)
    published.document["config"]["output"] |= {"table": "c.s.p", "table_format": "delta"}
    properties = {RUN_ID: done.document["run_id"]}
    target = SimpleNamespace(
        find=lambda _: SimpleNamespace(properties=properties),
        name=lambda _: "v",
        show=lambda _: "c.s.p_verdicts",
    )
    replaced = []
    monkeypatch.setattr(verdicts_module, "open_target", lambda *_: target)
    monkeypatch.setattr(verdicts_module, "replace_table", lambda *given: replaced.append(given))
    with pytest.raises(ConfigError, match="point to no directory"):
        publish_verdicts(published, str(tmp_path / "x"), spark)
    assert publish_verdicts(published, None, spark).rows == N
    assert len(replaced) == 1
    published.document["accounting"]["kept"] += 1
    with pytest.raises(DamagedRunError, match="rows by reason"):
        publish_verdicts(published, None, spark)
    published.document["accounting"]["kept"] -= 1
    properties[RUN_ID] = "another"
    with pytest.raises(ConflictError, match="is of run another, and not of"):
        publish_verdicts(published, None, spark)
    assert len(replaced) == 1


# Data that is clustered already: bad rows are in no table of the run.


@pytest.fixture(scope="module", params=["int", pytest.param("timestamp", marks=pytest.mark.slow)])
def clustered(request, spark, tmp_path_factory):
    """A run, and of its keys one that is kept or pruned, one that was filtered, a bad one, one that is not there."""
    folder = tmp_path_factory.mktemp("clustered")
    sql = {"int": "cast(id - 30 AS INT)", "timestamp": "timestamp_micros(id * 1000000000001)"}[request.param]
    spark.range(60).selectExpr(
        f"{sql} AS key", "cast(id % 3 AS INT) AS c", "if(id = 11, 7D, id / 100D) AS d", "id"
    ).write.parquet(str(folder / "in"))
    np.save(folder / "centroids.npy", np.eye(3, dtype=np.float32))
    given = {
        "filter": "id <> 12", "on_bad_rows": "drop", "cluster_id": "c", "distance_to_centroid": "d",
        "centroids": str(folder / "centroids.npy"),
    }  # fmt: skip
    done = run(RunConfig.from_dict(config_of(folder / "in", folder / "run", input=given, cluster={})), spark)
    frame = spark.read.parquet(str(folder / "in")).selectExpr("id", "cast(key AS STRING) AS key")
    shown = {row.id: row.key for row in frame.collect()}
    return done, [shown[10], shown[12], shown[11]], "2001-01-01" if request.param == "timestamp" else "1000"


def test_rows_that_only_the_input_holds(spark, clustered):
    done, (good, filtered, bad), unknown = clustered
    told = explain(done, [good, filtered, bad, unknown], spark, look_at_input=False)
    assert told[0].reason in ("kept", "pruned")
    assert [one.reason for one in told[1:]] == [
        "input.filter", "distance_to_centroid null, NaN or outside [0, 2]", "unknown"
    ]  # fmt: skip
    listed = rows_of(
        done.assignments(spark).selectExpr("cast(key AS STRING)", "cluster_id", "distance_to_centroid")
    )
    assert told[0].rank == ranks_by_hand(listed, "hard", 0)[good]
    frame = verdicts(done, spark)
    reasons = {row.reason: row["count"] for row in frame.groupBy("reason").count().collect()}
    account = done.document["accounting"]
    assert reasons == {**{k: n for k, n in account["dropped"].items() if n}, "kept": account["kept"]}


# Keys of every type.

OFTEN = ("text that is not UTF-8", "UUIDs as BINARY", "timestamp", "long decimal", "interval")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in OFTEN else pytest.mark.slow) for n in KEYS]
)
def test_keys_of_any_type_are_read_and_made_again(spark, name):
    sql, kind = KEYS[name]
    frame = spark.range(0, 8, 1, 1).selectExpr(f"{sql} AS key").distinct()
    key_type = frame.schema["key"].dataType
    assert key_type.simpleString() == kind
    tokens = [bytes(row[0]) for row in frame.select(to_token("key", key_type).alias("t")).collect()]
    again = make_key_frame(spark, tokens, key_type)
    assert again.join(frame, "key").count() == len(tokens) == frame.count()
    shown = show_tokens(spark, tokens, key_type)
    if name != "text that is not UTF-8":
        assert [token for token, _ in read_tokens(spark, list(shown.values()), key_type)] == tokens
    values = collect_arrow(make_key_frame(spark, tokens, key_type)).sort_by("number").column("key")
    if name == "text that is not UTF-8":
        values = values.cast(pa.binary())
    assert [token for token, _ in read_tokens(spark, values.to_pylist(), key_type)] == tokens


WRONG = [
    ("int", "abc"), ("int", "1.5"), ("int", str(2**31)), ("int", ""), ("binary", "xyz"), ("binary", "abc"),
    ("decimal(5,2)", "1.234"), ("decimal(5,2)", "12345.6"), ("decimal(5,2)", "NaN"), ("date", "2024-02-31"),
    ("timestamp", "yesterday"), ("boolean", "maybe"), ("double", "one"), ("int", b"x"),
    ("timestamp", datetime(2024, 1, 1)), ("string", 7), ("string", None), ("binary", 7), ("binary", None),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "key"), WRONG)
def test_what_cannot_be_a_key_is_refused(spark, kind, key):
    key_type = spark.sql(f"SELECT cast(NULL AS {kind}) AS key").schema["key"].dataType
    with pytest.raises(ConfigError, match="cannot be a key of this run: its keys are"):
        read_tokens(spark, [key], key_type)


def test_an_empty_text_is_a_key_too(spark, done):
    for kind in ("string", "binary"):
        key_type = spark.sql(f"SELECT cast(NULL AS {kind}) AS key").schema["key"].dataType
        assert read_tokens(spark, ["", b""], key_type) == [(b"", "")] * 2
    with pytest.raises(ConfigError, match="'None' cannot be a key of this run"):
        explain(done, [None], spark)


def test_times_are_read_in_the_zone_of_the_session_or_their_own(spark):
    key_type = spark.sql("SELECT TIMESTAMP'2024-01-01' AS key").schema["key"].dataType
    moment = datetime(2024, 1, 1, 12, tzinfo=timezone.utc)
    texts = [
        "2024-01-01T12:00:00Z",
        "2024-01-01 13:00:00+01:00",
        moment,
        str(int(moment.timestamp() * 10**6)),
    ]
    assert len({token for token, _ in read_tokens(spark, texts, key_type)}) == 1


def test_arguments_that_do_not_go_together(done, capsys):
    assert main(["explain", done.path, "k", "--set", "prune.seed=1"]) == 2
    assert "to mend it" in capsys.readouterr().err
    assert main(["explain", done.path]) == 2
    assert "is given no keys" in capsys.readouterr().err


def test_few_keys_at_a_time(spark, done):
    assert explain(done, [], spark) == []
    with pytest.raises(ConfigError, match="are too many to explain one by one"):
        explain(done, ["k"] * (MOST_KEYS + 1), spark)


def test_a_run_of_format_1(spark, tmp_path):
    shutil.copytree(ROOT / "tests/data/run-format-1", tmp_path / "earlier")
    earlier = open_run(tmp_path / "earlier")
    rows = rows_of(earlier.assignments(spark))
    by_hand = ranks_by_hand(rows, "hard", 0)
    told = explain(earlier, [rows[0][0], rows_of(earlier.duplicates(spark))[0][0]], spark)
    assert told[0].rank == by_hand[rows[0][0]]
    assert told[1].reason.endswith(" duplicates")
    assert "cannot be read any more" in told[0].where["why"]
    assert verdicts(earlier, spark).count() == 60
    found = diff(earlier, earlier, spark)
    assert (found.settings, found.clusters, found.keys["both"]) == ([], [], 16)


# Differences of two runs.


@pytest.fixture(scope="module")
def other(spark, done, tmp_path_factory) -> Run:
    settings = ["prune.keep_ratio=0.4", "prune.which_to_keep=easy"]
    return prune_again(done, str(tmp_path_factory.mktemp("other") / "run"), settings, spark)


def test_diff_of_a_run_pruned_again(spark, done, other, tmp_path, capsys):
    one, two = ({row[0] for row in rows_of(it.keep_list(spark))} for it in (done, other))
    found = diff(done, other, spark, out=str(tmp_path / "out"))
    assert {row["setting"]: (row["one"], row["other"]) for row in found.settings} == {
        "prune.keep_ratio": (0.3, 0.4), "prune.which_to_keep": ("hard", "easy")
    }  # fmt: skip
    assert found.input["same"]
    assert found.clustering["same"]
    assert (found.keys["both"], found.keys["gained"], found.keys["lost"]) == (
        len(one & two), len(two - one), len(one - two)
    )  # fmt: skip
    assert found.keys["lost_to"] == {"pruned": len(one - two)}
    written = rows_of(spark.read.parquet(str(tmp_path / "out")))
    assert written == sorted(
        [(key, "gained", "pruned") for key in two - one] + [(key, "lost", "pruned") for key in one - two]
    )
    quotas = [it.quotas().set_index("cluster_id").quota for it in (done, other)]
    for row in found.clusters:
        assert row["cluster_id"] == row["other_id"]
        assert (row["quota"], row["other_quota"]) == tuple(quota[row["cluster_id"]] for quota in quotas)
    assert {row["cluster_id"] for row in found.clusters} == set(quotas[0].index[quotas[0] != quotas[1]])
    assert {"reason": "kept", "one": len(one), "other": len(two)} in found.rows
    assert "prune.which_to_keep" in str(found)
    assert "<table>" in found._repr_html_()
    assert main(["diff", done.path, done.path, "--json"]) == 0
    same = json.loads(capsys.readouterr().out)
    assert (same["settings"], same["clusters"], same["keys"]["gained"], same["keys"]["lost"]) == (
        [],
        [],
        0,
        0,
    )


def test_diff_of_other_clusters_and_other_rows(spark, done, made, keys, tmp_path):
    """Without deduplication and filters, in seven clusters: what they left out is gained, and named."""
    values = config_of(made[0], tmp_path / "plain", input={"on_bad_rows": "drop"}, cluster={"n_clusters": 7})
    plain = run(RunConfig.from_dict({**values, "prune": {"keep_ratio": 1.0}}), spark)
    found = diff(done, plain, spark)
    assert not found.clustering["same"]
    assert (found.clustering["matched"], found.clustering["pairs"], found.clustering["unmatched"]) == (
        "centroids", 6, [0, 1]
    )  # fmt: skip
    assert found.keys["lost"] == 0
    reasons = [REASONS[row] for row in (EXACT[0], MINHASH[0], SEMANTIC[0], FILTERED, NO_SCORE, LOW)]
    pruned = done.document["accounting"]["dropped"]["pruned"]
    assert found.keys["gained_from"] == {"pruned": pruned, **dict.fromkeys(sorted(reasons), 1)}


def test_runs_on_keys_of_other_types_are_refused(spark, done, clustered):
    with pytest.raises(InputError, match="keys of different types cannot be compared: STRING in"):
        diff(done, clustered[0], spark)


@pytest.mark.parametrize("by", ["d_intra", "cluster_size"])
def test_what_weighs_a_cluster_is_named(spark, done, by):
    (key, cluster, _), *_ = rows_of(done.assignments(spark))
    stats = done.cluster_stats().set_index("cluster_id")
    values = stats["n_items" if by == "cluster_size" else by]
    (one,) = explain(as_if(done, complexity=by), key, spark, look_at_input=False)
    assert one.quota_of["complexity"] == values[cluster]
    assert one.quota_of["complexity_rank"] == 1 + (values > values[cluster]).sum()
    assert ("by the size of the cluster" if by == "cluster_size" else "d_intra = ") in str(one)


@pytest.mark.parametrize("is_there", [True, False], ids=["damaged", "gone"])
@pytest.mark.parametrize("table", ["assignments", "cluster_stats", "quotas", "centroids"])
def test_a_table_that_is_damaged_or_gone_is_named(spark, done, tmp_path, table, is_there, capsys):
    path = str(tmp_path / "damaged")
    shutil.copytree(done.path, path)
    place = Path(path) / done.document["tables"][table]
    shutil.rmtree(place)
    if is_there:
        place.mkdir()
        for file in done.list_files(table):
            (place / Path(file).name).write_bytes(b"PAR1 is no table, PAR1")
    commands = {
        "explain": ["explain", path, rows_of(done.keep_list(spark))[0][0], "--no-input"],
        "verdicts": ["export", path, "--to", "verdicts", "--out", str(tmp_path / "out")],
        "export": ["export", path, "--to", "txt", "--out", str(tmp_path / "out")],
        "diff": ["diff", done.path, path],
    }
    read = {"assignments": ["explain", "verdicts", "export"], "cluster_stats": ["explain", "verdicts"],
            "quotas": ["explain", "diff"], "centroids": ["diff"]}  # fmt: skip
    for name in read[table]:
        capsys.readouterr()
        assert main(commands[name]) == 3, name
        said = capsys.readouterr().err
        assert f"tables/{table}/" in said or f"the table {table} of the run" in said
        assert "to mend it" in said
        assert "Traceback" not in said
    assert not (tmp_path / "out").exists()


def test_numbers_that_json_has_no_name_for(spark, done):
    """A distance or a score is never NaN in what is printed."""
    told = explain(
        done, [row[0] for row in rows_of(done.assignments(spark))][:20], spark, look_at_input=False
    )
    text = json.dumps([one.to_dict() for one in told], allow_nan=False)
    assert all(math.isfinite(one["quota_of"]["complexity"]) for one in json.loads(text))


def test_the_input_may_be_a_view_or_of_another_format(spark, tmp_path):
    """A view lists no files: its rows are read again, with the columns that the run read."""
    source = write_table(tmp_path / "in", make_keys(60), make_embeddings(60, 4, 3), n=list(range(60)))
    spark.read.parquet(str(source)).createOrReplaceTempView("some_rows")
    sections = {"cluster": {"n_clusters": 3}, "dedup": {"exact": {"columns": ["n"]}}}
    view = {"path": None, "table": "some_rows", "filter": "n <> 7"}
    np.save(tmp_path / "x.npy", make_embeddings(60, 4, 3))
    (tmp_path / "keys.txt").write_text("\n".join(make_keys(60)))
    npy = {"path": str(tmp_path / "x.npy"), "format": "npy", "options": {"keys": str(tmp_path / "keys.txt")}}
    npy["filter"] = f"key <> '{make_keys(60)[7]}'"
    for name, given in (("view", view), ("npy", npy)):
        out = tmp_path / name
        more = sections if name == "view" else {"cluster": {"n_clusters": 3}}
        done = run(RunConfig.from_dict(config_of(source, out, input=given, **more)), spark)
        left_out, known = explain(done, [make_keys(60)[7], make_keys(60)[8]], spark)
        assert (left_out.reason, left_out.where["status"]) == ("input.filter", "unchanged")
        assert known.rank >= 1
        assert verdicts(done, spark).count() == 60
        assert plan_verdicts(done, spark).missing == {}
    spark.read.parquet(str(source)).where("n < 59").createOrReplaceTempView("some_rows")
    (left_out,) = explain(open_run(tmp_path / "view"), [make_keys(60)[7]], spark)
    assert (left_out.reason, left_out.where["status"]) == ("unknown", "changed")
