"""`verify` finds what is wrong with a run, whichever table it is in and however it is covered up."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from zlib import crc32

import marisa_trie
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from conftest import config_of, make_embeddings, make_keys, write_table

from spark_dbp import RunConfig, open_run, prune_again, run
from spark_dbp.cli import main
from spark_dbp.errors import DamagedRunError
from spark_dbp.explore.verify import verify
from spark_dbp.lake import files, parquet_files
from spark_dbp.lake.digest import digest_columns

N = 600
EMBEDDINGS = make_embeddings(N, 8, 5)
EMBEDDINGS[40:50] = EMBEDDINGS[30:40]  # ten exact duplicates, by their text too


@pytest.fixture(scope="module")
def good(spark, tmp_path_factory):
    """A run with everything: bad rows, a filter, duplicates, several shards."""
    path = tmp_path_factory.mktemp("good")
    rows = [row.tolist() for row in EMBEDDINGS]
    rows[7] = None
    text = [f"text {i - 10 if 40 <= i < 50 else i}" for i in range(N)]
    embeddings = pa.array(rows, pa.list_(pa.float32()))
    source = write_table(path / "in", make_keys(N), embeddings, n_files=2, text=text, width=range(N))
    config = config_of(
        source,
        path / "run",
        input={"on_bad_rows": "drop", "filter": "width <> 5"},
        dedup={"exact": {"columns": ["text"]}},
        cluster={"n_clusters": 6},
        trie={"shards": 3, "key": "concat(key, '!')"},
    )
    return run(RunConfig.from_dict(config), spark)


@pytest.fixture
def copy(good, tmp_path):
    shutil.copytree(good.path, tmp_path / "run")
    return open_run(tmp_path / "run")


def test_a_run_as_it_was_committed(spark, good):
    assert len(verify(good, spark)) == 9


@pytest.mark.slow
def test_runs_pruned_again(spark, good, tmp_path):
    for settings in (
        ["which_to_keep=random", "seed=4"],
        ["complexity=uniform", "which_to_keep=easy"],
        ["which_to_keep=stratified", "keep_ratio=0.2"],
    ):
        out = str(tmp_path / settings[0].replace("=", "-"))
        again = prune_again(good, out, [f"prune.{item}" for item in settings], spark)
        assert len(verify(again, spark)) == 9


def test_the_command(spark, copy, capsys):
    assert main(["verify", copy.path]) == 0
    assert capsys.readouterr().out.count("ok  ") == 9
    (next(Path(copy.table_path("quotas")).glob("*.parquet"))).unlink()
    assert main(["verify", copy.path]) == 3
    message = capsys.readouterr().err
    assert "table quotas (step quota)" in message
    assert "is missing" in message
    assert "to mend it" in message


# Damage to the files themselves.


@pytest.mark.parametrize("table", ["samples", "assignments", "centroids", "quotas", "keep_list", "keep_trie"])
@pytest.mark.parametrize("damage", ["delete", "truncate", "add"])
def test_files_missing_cut_or_added(good, tmp_path, table, damage):
    shutil.copytree(good.path, tmp_path / "run")
    run_ = open_run(tmp_path / "run")
    folder = Path(run_.table_path(table))
    file = sorted(p for p in folder.iterdir() if not p.name.startswith((".", "_")))[0]
    if damage == "delete":
        file.unlink()
    elif damage == "truncate":
        file.write_bytes(file.read_bytes()[:-1])
    else:
        shutil.copy(file, folder / f"planted{file.suffix}")
    words = {"delete": "is missing", "truncate": "bytes where", "add": "does not belong to it"}[damage]
    with pytest.raises(DamagedRunError, match=rf"table {table} .*{words}"):
        verify(run_)


# Damage inside the tables. `forge` makes run.json agree with what it wrote, so that only the other tables
# can tell; without `cover` the digests tell.


def forge(spark, run_, table, content, cover=True):
    """Replace a table by `content`, and what run.json says of its files (and of its content)."""
    folder = Path(run_.table_path(table))
    shutil.rmtree(folder)
    folder.mkdir()
    pq.write_table(content, folder / "part-0.parquet")
    document = run_.document
    stage = next(s for s in document["stages"].values() if table in s["tables"])
    stage["files"][table] = files.list_sizes(str(folder))
    if cover:
        frame = spark.read.parquet(str(folder))
        stage["rows"][table], digests = digest_columns(frame, frame.columns, frame.columns[:1])
        document["rows"][table] = stage["rows"][table]
        for kind, digest in zip(("digests", "key_digests"), digests, strict=True):
            if table in stage[kind]:
                stage[kind][table] = digest
    (Path(run_.path) / "run.json").write_text(json.dumps(document))
    return open_run(run_.path)


def read(run_, table):
    return parquet_files.read_parquet(run_.table_path(table))


def with_column(table, name, function):
    column = table.column(name).to_pylist()
    changed = pa.array(function(column), table.schema.field(name).type)
    return table.set_column(table.column_names.index(name), table.schema.field(name), changed)


def first(value):
    return lambda column: [value(column[0]) if callable(value) else value, *column[1:]]


def swap(column):
    """One unit from the cluster with the largest quota to another."""
    order = np.argsort(column)
    column[order[-1]] -= 1
    column[order[-2]] += 1
    return column


DAMAGES = [
    ("samples", "dimension", first(9), "good rows where the account of rows needs"),
    ("samples", "key", first("stranger"), "are assigned or duplicates without being samples, such as"),
    ("samples", "problem", first("null key"), "rows with 'null key', the account has 0"),
    ("assignments", "key", first("stranger"), "are neither assigned nor duplicates, such as"),
    ("assignments", "key", lambda keys: [keys[1], *keys[1:]], "occur more than once in assignments"),
    ("assignments", "distance_to_centroid", first(3.0), "distances are not within"),
    ("assignments", "distance_to_centroid", first(float("nan")), "distances are not within"),
    ("assignments", "distance_to_centroid", first(None), "distances are not within"),
    ("assignments", "distance_to_centroid", first(0.5), "d_intra of cluster"),
    ("assignments", "cluster_id", first(77), "rows are in unknown clusters, such as"),
    ("centroids", "centroid", lambda rows: [[2 * x for x in rows[0]], *rows[1:]], "has norm 2, not 1"),
    ("centroids", "centroid", lambda rows: rows[::-1], "d_inter of cluster"),
    ("centroids", "cluster_id", first(1), "occurs more than once"),
    (
        "duplicates",
        "duplicate_of",
        first("stranger"),
        "duplicate_of of 1 rows is no sample, such as 'stranger'",
    ),
    ("duplicates", "key", first("stranger"), "are assigned or duplicates without being samples"),
    ("cluster_stats", "n_items", first(lambda n: n + 1), "n_items of cluster 0"),
    ("cluster_stats", "d_intra", first(0.123), "d_intra of cluster 0"),
    ("cluster_stats", "complexity", first(0.123), "complexity of cluster 0"),
    ("quotas", "quota", first(lambda n: n + 1), "the quotas add up to"),
    ("quotas", "quota", swap, "not optimal: moving one from cluster"),
    ("quotas", "quota", first(0), "is not within"),
    ("quotas", "weight", first(0.9), "weight of cluster 0"),
    ("quotas", "n_items", first(9), "n_items of cluster 0"),
    ("keep_list", "key", first("stranger"), "1 rows should not be kept, or not so"),
    ("keep_list", "rank", first(lambda rank: rank + 1), "should be kept and are not, or not so"),
    ("keep_list", "distance_to_centroid", first(0.25), "should not be kept, or not so"),
    ("keep_list", "cluster_id", first(lambda c: c + 1), "should not be kept, or not so"),
]


# A few of them here, all of them in the long run.
QUICK = ("keep_list.rank",)
PARAMETERS = [
    pytest.param(*damage, id=name, marks=[] if name in QUICK and name not in names[:n] else pytest.mark.long)
    for names in [[f"{table}.{column}" for table, column, *_ in DAMAGES]]
    for n, (name, damage) in enumerate(zip(names, DAMAGES, strict=True))
]


@pytest.mark.parametrize(("table", "column", "change", "words"), PARAMETERS)
def test_values_changed_and_covered_up(spark, copy, table, column, change, words):
    forged = forge(spark, copy, table, with_column(read(copy, table), column, change))
    with pytest.raises(DamagedRunError) as caught:
        verify(forged, spark)
    assert words in str(caught.value)
    assert f"table {table}" in str(caught.value) or table in (
        "samples",
        "centroids",
        "assignments",
        "duplicates",
    )
    assert caught.value.exit_code == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    "table",
    [
        "samples",
        "keep_list",
        *(
            pytest.param(t, marks=pytest.mark.long)
            for t in ("survivors", "assignments", "duplicates", "quotas")
        ),
    ],
)
def test_the_digest_tells_what_is_not_covered_up(spark, copy, table):
    content = read(copy, table)
    last = content.column_names[-1]
    column = {"samples": "vector", "survivors": "vector", "duplicates": "duplicate_of"}.get(table, last)
    again = with_column(content, column, lambda values: [*values[1:], values[0]])
    with pytest.raises(DamagedRunError, match=f"table {table} has the digest .* run.json says"):
        verify(forge(spark, copy, table, again, cover=False), spark)


@pytest.mark.long
def test_rows_lost_or_doubled(spark, copy):
    rows = read(copy, "keep_list")
    with pytest.raises(DamagedRunError, match=r"table keep_list has \d+ rows, run.json says"):
        verify(forge(spark, copy, "keep_list", rows.slice(1), cover=False), spark)
    with pytest.raises(DamagedRunError, match="keep_list has 175 rows where the account of rows needs 176"):
        verify(forge(spark, copy, "keep_list", rows.slice(1)), spark)
    doubled = pa.concat_tables([rows, rows.slice(0, 1)])
    with pytest.raises(DamagedRunError, match="keep_list has 177 rows where the account of rows needs 176"):
        verify(forge(spark, copy, "keep_list", doubled), spark)


@pytest.mark.long
def test_another_type(spark, copy):
    content = read(copy, "keep_list")
    wide = content.set_column(3, "rank", pc.cast(content.column("rank"), pa.int64()))
    with pytest.raises(DamagedRunError, match=r"table keep_list has the columns .*'rank': 'bigint'"):
        verify(forge(spark, copy, "keep_list", wide), spark)


def test_rows_that_do_not_add_up(copy, spark):
    copy.document["accounting"]["dropped"]["exact duplicates"] += 1
    with pytest.raises(DamagedRunError, match="accounts for 601 of 600 input rows"):
        verify(copy, spark)


# The trie.


def rewrite_shard(run_, change):
    """Write the first shard anew from `change(its keys)`, and the manifest and run.json to match."""
    folder = Path(run_.table_path("keep_trie"))
    manifest = json.loads((folder / "manifest.json").read_text())
    shard = manifest["shards"][0]
    trie = marisa_trie.BinaryTrie().frombytes((folder / shard["file"]).read_bytes())
    keys = change(sorted(trie.keys()))
    content = marisa_trie.BinaryTrie(keys).tobytes()
    (folder / shard["file"]).write_bytes(content)
    manifest["n_keys"] += len(keys) - shard["n_keys"]
    shard.update(n_keys=len(keys), bytes=len(content), crc32=crc32(content))
    (folder / "manifest.json").write_text(json.dumps(manifest))
    run_.document["stages"]["keep_trie"]["files"]["keep_trie"] = files.list_sizes(str(folder))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param(lambda keys: keys[1:], "1 kept keys are not in it, such as", marks=pytest.mark.long),
        pytest.param(lambda keys: [*keys, b"one more"], "the keep list has", marks=pytest.mark.long),
        (lambda keys: [*keys[1:], b"another"], "1 kept keys are not in it, such as"),
    ],
)
def test_a_trie_with_other_keys(spark, copy, change, words):
    rewrite_shard(copy, change)
    with pytest.raises(DamagedRunError, match=words):
        verify(copy, spark)


@pytest.mark.slow
def test_a_shard_with_flipped_bytes(spark, copy):
    folder = Path(copy.table_path("keep_trie"))
    file = sorted(folder.glob("*.marisa"))[0]
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 255
    file.write_bytes(content)
    with pytest.raises(DamagedRunError, match=rf"shard '{file.name}' is not as it was written"):
        verify(copy, spark)


@pytest.mark.slow
def test_a_manifest_that_is_none(spark, copy):
    file = Path(copy.table_path("keep_trie")) / "manifest.json"
    file.write_text("{" + " " * (file.stat().st_size - 1))
    with pytest.raises(DamagedRunError, match=r"table keep_trie: manifest\.json at .* cannot be read"):
        verify(copy, spark)
