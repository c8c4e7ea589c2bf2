"""Which files of the input are read: as Spark does, nothing lost without a word, nothing refused that is right."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import config_of, make_embeddings, make_keys, write_table

from spark_dbp import KeepTrie, RunConfig, open_run, run
from spark_dbp.errors import InputError
from spark_dbp.explore.verify import verify
from spark_dbp.io import listing as listings
from spark_dbp.io.input_files import list_read_files
from spark_dbp.io.listing import find_key, list_paths
from spark_dbp.io.passed_over import PassedOver
from spark_dbp.io.sources import open_source
from spark_dbp.lake import paths

N = 60
KEYS, EMBEDDINGS = make_keys(N), make_embeddings(N, 4, 3)


def lay(folder: Path, *names: str, rows: int = 2) -> Path:
    """One small Parquet file of these names each, with other keys."""
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        keys = [f"{number}-{row}" for row in range(rows)]
        pq.write_table(pa.table({"key": keys, "v": pa.array([1] * rows, pa.int32())}), folder / name)
    return folder


def opened(spark, *entries: object, compared: tuple = ("key",)):
    return open_source(spark, paths=[str(entry) for entry in entries], columns=["key"], compared=compared)


@pytest.mark.slow
def test_what_is_known_of_spark_is_what_it_does(spark, tmp_path):
    """Files are predicted to be read, or passed over, as Spark then does, for folders and globs of all kinds."""
    lay(
        tmp_path / "in",
        "a.parquet", "_b.parquet", ".c.parquet", "_k=1.parquet", "d", "e.parquet._COPYING_", "_metadata-1",
        "sub/f.parquet", "sub/deep/g.parquet", "_hidden/h.parquet", ".dot/i.parquet", "x [v2]/j k%20.parquet",
        "{1,2}/l.parquet", "back\\slash/m.parquet",
    )  # fmt: skip
    lay(
        tmp_path / "parts",
        "p.parquet",
        "s=1/a.parquet",
        "s=2/more/b.parquet",
        "s=1/_c.parquet",
        "_s/d.parquet",
    )
    (tmp_path / "link").symlink_to(tmp_path / "in")
    (tmp_path / "in/gone.parquet").symlink_to(tmp_path / "gone")
    for entries in [
        ["in"], ["in/*"], ["in/*.parquet"], ["in/{a,_b}.parquet"], ["in/[!_]*"], ["in/sub", "in/a.parquet"],
        ["in/{sub/deep,_hidden}"], ["in/?"], [r"in/x \[v2\]"], ["in/x*/*"], [r"in/\{1,2\}", r"in/back\\slash"],
        ["link"], ["link/s*"], ["parts"], ["parts/*"], ["parts/s=1"], ["parts/s=*"], ["in/../in/a*"],
    ]:  # fmt: skip
        found = [f"{tmp_path}/{entry}" for entry in entries]
        read = list_read_files(spark.read.parquet(*found)).column("file_path").to_pylist()
        listing = list_paths(found)
        assert not listing.unchecked
        assert PassedOver("", listing, read).is_read == PassedOver("", listing, None).is_read, entries
        assert len(PassedOver("", listing, read).is_read) == len(read), entries


def test_what_is_harmless_is_not_refused(spark, tmp_path, caplog):
    source = lay(tmp_path / "in", "c=0/a.parquet", "c=1/b.parquet", "_temporary/0/c.parquet",
                 ".ipynb_checkpoints/a.parquet", "_draft-1/d.parquet", ".git/lfs/e")  # fmt: skip
    lay(source / "c=0", "none.parquet", rows=0)
    for name in (
        "_SUCCESS",
        "_committed_1",
        "_started_1",
        ".part-1.parquet.crc",
        ".DS_Store",
        "c=0/._a.parquet",
    ):
        (source / name).write_bytes(b"\0\5\x16\7" * 4)
    for name in ("_metadata", "_common_metadata"):
        shutil.copy(source / "c=0/a.parquet", source / name)
    (source / "c=1/_again.parquet").symlink_to("b.parquet")  # another name of what is read
    (source / "_loop").symlink_to(source)
    (source / "c=0/.#a.parquet").symlink_to("me@host.123")  # an editor's lock
    with caplog.at_level(logging.INFO, "spark_dbp"):
        assert opened(spark, source).snapshot.rows == 4
    assert (
        "input.path: left out, as Spark does: .git, .ipynb_checkpoints, _draft-1, _temporary" in caplog.text
    )


@pytest.mark.parametrize(
    "names",
    [
        ["a.parquet", "x/b.parquet"],
        ["x/a.parquet", "y/b.parquet", "_temporary/0/c.parquet"],
        ["x/y/a.parquet", "x/b.parquet", "x/b.json"],
        ["a.parquet", "x/y/b.parquet", "x/z/c.parquet"],
        ["x [1]/it's/a.parquet", "b.parquet"],
        ["p.parquet", "s=1/q.parquet", ".h/r.json"],
        ["x/p.parquet", "x/s=1/q.parquet"],
    ],
)
def test_the_mend_mends_it(spark, tmp_path, names):
    """What the message says to write reads all files, each once."""
    source = lay(tmp_path / "in [v2]", *names)
    for name in names:
        if name.endswith(".json"):
            (source / name).write_text("{}")
    with pytest.raises(InputError) as caught:
        opened(spark, source)
    line = re.search(r"input\.path: (\[?'.*'\]?)", caught.value.mend)[1]
    given = yaml.safe_load(line)
    mended = opened(spark, *([given] if isinstance(given, str) else given))
    wanted = [name for name in names if name.endswith(".parquet") and "_temporary" not in name]
    assert mended.snapshot.files == len(wanted)


def test_an_item_from_which_nothing_comes_is_told(spark, tmp_path, caplog):
    source = lay(tmp_path, "a/a.parquet")
    (tmp_path / "b").mkdir()
    assert opened(spark, source / "a", tmp_path / "b").snapshot.rows == 2
    assert f"input.path {tmp_path}/b: no rows come from there" in caplog.text


def test_where_this_program_cannot_list_spark_does(spark, tmp_path, caplog, monkeypatch):
    """Subfolders, files beside partitions and of 0 bytes are found all the same; the log says what is not."""

    def refused(*_):
        raise PermissionError("no credentials")

    monkeypatch.setattr(listings, "_walk_disk", refused)
    good = lay(tmp_path / "good", "a=1/x y%20.parquet", "a=2/b.parquet")
    assert opened(spark, good).snapshot.rows == 4
    assert f"input.path {good}: not checked for hidden files and links: no credentials" in caplog.text
    assert opened(spark, good / "a=1", f"{good}/a=2/*").snapshot.rows == 4
    for number, (names, word) in enumerate(
        [
            (["a.parquet", "x/b.parquet"], "x/b.parquet"),
            (["p.parquet", "a=1/b.parquet"], "beside them: p.parquet"),
            (["a.parquet", "b.parquet"], "1 Parquet file has 0 bytes"),
        ]
    ):
        source = lay(tmp_path / f"bad{number}", *names)
        if "0 bytes" in word:
            (source / "b.parquet").write_bytes(b"")
        with pytest.raises(InputError, match=word):
            opened(spark, source)
    lay(tmp_path / "glob", "x/a.parquet", "x/y/b.parquet")
    with pytest.raises(InputError, match=r": y/b\.parquet"):
        opened(spark, tmp_path / "glo*" / "x")


def test_files_that_spark_lists_elsewhere_are_not_compared(spark, tmp_path, caplog):
    """A plain path is not of this disk where Spark's file system is another one."""
    source = lay(tmp_path / "in", "a.parquet", "_b.parquet")
    PassedOver("input.path", list_paths([str(source)]), ["hdfs://n/other/in/c.parquet"]).check(list)
    assert "not checked" in caplog.text
    assert "Spark reads other files, such as hdfs://n/other/in/c.parquet" in caplog.text


def test_files_that_spark_does_not_see_are_refused(spark, tmp_path):
    """As of names beyond ASCII, in a JVM of another locale."""
    source = lay(tmp_path / "in", "a.parquet", "\u00e9.parquet")
    checked = PassedOver("input.path", list_paths([str(source)]), [f"file:{source}/a.parquet"])
    with pytest.raises(InputError, match=r"does not see 1 Parquet file .*\u00e9\.parquet"):
        checked.check(lambda: [f"file://{source}/a.parquet"])
    checked.check(lambda: [f"file://{source}/a.parquet", f"file://{source}/%C3%A9.parquet"])  # of 0 rows


def test_many_files_are_listed_in_no_time(tmp_path):
    source = lay(tmp_path / "in", "0.parquet")
    for number in range(1, 10_000):
        os.link(source / "0.parquet", source / f"{number}.parquet")
    listing = list_paths([str(source)])
    checked = PassedOver("input.path", listing, [f"file:{one.path}" for one in listing.found])
    checked.check(list)
    assert len(checked.is_read) == 10_000


def test_case_14_keys_in_names_of_folders_keep_their_zeros(spark, tmp_path):
    names = ["00007", "8", "2024-01-01", "1e3", "a%2Fb", "0.50", "true"]
    for numbers in (names[:2], names):  # only numbers, and what Spark takes for texts anyway
        source = tmp_path / f"of{len(numbers)}"
        lay(source, *[f"n=0{i % 2}/uid={name}/p.parquet" for i, name in enumerate(numbers)], rows=1)
        frame = opened(spark, source, compared=("uid",)).frame
        rows = frame.select("uid", "n").collect()
        assert sorted(row.uid for row in rows) == sorted(name.replace("%2F", "/") for name in numbers)
        assert {row.n for row in rows} == {0, 1}  # not compared: numbers as before
        assert frame.columns == spark.read.parquet(str(source)).columns


def test_folders_above_the_input_make_no_columns(spark, tmp_path):
    """The column of this name is one of the files."""
    source = tmp_path / "key=1"
    source.mkdir()
    pq.write_table(pa.table({"key": pa.array([1, 2], pa.int32())}), source / "p.parquet")
    for entry in (source, tmp_path / "key=*", source / "p.parquet"):
        assert opened(spark, entry).frame.schema["key"].dataType.simpleString() == "int"


def test_null_folder_names_and_values_in_files_too(spark, tmp_path):
    lay(tmp_path / "in", "uid=__HIVE_DEFAULT_PARTITION__/a.parquet", "uid=01/b.parquet", rows=1)
    assert {row.uid for row in opened(spark, tmp_path / "in", compared=("uid",)).frame.collect()} == {
        None,
        "01",
    }
    both = tmp_path / "both/v=01"  # the files have `v` as a number, and the folder's name counts
    lay(both, "a.parquet", rows=1)
    assert [row.v for row in opened(spark, tmp_path / "both", compared=("v",)).frame.collect()] == ["01"]


@pytest.mark.slow
def test_case_14_whole_run(spark, tmp_path):
    names = [f"{number:05d}" for number in range(N)]
    for name, row in zip(names, EMBEDDINGS, strict=True):
        (tmp_path / f"in/uid={name}").mkdir(parents=True)
        pq.write_table(
            pa.table({"embedding": pa.array([row.tolist()], pa.list_(pa.float32()))}),
            tmp_path / f"in/uid={name}/p.parquet",
        )
    done = run(RunConfig.from_dict(config_of(tmp_path / "in", tmp_path / "run", input={"key": "uid"})), spark)
    trie = KeepTrie.open(tmp_path / "run")
    assert sum(name in trie for name in names) == len(trie) == 18
    assert {row.key for row in done.keep_list(spark).collect()} <= set(names)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "run [v2]",
        *(pytest.param(name, marks=pytest.mark.long) for name in ("a{b,c}*?", "back\\slash \u00e9")),
    ],
)
def test_cases_20_and_21_brackets_in_paths(spark, tmp_path, name):
    """Written as they are, in the input and in the output; then again, pruned again and verified."""
    source = write_table(tmp_path / f"in {name}", KEYS, EMBEDDINGS, n_files=2)
    plain = write_table(tmp_path / "plain", KEYS, EMBEDDINGS, n_files=2)
    config = RunConfig.from_dict(config_of(source, tmp_path / name))
    done = run(config, spark)
    expected = run(RunConfig.from_dict(config_of(plain, tmp_path / "expected")), spark)
    assert done.document["digests"] == expected.document["digests"]
    assert run(config, spark).document["reused_stages"][0] == "ingest"
    assert len(verify(open_run(tmp_path / name), spark)) == len(verify(expected, spark))
    from spark_dbp import prune_again

    again = prune_again(done, str(tmp_path / f"again {name}"), ["prune.keep_ratio=0.5"], spark)
    assert again.document["rows"]["keep_list"] == 30
    assert len(verify(again, spark)) > 5
    escaped = config_of(paths.escape_glob(str(source)), tmp_path / "escaped")
    assert run(RunConfig.from_dict(escaped), spark).document["digests"] == expected.document["digests"]


@pytest.mark.slow
def test_given_centroids_in_a_folder_with_brackets(spark, tmp_path):
    folder = tmp_path / "c [1]"
    write_table(tmp_path / "in", KEYS, EMBEDDINGS, cid=[i % 2 for i in range(N)])
    folder.mkdir()
    vectors = pa.array(np.eye(2, 4, dtype=np.float32).tolist(), pa.list_(pa.float32()))
    pq.write_table(pa.table({"cluster_id": [0, 1], "centroid": vectors}), folder / "a.parquet")
    given = {"cluster_id": "cid", "centroids": str(folder)}
    done = run(RunConfig.from_dict(config_of(tmp_path / "in", tmp_path / "run", input=given)), spark)
    assert json.loads((tmp_path / "run/run.json").read_text())["config"]["input"]["centroids"] == str(folder)
    assert done.document["rows"]["centroids"] == 2


@pytest.mark.slow
def test_a_path_in_the_home_directory(command, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_table(tmp_path / "in", KEYS, EMBEDDINGS)
    (tmp_path / "conf.yaml").write_text(yaml.safe_dump(config_of("~/in", "~/run")))
    done = command(["run", tmp_path / "conf.yaml"])
    assert done.code == 0, done.err
    assert open_run(tmp_path / "run").document["input"]["rows"] == N


def test_keys_of_listed_paths_are_those_of_spark(spark, tmp_path):
    for name in ["a b", "x%20", "\u00e9", "a+b", "c#d", "[1]"]:
        source = lay(tmp_path / f"in {name}", f"{name}.parquet")
        (uri,) = spark.read.parquet(paths.escape_glob(str(source))).inputFiles()
        assert opened(spark, source).snapshot.files == 1
        assert uri.startswith("file:")
        assert find_key(f"file:{source}/{name}.parquet") == f"{source}/{name}.parquet"
