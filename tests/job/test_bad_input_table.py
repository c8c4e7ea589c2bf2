"""Bad inputs as one table, through the real command: exit code, message, nothing shown or written that should not.

Those that need no Spark are in tests/unit/test_bad_configuration.py, the table itself in tests/bad_inputs.py.
"""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from bad_inputs import (
    CASES,
    IDS,
    SECRET,
    Case,
    Trap,
    check_message,
    check_refused,
    clustered,
    in_a_process,
    npy,
    prepare,
    table,
    tree,
    truncated,
    with_row,
)

from spark_dbp.lake.lock import acquire_lock

NAMES = [name for name, case in CASES.items() if case.needs_spark]
# One of each kind for `make test`; all of them in `make test-all`.
QUICK = {
    "missing path", "hidden files only", "a text among Parquet", "0 bytes among others", "truncated file",
    "flipped bit, snappy", "missing table", "missing key column", "embedding of texts", "key of arrays",
    "float, then double", "empty table", "two dimensions", "null embedding", "NaN", "zero vector", "broken bytes",
    "null key", "duplicate keys", "more clusters than rows", "n_keep above the rows", "filter on no column",
    "filter fails on a row", "trie key is no SQL", "no column for exact", "null cluster_id", "distance outside",
    "centroids of objects", "centroid ids twice", "an unknown codec", "output.path is a file",
    "output.path with something else", "hidden part", "subfolder beside files", "file beside partitions",
    "a folder and its file", "a score of text", "condition is no predicate", "a filter that leaves too few",
}  # fmt: skip
assert set(NAMES) >= QUICK


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in NAMES]
)
def test_refused(command, tmp_path, name):
    check_refused(command, CASES[name], tmp_path)


def committed(run: Path) -> dict[str, bytes]:
    """A run's files, without the notes on which runs use its tables."""
    return {name: content for name, content in tree(run).items() if not name.startswith("derived/")}


@pytest.mark.slow
def test_the_run_that_was_there_stays(command, tmp_path):
    """Whatever is refused, the run that an earlier command committed is not touched; nor are others locked out."""
    prepare(tmp_path, Case(0, []))
    run = ["run", tmp_path / "conf.yaml"]
    assert command(run).code == 0
    before = committed(tmp_path / "run")
    table(tmp_path / "bad", rows=with_row(None))
    out = ["--out", tmp_path / "o"]
    ansi = ["--set", "spark.sql.ansi.enabled=true"]
    for arguments, code, words in [
        ([*run, "--set", f"input.path={tmp_path / 'bad'}"], 3, ["null embedding: 1 row"]),
        ([*run, "--set", "input.filter=cast(key as int) > 0", *ansi], 3, ["fails on a row"]),
        ([*run, "--set", "prune.n_keep=1000", "prune.keep_ratio=null"], 3, ["prune.n_keep 1,000 of 60"]),
        ([*run, "--set", "trie.key=nullif(rank, 1)"], 3, ["trie.key", "is null for"]),
        ([*run, "--set", "trie.key=max(key)"], 3, ["trie.key", "1 different texts of 18"]),
        (["select", tmp_path / "run", "--out", tmp_path / "run"], 2, ["is the run to prune again"]),
        (["select", tmp_path / "run", *out, "--set", "cluster.n_clusters=3"], 2, ["cannot change"]),
        (["select", tmp_path / "run", *out, "--set", "prune.keep_ratio=2"], 2, ["prune.keep_ratio"]),
        (["select", tmp_path / "run", *out, "--set", "prune.n_keep=1000"], 3, ["prune.n_keep 1,000 of 60"]),
        (["select", tmp_path / "run", "--out", tmp_path / "in/o"], 2, ["output.path", "lies in input.path"]),
        (["sweep", tmp_path / "run"], 3, ["no semantic deduplication", "dedup.semantic"]),
    ]:
        check_message(command(arguments), code, words)
        assert committed(tmp_path / "run") == before
        assert not (tmp_path / "o/run.json").exists()
    with acquire_lock(str(tmp_path / "run")):
        check_message(command(run), 4, ["is in use by process", "wait for it"])
    assert committed(tmp_path / "run") == before


@pytest.mark.slow
@pytest.mark.parametrize("place", ["c.npy", "c.parquet", "in/x.parquet", "conf.yaml"])
def test_no_pickle_is_read(command, tmp_path, place):
    sections = {"input": {"cluster_id": "cid", "centroids": f"{{tmp}}/{place}"}} if place[0] == "c" else {}
    prepare(tmp_path, Case(3, [], clustered(IDS), {} if place == "conf.yaml" else sections))
    (tmp_path / place).write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    pickle_of_an_array = npy(np.array([Trap(tmp_path / "sprung")], dtype=object))
    for content in (pickle.dumps(Trap(tmp_path / "sprung")), pickle_of_an_array):
        (tmp_path / place).write_bytes(content)
        check_message(command(["run", tmp_path / "conf.yaml"]), 2 if place == "conf.yaml" else 3, [place])
    (tmp_path / "conf.yaml").write_text(f"input: !!python/object/apply:os.mkdir ['{tmp_path}/sprung']\n")
    check_message(command(["run", tmp_path / "conf.yaml"]), 2, ["line 1", "constructor"])
    assert not (tmp_path / "sprung").exists()
    pickle.loads(pickle.dumps(Trap(tmp_path / "sprung")))  # the trap works
    assert (tmp_path / "sprung").exists()


def test_a_corrupt_file_fails_by_name_whatever_the_session_says(command, tmp_path):
    ignoring = {f"spark.sql.files.{what}": True for what in ("ignoreCorruptFiles", "ignoreMissingFiles")}
    prepare(tmp_path, Case(3, [], truncated, {"spark": ignoring}))
    check_message(command(["run", tmp_path / "conf.yaml"]), 3, ["cannot read", "00001.parquet"])


@pytest.mark.slow
def test_spark_is_quiet_about_failed_tasks(tmp_path):
    """Spark's own log goes to the process's stderr, which only a process of its own shows."""
    case = CASES["overwritten page"]
    prepare(tmp_path, case)
    check_message(in_a_process(["run", tmp_path / "conf.yaml"]), case.code, case.words)


@pytest.mark.long
def test_spark_tells_of_failed_tasks_when_debugging(tmp_path):
    case = CASES["overwritten page"]
    prepare(tmp_path, case)
    done = in_a_process(["--debug", "run", tmp_path / "conf.yaml"])
    assert done.code == case.code
    for words in ("\tat org.apache", "Traceback", *case.words):
        assert words in done.err


def test_debugging_shows_the_trace_but_no_secret(command, tmp_path):
    prepare(tmp_path, Case(2, []))
    done = command(["run", tmp_path / "conf.yaml", "--debug", "--set", f"input.path=s3a://AKIA:{SECRET}@b/x"])
    assert done.code == 2
    assert "Traceback" in done.err
    assert "(redacted)@b/x" in done.err
    assert SECRET not in done.out + done.err


# Secrets.


@pytest.mark.slow
def test_secrets_are_written_and_shown_nowhere(command, tmp_path):
    secrets = {
        "spark.hadoop.fs.s3a.secret.key": SECRET,
        "spark.hadoop.fs.s3a.access.key": f"AKIA{SECRET}",
        "spark.hadoop.fs.s3a.session.token": SECRET,
        "spark.hadoop.fs.azure.account.key.x.dfs.core.windows.net": SECRET,
        "spark.hadoop.fs.azure.sas.c.x.blob.core.windows.net": SECRET,
        "spark.hadoop.google.cloud.auth.service.account.private.key": SECRET,
        "spark.hadoop.javax.jdo.option.ConnectionPassword": SECRET,
        "spark.sql.catalog.lake.credential": SECRET,
        "spark.sql.catalog.lake.uri": f"jdbc:postgresql://host/db?user=u&password={SECRET}",
        "spark.sql.catalog.lake.warehouse": f"s3://AKIA:{SECRET}/with/slashes@bucket/x",
    }
    prepare(tmp_path, Case(0, [], table, {"spark": {**secrets, "spark.sql.session.timeZone": "Asia/Tokyo"}}))
    outputs = [
        command(["run", tmp_path / "conf.yaml"]),
        command(["run", tmp_path / "conf.yaml", "--debug"]),  # resumed
        command(["select", tmp_path / "run", "--out", tmp_path / "again", "--set", "prune.keep_ratio=0.5"]),
        command(["verify", tmp_path / "run"]),
    ]
    for done in outputs:
        assert done.code == 0, done.err
        assert SECRET not in done.out + done.err
    for directory in ("run", "again"):
        files = tree(tmp_path / directory)
        assert "run.json" in files
        assert [name for name, content in files.items() if SECRET.encode() in content or SECRET in name] == []
    spark = json.loads((tmp_path / "run/run.json").read_text())["config"]["spark"]
    assert spark["spark.sql.session.timeZone"] == "Asia/Tokyo"
    assert spark["spark.sql.catalog.lake.uri"] == "jdbc:postgresql://host/db?user=u&password=(redacted)"
    assert spark["spark.hadoop.fs.s3a.secret.key"] == "(redacted)"


@pytest.mark.slow
def test_a_secret_of_a_session_that_does_not_start(tmp_path):
    """Spark says which value it refuses."""
    spark = {"spark.io.encryption.enabled": True, "spark.io.encryption.keySizeBits": SECRET}
    prepare(tmp_path, Case(2, [], table, {"spark": spark}))
    done = in_a_process(["run", tmp_path / "conf.yaml"])
    check_message(done, 2, ["Spark does not start", "the `spark` section"])
