"""Both engines on the same inputs: every table has the same rows, and they are the oracle's."""

from __future__ import annotations

import json
from pathlib import Path

import marisa_trie
import numpy as np
import oracle
import pytest
from conftest import config_of, make_embeddings, make_keys, rows_of, write_table

from spark_dbp import RunConfig, prune_again, run, verify
from spark_dbp.engine import arrow

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


@pytest.fixture
def no_storage_for_workers(monkeypatch):
    """What lets workers open storage fails."""

    def refuse(*arguments, **named):
        raise AssertionError("a worker opens storage")

    monkeypatch.setattr(arrow.MappedRows, "write_parquet", refuse)
    monkeypatch.setattr(arrow, "_read_file", refuse)


def test_every_step(spark, source, tmp_path, no_storage_for_workers, monkeypatch):
    by_sql = run_with("sql", spark, source, tmp_path / "sql", dedup=EVERY_STEP, trie={"shards": 2})
    monkeypatch.undo()
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
    verify(done, spark)


@pytest.mark.slow
@pytest.mark.parametrize("which", ["easy", "random", "stratified"])
def test_an_engine_prunes_what_the_other_one_clustered(spark, source, tmp_path, which):
    first = run_with("arrow", spark, source, tmp_path / "run")
    settings = [f"prune.which_to_keep={which}", "prune.keep_ratio=0.2"]
    done = [
        prune_again(first, str(tmp_path / engine), [*settings, f"engine={engine}"], spark)
        for engine in ("arrow", "sql")
    ]
    assert contents(done[0], spark) == contents(done[1], spark)
    answer = oracle.run(KEYS, EMBEDDINGS, n_clusters=K, n_iter=4, keep_ratio=0.2, which_to_keep=which)
    assert rows_of(done[1].keep_list(spark)) == answer.keep_list
    for again in done:
        verify(again, spark)


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
