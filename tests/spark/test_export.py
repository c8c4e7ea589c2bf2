"""Exports of whole runs, read back as those read them that they are for."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyspark
import pytest
from conftest import VIEW, config_of, make_embeddings, rows_of, write_table

from spark_dbp import RunConfig, explain, export, open_run, prune_again, read_embeddings, run, verdicts
from spark_dbp.cli import main
from spark_dbp.engine import sorted_rows
from spark_dbp.errors import ConfigError, DamagedRunError, InputError
from spark_dbp.exchange.exported_rows import find_dropped, group_reasons

pytestmark = pytest.mark.slow

IS_SPARK_35 = pyspark.__version__.startswith("3.5.")
N, DIM, K = 300, 8, 6
EMBEDDINGS = make_embeddings(N, DIM, 5)
EMBEDDINGS[250:260] = EMBEDDINGS[:10]  # semantic duplicates
KEYS = [f"{i % 3}/{i // 30:05d}/{i:09d}.jpg" for i in range(N)]
KEYS[7] = "0/00000/a b 'q\" é.jpg"
BAD = ["bad/1", "bad/1", "bad/2", KEYS[3], None]  # one key twice, one of a good row
PAIRS = [i // 2 if i < 20 else i for i in range(N)]
SCORES = [None if i == 77 else float(i % 40) for i in range(N)]


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    nan = np.full((len(BAD), DIM), np.nan, np.float32)
    more = [*range(1000, 1000 + len(BAD))]
    return write_table(
        tmp_path_factory.mktemp("data") / "in", [*KEYS, *BAD], np.concatenate([EMBEDDINGS, nan]), n_files=3,
        pair=[*PAIRS, *more], score=[*SCORES, *[1.0] * len(BAD)], number=[*range(N), *more],
    )  # fmt: skip


def run_with(spark, source, path: Path, engine: str, **dedup):
    """A run with many reasons to leave rows out."""
    sections = {
        "input": {"filter": "number <> 5", "on_bad_rows": "drop"},
        "cluster": {"n_clusters": K, "n_iter": 1},
        "dedup": {"exact": {"columns": ["pair"]}, **dedup},
        "score_filter": {"column": "score", "at_least": 3},
    }
    return run(RunConfig.from_dict({**config_of(source, path, **sections), "engine": engine}), spark)


@pytest.fixture(scope="module")
def done(spark, source, tmp_path_factory):
    return run_with(spark, source, tmp_path_factory.mktemp("runs") / "arrow", "arrow")


@pytest.fixture(scope="module")
def kept(spark, done) -> dict[str, tuple]:
    return {row.key: (row.cluster_id, row.distance_to_centroid) for row in done.keep_list(spark).collect()}


def read_tree(path: Path) -> dict[str, bytes]:
    if path.is_file():
        return {"": path.read_bytes()}
    return {
        file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob("*") if file.is_file()
    }


UIDS = "md5(key)"
EVERY_FORMAT = {
    "txt": {},
    "datacomp": {"key": "upper(md5(key))"},
    "npy": {"key": "cast(conv(substr(md5(key), 1, 8), 16, 10) AS BIGINT)"},
    "semdedup": {"row": "none"},
    "curator": {},
    "clip_retrieval": {},
    "shard_counts": {},
}


@pytest.mark.parametrize("to", EVERY_FORMAT)
def test_the_bytes_do_not_depend_on_partitions(spark, done, tmp_path, monkeypatch, to):
    report = export(done, to, tmp_path / "one", spark, **EVERY_FORMAT[to])
    one = read_tree(tmp_path / "one")
    assert (report.n_files, report.n_bytes) == (len(one), sum(map(len, one.values())))
    monkeypatch.setattr(sorted_rows, "_PART_BYTES", 900)  # many partitions
    monkeypatch.setattr(sorted_rows, "_SENT_ROWS", 7)
    export(done, to, tmp_path / "two", spark, **EVERY_FORMAT[to])
    assert read_tree(tmp_path / "two") == one


def test_the_bytes_do_not_depend_on_the_engine(spark, source, tmp_path):
    semantic = {"eps": 0.01, "n_clusters": 3, "n_iter": 3}
    done, other = (
        run_with(spark, source, tmp_path / name, name, semantic=semantic) for name in ("arrow", "sql")
    )
    n_rows = done.document["accounting"]["dropped"]["semantic duplicates"]
    assert n_rows
    assert export(done, "txt", tmp_path / "x", spark, rows="dropped", reason="semantic").n_rows == n_rows
    found = (tmp_path / "x").read_text().splitlines()
    assert found == sorted(row.key for row in done.duplicates(spark).where("method = 'semantic'").collect())
    for to, options in EVERY_FORMAT.items():
        for path, of in ((tmp_path / "one" / to, done), (tmp_path / "two" / to, other)):
            export(of, to, path, spark, **options)
        assert read_tree(tmp_path / "one" / to) == read_tree(tmp_path / "two" / to), to


def test_lines(spark, done, kept, tmp_path):
    report = export(done.path, "txt", tmp_path / "kept.txt", spark)
    content = (tmp_path / "kept.txt").read_bytes()
    assert content.split(b"\n") == [*sorted(key.encode() for key in kept), b""]
    assert report.n_rows == len(kept)


def test_a_subset_of_datacomp(spark, done, kept, tmp_path):
    export(done, "datacomp", tmp_path / "x.npy", spark, key=UIDS)
    export(done, "datacomp", tmp_path / "y.npy", spark, key="encode(upper(md5(key)), 'utf-8')")
    assert (tmp_path / "x.npy").read_bytes() == (tmp_path / "y.npy").read_bytes()
    subset = np.load(tmp_path / "x.npy", allow_pickle=False)
    assert subset.dtype == np.dtype("u8,u8")
    for key in KEYS:
        number = int(hashlib.md5(key.encode()).hexdigest(), 16)
        wanted = np.array([divmod(number, 2**64)], "u8,u8")[0]
        found = np.searchsorted(subset, wanted, "right") - np.searchsorted(subset, wanted, "left")
        assert found == (key in kept)


def test_row_numbers(spark, tmp_path, done):
    """Keys that are row numbers, of a run of clusters that were given: it has no vectors."""
    numbers = np.arange(1000, dtype=np.int64)[::-1].copy()
    distances = np.random.default_rng(3).random(1000).astype(np.float32)
    np.save(tmp_path / "centroids.npy", np.eye(4, DIM, dtype=np.float32))
    columns = {"key": numbers, "cluster": (numbers % 3).astype(np.int32), "distance": distances}
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table(columns), tmp_path / "in" / "x.parquet")
    given = {
        "cluster_id": "cluster",
        "distance_to_centroid": "distance",
        "centroids": str(tmp_path / "centroids.npy"),
    }
    clustered = run(RunConfig.from_dict({
        "input": {"path": str(tmp_path / "in"), **given}, "output": {"path": str(tmp_path / "run")},
        "prune": {"keep_ratio": 0.1},
    }), spark)  # fmt: skip
    kept = {row.key: row for row in clustered.keep_list(spark).collect()}
    export(clustered, "npy", tmp_path / "x.npy", spark)
    found = np.load(tmp_path / "x.npy", allow_pickle=False)
    assert found.dtype == np.int64
    assert found.tolist() == sorted(kept)
    export(clustered, "txt", tmp_path / "x.txt", spark)
    assert (tmp_path / "x.txt").read_text().split() == sorted(map(str, kept))
    export(clustered, "curator", tmp_path / "ids", spark)
    assert pq.read_schema(tmp_path / "ids/duplicates/part-00000.parquet").field("id").type == pa.int64()
    # Cluster 3 has a centroid and no rows.
    export(clustered, "semdedup", tmp_path / "clusters", spark, row="key")
    folder = tmp_path / "clusters" / "sorted_clusters"
    assert np.load(folder / "cluster_3.npy").shape == (0,)
    for cluster in range(3):
        rows = np.load(folder / f"cluster_{cluster}.npy", allow_pickle=False)
        expected = sorted(
            (row for row in kept.values() if row.cluster_id == cluster),
            key=lambda row: (-row.distance_to_centroid, str(row.key).encode()),
        )
        assert rows[:, 1].astype("int32").tolist() == [row.key for row in expected]
        assert rows[:, 2].astype("float32").tolist() == [row.distance_to_centroid for row in expected]
    with pytest.raises(InputError, match="has no vectors"):
        export(clustered, "clip_retrieval", tmp_path / "no", spark)
    with pytest.raises(InputError, match="keys of type BIGINT name no shard"):
        export(clustered, "shard_counts", tmp_path / "no", spark)
    export(
        clustered,
        "shard_counts",
        tmp_path / "sizes",
        spark,
        shard="concat(lpad(key div 100, 5, '0'), '.tar')",
    )
    sizes = json.loads((tmp_path / "sizes").read_text())
    assert list(sizes) == [f"{number:05d}.tar" for number in range(10)]
    assert sum(sizes.values()) == len(kept)


def test_clusters_of_semdedup_are_read_by_our_reader(spark, done, kept, tmp_path):
    export(done, "semdedup", tmp_path / "x", spark, row="none")
    frame = read_embeddings(
        spark, "semdedup", str(tmp_path / "x"), clusters=str(tmp_path / "x"), distances="distance"
    )
    assert {row.key: (row.cluster_id, row.distance_to_centroid) for row in frame.collect()} == kept
    export(done, "semdedup", tmp_path / "y", spark, row="none", key="cast(key AS BINARY)")
    first = np.load(tmp_path / "y" / "sorted_clusters" / "cluster_0.npy", allow_pickle=False)
    assert first.dtype.kind == "S"
    assert (
        first[:, 0].astype("<U32").tolist()
        == np.load(tmp_path / "x/sorted_clusters/cluster_0.npy")[:, 0].tolist()
    )


def test_embeddings_of_clip_retrieval(spark, done, kept, tmp_path):
    export(done, "clip_retrieval", tmp_path / "x", spark)
    array = np.load(tmp_path / "x/img_emb/img_emb_0.npy", allow_pickle=False)
    rows = pq.read_table(tmp_path / "x/metadata/metadata_0.parquet").to_pylist()
    assert array.dtype == np.float16
    assert [row["image_path"] for row in rows] == sorted(kept)
    assert {row["image_path"]: (row["cluster_id"], row["distance_to_centroid"]) for row in rows} == kept
    unit = EMBEDDINGS / np.linalg.norm(EMBEDDINGS, axis=1, keepdims=True)
    expected = unit[[KEYS.index(row["image_path"]) for row in rows]]
    assert np.abs(array.astype(np.float32) - expected).max() < 1e-3
    frame = read_embeddings(spark, "clip_retrieval", str(tmp_path / "x"))
    assert sorted(row.image_path for row in frame.collect()) == sorted(kept)


def test_what_is_left_out_goes_to_curator(spark, done, kept, tmp_path, caplog):
    """A removal of these ids leaves what was kept, and what the run cannot name: row 5, and null."""
    report = export(done, "curator", tmp_path / "x", spark)
    ids = pq.read_table(tmp_path / "x/duplicates").column("id").to_pylist()
    everyone = {*KEYS, *BAD} - {None}
    assert everyone - set(ids) == {*kept, KEYS[5]}
    assert len(ids) == len(set(ids)) == report.n_rows
    assert set(report.by_reason) == {"exact", "minhash", "semantic", "score_filter", "prune", "bad_rows"}
    assert report.by_reason["bad_rows"] == 2
    assert report.not_in_tables == {"input.filter": 1, "bad_rows": 3}
    assert "3 rows that were left out for bad_rows are NOT in the output" in caplog.text


def test_each_reason(spark, done, kept, tmp_path):
    dropped = done.document["accounting"]["dropped"]
    problem = next(name for name in dropped if "NaN" in name and "score" not in name)
    names = {
        "exact": dropped["exact duplicates"], "exact duplicates": dropped["exact duplicates"],
        "semantic": 0, "prune": dropped["pruned"], "pruned": dropped["pruned"],
        "score_filter": dropped["score_filter"] + dropped["score null"], problem: 2, "minhash": 0,
    }  # fmt: skip
    found = {}
    for number, (reason, n_rows) in enumerate(names.items()):
        out = tmp_path / f"{number}.txt"
        report = export(done, "txt", out, spark, rows="dropped", reason=reason)
        found[reason] = out.read_text().splitlines()
        assert len(found[reason]) == report.n_rows == n_rows, reason
    assert found["exact"] == sorted(
        row.key for row in done.duplicates(spark).where("method = 'exact'").collect()
    )
    assert set(found["score_filter"]) <= {
        key for key, s in zip(KEYS, SCORES, strict=True) if s is None or s < 3
    }
    assert KEYS[77] in found["score_filter"]
    assert found[problem] == ["bad/1", "bad/2"]


@pytest.mark.parametrize("to", EVERY_FORMAT)
def test_a_reason_without_rows(spark, done, tmp_path, to, caplog):
    report = export(done, to, tmp_path / "x", spark, rows="dropped", reason="minhash", **EVERY_FORMAT[to])
    assert report.n_rows == 0
    assert "there are no such rows: what is written is empty" in caplog.text
    found = read_tree(tmp_path / "x")
    assert len(found) == {"semdedup": K, "clip_retrieval": 2}.get(to, 1)
    if to == "clip_retrieval":
        assert np.load(tmp_path / "x/img_emb/img_emb_0.npy").shape == (0, DIM)
    if to == "curator":
        assert pq.read_table(tmp_path / "x/duplicates").schema.names == ["id"]


def test_counts_of_shards(spark, done, kept, tmp_path):
    """open_clip adds up the counts of the shards that it is given, and fails for one that is not there."""
    export(done, "shard_counts", tmp_path / "sizes.json", spark)
    sizes = json.loads((tmp_path / "sizes.json").read_text())
    shards = {f"{key.rpartition('/')[0]}.tar" for number, key in enumerate(KEYS) if number != 5}
    assert set(sizes) == shards
    assert all(
        n == sum(f"{key.rpartition('/')[0]}.tar" == shard for key in kept) for shard, n in sizes.items()
    )
    assert sum(int(sizes[shard]) for shard in shards) == len(kept)
    export(done, "shard_counts", tmp_path / "by", spark, shard="if(rank = 1, 'first', 'more')")
    assert json.loads((tmp_path / "by").read_text()) == {"first": K, "more": len(kept) - K}


def test_another_key(spark, done, kept, tmp_path):
    export(done, "txt", tmp_path / "x", spark, key="concat_ws(' ', `cluster_id`, rank, key) -- the three")
    expected = sorted(f"{r.cluster_id} {r.rank} {r.key}".encode() for r in done.keep_list(spark).collect())
    assert (tmp_path / "x").read_bytes().split(b"\n")[:-1] == expected
    for sql, first in {
        "cast(rank AS DOUBLE) + 1e7 * cluster_id": b"1.0",
        "date_add(DATE'2024-01-01', rank * 1000 + cluster_id)": b"2026-09-27",
        "timestamp_micros(rank * 1000L + cluster_id)": b"1000",
    }.items():
        export(done, "txt", tmp_path / first.decode(), spark, key=sql)
        assert (tmp_path / first.decode()).read_bytes().split(b"\n")[0] == first


# Without ANSI mode, a cast that fails gives null.
FAILS = ("NN of NN keys are null", "coalesce") if IS_SPARK_35 else ("fails on a row", "try_cast")
REFUSED = {
    "no format": (["--to", "csv"], 2, "--to csv: there is no such format", "name one of: txt, datacomp"),
    "no rows": (["--to", "txt", "--rows", "all"], 2, "--rows all: there are no such rows", "kept or dropped"),
    "a reason of kept rows": (["--to", "txt", "--reason", "exact"], 2, "rows that were left out", "--rows dropped"),
    "no reason": (["--to", "txt", "--rows", "dropped", "--reason", "x"], 2, "no such reason", "exact, minhash, semantic, score_filter, prune, bad_rows, input.filter"),
    "rows of which there are no keys": (["--to", "txt", "--rows", "dropped", "--reason", "input.filter"], 3, "no keys of the 1 rows that input.filter left out", "number <> 5"),
    "bad rows without keys": (["--to", "txt", "--rows", "dropped", "--reason", "null key"], 3, "no keys of these 1 rows", "input"),
    "an option of another format": (["--to", "txt", "--row", "key"], 2, "does not take --row", "it takes --key"),
    "a shard with a key": (["--to", "shard_counts", "--key", "key"], 2, "does not take --key", "it takes --shard"),
    "no row": (["--to", "semdedup"], 2, "needs --row", "--row none"),
    "a row that is text": (["--to", "semdedup", "--row", "key"], 3, "what --row gives is of type STRING", "cast(key AS BIGINT)"),
    "a row that is null": (["--to", "semdedup", "--row", "nullif(rank, 1)"], 3, f"is null for {K} rows", "coalesce"),
    "rows without a cluster": (["--to", "semdedup", "--row", "none", "--rows", "dropped"], 3, "are in no cluster", "--reason prune"),
    "no such column": (["--to", "txt", "--key", "uid"], 2, "--key 'uid'", "key, cluster_id, distance_to_centroid, rank"),
    "no SQL": (["--to", "txt", "--key", "key ||"], 2, "--key 'key ||'", "use SQL"),
    "random": (["--to", "txt", "--key", "uuid()"], 2, "another value each time", "use no rand()"),
    "a subquery": (["--to", "txt", "--key", "(select 1)"], 2, "reads another table", ""),
    "fails on a row": (["--to", "npy", "--key", "cast(key AS BIGINT)"], 3, *FAILS),
    "null": (["--to", "txt", "--key", "if(rank = 1, NULL, key)"], 3, f"{K} of NN keys are null", "coalesce"),
    "equal": (["--to", "txt", "--key", "cluster_id"], 3, "of NN keys are written by more than one row, such as '0', '1', '2'", "another one"),
    "equal in clusters": (["--to", "semdedup", "--row", "none", "--key", "cluster_id"], 3, f"{K} keys are null or are written by more than one row", "another one"),
    "equal ids": (["--to", "curator", "--rows", "kept", "--key", "rank"], 3, "written by more than one row, such as 1", "another one"),
    "a newline": (["--to", "txt", "--key", "if(rank = 1, concat(key, chr(10)), key)"], 3, f"{K} of NN keys hold a newline", "base64"),
    "bytes": (["--to", "txt", "--key", "unhex(concat(hex(key), 'FF'))"], 3, "NN of NN keys are not UTF-8", "hex(key)"),
    "an array": (["--to", "txt", "--key", "array(key)"], 3, "keys of type ARRAY<STRING> have no text", "to_json"),
    "no uids": (["--to", "datacomp"], 3, "NN of NN keys are not 32 hexadecimal digits, such as '0/0000", "--key"),
    "no numbers": (["--to", "npy"], 3, "the keys of this run are of type STRING", "give --key"),
    "no shards": (["--to", "shard_counts", "--shard", "nullif(cluster_id, 0)"], 3, "keys name no shard, such as ", "--shard"),
    "an aggregate": (["--to", "shard_counts", "--shard", "max(key)"], 2, "one value for each row", ""),
    "vectors of bad rows": (["--to", "clip_retrieval", "--rows", "dropped", "--reason", "bad_rows"], 3, "have no vectors", "txt"),
    "verdicts of some rows": (["--to", "verdicts", "--rows", "kept"], 2, "--to verdicts does not take --rows", "leave it out"),
    "verdicts of a reason": (["--to", "verdicts", "--reason", "exact"], 2, "--to verdicts does not take --reason", "leave it out"),
    "verdicts with another key": (["--to", "verdicts", "--key", "upper(key)"], 2, "--to verdicts does not take --key", "leave it out"),
    "verdicts of a run that is not published": (["--to", "verdicts", "--publish"], 2, "has no output.table", "leave --publish away"),
    "publishing another format": (["--to", "txt", "--publish"], 2, "--to txt makes no table to publish", "--to verdicts"),
    "a setting": (["--to", "txt", "--set", "prune.keep_ratio=0.1"], 2, "takes no settings but spark.*", ""),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(spark, done, tmp_path, capsys, name):
    arguments, code, what, mend = REFUSED[name]
    capsys.readouterr()
    assert main(["export", done.path, "--out", str(tmp_path / "x"), "--json", *arguments]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    message = captured.err[captured.err.index("spark-dbp: ") :]
    assert what.replace("NN", str(done.document["rows"]["keep_list"])) in message
    assert mend in message[message.index("to mend it: ") :]
    assert "Traceback" not in captured.err
    assert list(tmp_path.iterdir()) == []


def test_the_command(spark, done, kept, tmp_path, capsys):
    out = tmp_path / "folder é [1]" / "kept keys.txt"
    assert main(["export", done.path, "--to", "txt", "--out", str(out)]) == 0
    assert f"rows        {len(kept)} kept" in capsys.readouterr().out
    assert main(["export", done.path, "--to", "txt", "--out", str(out)]) == 4
    assert "exists" in capsys.readouterr().err
    assert (
        main(
            ["export", done.path, "--to", "txt", "--out", str(tmp_path / "y"), "--rows", "dropped", "--json"]
        )
        == 0
    )
    document = json.loads(capsys.readouterr().out)
    assert document["n_rows"] == len((tmp_path / "y").read_text().splitlines())
    assert document["not_in_tables"] == {"input.filter": 1, "bad_rows": 3}
    assert main(["export", str(tmp_path / "no run"), "--to", "txt", "--out", str(tmp_path / "z")]) == 3
    assert main(["export", done.path, "--to", "txt", "--out", f"{done.path}/kept.txt"]) == 2


def test_verdicts(spark, done, tmp_path, capsys):
    """A row for each of the input."""
    out = tmp_path / "why é"
    assert main(["export", done.path, "--to", "verdicts", "--out", str(out), "--json"]) == 0
    document, account = json.loads(capsys.readouterr().out), done.document["accounting"]
    written = spark.read.parquet(str(out))
    assert sorted(map(str, written.collect())) == sorted(map(str, verdicts(done, spark).collect()))
    assert (document["format"], document["rows"], document["n_rows"]) == ("verdicts", "all", N + len(BAD))
    counts = {name: n for name, n in {**account["dropped"], "kept": account["kept"]}.items() if n}
    assert document["by_reason"] == counts
    sizes = [path.stat().st_size for path in out.glob("*.parquet")]
    assert (document["n_files"], document["n_bytes"]) == (len(sizes), sum(sizes))
    assert main(["export", done.path, "--to", "verdicts", "--out", str(out)]) == 4
    capsys.readouterr()
    assert main(["export", done.path, "--to", "verdicts"]) == 2
    assert "--to verdicts needs --out" in capsys.readouterr().err


def test_a_row_is_left_out_for_the_same_reason_everywhere(spark, done):
    """`export`, `verdicts` and `explain` tell of each key the same, also where a bad row has a good one's key."""
    told = {row.key: row.reason for row in verdicts(done, spark).collect() if row.key not in {KEYS[3], None}}
    groups = {name: group for group, names in group_reasons(done).items() for name in names}
    exported = {row.key: row.reason for row in find_dropped(done, spark).frame.collect()}
    wanted = {key: groups[reason] for key, reason in told.items() if reason not in ("kept", "input.filter")}
    assert {key: group for key, group in exported.items() if key != KEYS[3]} == wanted
    assert set(exported.values()) == {"exact", "score_filter", "prune", "bad_rows"}
    one_of_each = {reason: key for key, reason in told.items()}
    explained = explain(done, list(one_of_each.values()), spark)
    assert [one.reason for one in explained] == list(one_of_each)


def test_a_damaged_table(spark, source, done, tmp_path):
    again = prune_again(done, str(tmp_path / "again"), ["prune.keep_ratio=0.2"], spark)
    export(again, "txt", tmp_path / "x", spark)
    file = again.list_files("keep_list")[0]
    pq.write_table(pq.read_table(file)[:-1], file)
    with pytest.raises(DamagedRunError, match="its tables have"):
        export(open_run(again.path), "txt", tmp_path / "y", spark)
    assert not (tmp_path / "y").exists()


def test_a_store_that_only_spark_opens(spark, viewed, source, kept):
    values = config_of(
        source, f"{VIEW}/export-run", cluster={"n_clusters": 2, "n_iter": 1}, input={"on_bad_rows": "drop"}
    )
    there = run(RunConfig.from_dict(values), spark)
    export(there, "txt", f"{VIEW}/exported/kept.txt", spark)
    export(there, "clip_retrieval", f"{VIEW}/exported/clip", spark)
    assert (viewed / "exported/kept.txt").read_text().splitlines() == sorted(
        r[0] for r in rows_of(there.keep_list(spark))
    )
    assert sorted(
        path.name for path in (viewed / "exported").iterdir() if not path.name.endswith(".crc")
    ) == ["clip", "kept.txt"]
    assert np.load(viewed / "exported/clip/img_emb/img_emb_0.npy").shape == (
        there.document["rows"]["keep_list"],
        DIM,
    )


def test_options_in_python(spark, done, tmp_path):
    with pytest.raises(ConfigError, match="no such format"):
        export(done, "parquet", tmp_path / "x", spark)
