"""Both engines on the same inputs: every table has the same rows, and they are the oracle's."""

from __future__ import annotations

import json
from pathlib import Path

import marisa_trie
import numpy as np
import oracle
import pandas as pd
import pytest
from conftest import config_of, make_embeddings, make_keys, rows_of, write_table

from spark_dbp import RunConfig, prune_again, run, verify
from spark_dbp.explore import second_look
from spark_dbp.explore.second_look import check_in_numpy
from spark_dbp.stages.cluster_stats import cluster_stats
from spark_dbp.stages.select import select

N, DIM, K = 400, 8, 6
KEYS = make_keys(N)
EMBEDDINGS = make_embeddings(N, DIM, 5)
EMBEDDINGS[300:340] = EMBEDDINGS[:40]  # copies: distances are equal, and keys decide
CAPTIONS = [f"caption number {i % 370} with some more words" for i in range(N)]
EVERY_STEP = {
    "exact": {"columns": ["pair"]},
    "minhash": {"column": "caption", "threshold": 0.95},
    "semantic": {"eps": [0.01, 0.05], "n_clusters": 3, "n_iter": 3},
}


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    pairs = [i // 2 if i < 20 else i for i in range(N)]
    return write_table(
        tmp_path_factory.mktemp("data") / "in", KEYS, EMBEDDINGS, n_files=3, caption=CAPTIONS, pair=pairs
    )


def run_with(engine: str, spark, source: Path, out: Path, **sections):
    values = config_of(source, out, cluster={"n_clusters": K, "n_iter": 4}, **sections)
    done = run(RunConfig.from_dict({**values, "engine": engine}), spark)
    assert done.document["engine"]["name"] == engine
    assert {step["engine"] for step in done.document["stages"].values()} == {engine}
    return done


def contents(done, spark) -> dict[str, list]:
    """All rows of every table; of the trie its keys."""
    found = {
        name: rows_of(done.table(name, spark)) for name in done.document["tables"] if name != "keep_trie"
    }
    trie = Path(done.table_path("keep_trie"))
    shards = json.loads((trie / "manifest.json").read_text())["shards"]
    keys = [key for s in shards for key in marisa_trie.BinaryTrie().mmap(str(trie / s["file"])).keys()]  # noqa: SIM118
    return {**found, "keep_trie": sorted(keys)}


def test_every_step(spark, source, tmp_path):
    """That no worker opens storage is shown by `tests/job/test_restricted_workers.py`."""
    by_sql = run_with("sql", spark, source, tmp_path / "sql", dedup=EVERY_STEP, trie={"shards": 2})
    by_workers = run_with("arrow", spark, source, tmp_path / "arrow", dedup=EVERY_STEP, trie={"shards": 2})
    assert contents(by_sql, spark) == contents(by_workers, spark)
    assert by_sql.document["digests"] == by_workers.document["digests"]
    dropped = by_sql.document["accounting"]["dropped"]
    assert dropped["exact duplicates"] and dropped["minhash duplicates"] and dropped["semantic duplicates"]
    assert not [path for path in (tmp_path / "sql").rglob("*") if path.name.startswith("_draft")]


def test_engine_sql_gives_the_keep_list_of_the_oracle(spark, source, tmp_path):
    done = run_with("sql", spark, source, tmp_path / "run")
    answer = oracle.run(KEYS, EMBEDDINGS, n_clusters=K, n_iter=4, keep_ratio=0.3)
    assert rows_of(done.keep_list(spark)) == answer.keep_list
    assert done.document["digests"]["keep_list"] == oracle.digest(answer.keep_list)
    passed = verify(done, spark)
    assert "statistics as computed again from the assignments, by engine arrow (not sql)" in passed
    assert "keep list as selected again from the assignments, by engine arrow (not sql)" in passed


@pytest.mark.slow
@pytest.mark.parametrize("which", ["easy", "random", "stratified"])
def test_an_engine_prunes_what_the_other_one_clustered(spark, source, tmp_path, monkeypatch, which):
    first = run_with("arrow", spark, source, tmp_path / "run")
    settings = [f"prune.which_to_keep={which}", "prune.keep_ratio=0.2"]
    done = [
        prune_again(first, str(tmp_path / engine), [*settings, f"engine={engine}"], spark)
        for engine in ("arrow", "sql")
    ]
    assert contents(done[0], spark) == contents(done[1], spark)
    answer = oracle.run(KEYS, EMBEDDINGS, n_clusters=K, n_iter=4, keep_ratio=0.2, which_to_keep=which)
    assert rows_of(done[1].keep_list(spark)) == answer.keep_list
    assert "keep list as selected again from the assignments, by engine sql (not arrow)" in verify(
        done[0], spark
    )
    # Where workers cannot read the run, some clusters are computed again in numpy, here all.
    monkeypatch.setattr(second_look, "find_problem_of_readers", lambda spark, paths: "no way")
    passed = verify(done[1], spark)
    assert "keep list as selected again from the assignments, by engine sql again" in passed
    assert f"{K} clusters computed again in numpy, for workers cannot read the run" in passed


@pytest.mark.slow
@pytest.mark.parametrize("which", ["hard", "random", "stratified"])
def test_numpy_finds_what_is_wrong(spark, which):
    rng = np.random.default_rng(1)
    rows = [(f"k{i:03d}", i % 2, float(np.float32(rng.integers(0, 90) / 64))) for i in range(200)]
    assignments = spark.createDataFrame(rows, "key string, cluster_id int, distance_to_centroid float")
    quotas = pd.DataFrame({"cluster_id": [0, 1], "n_items": [100, 100], "quota": [30, 51]})
    stats = cluster_stats(assignments).toPandas()
    kept = select(assignments, spark.createDataFrame(quotas), which_to_keep=which, seed=3)

    def check(kept=kept, stats=stats, quotas=quotas) -> list[str]:
        return list(check_in_numpy([0, 1], assignments, kept, stats, quotas, which, 3))

    assert check() == []
    wrong = "table keep_list: the rows of cluster 1 are not those of a plain sort"
    assert check(kept.where("cluster_id = 0 OR rank <> 7")) == [wrong]
    names = ["key", "cluster_id", "distance_to_centroid"]
    assert check(kept.selectExpr(*names, "cast(rank + cluster_id AS int) AS rank")) == [wrong]
    assert check(
        kept.selectExpr("if(rank = 3 AND cluster_id = 1, 'k000', key) AS key", *names[1:], "rank")
    ) == [wrong]
    assert len(check(quotas=quotas.assign(quota=[30, 50]))) == 1
    assert check(stats=stats.assign(d_intra=stats.d_intra + np.array([1e-9, 0])))[0].startswith(
        "table cluster_stats: cluster"
    )


@pytest.mark.slow
@pytest.mark.parametrize("train", ["sample", "full"])
def test_given_clusters_and_passes_over_all_rows(spark, tmp_path, train):
    """And bad rows, which the tables hold and later steps leave out."""
    embeddings = EMBEDDINGS.copy()
    embeddings[7] = 0
    source = write_table(tmp_path / "in", KEYS, embeddings, n_files=2, cid=np.arange(N) % K)
    given = {"cluster_id": "cid"} if train == "sample" else {}
    sections = {"input": {"on_bad_rows": "drop", **given}, "dedup": {"semantic": {"eps": 0.05, "n_clusters": 2, "groups": "connected"}}}  # fmt: skip
    if not given:
        sections["cluster"] = {"n_clusters": K, "n_iter": 3, "train": "full"}
    found = []
    for engine in ("sql", "arrow"):
        values = config_of(source, tmp_path / engine, **sections)
        done = run(RunConfig.from_dict({**values, "engine": engine}), spark)
        verify(done, spark)
        found.append(contents(done, spark))
    assert found[0] == found[1]


@pytest.mark.slow
def test_a_run_goes_on_with_the_other_engine(spark, source, tmp_path):
    """The engine is no reason to compute anything anew."""
    first = run_with("arrow", spark, source, tmp_path / "run")
    values = config_of(
        source, tmp_path / "run", cluster={"n_clusters": K, "n_iter": 4}, prune={"keep_ratio": 0.2}
    )
    again = run(RunConfig.from_dict({**values, "engine": "sql"}), spark)
    assert again.document["reused_stages"] == ["ingest", "cluster", "assign", "cluster_stats"]
    engines = {name: step["engine"] for name, step in again.document["stages"].items()}
    assert engines == dict.fromkeys(first.document["stages"], "arrow") | dict.fromkeys(
        ("quota", "select", "keep_trie"), "sql"
    )
    verify(again, spark)
