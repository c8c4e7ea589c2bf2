"""Exact and semantic deduplication against plain loops, alone and in the run."""

from __future__ import annotations

import hashlib

import numpy as np
import oracle
import pyarrow as pa
import pyspark
import pytest
import yaml
from conftest import config_of, make_embeddings, make_keys, rows_of, write_table

from spark_dbp import RunConfig, open_run, prune_again, run, verify
from spark_dbp.cli import main
from spark_dbp.engine import tiles
from spark_dbp.engine.arrow import CommittedTable
from spark_dbp.errors import ConfigError, InputError
from spark_dbp.stages import semantic_dedup
from spark_dbp.stages.check_samples import good_samples
from spark_dbp.stages.exact_dedup import exact_dedup
from spark_dbp.stages.ingest import ingest
from spark_dbp.stages.kmeans import SphericalKMeans

N, DIM = 900, 16
KEYS = make_keys(N)


def with_duplicates() -> np.ndarray:
    """A third are near-copies of others; some are exact copies."""
    raw = make_embeddings(N, DIM, 5)
    rng = np.random.default_rng(4)
    raw[600:] = raw[rng.integers(0, 600, 300)] * (1 + 0.05 * rng.standard_normal((300, DIM)))
    raw[850:] = raw[:50]
    return raw.astype(np.float32)


EMBEDDINGS = with_duplicates()


@pytest.fixture(scope="module")
def clustered(spark, tmp_path_factory):
    source = write_table(tmp_path_factory.mktemp("data") / "in", KEYS, EMBEDDINGS, n_files=3)
    samples = good_samples(ingest(spark.read.parquet(str(source))), DIM)
    model = SphericalKMeans(6, n_iter=5).fit(samples)
    path = tmp_path_factory.mktemp("assigned") / "assignments"
    model.transform(samples).write.parquet(str(path))
    labels, distances = oracle.assign(oracle.unit(EMBEDDINGS), model.centroids_)
    frame = spark.read.parquet(str(path))
    tables = {"frame": frame, "committed": CommittedTable(spark, str(path), frame)}
    return samples, tables, labels, distances


def test_stratified_is_no_order_of_duplicates():
    with pytest.raises(ConfigError, match="'stratified' is no order"):
        semantic_dedup.semantic_dedup(None, None, eps=0.1, dim=2, scratch="x", which_to_keep="stratified")


@pytest.mark.parametrize(
    ("which_to_keep", "tile", "kind"),
    [
        pytest.param(which_to_keep, tile, kind, marks=[] if tile == 37 and kind == "frame" else pytest.mark.slow)
        for which_to_keep, kinds in (("hard", ["frame", "committed"]), ("easy", ["committed"]), ("random", ["committed"]))
        for kind in kinds
        for tile in (8192, 37)
    ],
)  # fmt: skip
def test_semantic_equals_the_plain_rule_for_any_tile_size(
    spark, clustered, tmp_path, monkeypatch, which_to_keep, tile, kind
):
    monkeypatch.setattr(semantic_dedup, "count_tile_rows", lambda dim, key_bytes: tile)
    monkeypatch.setattr(tiles, "_PRODUCTS_A_TASK", tile * 100)
    samples, tables, labels, distances = clustered
    pairs = semantic_dedup.semantic_dedup(
        samples, tables[kind], eps=0.05, dim=DIM, scratch=str(tmp_path), which_to_keep=which_to_keep, seed=3
    )
    vectors = oracle.unit(EMBEDDINGS)
    expected = oracle.semantic_duplicates(KEYS, vectors, labels, distances, 0.05, which_to_keep, seed=3)
    assert len(expected) > 200
    assert rows_of(pairs) == expected
    counted = semantic_dedup.count_by_eps(pairs, [0.001, 0.05], N)
    assert [row["removed"] for row in counted] == [
        sum(s > 1 - e for _, _, s in expected) for e in (0.001, 0.05)
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("tile", "kind"), [(8192, "committed"), (37, "committed"), (37, "frame")])
def test_connected_groups_keep_one_of_each(spark, clustered, tmp_path, monkeypatch, tile, kind):
    monkeypatch.setattr(semantic_dedup, "count_tile_rows", lambda dim, key_bytes: tile)
    samples, tables, labels, distances = clustered
    pairs = semantic_dedup.semantic_dedup(
        samples, tables[kind], eps=0.05, dim=DIM, scratch=str(tmp_path), groups="connected"
    )
    vectors = oracle.unit(EMBEDDINGS)
    expected = oracle.semantic_duplicates(KEYS, vectors, labels, distances, 0.05, groups="connected")
    assert len(expected) > 200
    assert rows_of(pairs) == expected


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["identical", pytest.param("alone", marks=pytest.mark.long)])
def test_identical_vectors_and_clusters_of_one(spark, tmp_path, kind):
    raw = np.ones((40, 4), np.float32) if kind == "identical" else np.eye(40, dtype=np.float32)
    ids = np.zeros(40, int) if kind == "identical" else np.arange(40)
    source = write_table(tmp_path / "in", KEYS[:40], raw, cid=ids)
    config = config_of(
        source, tmp_path / "run", input={"cluster_id": "cid"}, dedup={"semantic": {"eps": 0.1}},
        prune={"keep_ratio": 1.0},
    )  # fmt: skip
    del config["cluster"]
    done = run(RunConfig.from_dict(config), spark)
    expected = 1 if kind == "identical" else 40
    assert done.document["accounting"]["kept"] == expected
    if kind == "identical":
        assert {row["duplicate_of"] for row in done.duplicates(spark).collect()} == {min(KEYS[:40])}


def test_exact_on_columns_that_are_null_floats_and_arrays(spark):
    rows = [
        ("a", "x", 1.0, [1.0, 2.0], 5), ("b", "x", 1.0, [1.0, 2.0], 3), ("c", "x", 2.0, [1.0, 2.0], 1),
        ("d", None, 1.0, [1.0], 1), ("e", None, 1.0, [1.0], 1), ("f", "y", 0.0, [0.5], 1), ("g", "y", -0.0, [0.5], 1),
    ]  # fmt: skip
    frame = spark.createDataFrame(rows, "key string, text string, number double, vec array<float>, age int")
    both = exact_dedup(frame, columns=["text", "number"])
    assert rows_of(both) == [("b", "a", "exact", 1.0), ("g", "f", "exact", 1.0)]
    assert rows_of(exact_dedup(frame, columns=["vec"]).select("key", "duplicate_of")) == [
        ("b", "a"), ("c", "a"), ("e", "d"), ("g", "f"),
    ]  # fmt: skip
    oldest = exact_dedup(frame, columns=["vec"], order_by="age").select("key", "duplicate_of")
    assert rows_of(oldest) == [("a", "c"), ("b", "c"), ("e", "d"), ("g", "f")]


def test_exact_refuses_what_it_cannot_do(spark):
    frame = spark.createDataFrame(
        [("a", {"k": 1}, None), ("b", {"k": 2}, 1)], "key string, m map<string,int>, age int"
    )
    with pytest.raises(InputError, match=r"dedup\.exact\.columns: there is no column 'url'"):
        exact_dedup(frame, columns=["url"])
    with pytest.raises(InputError, match="cannot be compared"):
        exact_dedup(frame, columns=["m"])
    with pytest.raises(InputError, match=r"dedup\.exact\.order_by: column 'age' is null in 1 rows"):
        exact_dedup(frame, columns=["key"], order_by="age")


@pytest.fixture(scope="module")
def full_run(spark, tmp_path_factory):
    """All three deduplications in one run, with a bad row that must not count as a survivor."""
    path = tmp_path_factory.mktemp("full")
    rows: list = [row.tolist() for row in EMBEDDINGS]
    rows[10] = None
    sums = [f"sum-{i}" for i in range(N)]
    sums[10] = sums[11] = sums[12]  # the bad row would be the survivor of these
    texts = [f"a caption of its own with the number {i * i} in it" for i in range(N)]
    texts[20], texts[21] = "the very same little caption", "The  very same little caption"
    table = pa.array(rows, pa.list_(pa.float32()))
    source = write_table(path / "in", KEYS, table, n_files=3, checksum=sums, caption=texts)
    config = config_of(
        source, path / "run", input={"on_bad_rows": "drop"}, cluster={"n_clusters": 5},
        dedup={
            "exact": {"columns": ["checksum"]},
            "minhash": {"column": "caption", "threshold": 0.95},
            "semantic": {"eps": [0.01, 0.002, 0.05], "n_clusters": 4},
        },
    )  # fmt: skip
    return run(RunConfig.from_dict(config), spark), config


def test_the_run_after_deduplication_sees_survivors_only(spark, full_run):
    done, _ = full_run
    duplicates = rows_of(done.duplicates(spark))
    gone = {row[0] for row in duplicates}
    by_method = {m: [row for row in duplicates if row[2] == m] for m in ("exact", "minhash", "semantic")}
    assert [row[:2] for row in by_method["exact"]] == [tuple(sorted(KEYS[11:13], reverse=True))]
    assert {frozenset(row[:2]) for row in by_method["minhash"]} == {frozenset(KEYS[20:22])}
    assert len(by_method["semantic"]) > 100
    assert len(gone) == len(duplicates)  # no key twice
    assigned = {row["key"] for row in done.assignments(spark).collect()}
    assert assigned == set(KEYS) - gone - {KEYS[10]}
    account = done.document["accounting"]
    assert account["dropped"]["exact duplicates"] == 1
    assert account["dropped"]["minhash duplicates"] == 1
    assert account["dropped"]["semantic duplicates"] == len(by_method["semantic"])
    assert account["dropped"]["null embedding"] == 1
    assert account["rows_in"] == N == account["kept"] + sum(account["dropped"].values())
    assert done.cluster_stats()["n_items"].sum() == len(assigned)
    types = dict(done.duplicates(spark).dtypes)
    assert types == {"key": "string", "duplicate_of": "string", "method": "string", "similarity": "float"}
    assert not any("scratch" in path for path in done.document["tables"].values())


def test_semantic_in_the_run_equals_the_plain_rule(spark, full_run):
    done, _ = full_run
    gone = {row[0] for row in rows_of(done.duplicates(spark)) if row[2] != "semantic"} | {KEYS[10]}
    left = [i for i in range(N) if KEYS[i] not in gone]
    assigned = {row["key"]: row for row in done.table("semantic_assignments", spark).collect()}
    keys = [KEYS[i] for i in left]
    labels = np.array([assigned[key]["cluster_id"] for key in keys])
    distances = np.array([assigned[key]["distance_to_centroid"] for key in keys])
    expected = oracle.semantic_duplicates(keys, oracle.unit(EMBEDDINGS[left]), labels, distances, 0.05)
    assert rows_of(done.table("semantic_pairs", spark)) == expected
    removed = [(k, o) for k, o, s in expected if s > 1 - 0.01]
    assert [row[:2] for row in rows_of(done.duplicates(spark)) if row[2] == "semantic"] == removed


def test_sweep_shows_every_eps(spark, full_run, capsys):
    done, _ = full_run
    assert main(["sweep", done.path]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["0.01", "0.002", "0.05"]
    assert lines[1].endswith("applied")
    counts = [row["removed"] for row in done.semantic_sweep()]
    assert counts[1] <= counts[0] <= counts[2]


def test_pruning_again_keeps_the_deduplication(spark, full_run, tmp_path):
    done, _ = full_run
    again = prune_again(done, str(tmp_path / "again"), ["prune.keep_ratio=0.5"], spark)
    assert rows_of(again.duplicates(spark)) == rows_of(done.duplicates(spark))
    assert again.document["accounting"]["dropped"]["exact duplicates"] == 1


@pytest.mark.slow
def test_the_same_duplicates_whatever_the_partitioning(spark, full_run, tmp_path):
    done, config = full_run
    spark.read.parquet(config["input"]["path"]).repartition(11, "caption").write.parquet(str(tmp_path / "in"))
    config = {
        **config,
        "input": {**config["input"], "path": str(tmp_path / "in")},
        "output": {"path": str(tmp_path / "run")},
    }
    again = run(RunConfig.from_dict(config), spark)
    for table in ("duplicates", "semantic_pairs", "keep_list"):
        assert again.document["digests"][table] == done.document["digests"][table]


@pytest.mark.parametrize(
    ("dedup", "code", "words"),
    [
        ({"semantic": {"eps": 0, "n_clusters": 2}}, 2, ["dedup.semantic.eps", "greater than 0"]),
        ({"semantic": {"eps": 1, "n_clusters": 2}}, 2, ["dedup.semantic.eps", "less than 1"]),
        ({"semantic": {"eps": [0.1, 2], "n_clusters": 2}}, 2, ["dedup.semantic.eps", "less than 1"]),
        ({"semantic": {"eps": [], "n_clusters": 2}}, 2, ["dedup.semantic.eps"]),
        ({"semantic": {"eps": 0.1}}, 2, ["dedup.semantic.n_clusters is missing"]),
        ({"semantic": {"eps": 0.1, "n_clusters": 61}}, 3, ["dedup.semantic.n_clusters is 61", "60 rows"]),
        ({"exact": {"columns": []}}, 2, ["dedup.exact.columns"]),
        ({"exact": {"columns": ["sha"]}}, 3, ["dedup.exact.columns", "'sha'"]),
        ({"exact": {"columns": ["key"], "order_by": "age"}}, 3, ["dedup.exact.order_by", "'age'"]),
        ({"minhash": {"column": "caption", "threshold": 0}}, 2, ["dedup.minhash.threshold"]),
        ({"minhash": {"column": "caption", "threshold": 1.1}}, 2, ["dedup.minhash.threshold"]),
        ({"minhash": {"column": "key", "threshold": 0.01, "num_perm": 8}}, 2, ["dedup.minhash.num_perm"]),
        ({"minhash": {"column": "caption"}}, 3, ["dedup.minhash.column", "'caption'"]),
        ({"minhash": {"column": "embedding"}}, 3, ["dedup.minhash.column", "ARRAY<FLOAT>"]),
        ({"minhsah": {}}, 2, ["did you mean 'dedup.minhash'"]),
    ],
)  # fmt: skip
def test_refused(spark, tmp_path, capsys, dedup, code, words):
    source = write_table(tmp_path / "in", KEYS[:60], EMBEDDINGS[:60])
    (tmp_path / "conf.yaml").write_text(yaml.safe_dump(config_of(source, tmp_path / "run", dedup=dedup)))
    assert main(["run", str(tmp_path / "conf.yaml")]) == code
    message = capsys.readouterr().err
    for word in words:
        assert word in message
    assert "Traceback" not in message
    assert not (tmp_path / "run/run.json").exists()


def test_sweep_of_a_run_without_semantic_deduplication(spark, tmp_path, capsys):
    source = write_table(tmp_path / "in", KEYS[:60], EMBEDDINGS[:60])
    run(RunConfig.from_dict(config_of(source, tmp_path / "run", cluster={"n_clusters": 3})), spark)
    assert main(["sweep", str(tmp_path / "run")]) == 3
    assert "had no semantic deduplication" in capsys.readouterr().err
    assert open_run(tmp_path / "run").document["accounting"]["kept"] == 18


# What travels from the input, and what is written again.


def test_survivors_carry_what_is_read_more_than_once(spark, full_run):
    done, _ = full_run
    columns = {
        name: done.table(name, spark).columns for name in done.document["tables"] if name != "keep_trie"
    }
    assert done.document["stages"]["ingest"]["info"]["carried"] == {
        "checksum": "column_0",
        "caption": "column_1",
    }
    assert {"key", "vector", "column_0", "column_1", "problem"} < set(columns["samples"])
    assert columns["exact_survivors"] == ["key", "column_1"]  # texts for MinHash, no vectors
    assert columns["minhash_survivors"] == [
        "key",
        "vector",
    ]  # semantic deduplication goes over them three times
    assert columns["survivors"] == ["key", "vector"]
    keys = [
        done.document["stages"][f"{name}_survivors"]["rows"][f"{name}_survivors"]
        for name in ("exact", "minhash")
    ]
    assert keys == [N - 2, N - 3]  # without the bad row and one exact, then one MinHash duplicate


GIVEN = {"cluster_id": "cid", "centroids": "{tmp}/c.npy"}


@pytest.mark.parametrize(
    "given",
    [
        pytest.param(GIVEN, id="no distance", marks=pytest.mark.slow),
        pytest.param({**GIVEN, "distance_to_centroid": "dist"}, id="all three given", marks=pytest.mark.slow),
    ],
)
def test_given_clusters_are_deduplicated_without_vectors_in_the_survivors(spark, tmp_path, given):
    """Vectors that are read once more, or never, are not written again; the answer is that of the survivors alone."""
    centroids = np.eye(3, DIM, dtype=np.float32)
    vectors = oracle.unit(EMBEDDINGS[:120])
    labels, distances = oracle.assign(vectors, centroids)
    text = [f"text {i - 20 if 20 <= i < 30 else i}" for i in range(120)]
    more = {"cid": labels.astype(np.int32), "dist": distances.astype(np.float32), "text": text}
    np.save(tmp_path / "c.npy", centroids)
    write_table(tmp_path / "in", KEYS[:120], EMBEDDINGS[:120], n_files=2, **more)
    left = sorted(set(range(120)) - {max(i, i + 20, key=lambda row: KEYS[row]) for i in range(10)})
    write_table(
        tmp_path / "left",
        [KEYS[i] for i in left],
        EMBEDDINGS[left],
        2,
        **{k: np.array(v)[left] for k, v in more.items()},
    )
    given = {name: value.replace("{tmp}", str(tmp_path)) for name, value in given.items()}
    sections = {"input": given, "dedup": {"exact": {"columns": ["text"]}}}
    done = run(RunConfig.from_dict(config_of(tmp_path / "in", tmp_path / "run", **sections)), spark)
    alone = run(RunConfig.from_dict(config_of(tmp_path / "left", tmp_path / "alone", input=given)), spark)
    assert done.document["rows"]["survivors"] == 110
    assert "vector" not in done.table("survivors", spark).columns
    assert ("vector" in done.table("samples", spark).columns) == ("distance_to_centroid" not in given)
    assert done.document["digests"]["assignments"] == alone.document["digests"]["assignments"]
    assert done.document["digests"]["keep_list"] == alone.document["digests"]["keep_list"]
    assert len(verify(done, spark)) == 9


# Semantic deduplication within given clusters.

IDS = (np.arange(N) * 7 % 5 + 3).astype(np.int32)  # clusters that k-means would not find
FAR = (
    np.random.default_rng(8).uniform(0, 2, N).astype(np.float32).round(2)
)  # distances that nothing measured; ties
URLS = [
    f"https://example.org/{hashlib.sha256(bytes([i % 880 % 256, i % 880 // 256])).hexdigest()}"
    for i in range(N)
]
MIDDLES = oracle.unit(np.random.default_rng(9).standard_normal((8, DIM)))  # centroids that are no means


def run_within_given(
    spark, path, semantic: dict, distances: bool, centroids: bool, dedup=None, rows=slice(None)
):
    columns = {"cid": IDS[rows], "dist": FAR[rows], "url": URLS[rows]}
    write_table(path / "in", KEYS[rows], EMBEDDINGS[rows], n_files=3, **columns)
    np.save(path / "c.npy", MIDDLES)
    given = {"cluster_id": "cid"}
    given |= {"distance_to_centroid": "dist"} if distances else {}
    given |= {"centroids": str(path / "c.npy")} if centroids else {}
    dedup = {**(dedup or {}), "semantic": semantic}
    config = config_of(path / "in", path / "run", input=given, dedup=dedup)
    return run(RunConfig.from_dict(config), spark)


def assert_equals_the_rule(spark, done, semantic: dict, distances: np.ndarray, keys=KEYS, left=slice(None)):
    eps = semantic["eps"] if isinstance(semantic["eps"], list) else [semantic["eps"]]
    ruled = {
        value: oracle.semantic_duplicates(
            list(np.array(keys)[left]), oracle.unit(EMBEDDINGS[left]), IDS[left], distances[left], value,
            semantic.get("which_to_keep", "hard"), semantic.get("groups", "earlier"), semantic.get("seed", 0),
        )
        for value in eps
    }  # fmt: skip
    found = [row for row in rows_of(done.duplicates(spark)) if row[2] == "semantic"]
    assert [row[:2] for row in found] == [row[:2] for row in ruled[eps[0]]]
    assert [row["removed"] for row in done.semantic_sweep()] == [len(ruled[value]) for value in eps]
    assert len(ruled[eps[0]]) >= 10
    return found


@pytest.mark.parametrize(
    "semantic",
    [
        pytest.param({"eps": [0.05, 1e-9, 0.3]}, marks=pytest.mark.slow),
        *[
            pytest.param({"seed": 4, **semantic, "which_to_keep": which_to_keep}, marks=pytest.mark.slow)
            for which_to_keep, semantic in (
                ("hard", {"eps": 0.05, "groups": "connected"}),
                ("easy", {"eps": [0.3, 0.01, 1e-9, 1e-300]}),
                ("random", {"eps": 0.05, "groups": "connected"}),
            )
        ],
        pytest.param({"eps": 1e-9, "groups": "connected"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_semantic_deduplication_with_everything_given_is_the_published_rule(spark, tmp_path, semantic):
    """Sorted by the given distances, in the given clusters. Embeddings are read, for one step goes over them."""
    done = run_within_given(spark, tmp_path, semantic, distances=True, centroids=True)
    assert_equals_the_rule(spark, done, semantic, FAR)
    assigned = rows_of(done.table("semantic_assignments", spark))
    assert assigned == sorted(zip(KEYS, IDS.tolist(), FAR.tolist(), strict=True))
    found = {row.cluster_id: row.centroid for row in done.table("semantic_centroids", spark).collect()}
    assert found == {number: row.tolist() for number, row in enumerate(MIDDLES)}
    assert len(verify(done, spark)) == 9


@pytest.mark.slow
def test_given_distances_order_where_there_are_no_centroids(spark, tmp_path):
    semantic = {"eps": 0.3}
    done = run_within_given(spark, tmp_path, semantic, distances=True, centroids=False)
    assert_equals_the_rule(spark, done, semantic, FAR)
    assert "semantic_centroids" not in done.document["tables"]
    assert len(verify(done, spark)) == 9


@pytest.mark.slow
@pytest.mark.parametrize("centroids", [True, False])
def test_distances_that_are_not_given_are_to_the_given_centroids_or_to_the_means(spark, tmp_path, centroids):
    semantic = {"eps": 0.3}
    done = run_within_given(spark, tmp_path, semantic, distances=False, centroids=centroids)
    vectors = oracle.unit(EMBEDDINGS)
    means = oracle.unit(np.array([vectors[c == IDS].astype(float).sum(axis=0) for c in range(3, 8)]))
    of = MIDDLES[IDS] if centroids else means[IDS - 3]
    distances = (1 - np.einsum("ij,ij->i", vectors.astype(float), of.astype(float))).astype(np.float32)
    assert_equals_the_rule(spark, done, semantic, distances)
    stored = {row.cluster_id: row.centroid for row in done.table("semantic_centroids", spark).collect()}
    assert stored == (
        {i: row.tolist() for i, row in enumerate(MIDDLES)}
        if centroids
        else dict(enumerate(means.tolist(), 3))
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("others", "distances"), [("exact", True), ("minhash", False), ("both", True), ("both", False)]
)
def test_given_clusters_after_other_methods(spark, tmp_path, distances, others):
    """Survivors of the methods before keep their given clusters and distances."""
    methods = {"exact": {"columns": ["url"]}, "minhash": {"column": "url"}}
    dedup = {name: value for name, value in methods.items() if others in (name, "both")}
    semantic = {"eps": [0.3, 1e-9]}
    done = run_within_given(spark, tmp_path, semantic, distances, centroids=True, dedup=dedup)
    gone = {max(KEYS[i], KEYS[i + 880]) for i in range(20)}
    assert {row[0] for row in rows_of(done.duplicates(spark)) if row[2] != "semantic"} == gone
    left = [i for i in range(N) if KEYS[i] not in gone]
    measured = 1 - np.einsum("ij,ij->i", oracle.unit(EMBEDDINGS).astype(float), MIDDLES[IDS].astype(float))
    assert_equals_the_rule(
        spark, done, semantic, FAR if distances else measured.astype(np.float32), left=left
    )
    assert done.document["accounting"]["rows_in"] == N
    assert len(verify(done, spark)) == 9


@pytest.mark.slow
def test_given_centroids_that_do_not_fit_are_refused_before_anything_is_compared(spark, tmp_path):
    for name, centroids, words in (
        ("dimension", MIDDLES[:, :-1], f"has dimension {DIM - 1}, the embeddings have {DIM}"),
        ("lacking", MIDDLES[:7], "lacks 1 clusters that samples belong to, such as cluster_id 7"),
    ):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "c.npy", centroids)
        source = write_table(tmp_path / name / "in", KEYS[:50], EMBEDDINGS[:50], cid=IDS[:50], dist=FAR[:50])
        given = {
            "cluster_id": "cid",
            "distance_to_centroid": "dist",
            "centroids": str(tmp_path / name / "c.npy"),
        }
        config = config_of(source, tmp_path / name / "run", input=given, dedup={"semantic": {"eps": 0.1}})
        with pytest.raises(InputError, match=words):
            run(RunConfig.from_dict(config), spark)
        assert not (tmp_path / name / "run/tables/semantic_assignments").exists()


@pytest.mark.slow
def test_eps_below_rounding(spark, tmp_path, capsys):
    """Case 15: of two byte-identical vectors one is removed, though rounding makes their product 1 - 4e-9."""
    base = np.random.default_rng(5).normal(size=(40, 384)).astype(np.float32)
    source = write_table(tmp_path / "in", KEYS[:80], np.repeat(base, 2, axis=0))
    semantic = {"eps": [1e-9, 1e-6, 1e-20], "n_clusters": 1}
    done = run(RunConfig.from_dict(config_of(source, tmp_path / "run", dedup={"semantic": semantic})), spark)
    assert [row["removed"] for row in done.semantic_sweep()] == [40, 40, 40]
    assert {row[3] for row in rows_of(done.duplicates(spark))} == {1.0}
    assert main(["sweep", done.path]) == 0
    shown = [line.split()[1] for line in capsys.readouterr().out.splitlines()[1:3]]
    assert shown == ["0.999999999", "0.999999"]


# pyspark 3.5 cannot read the schema of a table with an interval of this kind, whatever the job looks at.
INTERVALS = [] if pyspark.__version__.startswith("3.") else ["array(make_interval(0, 1))"]


@pytest.mark.parametrize("value", ["map('a', id)", "named_struct('m', map('a', id))", *INTERVALS])
def test_values_that_cannot_be_compared_are_refused_before_anything_is_read(spark, tmp_path, value):
    spark.sql(
        f"SELECT concat('k', id) AS key, array(1F, 2F) AS embedding, {value} AS value FROM range(1, 11)"
    ).createOrReplaceTempView("no_order_view")
    config = config_of("", tmp_path / "run", cluster={"n_clusters": 1})
    config["input"] = {"table": "no_order_view"}
    for section, words in (
        ({"columns": ["value"]}, r"dedup\.exact\.columns: 'value' is .* and cannot be compared"),
        ({"columns": ["key"], "order_by": "value"}, r"dedup\.exact\.order_by: 'value' cannot be ordered"),
    ):
        with pytest.raises(InputError, match=words):
            run(RunConfig.from_dict({**config, "dedup": {"exact": section}}), spark)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("value", "order"),
    [
        ("make_ym_interval(0, cast(id % 50 as int))", "make_ym_interval(0, cast(-id as int))"),
        ("make_dt_interval(cast(id % 50 as int))", "date_add(DATE'2020-01-01', cast(-id as int))"),
        ("named_struct('a', id % 50, 'b', array(id % 50))", "-id"),
        ("cast(id % 50 as decimal(20, 3))", "timestamp_seconds(-id)"),
        ("double(id % 50)", "string(1000 - id)"),
        ("null", "-id"),
        (
            "named_struct('a b', make_ym_interval(0, cast(id % 50 as int)), 'c.d', array(make_ym_interval(-1, 1)))",
            "named_struct('x', make_ym_interval(0, cast(-id as int)))",
        ),
    ],
)
def test_columns_of_any_type_travel(spark, tmp_path, value, order):
    """Of rows with equal values the one with the last id survives; with the columns as they are or carried."""
    view = "carried_view"
    spark.sql(
        f"SELECT concat('k', id) AS key, array(float(id), 1F, 2F) AS embedding, {value} AS value, {order} AS first "
        "FROM range(1, 101)"
    ).createOrReplaceTempView(view)
    config = config_of("", tmp_path / "run", cluster={"n_clusters": 3})
    config["input"] = {"table": view}
    config["dedup"] = {"exact": {"columns": ["value"], "order_by": "first"}}
    done = run(RunConfig.from_dict(config), spark)
    expected = [] if value == "null" else sorted((f"k{i}", f"k{i + 50}") for i in range(1, 51))
    assert rows_of(done.duplicates(spark).select("key", "duplicate_of")) == expected
    alone = exact_dedup(spark.table(view), columns=["value"], order_by="first")
    assert rows_of(alone) == rows_of(done.duplicates(spark))
