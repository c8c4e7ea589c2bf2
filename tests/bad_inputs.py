"""Bad inputs as one table, and what runs the real command on them: for the tests of folders `unit` and `job`."""

from __future__ import annotations

import io
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyspark
import yaml
from conftest import ROOT, config_of, make_embeddings, make_keys, write_table

from spark_dbp.cli import main

IS_SPARK_35 = pyspark.__version__.startswith("3.5.")
PROCESSES = bool(os.environ.get("SPARK_DBP_TEST_PROCESSES"))
SECRET = "hunter2"

N, DIM = 60, 4
KEYS = make_keys(N)
ROWS = [row.tolist() for row in make_embeddings(N, DIM, 3)]
F32, F64 = pa.list_(pa.float32()), pa.list_(pa.float64())
KEY = KEYS[7]


# The command.


@dataclass
class Done:
    code: int
    out: str
    err: str


def in_this_process(arguments: list, capsys) -> Done:
    capsys.readouterr()
    try:
        code = main([str(a) for a in arguments])
    except SystemExit as usage:  # argparse
        code = usage.code
    captured = capsys.readouterr()
    return Done(code, captured.out, captured.err)


def in_a_process(arguments: list) -> Done:
    done = subprocess.run(
        [sys.executable, "-m", "spark_dbp", *map(str, arguments)],
        capture_output=True, text=True, timeout=300, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    return Done(done.returncode, done.stdout, done.stderr)


# Inputs.


def with_row(row: object, at: int = 7) -> list:
    return [*ROWS[:at], row, *ROWS[at + 1 :]]


def table(path: Path, keys=KEYS, rows=ROWS, type_=F32, n_files=1, **more) -> Path:
    return write_table(path, keys, pa.array(rows, type_), n_files, **more)


def in_files(path: Path, *tables: pa.Table, **how) -> None:
    path.mkdir()
    for number, content in enumerate(tables):
        pq.write_table(content, path / f"{number:05d}.parquet", **how)


def half(number: int, keys=KEYS, rows=ROWS, type_=F32) -> pa.Table:
    part = slice(0, 30) if number == 0 else slice(30, 60)
    return pa.table({"key": keys[part], "embedding": pa.array(rows[part], type_)})


def file_of(name: str, content: bytes, beside: bool = False) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        if beside:
            table(path)
        path.mkdir(exist_ok=True)
        (path / name).write_bytes(content)

    return write


def truncated(path: Path) -> None:
    table(path, n_files=3)
    victim = path / "00001.parquet"
    victim.write_bytes(victim.read_bytes()[:-300])


def overwritten_page(path: Path) -> None:
    table(path, n_files=2)
    victim = path / "00001.parquet"
    raw = bytearray(victim.read_bytes())
    raw[4:200] = b"\xff" * 196
    victim.write_bytes(bytes(raw))


def flipped_bits(compression: str) -> Callable[[Path], None]:
    """Bits of a page of embeddings flipped, in a file with page checksums, as Spark writes them."""

    def write(path: Path) -> None:
        rows = make_embeddings(3000, 8, 3).tolist()
        content = pa.table({"key": make_keys(3000), "embedding": pa.array(rows, F32)})
        in_files(path, content, compression=compression, use_dictionary=False, write_page_checksum=True)
        victim = path / "00000.parquet"
        column = pq.ParquetFile(victim).metadata.row_group(0).column(1)
        middle = column.data_page_offset + column.total_compressed_size // 2
        raw = bytearray(victim.read_bytes())
        raw[middle] ^= 1
        victim.write_bytes(bytes(raw))

    return write


def clustered(ids: list, distances: list | None = None) -> Callable[[Path], object]:
    more = {"cid": ids} if distances is None else {"cid": ids, "dist": distances}
    return lambda path: table(path, **more)


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def parquet(content: pa.Table) -> bytes:
    file = io.BytesIO()
    pq.write_table(content, file)
    return file.getvalue()


def centroids_table(ids, vectors) -> bytes:
    return parquet(pa.table({"cluster_id": ids, "centroid": pa.array(vectors, F32)}))


class Trap:
    """What runs code when it is unpickled: it would leave a directory."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


# The table.


@dataclass(frozen=True)
class Case:
    """A bad input.

    `words` are what the message must say: what is wrong and where. `sections` are those of the configuration,
    `content` replaces its text. `before` prepares the directory further. `late`: found out by a stage that
    follows good ones, which stay for the next attempt. `needs_spark`: whether it is refused only when there is a
    session.
    """

    code: int
    words: list[str]
    write: Callable[[Path], object] | None = table
    sections: dict = field(default_factory=dict)
    content: bytes | None = None
    arguments: tuple[str, ...] = ("run", "{tmp}/conf.yaml")
    before: Callable[[Path], object] | None = None
    late: bool = False
    needs_spark: bool = True


def rows(words: list[str], given: list, type_: pa.DataType = F32, **sections: dict) -> Case:
    return Case(3, words, lambda path: table(path, rows=given, type_=type_), sections)


def config(words: list[str], **sections: dict) -> Case:
    return Case(2, words, None, sections, needs_spark=False)


def yaml_text(words: list[str], content: str | bytes) -> Case:
    content = content.encode() if isinstance(content, str) else content
    return Case(2, words, None, content=content, needs_spark=False)


def centroids(words: list[str], content: bytes | None, name: str = "c.npy") -> Case:
    def before(tmp: Path) -> None:
        if content is not None:
            (tmp / name).write_bytes(content)

    given = {"cluster_id": "cid", "centroids": "{tmp}/" + name}
    return Case(3, [name, *words], clustered(IDS), {"input": given}, before=before)


def arguments(
    code: int, words: list[str], *args: str, before: Callable[[Path], object] | None = None
) -> Case:
    return Case(code, words, None, arguments=args, before=before, needs_spark=False)


def run_json(text: str) -> Callable[[Path], object]:
    def write(tmp: Path) -> None:
        (tmp / "old").mkdir()
        (tmp / "old/run.json").write_text(text)

    return write


def file_at(name: str) -> Callable[[Path], object]:
    def write(tmp: Path) -> None:
        (tmp / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp / name).write_text("precious")

    return write


IDS = [i % 3 for i in range(N)]
GIVEN = {"cluster_id": "cid"}
WITH_DISTANCE = {**GIVEN, "distance_to_centroid": "dist"}
ONE = [1.0] * DIM
BIG = 10**30
VALID = yaml.safe_dump(config_of("in", "run"))
# The name tells nothing, the value is a mapping where a text belongs: what is shown of it?
SECRET_IN_A_LIST = VALID + f"spark: {{spark.hadoop.fs.s3a.secret.key: [{SECRET}]}}\n"

CASES = {
    # Where the input is.
    "missing path": Case(3, ["no such path", "{tmp}/in", "check input.path"], None),
    "a glob of nothing": Case(3, ["no such path", "*.nope"], None, {"input": {"path": "{tmp}/*.nope"}}),
    "a glob without end": Case(3, ["input.path", "brackets"], None, {"input": {"path": "{tmp}/[ab"}}),
    "a store without connector": Case(3, ["gopher", "connector"], None, {"input": {"path": "gopher://x/y"}}),
    "NUL in input.path": config(["input.path", "NUL"], input={"path": "a\0b"}),
    "empty directory": Case(3, ["no Parquet files"], lambda path: path.mkdir()),
    "hidden files only": Case(3, ["no Parquet files"], file_of("_SUCCESS", b"")),
    "other files only": Case(3, ["cannot read", "x.txt", "not Parquet"], file_of("x.txt", b"hello, world")),
    "a text among Parquet": Case(3, ["cannot read", "x.txt"], file_of("x.txt", b"hello, world", beside=True)),
    "a text named Parquet": Case(3, ["cannot read", "x.parquet"], file_of("x.parquet", b"key,embedding\n")),
    "a pickle named Parquet": Case(3, ["cannot read", "x.parquet"], file_of("x.parquet", pickle.dumps([KEYS]))),
    "0 bytes": Case(3, ["cannot read" if IS_SPARK_35 else "no Parquet files", "input.path"], file_of("x.parquet", b"")),
    "0 bytes among others": Case(3, ["x y%.parquet", "0 bytes"], file_of("x y%.parquet", b"", beside=True)),
    "truncated file": Case(3, ["cannot read", "00001.parquet", "truncated, damaged"], truncated),
    "overwritten page": Case(3, ["cannot read", "00001.parquet", "damaged"], overwritten_page),
    "flipped bit": Case(3, ["cannot read", "00000.parquet", "damaged"], flipped_bits("none")),
    "flipped bit, snappy": Case(3, ["cannot read", "00000.parquet", "damaged"], flipped_bits("snappy")),
    "flipped bit, zstd": Case(3, ["cannot read", "00000.parquet", "damaged"], flipped_bits("zstd")),
    "missing table": Case(
        3, ["no such table", "input.table nowhere.t"], None, {"input": {"path": None, "table": "nowhere.t"}}
    ),
    "a table in no catalog": Case(
        3, ["input.table no.such.t", "knows no catalog"], None, {"input": {"path": None, "table": "no.such.t"}}
    ),
    "a table name that is none": config(["'a b; DROP'", "backquotes"], input={"path": None, "table": "a b; DROP"}),
    "a backquote without end": config(["output", "backquotes"], output={"table": "a.b.`c"}),
    "output.table without a schema": config(["output.table 'c.p'", "catalog.schema.prefix"], output={"table": "c.p"}),
    "output.table_format unknown": config(["output.table_format"], output={"table": "c.s.p", "table_format": "orc"}),
    "output.table in no catalog": Case(
        2, ["output.table no.such.p", "knows no catalog no", "docs/catalog.md"], table, {"output": {"table": "no.such.p"}}
    ),
    "output.table in no schema": Case(
        2, ["finds no schema spark_catalog.nowhere", "CREATE SCHEMA"], table, {"output": {"table": "spark_catalog.nowhere.p"}}
    ),
    "a format that the session lacks": Case(
        2, ["does not know the format delta", "docs/catalog.md"], table,
        {"output": {"table": "spark_catalog.default.p", "table_format": "delta"}},
    ),
    "a Parquet table to a path with brackets": Case(
        2, ["output.path", "of a glob", "delta or iceberg"], table,
        {"output": {"path": "{tmp}/run[1]", "table": "spark_catalog.default.p"}},
    ),
    "a table in place of the input": Case(
        2, ["input.table default.p_keep_list", "output.table spark_catalog.default.p would replace"], None,
        {"input": {"path": None, "table": "default.p_keep_list"}, "output": {"table": "spark_catalog.default.p"}},
    ),
    # Columns.
    "missing key column": Case(3, ["input.key", "'kee'", "did you mean 'key'"], table, {"input": {"key": "kee"}}),
    "unknown key of embed": config(
        ["unknown key 'embed.bach_size'", "did you mean 'embed.batch_size'"],
        embed={"texts": {"column": "t"}, "encoder": "hf:a/b", "bach_size": 3},
    ),
    "unknown key in a list of embed": config(
        ["unknown key 'embed.1.images.colum'", "embed.1.images.column"],
        embed=[{"name": "a", "images": {"column": "i"}}, {"images": {"colum": "i"}}],
    ),
    "no such device": config(
        ["embed.device", "'gpu'", "cuda"], embed={"images": {"column": "i"}, "device": "gpu"}
    ),
    "a name of embed with capitals": config(
        ["embed", "'Clip'", "lower-case"], embed={"images": {"column": "i"}, "name": "Clip"}
    ),
    "images and texts": config(
        ["exactly one of embed.images and embed.texts"],
        embed={"images": {"column": "i"}, "texts": {"column": "t"}, "encoder": "hf:a/b"},
    ),
    "texts without an encoder": config(
        ["embed.encoder is missing", "hf:sentence-transformers"], embed={"texts": {"column": "t"}}
    ),
    "embed and an embedding": config(
        ["input.embedding does not go with embed"],
        embed={"images": {"column": "i"}},
        input={"embedding": "clip"},
    ),
    "embed and given clusters": config(
        ["input.cluster_id does not go with embed"],
        embed={"images": {"column": "i"}},
        input={"cluster_id": "c"},
    ),
    "shards and a table": config(
        ["embed.images.webdataset stands in place of input.path"],
        embed={"images": {"webdataset": "{tmp}/x.tar"}},
    ),
    "two embeddings of one name": config(
        ["the name 'embedding' is given twice"],
        embed=[{"images": {"column": "i"}}, {"texts": {"column": "t"}, "encoder": "hf:a/b"}],
    ),
    "a score of an embedding that there is not": config(
        ["score_filter.clip_score.text", "there is no embedding 'text'"],
        embed={"images": {"column": "i"}},
        score_filter={"clip_score": {"image": "embedding", "text": "text"}, "at_least": 0.1},
    ),
    "missing embedding column": Case(
        3, ["input.embedding", "'clip'", "key, embedding"], table, {"input": {"embedding": "clip"}}
    ),
    "embedding of strings": rows(["'embedding' is STRING", "'array<float>'"], ["x"] * N, pa.string()),
    "embedding of texts": rows(["ARRAY<STRING>", "input.embedding: {sql:"], [["1", "2"]] * N, pa.list_(pa.string())),
    "half floats": Case(
        3, ["input.path", "FLOAT16", "'half'", "float32"], lambda path: table(path, half=np.zeros(N, np.float16)),
        {"input": {"embedding": "half"}},
    ),
    "key of arrays": Case(3, ["input.key", "ARRAY<STRING>"], lambda path: table(path, keys=[[k] for k in KEYS])),
    "columns that differ in case": Case(
        3, ["'key' only in case", "spark.sql.caseSensitive"], lambda path: table(path, KEY=KEYS)
    ),
    "embedding in one file only": Case(
        3, ["null embedding: 30 rows"], lambda path: in_files(path, half(0), half(1).select(["key"]))
    ),
    "embedding not in the first file": Case(
        3, ["there is no column 'embedding'"], lambda path: in_files(path, half(0).select(["key"]), half(1))
    ),
    "float, then double": Case(
        3, ["00001.parquet", "'embedding' is DOUBLE there and FLOAT in the file"],
        lambda path: in_files(path, half(0), half(1, type_=F64)),
    ),
    "strings, then integers": Case(
        3, ["00001.parquet", "'key' is INT64 there and STRING"],
        lambda path: in_files(path, half(0), half(1, keys=list(range(N)))),
    ),
    # Rows.
    "empty table": Case(3, ["no rows", "input.path"], lambda path: in_files(path, half(0).slice(0, 0))),
    "two dimensions": rows(["another dimension: 1 row", "2 where most have 4", KEY], with_row([1.0, 2.0])),
    "null embedding": rows(["null embedding: 1 row", KEY], with_row(None)),
    "null inside": rows(["null inside the embedding", KEY], with_row([1.0, None, 2.0, 3.0])),
    "NaN": rows(["NaN or Inf", KEY], with_row([float("nan")] * 4)),
    "Inf": rows(["NaN or Inf", KEY], with_row([float("-inf"), 1, 1, 1])),
    "Inf of half floats": rows(["NaN or Inf", KEY], with_row([float(np.uint16(0x7C00).view(np.float16))] * 4)),
    "zero vector": rows(["zero vector: 1 row", KEY, "on_bad_rows"], with_row([0.0] * 4)),
    "empty embedding": rows(["empty embedding", KEY], with_row([])),
    "broken bytes": rows(["not a whole number of float32"], [b"12345"] * N, pa.binary()),
    "only bad rows, dropped": rows(["no usable row", "60 rows"], [None] * N, input={"on_bad_rows": "drop"}),
    "null key": Case(3, ["null key: 1 row"], lambda path: table(path, keys=[None, *KEYS[1:]])),
    "duplicate keys": Case(
        3, ["1 key is not unique", f"{KEYS[0]!r} (3 times)"],
        lambda path: table(path, keys=[*KEYS[:-2], KEYS[0], KEYS[0]]),
    ),
    "duplicate keys, dropping": Case(
        3, ["not unique", KEYS[1]], lambda path: table(path, keys=[KEYS[1], *KEYS[1:]]),
        {"input": {"on_bad_rows": "drop"}},
    ),
    "duplicate keys of 10 KB": Case(
        3, ["not unique", "xxx..."], lambda path: table(path, keys=["x" * 10240] * 2 + KEYS[2:])
    ),
    # Numbers that do not go together.
    "more clusters than rows": Case(3, ["cluster.n_clusters is 61", "60 rows"], table, {"cluster": {"n_clusters": 61}}),
    "n_keep above the rows": Case(
        3, ["prune.n_keep 61 of 60", "between 1 and 60"], table, {"prune": {"keep_ratio": None, "n_keep": 61}}
    ),
    "keeps nothing": Case(3, ["prune.keep_ratio 0.001 of 60"], table, {"prune": {"keep_ratio": 0.001}}),
    "keeps nothing of one row": Case(
        3, ["prune.keep_ratio 0.3 of 1 rows"], lambda path: table(path, KEYS[:1], ROWS[:1]),
        {"cluster": {"n_clusters": 1}},
    ),
    "all texts equal": Case(
        3, ["deduplication left 1 of 60 rows (59 by dedup.exact", "cluster.n_clusters is 12"],
        lambda path: table(path, caption=["a"] * N), {"dedup": {"exact": {"columns": ["caption"]}}}, late=True,
    ),
    "n_keep below the floors": Case(
        3, ["cannot keep 6", "at least 12", "min_per_cluster"], table, {"prune": {"keep_ratio": 0.1}}, late=True
    ),
    # Expressions.
    "filter leaves nothing": Case(3, ["no rows", "input.filter"], table, {"input": {"filter": "key = ''"}}),
    "filter is no SQL": Case(2, ["input.filter", "key = = 1"], table, {"input": {"filter": "key = = 1"}}),
    "filter of two statements": Case(
        2, ["input.filter", "Syntax error"], table, {"input": {"filter": "1 = 1; DROP TABLE x"}}
    ),
    "filter on no column": Case(2, ["input.filter", "width"], table, {"input": {"filter": "width > 3"}}),
    "filter is no predicate": Case(2, ["input.filter", "not a boolean"], table, {"input": {"filter": "length(key)"}}),
    "filter fails on a row": Case(
        # Which expression, Spark 3.5 does not say.
        3, ["an expression" if IS_SPARK_35 else "cast(key as int) > 0", "fails on a row", "try_cast"], table,
        {"input": {"filter": "cast(key as int) > 0"}, "spark": {"spark.sql.ansi.enabled": "true"}},
    ),
    "trie key is no SQL": Case(2, ["trie.key"], table, {"trie": {"key": "concat(key"}}),
    "trie key on no column": Case(2, ["trie.key", "uid", "key, cluster_id"], table, {"trie": {"key": "uid"}}),
    "trie key maps two to one": Case(
        3, ["trie.key", "1 different texts of 18 kept keys"], table, {"trie": {"key": "substr(key, 1, 4)"}}, late=True
    ),
    "no column for exact": Case(
        3, ["dedup.exact.columns", "'sha'"], table, {"dedup": {"exact": {"columns": ["sha"]}}}
    ),
    "no column for order_by": Case(
        3, ["dedup.exact.order_by", "'at'"], table, {"dedup": {"exact": {"columns": ["key"], "order_by": "at"}}}
    ),
    "no column for minhash": Case(3, ["dedup.minhash.column"], table, {"dedup": {"minhash": {"column": "text"}}}),
    # The filter on a score.
    "no column for a score": Case(
        3, ["score_filter.column", "'clip'"], table, {"score_filter": {"column": "clip", "at_least": 0.3}}
    ),
    "a score of text": Case(
        3, ["score_filter.column: 'key' is STRING, not a number", "{sql: cast(key as double)}"], table,
        {"score_filter": {"column": "key", "at_least": 0.3}},
    ),
    "no column for within": Case(
        3, ["score_filter.within", "'lang'", "did you mean"], lambda path: table(path, clip=IDS, language=KEYS),
        {"score_filter": {"column": "clip", "keep_fraction": 0.3, "within": "lang"}},
    ),
    "groups that are maps": Case(
        3, ["score_filter.within", "'tags' is MAP", "make no groups"],
        lambda path: table(path, clip=IDS, tags=pa.array([[("a", 1)]] * N, pa.map_(pa.string(), pa.int32()))),
        {"score_filter": {"column": "clip", "keep_fraction": 0.3, "within": "tags"}},
    ),
    "condition on no column": Case(
        2, ["score_filter.expr", "clip", "key, embedding"], table, {"score_filter": {"expr": "clip > 0.3"}}
    ),
    "condition is no SQL": Case(2, ["score_filter.expr", "key = = 1"], table, {"score_filter": {"expr": "key = = 1"}}),
    "condition is no predicate": Case(
        2, ["score_filter.expr 'length(key)' is INT, not a boolean"], table, {"score_filter": {"expr": "length(key)"}}
    ),
    "condition of many rows": Case(
        2, ["score_filter.expr", "one value for each row"], table, {"score_filter": {"expr": "max(key) > 'a'"}}
    ),
    "condition of chance": Case(
        2, ["score_filter.expr", "another value each time"], table, {"score_filter": {"expr": "rand() > 0.5"}}
    ),
    "condition with an ambiguous name": Case(
        2, ["score_filter.expr", "user is a column of the input"], lambda path: table(path, user=KEYS),
        {"score_filter": {"expr": "user = 'a'"}},
    ),
    "condition on another table": Case(
        2, ["score_filter.expr", "reads another table"], table, {"score_filter": {"expr": "key IN (SELECT key FROM t)"}}
    ),
    "no row has a score that high": Case(
        3, ["score_filter left 0 of 60 rows (60 score_filter", "let the filter keep more rows"],
        lambda path: table(path, clip=IDS), {"score_filter": {"column": "clip", "at_least": 3}}, late=True,
    ),
    "a filter that leaves too few": Case(
        3, ["score_filter left 6 of 60 rows (54 score_filter", "cluster.n_clusters is 12"],
        lambda path: table(path, clip=IDS), {"score_filter": {"column": "clip", "keep_fraction": 0.1}}, late=True,
    ),
    "a score and a condition": config(
        ["exactly one of score_filter.expr, column and clip_score"], score_filter={"expr": "a", "column": "b"}
    ),
    "a score without a limit": config(["keep_fraction and at_least"], score_filter={"column": "clip"}),
    "a fraction above 1": config(
        ["score_filter.keep_fraction", "less than or equal to 1"], score_filter={"column": "c", "keep_fraction": 2}
    ),
    "groups without a fraction": config(
        ["score_filter.within goes with keep_fraction"], score_filter={"column": "c", "at_least": 2, "within": "g"}
    ),
    "a misspelt key of the filter": config(
        ["score_filter.atleast", "did you mean 'score_filter.at_least'"], score_filter={"column": "c", "atleast": 1}
    ),
    "a score of no embedding": config(
        ["score_filter.clip_score.text", "no embedding 'text'"],
        score_filter={"clip_score": {"image": "embedding", "text": "text"}, "at_least": 0.3},
    ),
    # Data that is clustered already.
    "null cluster_id": Case(3, ["null cluster_id", KEYS[0]], clustered([None, *IDS[1:]]), {"input": GIVEN}),
    "negative cluster_id": Case(3, ["cluster_id below 0", KEYS[0]], clustered([-1, *IDS[1:]]), {"input": GIVEN}),
    "cluster_id beyond INT": Case(3, ["above 2147483647"], clustered([2**31, *IDS[1:]]), {"input": GIVEN}),
    "cluster_id of strings": Case(3, ["input.cluster_id", "STRING"], clustered(["a"] * N), {"input": GIVEN}),
    "distance outside": Case(
        3, ["outside [0, 2]", KEYS[0]], clustered(IDS, [2.5, *[0.1] * (N - 1)]), {"input": WITH_DISTANCE}
    ),
    "distance NaN": Case(
        3, ["distance_to_centroid null, NaN", KEYS[0]],
        clustered(IDS, [float("nan"), *[0.1] * (N - 1)]), {"input": WITH_DISTANCE},
    ),
    "distance of integers": Case(3, ["BIGINT"], clustered(IDS, [1] * N), {"input": WITH_DISTANCE}),
    "a cluster that cancels out": Case(
        3, ["cluster 0", "cancel out", "input.centroids"],
        lambda path: table(path, rows=[[1, 0, 0, 0], [-1, 0, 0, 0]] * 30, cid=[0] * N), {"input": GIVEN}, late=True,
    ),
    # Centroids.
    "centroids missing": centroids(["input.centroids"], None),
    "centroids missing, Parquet": centroids(["input.centroids", "no such path"], None, "c.parquet"),
    "centroids of 0 bytes": centroids(["no plain .npy matrix"], b""),
    "centroids truncated": centroids(["no plain .npy matrix"], npy(np.ones((3, 4), np.float32))[:-10]),
    "centroids with a header of petabytes": centroids(
        ["no plain .npy matrix"], npy(np.ones((3, 4), np.float32)).replace(b"(3, 4)", b"(3000000000, 400000)")[:200]
    ),
    "centroids of objects": centroids(["no plain .npy matrix", "never read"], npy(np.array([{"a": 1}], dtype=object))),
    "centroids are a text": centroids(["no plain .npy matrix"], b"hello"),
    "centroids of rank 1": centroids(["shape (4,)"], npy(np.ones(4, np.float32))),
    "centroids of integers": centroids(["type int32"], npy(np.ones((3, 4), np.int32))),
    "centroids NaN": centroids(["cluster 0 has NaN or Inf"], npy(np.full((3, 4), np.nan, np.float32))),
    "centroids zero": centroids(["cluster 0 is zero"], npy(np.zeros((3, 4), np.float32))),
    "centroids null": centroids(["cluster 1: null centroid"], centroids_table([0, 1, 2], [ONE, None, ONE]), "c.parquet"),
    "centroids of two dimensions": centroids(
        ["several dimensions: [1, 4]"], centroids_table([0, 1, 2], [ONE, ONE, [1.0]]), "c.parquet"
    ),
    "centroid ids twice": centroids(["cluster_id 1 occurs more than once"], centroids_table([0, 1, 1], [ONE] * 3), "c.parquet"),
    "centroid id null": centroids(["null cluster_id"], centroids_table([0, 1, None], [ONE] * 3), "c.parquet"),
    "centroid id negative": centroids(["between 0 and 2147483647"], centroids_table([0, 1, -2], [ONE] * 3), "c.parquet"),
    "centroids without rows": centroids(["has no rows"], centroids_table(pa.array([], pa.int32()), []), "c.parquet"),
    "centroids of other columns": centroids(["no column 'cluster_id'"], parquet(pa.table({"id": [1]})), "c.parquet"),
    "centroids at an unknown store": Case(
        3, ["gopher://x", 'No FileSystem for scheme "gopher"'], clustered(IDS),
        {"input": {**GIVEN, "centroids": "gopher://x/c.npy"}},
    ),
    # The configuration.
    "no configuration": arguments(2, ["cannot read", "none.yaml"], "run", "{tmp}/none.yaml"),
    "a directory for a configuration": arguments(2, ["cannot read"], "run", "{tmp}"),
    "settings without value": arguments(2, ["--set", "section.key=value"], "run", "{tmp}/conf.yaml", "--set", "prune.keep_ratio"),
    "settings inside a value": arguments(
        2, ["--set", "'path' is a value"], "run", "{tmp}/conf.yaml", "--set", f"input.path.secret={SECRET}"
    ),
    "a list": yaml_text(["conf.yaml", "no mapping"], "- 1\n- 2"),
    "a text": yaml_text(["conf.yaml", "no mapping"], "hello"),
    "not UTF-8": yaml_text(["conf.yaml", "utf-8"], "a: \u00e9".encode("latin1")),
    "UTF-16": yaml_text(["conf.yaml", "utf-8"], VALID.encode("utf-16")),
    "a NUL": yaml_text(["conf.yaml", "#x0000"], "a: \0"),
    "YAML with a tab": yaml_text(["conf.yaml", "line 2"], "input:\n\tpath: x"),
    "YAML with a key twice": yaml_text(["conf.yaml", "'prune' is given twice"], VALID + "prune: {keep_ratio: 0.9}\n"),
    "YAML without end": yaml_text(["conf.yaml", "too deeply"], "a: " + "[" * 5000),
    "YAML in itself": yaml_text(["unknown key 'input.b'"], VALID.replace("input:", "input: &a\n  b: *a")),
    "keys that are numbers": yaml_text(["1: Keys should be strings"], "1: 2"),
    "a misspelt key": config(
        ["prune.keep_ratoi", "did you mean 'prune.keep_ratio'"], prune={"keep_ratoi": 0.1}
    ),
    "keep_ratio 0": config(["prune.keep_ratio", "greater than 0"], prune={"keep_ratio": 0}),
    "keep_ratio negative": config(["prune.keep_ratio", "greater than 0"], prune={"keep_ratio": -1}),
    "keep_ratio above 1": config(["prune.keep_ratio", "less than or equal to 1"], prune={"keep_ratio": 1.5}),
    "keep_ratio NaN": config(["prune.keep_ratio", "finite"], prune={"keep_ratio": float("nan")}),
    "temperature 0": config(["prune.temperature"], prune={"temperature": 0}),
    "temperature too large": config(["prune.temperature"], prune={"temperature": 10**400}),
    "an enormous n_clusters": config(["cluster.n_clusters", "2147483647"], cluster={"n_clusters": BIG}),
    "an enormous n_keep": config(["prune.n_keep"], prune={"keep_ratio": None, "n_keep": BIG}),
    "an enormous floor": config(["prune.min_per_cluster"], prune={"min_per_cluster": BIG}),
    "an enormous seed": config(["prune.seed"], prune={"seed": BIG}),
    "an enormous number of shards": config(["trie.shards", "100000"], trie={"shards": BIG}),
    "no Spark setting": config(["spark.'fs.s3a.x'", "start with 'spark.'"], spark={"fs.s3a.x": 1}),
    "an unknown codec": Case(
        2, ["spark.sql.parquet.compression.codec", "nonsense"], table,
        {"spark": {"spark.sql.parquet.compression.codec": "nonsense"}},
    ),
    "a codec that is not there": Case(
        2, ["spark.sql.parquet.compression.codec", "lzo", "zstd, snappy"], table,
        {"spark": {"spark.sql.parquet.compression.codec": "lzo"}},
    ),
    # Secrets.
    "a secret of a wrong type": yaml_text(["spark.hadoop.fs.s3a.secret.key", "valid string"], SECRET_IN_A_LIST),
    "a secret for a section": yaml_text(["spark: Input should be"], VALID + f"spark: {SECRET}\n"),
    "a secret in input.path": config(
        ["input.path", "holds credentials", "(redacted)@bucket"], input={"path": f"s3a://AKIA:{SECRET}/x@bucket/y"}
    ),
    "a signature in output.path": config(
        ["output.path", "holds credentials", "sig=(redacted)&se"],
        output={"path": f"wasbs://c@a.blob.core.windows.net/x?sig={SECRET}&se=1"},
    ),
    "a secret in input.centroids": config(
        ["input.centroids", "holds credentials"], input={**GIVEN, "centroids": f"s3://A:{SECRET}@b/c.npy"}
    ),
    "a secret in a setting": arguments(
        2, ["input.path"], "run", "{tmp}/conf.yaml", "--set", f"input.path=https://u:{SECRET}@host/x"
    ),
    "a secret, debugging": arguments(
        2, ["input.path"], "run", "{tmp}/conf.yaml", "--set", f"input.path=jdbc:x://h/d?password={SECRET}"
    ),
    # The output.
    "output.path in input.path": config(["output.path", "lies in input.path"], output={"path": "{tmp}/in/run"}),
    "output.path is input.path": config(["output.path", "lies in input.path"], output={"path": "{tmp}/in"}),
    "output.path in what a glob names": config(
        ["output.path", "lies in input.path"], input={"path": "{tmp}/*/{{a,b}}"}, output={"path": "{tmp}/x/b/run"}
    ),
    "output.path around input.path": config(
        ["input.path", "lies in output.path"], input={"path": "{tmp}/run/tables/in"}
    ),
    "output.path is a file": Case(
        2, ["output.path", "is a file"], table, {"output": {"path": "{tmp}/conf.yaml"}}
    ),
    "output.path below a file": Case(
        2, ["output.path", "conf.yaml/x"], table, {"output": {"path": "{tmp}/conf.yaml/x"}}
    ),
    "output.path that cannot be written": Case(2, ["output.path", "/proc/x"], table, {"output": {"path": "/proc/x"}}),
    "output.path at an unknown store": Case(2, ["gopher://x"], table, {"output": {"path": "gopher://x/y"}}),
    "NUL in output.path": config(["output.path", "NUL"], output={"path": "a\0b"}),
    "output.path with something else": Case(
        2, ["output.path", "thesis.tex", "is not a run"], table, before=file_at("run/thesis.tex")
    ),
    "a file where stages go": Case(1, ["cannot read or write", "stages"], table, before=file_at("run/stages"), late=True),
    # The other commands.
    "select of nothing": arguments(3, ["no finished run", "{tmp}/none"], "select", "{tmp}/none", "--out", "{tmp}/o"),
    "sweep of nothing": arguments(3, ["no finished run"], "sweep", "{tmp}/none"),
    "verify of nothing": arguments(3, ["no finished run"], "verify", "{tmp}/none"),
    "select of a list": arguments(
        3, ["old/run.json is not a run.json"], "select", "{tmp}/old", "--out", "{tmp}/o", before=run_json("[]")
    ),
    "sweep of a part": arguments(
        3, ["old/run.json is not a run.json"], "sweep", "{tmp}/old", before=run_json('{"tables": {}, "summary": {}}')
    ),
    "no command": arguments(2, ["COMMAND"]),
    "no such command": arguments(2, ["invalid choice"], "prune"),
}  # fmt: skip


# Files that Spark passes over or reads twice.


def laid(*names: str) -> Callable[[Path], None]:
    """Halves of the table under these names in turn; a name that ends in ``/`` is an empty folder."""

    def write(path: Path) -> None:
        path.mkdir()
        for number, name in enumerate(names):
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            if name.endswith("/"):
                (path / name).mkdir(exist_ok=True)
            else:
                pq.write_table(half(number % 2), path / name)

    return write


def linked(target: str, name: str, *names: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        laid(*names)(path)
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).symlink_to(path.parent / target)

    return write


def delta(path: Path) -> None:
    laid("old.parquet", "new.parquet")(path)
    (path / "_delta_log").mkdir()
    (path / "_delta_log" / f"{0:020d}.json").write_text("{}")


def iceberg(path: Path) -> None:
    laid("data/old.parquet", "data/new.parquet", "metadata/")(path)
    (path / "metadata/00001-0e4a7b0c-93f1-4a2f-9a57-8d1f0f8f4c11.metadata.json").write_text("{}")


def at(path: str | list[str], **more: object) -> dict:
    return {"input": {"path": path, **more}}


GIVEN_CENTROIDS = {"input": {**GIVEN, "centroids": "{tmp}/c"}}
LOST_FILES = {
    "hidden part": Case(3, ["1 Parquet file: _part-1.parquet", "rename"], laid("part-0.parquet", "_part-1.parquet")),
    "hidden part without suffix": Case(3, ["1 Parquet file: .part-1"], laid("part-0", ".part-1")),
    "hidden parts only": Case(3, ["2 Parquet files: _a.parquet, _b.PARQUET"], laid("_a.parquet", "_b.PARQUET")),
    "hidden part named": Case(3, ["in/_b.parquet"], laid("a.parquet", "_b.parquet"), at("{tmp}/in/_b.parquet")),
    "hidden part in a glob": Case(3, ["in/_b.parq"], laid("a.parquet", "_b.parq"), at("{tmp}/in/*")),
    "hidden part in a partition": Case(3, ["c=1/_b.parquet"], laid("c=0/a.parquet", "c=1/_b.parquet")),
    "named _metadata and more": Case(3, ["_metadata-1.parquet"], laid("a.parquet", "_metadata-1.parquet")),
    "hidden folder": Case(
        3, ["folders whose names begin with", "_more/b.parquet", "['{tmp}/in', '{tmp}/in/_more']"],
        laid("a.parquet", "_more/b.parquet"),
    ),
    "hidden folder in a glob": Case(
        3, ["the glob also names hidden folders", "in/.old/b.parquet", "[!_.]*"],
        laid("new/a.parquet", ".old/b.parquet"), at("{tmp}/in/*"),
    ),
    "being copied": Case(3, ["._COPYING_", "b.parquet"], laid("a.parquet", "b.parquet._COPYING_")),
    "subfolder beside files": Case(
        3, ["more/part-1.parquet", "input.path: '{tmp}/in/*' reads all"], laid("part-0.parquet", "more/part-1.parquet")
    ),
    "subfolder without suffix": Case(3, ["more/part-1"], laid("part-0", "more/part-1")),
    "subfolders of two levels": Case(
        3, ["only in subfolders", "input.path: '{tmp}/in/*/*' reads all"], laid("x/y/a.parquet", "x/b.parquet")
    ),
    "only subfolders": Case(3, ["only in subfolders", "'{tmp}/in/*'"], laid("x/a.parquet", "y/b.parquet")),
    "subfolder in a glob": Case(3, ["y/b.parquet"], laid("x/a.parquet", "x/y/b.parquet"), at("{tmp}/in/x*")),
    "file beside partitions": Case(
        3, ["partition folders (split=train)", "p.parquet", "'{tmp}/in/*'"], laid("p.parquet", "split=train/p.parquet")
    ),
    "file beside partitions, no suffix": Case(3, ["beside them: part-0"], laid("part-0", "split=train/part-0")),
    "subfolder beside partitions": Case(3, ["beside them: x/a.parquet"], laid("x/a.parquet", "split=1/b.parquet")),
    "dangling link": Case(
        3, ["1 link leads nowhere", "b.parquet -> {tmp}/gone"], linked("gone", "b.parquet", "a.parquet")
    ),
    "dangling link to a folder": Case(3, ["c=1 -> {tmp}/gone"], linked("gone", "c=1", "c=0/a.parquet")),
    "dangling link as the input": Case(3, ["leads nowhere", "{tmp}/in/b"], linked("gone", "b"), at("{tmp}/in/b")),
    "dangling link in a glob": Case(
        3, ["b.parquet -> {tmp}/gone"], linked("gone", "b.parquet", "a.parquet"), at("{tmp}/in/*.parquet")
    ),
    "a folder and its file": Case(
        3, ["1 file is named more than once", "{tmp}/in and {tmp}/in/a.parquet"], laid("a.parquet", "b.parquet"),
        at(["{tmp}/in", "{tmp}/in/a.parquet"]),
    ),
    "a folder twice": Case(3, ["2 files are named"], laid("a.parquet", "b.parquet"), at(["{tmp}/in", "{tmp}/in/"])),
    "a folder twice, word for word": Case(3, ["2 files are named"], laid("a.pq", "b.pq"), at(["{tmp}/in"] * 2)),
    "a folder in another spelling": Case(
        3, ["2 files are named"], laid("a.parquet", "b.parquet"), at(["{tmp}/in", "file://{tmp}/x/../in"])
    ),
    "globs that overlap": Case(
        3, ["1 file is named", "in/a*"], laid("a.parquet", "b.parquet"), at(["{tmp}/in/a*", "{tmp}/in/*.parquet"])
    ),
    "a link to the folder": Case(
        3, ["2 files are named", "(links)"], laid("a.parquet", "b.parquet"), at(["{tmp}/in", "{tmp}/link"]),
        before=lambda tmp: (tmp / "link").symlink_to(tmp / "in"),
    ),
    "a link to the file beside it": Case(3, ["1 file is named"], linked("in/a.parquet", "c.parquet", "a.parquet")),
    "a partition and its folder": Case(
        3, ["1 file is named"], laid("c=0/a.parquet", "c=1/b.parquet"), at(["{tmp}/in", "{tmp}/in/c=0"])
    ),
    "Delta table": Case(3, ["is the folder of a table (Delta)", "input.table", "format('delta')"], delta),
    "file of a Delta table": Case(3, ["the folder {tmp}/in of a table (Delta)"], delta, at("{tmp}/in/new.parquet")),
    "glob in a Delta table": Case(3, ["the folder {tmp}/in of a table (Delta)"], delta, at("{tmp}/in/n*")),
    "Iceberg table": Case(3, ["a table (Iceberg)", "input.table"], iceberg),
    "data of an Iceberg table": Case(3, ["the folder {tmp}/in of a table (Iceberg)"], iceberg, at("{tmp}/in/data")),
    "Hudi table": Case(3, ["a table (Hudi)"], laid(".hoodie/x.commit", "c=0/a.parquet")),
    "partition of a Hudi table": Case(3, ["a table (Hudi)"], laid(".hoodie/x", "c=0/a.parquet"), at("{tmp}/in/c=0")),
    "brackets of a path and of a glob": Case(
        3, ["is the name of a path and a glob that names {tmp}/in1", r"write {tmp}/in\[12\]"], laid("a.parquet"),
        at("{tmp}/in[12]"), before=lambda tmp: [(tmp / name).mkdir() for name in ("in1", "in[12]")],
    ),
    "hidden part of the centroids": Case(
        3, ["input.centroids {tmp}/c", "1 Parquet file: _b.parquet"], clustered(IDS), GIVEN_CENTROIDS,
        before=lambda tmp: [
            file_at("c/" + name)(tmp) or (tmp / "c" / name).write_bytes(centroids_table([number], [ONE]))
            for number, name in enumerate(["a.parquet", "_b.parquet"])
        ],
    ),
}  # fmt: skip
CASES |= LOST_FILES


# What lies in the files, or beside them.


def with_column(values: pa.Array) -> Callable[[Path], object]:
    return lambda path: table(path, x=values)


def stale_checksum(path: Path) -> None:
    table(path)
    (path / ".00000.parquet.crc").write_bytes(b"crc\0" + (512).to_bytes(4, "big") + b"\1\2\3\4" * 40)


def in_folders(*folders: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        for number, folder in enumerate(folders):
            (path / folder).mkdir(parents=True)
            pq.write_table(half(number), path / folder / "p.parquet")

    return write


def encrypted(plaintext_footer: bool) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        import base64

        import pyarrow.parquet.encryption as pe

        class Keys(pe.KmsClient):
            def wrap_key(self, key: bytes, name: str) -> bytes:
                return base64.b64encode(key)

        configuration = pe.EncryptionConfiguration(
            footer_key="footer", column_keys={"column": ["key"]}, plaintext_footer=plaintext_footer
        )
        factory = pe.CryptoFactory(lambda _: Keys())
        properties = factory.file_encryption_properties(pe.KmsConnectionConfig(), configuration)
        in_files(path, half(0), encryption_properties=properties)

    return write


def beside(name: str, content: pa.Table) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        table(path)
        pq.write_table(content, path / name)

    return write


NANOS = pa.array(range(N), pa.timestamp("ns"))
UNTYPED = pa.table({"key": KEYS[:3], "embedding": pa.nulls(3)})
CASES |= {
    "case 19: partition levels": Case(
        3, ["in/a=1", "in/a=2/b=1", "levels of folders", "glob"], in_folders("a=1", "a=2/b=1")
    ),
    "partition names": Case(3, ["in/a=1", "in/b=1", "different partition columns"], in_folders("a=1", "b=1")),
    "partition roots": Case(3, ["in/x", "in/y", "one root"], in_folders("x/a=1", "y/a=2")),
    "case 22: nanoseconds as the key": Case(
        3, ["'x' of", "TIMESTAMP(NANOS)", "--set spark.sql.legacy.parquet.nanosAsLong=true"], with_column(NANOS),
        {"input": {"key": "x"}},
    ),
    "nanoseconds in exact dedup": Case(
        3, ["'x' of", "TIMESTAMP(NANOS)"], with_column(NANOS), {"dedup": {"exact": {"columns": ["x"]}}}
    ),
    "nanoseconds in the filter": Case(
        3, ["input.filter", "'x' of", "TIMESTAMP(NANOS)"], with_column(NANOS), {"input": {"filter": "x > 3"}}
    ),
    "TIME as the key": Case(
        3, ["'x' of", "TIME(NANOS)", "write it as"], with_column(pa.array(range(N), pa.time64("ns"))),
        {"input": {"key": "x"}},
    ),
    "case 25: Brotli": Case(
        3, ["00000.parquet", "compressed with brotli", "no codec", "zstd"],
        lambda path: in_files(path, half(0), compression="brotli"),
        {"engine": "sql"},  # workers have that codec
    ),
    "case 26: a stale checksum": Case(
        3, ["00000.parquet", "checksum file .00000.parquet.crc", "delete"], stale_checksum
    ),
    "an encrypted footer": Case(3, ["00000.parquet", "encrypted", "parquet.crypto.factory.class"], encrypted(False)),
    "encrypted columns": Case(3, ["00000.parquet", "encrypted", "parquet.crypto.factory.class"], encrypted(True)),
    "a CSV": Case(3, ["cannot read", "x.csv", "a text (CSV?)"], file_of("x.csv", b"key,embedding\n")),
    "JSON": Case(3, ["cannot read", "x.json", "JSON"], file_of("x.json", b'{"key": 1}\n', beside=True)),
    "Feather": Case(3, ["cannot read", "Arrow IPC"], file_of("x.feather", b"ARROW1\0\0" + bytes(99) + b"ARROW1")),
    "Parquet in gzip": Case(
        3, ["x.parquet.gz", "gzip", "unpack it"], file_of("x.parquet.gz", b"\x1f\x8b\x08\0" + bytes(range(99)))
    ),
    "a pointer of Git LFS": Case(
        3, ["Git LFS", "git lfs pull"], file_of("x.parquet", b"version https://git-lfs.github.com/spec/v1\n")
    ),
    "a column without a type in the first file": Case(
        3, ["input.embedding", "INT", "null in all rows of the first file"], beside("0.parquet", UNTYPED)
    ),
    "a column without a type in the last file": Case(
        3, ["z.parquet", "'embedding' has no type there", "ARRAY<FLOAT>"], beside("z.parquet", UNTYPED)
    ),
    "a colon in a name": Case(
        3, ["a:b.parquet", "no colon", "rename"], file_of("a:b.parquet", parquet(half(0)))
    ),
    "centroids of nanoseconds": centroids(
        ["'centroid' of", "(input.centroids)", "TIMESTAMP(NANOS) in a list"],
        parquet(pa.table({"cluster_id": [0], "centroid": pa.array([[1]], pa.list_(pa.timestamp("ns")))})),
        "c.parquet",
    ),
}  # fmt: skip


def filled(value: object, tmp: Path) -> object:
    if isinstance(value, str):
        return value.replace("{tmp}", str(tmp)).replace("{{", "{").replace("}}", "}")
    if isinstance(value, dict):
        return {name: filled(item, tmp) for name, item in value.items()}
    if isinstance(value, list):
        return [filled(item, tmp) for item in value]
    return value


def prepare(tmp: Path, case: Case) -> None:
    values = config_of(tmp / "in", tmp / "run", **filled(case.sections, tmp))
    (tmp / "conf.yaml").write_bytes(yaml.safe_dump(values).encode() if case.content is None else case.content)
    if case.write is not None:
        case.write(tmp / "in")
    if case.before is not None:
        case.before(tmp)


def tree(path: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()
    }


def check_message(done: Done, code: int, words: list[str]) -> None:
    assert done.code == code, done.err
    for word in words:
        assert word in done.err
    assert SECRET not in done.out + done.err
    for trace in ("Traceback", "\tat ", ".java:", ".scala:", "Py4JJava"):
        assert trace not in done.out + done.err, done.err
    assert " ERROR " not in done.err  # Spark's own log, in a process of its own
    assert "to mend it: " in done.err or done.err.startswith("usage: ")


def check_refused(command: Callable[[list], Done], case: Case, tmp: Path) -> None:
    """The case is refused with its code and words, and nothing is written that should not be."""
    prepare(tmp, case)
    before = tree(tmp)
    done = command([filled(argument, tmp) for argument in case.arguments])
    check_message(done, case.code, [filled(word, tmp) for word in case.words])
    after = tree(tmp)
    if case.late:
        assert "run/run.json" not in after
        before, after = (
            {file: content for file, content in files.items() if not file.startswith("run/")}
            for files in (before, after)
        )
    assert after == before
    if not case.late and case.before is None:
        assert not (tmp / "run").exists()
