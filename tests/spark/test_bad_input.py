"""Bad inputs as a table: each through the real command's main(), exit code, message, nothing written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import config_of, make_embeddings, make_keys, write_table

from spark_dbp.cli import main

N, DIM = 60, 4
KEYS = make_keys(N)
ROWS = [row.tolist() for row in make_embeddings(N, DIM, 3)]


def with_row(row: object, at: int = 7) -> list:
    return [*ROWS[:at], row, *ROWS[at + 1 :]]


def table(path: Path, keys=KEYS, rows=ROWS, type_=None, n_files=1, **more) -> Path:
    type_ = type_ or pa.list_(pa.float32())
    return write_table(path, keys, pa.array(rows, type_), n_files, **more)


def truncated(path: Path) -> Path:
    table(path, n_files=3)
    victim = path / "00001.parquet"
    victim.write_bytes(victim.read_bytes()[:-300])
    return path


def damaged_page(path: Path) -> Path:
    table(path, n_files=2)
    victim = path / "00001.parquet"
    raw = bytearray(victim.read_bytes())
    raw[4:200] = b"\xff" * 196
    victim.write_bytes(bytes(raw))
    return path


def not_parquet(path: Path) -> Path:
    path.mkdir()
    (path / "x.parquet").write_text("key,embedding\n")
    return path


def clustered(path: Path, ids, distances=None) -> Path:
    more = {"cid": ids} if distances is None else {"cid": ids, "dist": distances}
    return table(path, **more)


def centroids(path: Path, content: object) -> str:
    if isinstance(content, np.ndarray):
        np.save(path.with_suffix(".npy"), content, allow_pickle=True)
        return str(path.with_suffix(".npy"))
    pq.write_table(content, path.with_suffix(".parquet"))
    return str(path.with_suffix(".parquet"))


IDS = [i % 3 for i in range(N)]
GIVEN = {"cluster_id": "cid"}
KEY = KEYS[7]

# name: (write the input, sections of the configuration, exit code, what the message says)
CASES = {
    "missing path": (lambda p: p, {}, 3, ["no such path", "in", "input.path"]),
    "empty directory": (lambda p: p.mkdir() or p, {}, 3, ["no Parquet files"]),
    "empty table": (lambda p: _empty(p), {}, 3, ["no rows"]),
    "missing table": (None, {"input": {"path": None, "table": "no.such_table"}}, 3, ["no such table", "no"]),
    "missing key column": (table, {"input": {"key": "kee"}}, 3, ["input.key", "'kee'", "did you mean 'key'"]),
    "missing embedding column": (
        table, {"input": {"embedding": "clip"}}, 3, ["input.embedding", "'clip'", "key, embedding"],
    ),
    "embedding of strings": (
        lambda p: table(p, rows=["x"] * N, type_=pa.string()), {}, 3, ["'embedding' is STRING", "ARRAY<FLOAT>"],
    ),
    "embedding of integers": (
        lambda p: table(p, rows=[[1, 2]] * N, type_=pa.list_(pa.int32())), {}, 3, ["ARRAY<INT>", "cast"],
    ),
    "key of arrays": (lambda p: table(p, keys=[[k] for k in KEYS]), {}, 3, ["input.key", "ARRAY<STRING>"]),
    "two dimensions": (
        lambda p: table(p, rows=with_row([1.0, 2.0])), {}, 3, ["another dimension: 1 row", "2 where most have 4", KEY],
    ),
    "null embedding": (lambda p: table(p, rows=with_row(None)), {}, 3, ["null embedding: 1 row", KEY]),
    "null inside": (
        lambda p: table(p, rows=with_row([1.0, None, 2.0, 3.0])), {}, 3, ["null inside the embedding", KEY],
    ),
    "NaN": (lambda p: table(p, rows=with_row([float("nan")] * 4)), {}, 3, ["NaN or Inf", KEY]),
    "Inf": (lambda p: table(p, rows=with_row([float("-inf"), 1, 1, 1])), {}, 3, ["NaN or Inf", KEY]),
    "zero vector": (lambda p: table(p, rows=with_row([0.0] * 4)), {}, 3, ["zero vector: 1 row", KEY, "on_bad_rows"]),
    "empty embedding": (lambda p: table(p, rows=with_row([])), {}, 3, ["empty embedding", KEY]),
    "broken bytes": (
        lambda p: table(p, rows=[b"12345"] * N, type_=pa.binary()), {}, 3, ["not a whole number of float32"],
    ),
    "only bad rows, dropped": (
        lambda p: table(p, rows=[None] * N), {"input": {"on_bad_rows": "drop"}}, 3, ["no usable row", "60 rows"],
    ),
    "duplicate keys": (
        lambda p: table(p, keys=[*KEYS[:-2], KEYS[0], KEYS[0]]), {}, 3, ["1 key is not unique", f"{KEYS[0]!r} (3 times)"],
    ),
    "duplicate keys, dropping": (
        lambda p: table(p, keys=[KEYS[1], *KEYS[1:]]), {"input": {"on_bad_rows": "drop"}}, 3, ["not unique", KEYS[1]],
    ),
    "null key": (lambda p: table(p, keys=[None, *KEYS[1:]]), {}, 3, ["null key: 1 row"]),
    "more clusters than rows": (table, {"cluster": {"n_clusters": 61}}, 3, ["cluster.n_clusters is 61", "60 rows"]),
    "n_keep above the rows": (
        table, {"prune": {"keep_ratio": None, "n_keep": 61}}, 3, ["prune.n_keep 61 of 60", "between 1 and 60"],
    ),
    "n_keep below the floors": (
        table, {"prune": {"keep_ratio": 0.1}}, 3, ["cannot keep 6", "at least 12", "min_per_cluster"],
    ),
    "keeps nothing": (table, {"prune": {"keep_ratio": 0.001}}, 3, ["prune.keep_ratio 0.001 of 60"]),
    "filter leaves nothing": (table, {"input": {"filter": "key = ''"}}, 3, ["no rows", "input.filter"]),
    "filter is no SQL": (table, {"input": {"filter": "key = = 1"}}, 2, ["input.filter", "key = = 1"]),
    "filter on no column": (table, {"input": {"filter": "width > 3"}}, 2, ["input.filter", "width"]),
    "truncated file": (truncated, {}, 3, ["cannot read", "00001.parquet"]),
    "damaged page": (damaged_page, {}, 3, ["cannot read", "00001.parquet"]),
    "not Parquet": (not_parquet, {}, 3, ["cannot read", "x.parquet"]),
    "null cluster_id": (lambda p: clustered(p, [None, *IDS[1:]]), {"input": GIVEN}, 3, ["null cluster_id", KEYS[0]]),
    "negative cluster_id": (lambda p: clustered(p, [-1, *IDS[1:]]), {"input": GIVEN}, 3, ["cluster_id below 0", KEYS[0]]),
    "cluster_id beyond INT": (lambda p: clustered(p, [2**31, *IDS[1:]]), {"input": GIVEN}, 3, ["above 2147483647"]),
    "cluster_id of strings": (lambda p: clustered(p, ["a"] * N), {"input": GIVEN}, 3, ["input.cluster_id", "STRING"]),
    "distance outside": (
        lambda p: clustered(p, IDS, [2.5, *[0.1] * (N - 1)]),
        {"input": {**GIVEN, "distance_to_centroid": "dist"}}, 3, ["outside [0, 2]", KEYS[0]],
    ),
    "distance NaN": (
        lambda p: clustered(p, IDS, [float("nan"), *[0.1] * (N - 1)]),
        {"input": {**GIVEN, "distance_to_centroid": "dist"}}, 3, ["distance_to_centroid null, NaN", KEYS[0]],
    ),
    "distance of integers": (
        lambda p: clustered(p, IDS, [1] * N), {"input": {**GIVEN, "distance_to_centroid": "dist"}}, 3, ["BIGINT"],
    ),
    "trie key is no SQL": (table, {"trie": {"key": "concat(key"}}, 2, ["trie.key"]),
    "trie key on no column": (table, {"trie": {"key": "uid"}}, 2, ["trie.key", "uid"]),
    "trie key is null": (table, {"trie": {"key": "nullif(rank, 1)"}}, 3, ["trie.key", "is null for"]),
    "unknown key": (table, {"prune": {"keep_ratoi": 0.1}}, 2, ["prune.keep_ratoi", "did you mean 'prune.keep_ratio'"]),
    "keep_ratio 0": (table, {"prune": {"keep_ratio": 0}}, 2, ["prune.keep_ratio", "greater than 0"]),
    "keep_ratio negative": (table, {"prune": {"keep_ratio": -1}}, 2, ["prune.keep_ratio"]),
    "keep_ratio above 1": (table, {"prune": {"keep_ratio": 1.5}}, 2, ["prune.keep_ratio"]),
    "keep_ratio NaN": (table, {"prune": {"keep_ratio": float("nan")}}, 2, ["prune.keep_ratio", "finite"]),
    "temperature 0": (table, {"prune": {"temperature": 0}}, 2, ["prune.temperature"]),
}  # fmt: skip


def _empty(path: Path) -> Path:
    path.mkdir()
    pq.write_table(
        pa.table({"key": pa.array([], pa.string()), "embedding": pa.array([], pa.list_(pa.float32()))}),
        path / "none.parquet",
    )
    return path


def run_main(tmp_path: Path, sections: dict, source: object, capsys) -> tuple[int, str]:
    values = config_of(source, tmp_path / "run", **sections)
    if values["input"]["path"] is None:
        del values["input"]["path"]
    (tmp_path / "conf.yaml").write_text(yaml.safe_dump(values))
    capsys.readouterr()
    code = main(["run", str(tmp_path / "conf.yaml")])
    return code, capsys.readouterr().err


@pytest.mark.parametrize("case", CASES)
def test_refused(spark, tmp_path, capsys, case):
    write, sections, exit_code, words = CASES[case]
    source = write(tmp_path / "in") if write else ""
    code, message = run_main(tmp_path, sections, source, capsys)
    assert code == exit_code, message
    for word in words:
        assert word in message
    assert "Traceback" not in message
    assert "to mend it" in message
    assert "\tat " not in message
    assert not (tmp_path / "run/run.json").exists()
    if not case.startswith(("trie", "n_keep below")):  # these are found out after good stages were committed
        assert not (tmp_path / "run").exists()


def matrix(k: int = 3, dim: int = DIM) -> np.ndarray:
    return np.ones((k, dim), dtype=np.float32)


def parquet(ids, vectors) -> pa.Table:
    return pa.table({"cluster_id": ids, "centroid": pa.array(vectors, pa.list_(pa.float32()))})


ONE = [1.0] * DIM
CENTROIDS = {
    "another dimension": (matrix(dim=5), ["has dimension 5, the embeddings have 4"]),
    "a cluster is missing": (matrix(2), ["lacks 1 clusters", "cluster_id 2"]),
    "not a matrix": (np.ones(4, np.float32), ["shape (4,)"]),
    "integers": (np.ones((3, 4), np.int32), ["type int32"]),
    "pickled objects": (np.array([{"a": 1}], dtype=object), ["no plain .npy matrix", "never read"]),
    "NaN": (np.full((3, 4), np.nan, np.float32), ["cluster 0 has NaN or Inf"]),
    "zero": (np.zeros((3, 4), np.float32), ["cluster 0 is zero"]),
    "null": (parquet([0, 1, 2], [ONE, None, ONE]), ["cluster 1: null centroid"]),
    "two dimensions": (parquet([0, 1, 2], [ONE, ONE, [1.0]]), ["several dimensions: [1, 4]"]),
    "an id twice": (parquet([0, 1, 1], [ONE] * 3), ["cluster_id 1 occurs more than once"]),
    "a null id": (parquet([0, 1, None], [ONE] * 3), ["null cluster_id"]),
    "a negative id": (parquet([0, 1, -2], [ONE] * 3), ["between 0 and 2147483647"]),
    "no rows": (parquet(pa.array([], pa.int32()), []), ["has no rows"]),
    "other columns": (pa.table({"id": [1]}), ["no column 'cluster_id'"]),
}


@pytest.mark.parametrize("case", CENTROIDS)
def test_given_centroids_refused(spark, tmp_path, capsys, case):
    content, words = CENTROIDS[case]
    given = {**GIVEN, "centroids": centroids(tmp_path / "c", content)}
    code, message = run_main(tmp_path, {"input": given}, clustered(tmp_path / "in", IDS), capsys)
    assert code == 3, message
    for word in words:
        assert word in message
    assert "Traceback" not in message
    assert not (tmp_path / "run/run.json").exists()


def test_centroids_file_missing(spark, tmp_path, capsys):
    for name in ("none.npy", "none.parquet"):
        given = {**GIVEN, "centroids": str(tmp_path / name)}
        (tmp_path / name.replace(".", "-")).mkdir()
        source = clustered(tmp_path / name.replace(".", "-") / "in", IDS)
        code, message = run_main(tmp_path, {"input": given}, source, capsys)
        assert code == 3
        assert name in message


def test_a_truncated_file_fails_by_name_whatever_the_session_says(spark, tmp_path, capsys):
    spark.conf.set("spark.sql.files.ignoreCorruptFiles", "true")
    try:
        code, message = run_main(tmp_path, {}, truncated(tmp_path / "in"), capsys)
        assert spark.conf.get("spark.sql.files.ignoreCorruptFiles") == "true"  # the user's setting is back
    finally:
        spark.conf.unset("spark.sql.files.ignoreCorruptFiles")
    assert code == 3
    assert "00001.parquet" in message


def test_output_directory_that_holds_something_else(spark, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/thesis.tex").write_text("precious")
    code, message = run_main(tmp_path, {}, table(tmp_path / "in"), capsys)
    assert code == 2
    assert "thesis.tex" in message
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["thesis.tex"]


def test_a_committed_run_survives_a_refused_one(spark, tmp_path, capsys):
    assert run_main(tmp_path, {}, table(tmp_path / "in"), capsys)[0] == 0
    before = (tmp_path / "run/run.json").read_bytes()
    code, _ = run_main(tmp_path, {}, table(tmp_path / "in2", rows=with_row(None)), capsys)
    assert code == 3
    assert (tmp_path / "run/run.json").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (["select", "{tmp}/none", "--out", "{tmp}/o"], 3, "no finished run"),
        (["select", "{tmp}/run", "--out", "{tmp}/run"], 2, "is the run to prune again"),
        (["select", "{tmp}/run", "--out", "{tmp}/o", "--set", "cluster.n_clusters=3"], 2, "cannot change"),
        (["select", "{tmp}/run", "--out", "{tmp}/o", "--set", "prune.keep_ratio=2"], 2, "prune.keep_ratio"),
        (
            ["select", "{tmp}/run", "--out", "{tmp}/o", "--set", "prune.n_keep=1000"],
            3,
            "prune.n_keep 1,000 of 60",
        ),
        (["run", "{tmp}/none.yaml"], 2, "none.yaml"),
        (["run", "{tmp}/conf.yaml", "--set", "prune.keep_ratio"], 2, "section.key=value"),
    ],
)
def test_commands_refused(spark, tmp_path, capsys, arguments, code, word):
    assert run_main(tmp_path, {}, table(tmp_path / "in"), capsys)[0] == 0
    assert main([a.format(tmp=tmp_path) for a in arguments]) == code
    message = capsys.readouterr().err
    assert word in message
    assert "Traceback" not in message
    assert not (tmp_path / "o/run.json").exists()
