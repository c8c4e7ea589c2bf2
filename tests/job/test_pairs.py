"""Options in pairs: every two values of different options occur together in some run.

Each run ends well, or is refused with a message. A third of them are pruned again, a third run again, a third verified.
"""

from __future__ import annotations

import datetime
import itertools
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ICEBERG_JAR, make_embeddings, rows_of

from spark_dbp import KeepTrie, RunConfig, open_run, prune_again, run, verify
from spark_dbp.errors import ConfigError
from spark_dbp.publishing import TABLES

N, DIM, K = 90, 6, 4

# tests/spark/test_key_types.py has the other types.
KEYS = {
    "text": [f"part/{i * 37 % 1000:03d}.jpg" for i in range(N)],
    "binary": pa.array([b"\xe9%d" % i for i in range(N)], pa.binary()),
    "double": [i + 0.5 for i in range(N)],
}
SEMANTIC = {"eps": 0.01, "n_clusters": 2}
# Every option, and its values: sections of the configuration, but for what is written.
OPTIONS: dict[str, dict[str, dict]] = {
    "engine": {"arrow": {"engine": "arrow"}, "sql": {"engine": "sql"}},
    "form": {"folder": {}, "files": {}, "view": {}, "datacomp": {}},
    "key": {name: {} for name in [*KEYS, "sql"]},
    "embedding": {
        "floats": {},
        "bytes": {"input": {"embedding": "bytes"}},
        "field": {"input": {"embedding": "nested.clip"}},
        "sql": {"input": {"embedding": {"sql": "transform(embedding, x -> 2 * x)"}}},
    },
    "given": {
        "none": {},
        "ids": {"input": {"cluster_id": "cid"}},
        "distances": {"input": {"cluster_id": "cid", "distance_to_centroid": "dist"}},
        "centroids": {"input": {"cluster_id": "cid", "centroids": "{tmp}/centroids.npy"}},
        "all": {
            "input": {
                "cluster_id": {"sql": "cid"}, "distance_to_centroid": "dist", "centroids": "{tmp}/centroids.parquet",
            },
        },
    },
    "filter": {
        "none": {},
        "by value": {"input": {"filter": "number < 80"}},
        "by day": {"input": {"filter": "day < current_date()"}},
    },
    "bad rows": {"none": {}, "dropped": {"input": {"on_bad_rows": "drop"}}, "refused": {}},
    "exact": {
        "none": {},
        "columns": {"dedup": {"exact": {"columns": ["pair"]}}},
        "ordered": {"dedup": {"exact": {"columns": ["pair", "caption"], "order_by": {"sql": "-number"}}}},
    },
    "minhash": {
        "none": {},
        "characters": {"dedup": {"minhash": {"column": "caption", "threshold": 0.9}}},
        "words": {
            "dedup": {"minhash": {"column": {"sql": "lower(caption)"}, "tokens": "words", "ngram": 2, "order_by": "number"}},
        },
    },
    "semantic": {
        "none": {},
        "own clusters": {"dedup": {"semantic": SEMANTIC}},
        "given clusters": {"dedup": {"semantic": {"eps": [1e-9, 0.01]}}},
        "connected": {"dedup": {"semantic": {**SEMANTIC, "groups": "connected", "which_to_keep": "easy"}}},
        "random": {"dedup": {"semantic": {**SEMANTIC, "which_to_keep": "random", "seed": 5}}},
    },
    "score": {
        "none": {},
        "condition": {"score_filter": {"expr": "number % 5 <> 0 AND day < current_date()"}},
        "fraction": {"score_filter": {"column": "number", "keep_fraction": 0.7, "within": "day"}},
        "limit": {"score_filter": {"column": {"sql": "number / 2"}, "at_least": 7}},
    },
    "train": {
        "sample": {},
        "full": {"cluster": {"train": "full", "n_iter": 3}},
        "plus": {"cluster": {"init": "k-means++", "max_points_per_centroid": 5, "tol": 0.1}},
    },
    "keep": {name: {"prune": {"which_to_keep": name}} for name in ("hard", "easy", "random", "stratified")},
    "number": {
        "ratio": {"prune": {"keep_ratio": 0.3}},
        "number": {"prune": {"n_keep": 11}},
        "all": {"prune": {"keep_ratio": 1.0}},
    },
    "quotas": {
        "paper": {},
        "balanced": {"prune": {"cluster_balance": 0.5, "temperature": 0.01}},
        "by size": {"prune": {"complexity": "cluster_size", "min_per_cluster": 0}},
        "uniform": {"prune": {"complexity": "uniform", "n_neighbors": 1}},
    },
    "published": {
        "no": {},
        "parquet": {"output": {"table": "spark_catalog.pairs.p"}},
        **({"iceberg": {"output": {"table": "lake.pairs.p", "table_format": "iceberg"}}} if ICEBERG_JAR else {}),
    },
    "trie": {
        "key": {},
        "expression": {"trie": {"key": "concat(cast(rank as string), '-', cluster_id)"}},
        "shards": {"trie": {"shards": 3}},
    },
}  # fmt: skip
Choice = dict[str, str]


def choose_pairs(seed: int = 0) -> list[Choice]:
    """Few choices of a value for each option, so that every pair of values occurs.

    Greedily: an option after the other takes the value that brings most new pairs with those before it.
    """
    rng = random.Random(seed)
    names = list(OPTIONS)
    left = {
        ((a, x), (b, y)) for a, b in itertools.combinations(names, 2) for x in OPTIONS[a] for y in OPTIONS[b]
    }

    def gain(choice: Choice) -> set:
        return {pair for pair in itertools.combinations(choice.items(), 2) if pair in left}

    def complete(choice: Choice) -> Choice:
        for name in rng.sample(names, len(names)):
            if name not in choice:
                values = rng.sample(list(OPTIONS[name]), len(OPTIONS[name]))
                tries = [
                    {n: {**choice, name: v}[n] for n in names if n in choice or n == name} for v in values
                ]
                choice = max(tries, key=lambda one: len(gain(one)))
        return choice

    found = []
    while left:
        (a, x), (b, y) = min(left)  # so that each one brings something new
        best = max((complete({a: x, b: y}) for _ in range(5)), key=lambda choice: len(gain(choice)))
        left -= gain(best)
        found.append(best)
    return found


CHOICES = choose_pairs(seed=15)  # which needs fewer than most


def merge(base: dict, more: dict) -> dict:
    for name, value in more.items():
        base[name] = merge(base.get(name, {}), value) if isinstance(value, dict) and name != "sql" else value
    return base


def filled(value: object, tmp: Path) -> object:
    if isinstance(value, dict):
        return {name: filled(item, tmp) for name, item in value.items()}
    return value.replace("{tmp}", str(tmp)) if isinstance(value, str) else value


def write_input(path: Path, choice: Choice) -> np.ndarray:
    """The table, in three files; and centroids beside it."""
    rows = make_embeddings(N, DIM, K)
    rows[40:50] = rows[:10]  # copies, for semantic deduplication
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    cid = np.arange(N) % K
    means = np.stack([unit[cid == j].sum(axis=0) for j in range(K)])
    means = (means / np.linalg.norm(means, axis=1, keepdims=True)).astype(np.float32)
    np.save(path / "centroids.npy", means)
    lists = pa.list_(pa.float32())
    pq.write_table(
        pa.table({"cluster_id": list(range(K)), "centroid": pa.array(means.tolist(), lists)}),
        path / "centroids.parquet",
    )
    given = [row.tolist() for row in rows]
    if choice["bad rows"] != "none":
        given[5] = [0.0] * DIM
    table = pa.table(
        {
            "key": KEYS["text" if choice["key"] == "sql" else choice["key"]],
            "embedding": pa.array(given, lists),
            "bytes": [np.float32(row).tobytes() for row in given],
            "nested": pa.array([{"clip": row} for row in given], pa.struct([("clip", lists)])),
            "cid": pa.array(cid, pa.int32()),
            "dist": np.clip(1 - (unit * means[cid]).sum(axis=1), 0, 2),
            "number": list(range(N)),
            "pair": [i // 2 if i < 20 else i for i in range(N)],
            "caption": [f"caption number {i % 70} with some more words" for i in range(N)],
            "day": [datetime.date(2020, 1, 1)] * N,
        }
    )  # fmt: skip
    (path / "in").mkdir()
    if choice["form"] == "datacomp":
        table = table.drop_columns("embedding")
    for number in range(3):
        pq.write_table(table.slice(30 * number, 30), path / f"in/{number}.parquet")
        if choice["form"] == "datacomp":
            np.savez(path / f"in/{number}.npz", l14_img=np.float32(given[30 * number : 30 * number + 30]))
    return rows


def config_for(choice: Choice, tmp: Path, spark) -> RunConfig:
    values: dict = {"output": {"path": str(tmp / "run")}, "cluster": {"n_clusters": K}, "prune": {}}
    for option, value in choice.items():
        merge(values, filled(OPTIONS[option][value], tmp))
    given = values.setdefault("input", {})
    if choice["form"] == "view":
        spark.read.parquet(str(tmp / "in")).createOrReplaceTempView("pairs_input")
        given["table"] = "pairs_input"
    else:
        folder = tmp / "in"
        files = [str(folder / f"{number}.parquet") for number in range(3)]
        given["path"] = files if choice["form"] == "files" else str(folder)
        if choice["form"] == "datacomp":
            given |= {"format": "datacomp", "key": "key"}
    if choice["key"] == "sql":
        given["key"] = {"sql": "sha1(key)"}
    return RunConfig.from_dict(values)


def refusals(choice: Choice) -> Iterator[str]:
    """Words of the messages with which a choice may be refused: of the options that cannot be together."""
    if choice["semantic"] == "given clusters" and choice["given"] == "none":
        yield "dedup.semantic.n_clusters is missing"
    needs_vectors = choice["given"] != "all" or choice["semantic"] != "none"
    if choice["bad rows"] == "refused" and needs_vectors:
        yield "zero vector"


@pytest.fixture(scope="module")
def schema(spark, tmp_path_factory):
    """Of all runs: each one replaces the tables of those before, with other types of keys."""
    spark.sql(f"CREATE SCHEMA spark_catalog.pairs LOCATION '{tmp_path_factory.mktemp('pairs')}/x'")
    if ICEBERG_JAR:
        spark.sql("CREATE SCHEMA lake.pairs")


@pytest.mark.slow
@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: "-".join(choice.values()).replace(" ", "_"))
def test_options_in_pairs(spark, schema, tmp_path, choice):
    write_input(tmp_path, choice)
    expected = list(refusals(choice))
    try:
        done = run(config_for(choice, tmp_path, spark), spark)
    except Exception as error:
        assert [words for words in expected if words in str(error)], error
        assert "to mend it" in str(error)
        assert not (tmp_path / "run/run.json").exists()
        return
    assert not expected
    check_run(done, choice, spark)
    check_published(done, choice, spark)
    what_next = CHOICES.index(choice) % 3  # which hardly depends on two options at a time
    if what_next == 0:
        output = OPTIONS["published"][choice["published"]].get("output", {})
        settings = ["prune.keep_ratio=0.2", *(f"output.{name}={value}" for name, value in output.items())]
        again = prune_again(done, str(tmp_path / "again"), [*settings, "prune.temperature=0.02"], spark)
        check_published(again, choice, spark)
        verify(again, spark)
    elif what_next == 1:
        rerun = run(config_for(choice, tmp_path, spark), spark)
        assert rerun.document["reused_stages"] == list(done.document["stages"])
    else:
        verify(done, spark)


def check_published(done, choice: Choice, spark) -> None:
    """Each table of the catalog holds what the run's does; a table of duplicates is there if the run has one."""
    catalog = {"parquet": "spark_catalog", "iceberg": "lake"}.get(choice["published"])
    tables = [name for name in TABLES if name in done.document["tables"]] if catalog else []
    assert list(done.published()) == tables
    for table in tables:
        assert rows_of(spark.read.table(f"{catalog}.pairs.p_{table}")) == rows_of(done.table(table, spark))
    if catalog:
        shown = {
            row.tableName
            for row in spark.sql(f"SHOW TABLES IN {catalog}.pairs").collect()
            if not row.isTemporary
        }
        assert shown == {f"p_{table}" for table in tables}


def check_run(done, choice: Choice, spark) -> None:
    """Rows add up, and a look-up finds the kept keys and no others."""
    account = done.document["accounting"]
    assert account["rows_in"] == N == account["kept"] + sum(account["dropped"].values())
    kept = {row.key for row in done.keep_list(spark).collect()}
    assert len(kept) == account["kept"] > 0
    trie = KeepTrie.open(done.path)
    assert len(trie) == len(kept)
    if choice["trie"] != "expression":
        keys = {bytes(key) if isinstance(key, bytearray) else key for key in kept}
        given = KEYS.get(choice["key"])
        assert all(key in trie for key in keys)
        if given is not None:
            every = given.to_pylist() if isinstance(given, pa.Array) else given
            assert sum(key in trie for key in every) == len(kept)
    assert open_run(done.path).config() == done.config()


def test_the_choices_hold_every_pair():
    pairs = {pair for choice in CHOICES for pair in itertools.combinations(choice.items(), 2)}
    wanted = sum(len(OPTIONS[a]) * len(OPTIONS[b]) for a, b in itertools.combinations(OPTIONS, 2))
    assert len(pairs) == wanted
    assert len(CHOICES) < 40


def test_a_choice_that_cannot_be_is_refused_by_the_configuration(spark, tmp_path):
    choice = {option: next(iter(values)) for option, values in OPTIONS.items()} | {
        "semantic": "given clusters"
    }
    with pytest.raises(ConfigError, match=r"dedup\.semantic\.n_clusters is missing"):
        config_for(choice, tmp_path, spark)
