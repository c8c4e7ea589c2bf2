"""The Spark job against the plain-numpy oracle, row for row, and its other forms of input."""

from __future__ import annotations

import logging
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import oracle
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import config_of, make_embeddings, make_keys, rows_of, write_table

from spark_dbp import RunConfig, build_samples, open_run, plan_steps, prune_again, run
from spark_dbp.engine import vector_sums as summing
from spark_dbp.engine.compat import collect_arrow
from spark_dbp.engine.probe import EngineChoice
from spark_dbp.engine.vector_sums import sum_vectors
from spark_dbp.errors import ConfigError, InputError
from spark_dbp.io.sources import open_source
from spark_dbp.job import Job
from spark_dbp.kernels.lloyd import choose_first_centroids
from spark_dbp.lake.store import open_run_directory
from spark_dbp.stages.check_samples import good_samples
from spark_dbp.stages.ingest import ingest
from spark_dbp.stages.kmeans import SphericalKMeans

N, DIM, K = 2500, 24, 12
KEYS = make_keys(N)
EMBEDDINGS = make_embeddings(N, DIM, 10)


@pytest.fixture(scope="module")
def base(spark, tmp_path_factory):
    """A run whose k-means trains on a part of the rows."""
    path = tmp_path_factory.mktemp("base")
    source = write_table(path / "in", KEYS, EMBEDDINGS, n_files=3)
    config = config_of(source, path / "run", cluster={"max_points_per_centroid": 50})
    return run(RunConfig.from_dict(config), spark)


@pytest.fixture(scope="module")
def answer():
    return oracle.run(KEYS, EMBEDDINGS, n_clusters=K, n_iter=8, max_points_per_centroid=50, keep_ratio=0.3)


def test_every_table_equals_the_oracle(spark, base, answer):
    ids, centroids = base.centroids()
    assert ids.tolist() == list(range(K))
    assert (centroids == answer.centroids).all()
    assert rows_of(base.assignments(spark)) == answer.assignments
    stats = base.cluster_stats()
    assert (stats["n_items"] == answer.n_items).all()
    assert (stats["d_intra"] == answer.d_intra).all()
    assert stats["d_inter"].tolist() == pytest.approx(answer.d_inter.tolist(), abs=1e-15)
    assert stats["complexity"].tolist() == pytest.approx(
        (answer.d_intra * answer.d_inter).tolist(), abs=1e-15
    )
    assert [sum(b["n_items"] for b in h) for h in stats["distance_histogram"]] == answer.n_items.tolist()
    assert base.quotas()["quota"].tolist() == answer.quotas
    assert rows_of(base.keep_list(spark)) == answer.keep_list


def test_column_types_are_the_contract(spark, base):
    types = {
        name: dict(base.table(name, spark).dtypes) for name in base.document["tables"] if name != "keep_trie"
    }
    assert types["centroids"] == {"cluster_id": "int", "centroid": "array<float>"}
    assert types["assignments"] == {"key": "string", "cluster_id": "int", "distance_to_centroid": "float"}
    assert {k: v for k, v in types["cluster_stats"].items() if k != "distance_histogram"} == {
        "cluster_id": "int", "n_items": "bigint", "d_intra": "double", "d_inter": "double", "complexity": "double",
    }  # fmt: skip
    assert types["quotas"] == {
        "cluster_id": "int", "n_items": "bigint", "weight": "double", "target": "double", "quota": "bigint",
    }  # fmt: skip
    assert types["keep_list"] == {
        "key": "string", "cluster_id": "int", "distance_to_centroid": "float", "rank": "int",
    }  # fmt: skip


def test_run_json_accounts_for_everything(base):
    document = base.document
    account = document["accounting"]
    assert account["rows_in"] == N == account["kept"] + sum(account["dropped"].values())
    assert document["rows"]["keep_list"] == 750 == document["rows"]["keep_trie"]
    assert document["input"]["files"] == 3
    assert document["config"]["prune"]["temperature"] == 0.1
    assert set(document["versions"]) == {"spark", "python", "numpy"}
    objective = [iteration["objective"] for iteration in document["kmeans"]["history"]]
    assert objective == sorted(objective, reverse=True)
    assert len(objective) > 2
    assert "750 of 2,500 (30.0%)" in str(base.summary())
    assert document["format_version"] == 2


def test_mean_distances_are_those_of_all_rows_and_of_the_kept(base, answer):
    summary = base.document["summary"]
    assert summary["mean_distance"] == pytest.approx(
        np.mean([row[2] for row in answer.assignments]), rel=1e-7
    )
    assert summary["mean_distance_kept"] == pytest.approx(
        np.mean([row[2] for row in answer.keep_list]), rel=1e-7
    )


def test_the_summary_is_a_table_in_a_notebook(base):
    assert "<table>" in base.summary()._repr_html_()


def test_the_trie_holds_the_keep_list_and_nothing_else(spark, base):
    kept = {row["key"] for row in base.keep_list(spark).collect()}
    trie = base.keep_trie()
    assert len(trie) == len(kept)
    assert trie.contains_many(KEYS).tolist() == [key in kept for key in KEYS]
    assert "part/nothing.jpg" not in trie


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"which_to_keep": "easy"}, marks=pytest.mark.slow),
        {"which_to_keep": "random", "seed": 5},
        pytest.param({"which_to_keep": "stratified", "keep_ratio": 0.11}, marks=pytest.mark.slow),
        pytest.param({"keep_ratio": 0.9, "complexity": "cluster_size"}, marks=pytest.mark.slow),
        pytest.param({"keep_ratio": 0.05, "complexity": "uniform"}, marks=pytest.mark.slow),
        {"complexity": "d_intra", "temperature": 0.02, "cluster_balance": 0.8},
        pytest.param(
            {"complexity": "d_inter", "n_neighbors": 3, "min_per_cluster": 0}, marks=pytest.mark.slow
        ),
        pytest.param({"keep_ratio": 1.0, "n_neighbors": 50}, marks=pytest.mark.slow),
    ],
    ids=lambda s: "-".join(map(str, s.values())),
)
def test_pruning_again_equals_the_oracle(spark, base, answer, tmp_path, settings):
    again = prune_again(base, str(tmp_path / "again"), [f"prune.{k}={v}" for k, v in settings.items()], spark)
    labels = np.array([row[1] for row in answer.assignments])
    distances = np.array([row[2] for row in answer.assignments], dtype=np.float32)
    keys = [row[0] for row in answer.assignments]
    expected = oracle.prune(keys, labels, distances, answer.centroids, **{"keep_ratio": 0.3, **settings})
    assert again.quotas()["quota"].tolist() == expected.quotas
    assert rows_of(again.keep_list(spark)) == expected.keep_list
    assert len(again.keep_trie()) == len(expected.keep_list)
    # The clustering is shared, not copied.
    assert again.table_path("assignments") == base.table_path("assignments")
    assert not (tmp_path / "again/tables/assignments").exists()


def test_a_changed_setting_recomputes_only_what_depends_on_it(spark, tmp_path, caplog):
    source = write_table(tmp_path / "in", KEYS[:300], EMBEDDINGS[:300])
    first = run(RunConfig.from_dict(config_of(source, tmp_path / "run")), spark)
    caplog.set_level(logging.INFO, "spark_dbp")
    second = run(RunConfig.from_dict(config_of(source, tmp_path / "run", prune={"keep_ratio": 0.5})), spark)
    assert second.document["reused_stages"] == ["ingest", "cluster", "assign", "cluster_stats"]
    assert "reused from the earlier run" in caplog.text
    assert "Setting the quotas: computed anew, for prune.keep_ratio changed" in caplog.text
    assert second.document["rows"]["keep_list"] == 150
    assert first.document["tables"]["keep_list"] != second.document["tables"]["keep_list"]
    # The input changed: everything is computed anew.
    write_table(tmp_path / "in", KEYS[:200], EMBEDDINGS[:200])
    third = run(RunConfig.from_dict(config_of(source, tmp_path / "run", prune={"keep_ratio": 0.5})), spark)
    assert third.document["reused_stages"] == []
    assert third.document["rows"]["keep_list"] == 100


def test_why_a_step_would_be_computed_is_known_without_running_it(spark, tmp_path):
    source = write_table(tmp_path / "in", KEYS[:300], EMBEDDINGS[:300])
    config = RunConfig.from_dict(config_of(source, tmp_path / "run"))
    done = run(config, spark)
    before = sorted((tmp_path / "run").rglob("*"))

    def reasons(config: RunConfig, out: Path) -> dict[str, str | None]:
        """Of the steps up to the first that would be computed; what follows that depends on what comes out."""
        found = {}
        steps = plan_steps(config)
        with open_run_directory(str(out)) as directory:
            columns = list(steps[0].needs.columns)
            job = Job(
                config,
                spark,
                directory,
                EngineChoice("arrow", "a test"),
                open_source(spark, paths=[str(source)], columns=columns),
            )
            for step in steps:
                found[step.name] = job.why_anew(step)
                if found[step.name]:
                    break
                job.carry_out(step)
        return found

    assert set(reasons(config, tmp_path / "run").values()) == {None}
    changed = reasons(config.with_settings(["prune.keep_ratio=0.5"]), tmp_path / "run")
    assert changed == {
        **dict.fromkeys(["ingest", "cluster", "assign", "cluster_stats"]),
        "quota": "prune.keep_ratio changed",
    }
    assert reasons(config, tmp_path / "new") == {"ingest": "it was not finished before"}
    shutil.rmtree(done.table_path("centroids"))
    assert "is missing" in reasons(config, tmp_path / "run")["cluster"]
    # Nothing was written.
    assert set((tmp_path / "run").rglob("*")) < set(before)
    assert not (tmp_path / "new").exists()


# Every accepted form of embedding and key gives the same answer.


@pytest.fixture(scope="module")
def small(spark, tmp_path_factory):
    path = tmp_path_factory.mktemp("small")
    source = write_table(path / "in", KEYS[:400], EMBEDDINGS[:400])
    return run(RunConfig.from_dict(config_of(source, path / "run", cluster={"n_clusters": 5})), spark)


def float32_rows(count):
    return [row.tolist() for row in EMBEDDINGS[:count]]


@pytest.mark.parametrize(
    "column",
    [
        pytest.param(pa.array(float32_rows(400), pa.list_(pa.float64())), marks=pytest.mark.slow),
        pytest.param(pa.array(float32_rows(400), pa.list_(pa.float32(), DIM)), marks=pytest.mark.slow),
        pa.array([row.tobytes() for row in EMBEDDINGS[:400]], pa.binary()),
    ],
    ids=["double", "fixed-size", "binary"],
)
def test_embedding_forms(spark, small, tmp_path, column):
    source = write_table(tmp_path / "in", KEYS[:400], column)
    again = run(RunConfig.from_dict(config_of(source, tmp_path / "run", cluster={"n_clusters": 5})), spark)
    assert again.document["digests"]["keep_list"] == small.document["digests"]["keep_list"]


@pytest.mark.slow
def test_ml_vectors_in_a_catalog_table_with_awkward_names(spark, small, tmp_path):
    from pyspark.ml.linalg import Vectors

    name = "a.b `quoted` é"
    rows = [(key, Vectors.dense(row)) for key, row in zip(KEYS[:400], float32_rows(400), strict=True)]
    spark.createDataFrame(rows, ["the key.x", name]).createOrReplaceTempView("vectors_view")
    config = config_of("", tmp_path / "run", cluster={"n_clusters": 5})
    config["input"] = {"table": "vectors_view", "key": "the key.x", "embedding": name}
    again = run(RunConfig.from_dict(config), spark)
    assert again.document["digests"]["keep_list"] == small.document["digests"]["keep_list"]
    assert again.document["input"]["files"] is None  # a view tells no files


@pytest.mark.parametrize(
    "keys",
    [
        pytest.param(pa.array(range(300), pa.int64()), marks=pytest.mark.slow),
        pytest.param(pa.array(range(-150, 150), pa.int16()), marks=pytest.mark.long),
        pa.array([bytes([i // 256, i % 256, 0]) for i in range(300)], pa.binary()),
        pytest.param(
            pa.array([f"{i}.25" for i in range(300)]).cast(pa.decimal128(12, 2)), marks=pytest.mark.long
        ),
        pytest.param(
            pa.array([i * 1_000_001 for i in range(300)], pa.timestamp("us", tz="UTC")),
            marks=pytest.mark.long,
        ),
        pa.array([f"../{i}\n\"'é😀`" for i in range(300)]),
    ],
    ids=lambda keys: str(keys.type),
)
def test_key_types_keep_type_and_value(spark, tmp_path, keys):
    source = write_table(tmp_path / "in", keys, EMBEDDINGS[:300], n_files=2)
    done = run(RunConfig.from_dict(config_of(source, tmp_path / "run", cluster={"n_clusters": 4})), spark)
    written = collect_arrow(done.assignments(spark).select("key"))
    given = pq.read_table(source).column("key")
    read = collect_arrow(spark.read.parquet(str(source)).select("key"))
    assert written.column("key").type == read.column("key").type
    assert sorted(written.column("key").to_pylist()) == sorted(given.to_pylist())
    if given.type in (pa.int64(), pa.int16(), pa.string()):
        answer = (
            oracle.run(given.to_pylist(), EMBEDDINGS[:300], n_clusters=4, n_iter=8, keep_ratio=0.3)
            if given.type != pa.int16()
            else None
        )  # Spark hashes an int16 in four bytes
        if answer is not None:
            assert rows_of(done.keep_list(spark)) == answer.keep_list
        kept = [row["key"] for row in done.keep_list(spark).collect()]
        assert done.keep_trie().contains_many(kept).all()
    assert len(done.keep_trie()) == 90


def test_filter_and_dropped_rows_are_counted(spark, tmp_path):
    rows = [row.tolist() for row in EMBEDDINGS[:100]]
    rows[3], rows[4], rows[5], rows[6], rows[7] = None, [0.0] * DIM, [float("nan")] * DIM, [1.0], [None] * DIM
    keys = [*KEYS[:99], None]
    source = write_table(
        tmp_path / "in", keys, pa.array(rows, pa.list_(pa.float32())), width=list(range(100))
    )
    config = config_of(
        source, tmp_path / "run", input={"filter": "width < 10 or width >= 50", "on_bad_rows": "drop"},
        cluster={"n_clusters": 4},
    )  # fmt: skip
    account = run(RunConfig.from_dict(config), spark).document["accounting"]
    assert account == {
        "rows_in": 100,
        "dropped": {
            "input.filter": 40,
            "NaN or Inf in the embedding": 1,
            "embedding of another dimension": 1,
            "null embedding": 1,
            "null inside the embedding": 1,
            "null key": 1,
            "zero vector": 1,
            "pruned": 38,
        },
        "kept": 16,
    }


# Data that is clustered already.


@pytest.fixture(scope="module")
def clustered(spark, base, tmp_path_factory):
    """The base run's assignments and centroids as a user would bring them, ids with gaps."""
    path = tmp_path_factory.mktemp("clustered")
    by_key = {row[0]: row for row in rows_of(base.assignments(spark))}
    ids = np.array([by_key[key][1] * 3 + 1 for key in KEYS], dtype=np.int64)
    distances = np.array([by_key[key][2] for key in KEYS], dtype=np.float32)
    write_table(path / "in", KEYS, EMBEDDINGS, n_files=2, cid=ids, dist=distances)
    _, centroids = base.centroids()
    pq.write_table(
        pa.table({"cluster_id": [3 * i + 1 for i in range(K)][::-1], "centroid": centroids[::-1].tolist()}),
        path / "centroids.parquet",
    )
    full = np.zeros((3 * K, DIM), dtype=np.float32)
    full[:, 0] = 1
    full[1::3] = centroids
    np.save(path / "centroids.npy", full)
    return path


@pytest.mark.parametrize(
    ("with_distance", "centroids"),
    [
        (True, "centroids.parquet"),
        pytest.param(False, "centroids.npy", marks=pytest.mark.slow),
        pytest.param(True, "centroids.npy", marks=pytest.mark.long),
        pytest.param(False, "centroids.parquet", marks=pytest.mark.long),
    ],
)
def test_given_clusters_and_centroids(spark, base, answer, clustered, tmp_path, centroids, with_distance):
    given = {"cluster_id": "cid", "centroids": str(clustered / centroids)}
    if with_distance:
        given |= {"distance_to_centroid": "dist", "embedding": "not_there"}
    config = config_of(clustered / "in", tmp_path / "run", input=given)
    del config["cluster"]
    done = run(RunConfig.from_dict(config), spark)
    expected = [(key, 3 * cluster + 1, distance, rank) for key, cluster, distance, rank in answer.keep_list]
    assert rows_of(done.keep_list(spark)) == expected


def test_missing_centroids_are_the_normalised_means(spark, answer, clustered, tmp_path):
    config = config_of(clustered / "in", tmp_path / "run", input={"cluster_id": "cid"})
    done = run(RunConfig.from_dict(config), spark)
    ids, centroids = done.centroids()
    vectors = oracle.unit(EMBEDDINGS)
    label_of = {row[0]: row[1] for row in answer.assignments}
    labels = np.array([label_of[key] for key in KEYS])
    means = oracle.unit(np.array([vectors[labels == j].astype(float).sum(axis=0) for j in range(K)]))
    assert ids.tolist() == [3 * j + 1 for j in range(K)]
    assert (centroids == means).all()
    cosine = (vectors.astype(float) * means.astype(float)[labels]).sum(axis=1)
    distances = np.clip(1 - cosine, 0, 2).astype(np.float32)
    expected = oracle.prune(KEYS, labels, distances, means, keep_ratio=0.3)
    assert rows_of(done.keep_list(spark)) == [(k, 3 * c + 1, d, r) for k, c, d, r in expected.keep_list]


# Stages on their own.


def test_kmeans_stands_alone_and_trains_on_all_rows(spark, tmp_path):
    source = write_table(tmp_path / "in", KEYS, EMBEDDINGS, n_files=4)
    samples = good_samples(ingest(spark.read.parquet(str(source))), DIM)
    part = SphericalKMeans(K, n_iter=3, max_points_per_centroid=20).fit(samples)
    full = SphericalKMeans(K, n_iter=3, max_points_per_centroid=20, train="full").fit(samples)
    assert part.n_train_ == 20 * K
    vectors = oracle.unit(EMBEDDINGS)
    objectives = [iteration.objective for iteration in full.history_[len(part.history_) :]]
    _, distances = oracle.assign(vectors, part.centroids_)
    assert objectives[0] == pytest.approx(distances.mean(dtype=float), abs=1e-7)
    assert objectives == sorted(objectives, reverse=True)
    expected = oracle.lloyd(vectors, part.centroids_, len(objectives), reseed=False)
    assert (full.centroids_ == expected).all()
    labels, distances = oracle.assign(vectors, full.centroids_)
    assert rows_of(full.transform(samples)) == sorted(
        zip(KEYS, labels.tolist(), distances.tolist(), strict=True)
    )


def test_kmeans_plus_plus_and_tol_reach_the_fit(spark, tmp_path):
    source = write_table(tmp_path / "in", KEYS, EMBEDDINGS)
    samples = good_samples(ingest(spark.read.parquet(str(source))), DIM)
    model = SphericalKMeans(K, n_iter=30, init="k-means++", tol=0.01, seed=3).fit(samples)
    order = np.argsort([oracle.spark_xxhash64(key, 3) for key in KEYS], kind="stable")
    vectors = oracle.unit(EMBEDDINGS)[order]
    expected = oracle.lloyd(vectors, choose_first_centroids(vectors, K, "k-means++", 3), len(model.history_))
    assert (model.centroids_ == expected).all()
    falls = [1 - after.objective / before.objective for before, after in pairwise(model.history_)]
    assert falls[-1] < 0.01 and all(fall >= 0.01 for fall in falls[:-1])
    with pytest.raises(ConfigError, match=r"'kmeans\+\+' is unknown"):
        SphericalKMeans(K, init="kmeans++")


@pytest.mark.parametrize("limit", [summing._PARTIAL_BYTES, 0], ids=["kept", "handed on after every batch"])
def test_vector_sums_are_exact_however_often_they_are_handed_on(spark, tmp_path, monkeypatch, limit):
    monkeypatch.setattr(summing, "_PARTIAL_BYTES", limit)  # travels to the workers with the function
    source = write_table(tmp_path / "in", KEYS[:500], EMBEDDINGS[:500], cluster_id=np.arange(500) % 7)
    samples = good_samples(ingest(spark.read.parquet(str(source)), cluster_id="cluster_id"), DIM)
    sums = sum_vectors(samples)
    wide = oracle.unit(EMBEDDINGS[:500]).astype(float)
    assert sums.n_items.tolist() == [72] * 3 + [71] * 4
    assert (sums.sums == np.array([wide[np.arange(500) % 7 == j].sum(axis=0) for j in range(7)])).all()


def test_empty_clusters_take_no_part(spark, tmp_path):
    embeddings = np.repeat(EMBEDDINGS[:3], 20, axis=0)  # three distinct vectors, five clusters
    source = write_table(tmp_path / "in", KEYS[:60], embeddings)
    done = run(RunConfig.from_dict(config_of(source, tmp_path / "run", cluster={"n_clusters": 5})), spark)
    stats = done.cluster_stats()
    assert sorted(stats["n_items"]) == [0, 0, 20, 20, 20]
    assert stats.loc[stats["n_items"] == 0, ["d_intra", "d_inter", "complexity"]].isna().all().all()
    assert done.quotas().query("n_items == 0")["quota"].sum() == 0
    assert done.document["rows"]["keep_list"] == 18
    assert open_run(done.path).document["summary"]["empty_clusters"] == 2


def test_a_training_sample_that_the_driver_cannot_hold_is_refused_before_it_is_collected(
    spark, tmp_path, monkeypatch
):
    source = write_table(tmp_path / "in", make_keys(60), make_embeddings(60, 4, 3))
    config = RunConfig.from_dict(config_of(source, tmp_path / "run", cluster={"n_clusters": 3}))
    monkeypatch.setattr(build_samples, "read_memory_limit", lambda: 1500)
    with pytest.raises(InputError, match=r"training sample of 60 x 4 takes") as caught:
        run(config, spark)
    assert "lower cluster.max_points_per_centroid to 52 % of it" in caught.value.mend
    monkeypatch.setattr(build_samples, "read_memory_limit", lambda: 10**9)
    monkeypatch.setattr(build_samples, "read_collect_limit", lambda spark: 480)
    with pytest.raises(InputError, match="to the driver at most") as caught:
        run(config, spark)
    assert "50 % of it, or raise spark.driver.maxResultSize" in caught.value.mend
    assert not (tmp_path / "run/run.json").exists()
