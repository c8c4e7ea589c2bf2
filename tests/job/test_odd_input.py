"""Odd inputs that are good, through the real command: what the plain oracle says must come out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import oracle
import pyarrow as pa
import pytest
from bad_inputs import BIG, DIM, F32, IDS, KEY, KEYS, PROCESSES, ROWS, Case, N, in_files, prepare, table
from conftest import make_embeddings, rows_of, write_table

from spark_dbp import open_run

ODD_KEYS = [
    "../x", "/etc/passwd", "a/../../b", "a\nb", "\r\n", "nul\0in", "\0", "'", '"', "\\", "\U0001f642", "x" * 10240, "",
    " ", "  ", "%00", "e\u0301", "\u00e9", "\ufeff", "\u2028", "`; DROP TABLE x", "${jndi:ldap://x}", "-1", "null", "NaN",
]  # fmt: skip


@pytest.mark.slow
def test_odd_keys_come_through_unchanged(command, spark, tmp_path):
    keys = ODD_KEYS + KEYS[len(ODD_KEYS) :]
    embeddings = make_embeddings(N, DIM, 3)
    prepare(
        tmp_path,
        Case(0, [], lambda path: write_table(path, keys, embeddings, 2), {"prune": {"keep_ratio": 0.8}}),
    )
    done = command(["run", tmp_path / "conf.yaml"])
    assert done.code == 0, done.err
    answer = oracle.run(keys, embeddings, n_clusters=12, n_iter=8, keep_ratio=0.8)
    run = open_run(tmp_path / "run")
    assert rows_of(run.assignments(spark)) == answer.assignments
    assert rows_of(run.keep_list(spark)) == answer.keep_list
    kept = {row[0] for row in answer.keep_list}
    assert kept & set(ODD_KEYS)
    trie = run.keep_trie()
    assert {key for key in keys if key in trie} == kept
    assert len(trie) == len(kept)
    assert not any(key in trie for key in ("..", "x", "x" * 32, "\udcff"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "embedding", "text"),
    [
        ("a.b", "`", '"; DROP TABLE x'),
        pytest.param("good_key", "_metadata", "two\n\U0001f642 %s {x} \\", marks=pytest.mark.long),
    ],
)
def test_odd_column_names(command, spark, tmp_path, key, embedding, text):
    """In every role, with deduplication over dropped rows, where tables are joined."""
    embeddings = make_embeddings(N, DIM, 3)
    table = pa.table(
        {
            key: [*KEYS, "bad", "copy"],
            embedding: pa.array([*embeddings.tolist(), None, embeddings[5].tolist()], F32),
            text: [*(f"caption {number}" * 3 for number in range(N)), "bad", "caption 0" * 3],
        }
    )
    sections = {
        "input": {"key": key, "embedding": embedding, "on_bad_rows": "drop", "filter": f"`{text}` <> ''"},
        "dedup": {
            "exact": {"columns": [text], "order_by": key},
            "minhash": {"column": text, "threshold": 1.0},
        },
    }
    prepare(tmp_path, Case(0, [], lambda path: in_files(path, table), sections))
    done = command(["run", tmp_path / "conf.yaml"])
    assert done.code == 0, done.err
    run = open_run(tmp_path / "run")
    first = min("copy", KEYS[0])
    keys = [first, *KEYS[1:]]
    used = embeddings if first == KEYS[0] else np.array([embeddings[5], *embeddings[1:]])
    answer = oracle.run(keys, used, n_clusters=12, n_iter=8, keep_ratio=0.3)
    assert rows_of(run.keep_list(spark)) == answer.keep_list
    assert rows_of(run.duplicates(spark).select("key", "method")) == [(max("copy", KEYS[0]), "exact")]


@pytest.mark.slow
def test_odd_column_names_of_clustered_data(command, spark, tmp_path):
    names = {"key": '"; DROP TABLE x', "cluster_id": "my cluster.id", "distance_to_centroid": "d`\U0001f642"}
    distances = np.float32([0.01 * number for number in range(N)])
    table = pa.table(dict(zip(names.values(), (KEYS, IDS, distances), strict=True)))
    prepare(
        tmp_path,
        Case(0, [], lambda path: in_files(path, table), {"input": {**names, "centroids": "{tmp}/c.npy"}}),
    )
    np.save(tmp_path / "c.npy", np.eye(3, 4, dtype=np.float32))
    assert command(["run", tmp_path / "conf.yaml"]).code == 0
    expected = [(key, cluster, float(d)) for key, cluster, d in zip(KEYS, IDS, distances, strict=True)]
    assert rows_of(open_run(tmp_path / "run").assignments(spark)) == sorted(expected)


def as_columns_that_differ_in_case(path: Path, embeddings: np.ndarray) -> None:
    write_table(path, KEYS, embeddings, KEY=["other"] * N)


# name: (scale, type of the values, how to write, sections)
ODD_NUMBERS = {
    "far beyond float32": (1e300, np.float64, write_table, {}),
    "denormal in float64": (1e-310, np.float64, write_table, {}),
    "settings without bounds": (
        1, np.float32, write_table, {"prune": {"temperature": 1e-320, "n_neighbors": BIG}},
    ),
    "columns that differ in case": (
        1, np.float32, None, {"spark": {"spark.sql.caseSensitive": True, "spark.no.such.setting": 1}},
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", ODD_NUMBERS)
def test_odd_numbers(command, spark, tmp_path, name):
    scale, type_, write, sections = ODD_NUMBERS[name]
    embeddings = make_embeddings(N, DIM, 3).astype(type_) * type_(scale)

    def write_input(path: Path) -> None:
        if write is None:
            as_columns_that_differ_in_case(path, embeddings)
        else:
            write(path, KEYS, embeddings)

    prepare(tmp_path, Case(0, [], write_input, sections))
    done = command(["run", tmp_path / "conf.yaml"])
    assert done.code == 0, done.err
    assert "Warning" not in done.err
    # Near the ends of float64's range squares overflow: the oracle gets the same directions in the middle of it.
    middle = embeddings / np.abs(embeddings).max(axis=1, keepdims=True) if scale != 1 else embeddings
    answer = oracle.run(KEYS, middle, n_clusters=12, n_iter=8, keep_ratio=0.3, **sections.get("prune", {}))
    kept = rows_of(open_run(tmp_path / "run").keep_list(spark))
    assert [(row[0], row[1], row[3]) for row in kept] == [(r[0], r[1], r[3]) for r in answer.keep_list]


@pytest.mark.slow
def test_embeddings_all_the_same_and_one_row(command, spark, tmp_path):
    prepare(tmp_path, Case(0, [], lambda path: table(path, rows=[ROWS[0]] * N)))
    assert command(["run", tmp_path / "conf.yaml"]).code == 0
    run = open_run(tmp_path / "run")
    assert rows_of(run.keep_list(spark).select("key", "rank")) == [
        (key, rank) for rank, key in enumerate(sorted(KEYS)[:18], start=1)
    ]
    one = ["--set", "input.filter=" + f"key = '{KEY}'", "cluster.n_clusters=1", "prune.keep_ratio=1.0"]
    assert command(["run", tmp_path / "conf.yaml", *one]).code == 0
    assert [row[0] for row in rows_of(open_run(tmp_path / "run").keep_list(spark))] == [KEY]


@pytest.mark.slow
def test_embeddings_of_16384_dimensions(command, spark, tmp_path):
    embeddings = make_embeddings(40, 16_384, 3)
    prepare(
        tmp_path,
        Case(0, [], lambda path: write_table(path, KEYS[:40], embeddings), {"cluster": {"n_clusters": 4}}),
    )
    assert command(["run", tmp_path / "conf.yaml"]).code == 0
    answer = oracle.run(KEYS[:40], embeddings, n_clusters=4, n_iter=8, keep_ratio=0.3)
    assert rows_of(open_run(tmp_path / "run").keep_list(spark)) == answer.keep_list


@pytest.mark.slow
def test_many_shards_of_few_keys_take_no_task_each(command, tmp_path):
    prepare(tmp_path, Case(0, [], table, {"trie": {"shards": 20_000}}))
    assert command(["run", tmp_path / "conf.yaml"]).code == 0
    trie = open_run(tmp_path / "run").keep_trie()
    assert len(trie) == sum(key in trie for key in KEYS) == 18


@pytest.mark.slow
def test_thousands_of_tiny_files(command, spark, tmp_path):
    n = 10_000 if PROCESSES else 1_000
    embeddings, keys = make_embeddings(n, DIM, 6), [f"key-{number:06d}" for number in range(n)]

    def write(path: Path) -> None:
        """One row a file: the bytes of a template with another key and embedding."""
        mark = np.float32([1.5, 2.5, 3.5, 4.5])
        in_files(path, pa.table({"key": ["key-xxxxxx"], "embedding": pa.array([mark.tolist()], F32)}),
                 compression="none", use_dictionary=False, write_statistics=False)  # fmt: skip
        template = (path / "00000.parquet").read_bytes()
        assert (template.count(b"key-xxxxxx"), template.count(mark.tobytes())) == (1, 1)
        for number, (key, row) in enumerate(zip(keys, embeddings, strict=True)):
            content = template.replace(b"key-xxxxxx", key.encode()).replace(mark.tobytes(), row.tobytes())
            (path / f"{number:05d}.parquet").write_bytes(content)

    prepare(tmp_path, Case(0, [], write))
    done = command(["run", tmp_path / "conf.yaml"])
    assert done.code == 0, done.err
    run = open_run(tmp_path / "run")
    assert run.document["input"]["files"] == n
    assert (
        rows_of(run.keep_list(spark))
        == oracle.run(keys, embeddings, n_clusters=12, n_iter=8, keep_ratio=0.3).keep_list
    )
    written = list(Path(run.table_path("assignments")).glob("*.parquet"))
    assert len(written) < n / 100  # a file for each of the input's would be a task for each
