"""Indexes that Spark's workers make: the same as those of one process; what is refused."""

from __future__ import annotations

import gzip
import json
import re
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from bad_inputs import Done, in_this_process
from conftest import VIEW
from made_shards import key_of, keys_of, uid_of, write_run, write_shard, write_shards

from spark_dbp import index_shards
from spark_dbp.errors import ConfigError, ConflictError, InputError
from spark_dbp.exchange import kept_keys
from spark_dbp.lake import lock
from spark_dbp.loaders import open_index, write_index

SIZES = [40, 7, 25, 60, 1, 12]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Names as people give them."""
    return tmp_path_factory.mktemp("shards") / "a b [ü] {1}"


@pytest.fixture(scope="module")
def shards(folder) -> list[str]:
    return write_shards(folder, SIZES)


@pytest.fixture
def partitions(spark):
    before = spark.conf.get("spark.sql.shuffle.partitions")
    yield lambda n: spark.conf.set("spark.sql.shuffle.partitions", str(n))
    spark.conf.set("spark.sql.shuffle.partitions", before)


@pytest.fixture
def command(spark, capsys):
    return lambda *arguments: in_this_process(list(arguments), capsys)


def read_rows(path: Path | str) -> list[dict]:
    """What the loaders read of an index: shards, and samples in their order."""
    index = open_index(path)
    rows = []
    for shard in range(index.n_shards):
        of_shard = index.read_rows(shard)
        rows.append(
            {
                "path": index.shard_path(shard),
                "counts": [int(a[shard]) for a in (index.samples, index.kept, index.bytes, index.kept_bytes)],
                "samples": list(map(str, of_shard.samples)),
                **{
                    name: list(getattr(of_shard, name))
                    for name in ("start", "stop", "cuts", "suffixes", "sizes")
                },
                "offsets": list(of_shard.offsets),
            }
        )
    return rows


def keys_by_form(form: str) -> list[str]:
    numbers = [n for n in range(sum(SIZES)) if n % 3 == 1 and not 40 <= n < 47]
    if form == "json:uid":
        return [uid_of(n) for n in numbers]
    keys = keys_of(SIZES)
    if form == "webdataset":
        return [keys[n] for n in numbers]
    of_shard = [shard for shard, size in enumerate(SIZES) for _ in range(size)]
    return [f"{of_shard[n]:05d}/{keys[n]}" for n in numbers]


@pytest.mark.parametrize(("form", "n"), [("webdataset", 1), ("json:uid", 3), ("shard/key", 16)])
def test_the_same_index_as_in_one_process(spark, shards, folder, tmp_path, partitions, form, n):
    partitions(n)
    keys = [*keys_by_form(form), "nowhere", "nowhere else"]
    run = write_run(tmp_path / "run", keys)
    report = index_shards(
        run, [f"{folder.parent}/a b *"] if n == 1 else shards, tmp_path / "a", spark, key=form
    )
    other = write_index(tmp_path / "b", shards, run, key=form, run=run, keep_list_digest="abc")
    assert report == other
    assert (report.missing, report.missing_examples, report.twice) == (2, ["nowhere", "nowhere else"], 0)
    assert json.loads((tmp_path / "a" / "index.json").read_text()) == other.info
    assert read_rows(tmp_path / "a") == read_rows(tmp_path / "b")
    written = json.loads((tmp_path / "a" / "report.json").read_text())
    assert written["missing_examples"] == ["nowhere", "nowhere else"]
    named = set(pq.read_table(tmp_path / "a" / "shards.parquet").column("file").to_pylist()) - {None}
    assert {file.name for file in (tmp_path / "a" / "samples").iterdir()} == named
    assert sorted(file.name for file in (tmp_path / "a").iterdir()) == [
        "index.json", "report.json", "samples", "shards.parquet",
    ]  # fmt: skip


def test_keys_that_are_missing_or_found_twice(spark, tmp_path, partitions, monkeypatch, command):
    """The same keys in three shards, of which one task sees two; and so many missing ones that not all are shown."""
    partitions(2)
    monkeypatch.setattr(kept_keys, "_GATHERED", 3)
    for shard in range(3):
        write_shard(tmp_path / "shards" / f"{shard}.tar", range(10), 0)
    once = write_shards(tmp_path / "shards" / "more", [0, 0])
    write_shard(Path(once[1]), range(90, 95), 1)
    keys = [key_of(3, 0), key_of(4, 0), key_of(92, 1), *(f"nowhere-{n:02d}" for n in range(40))]
    run = write_run(tmp_path / "run", keys)
    done = command(
        "index", run, "--shards", tmp_path / "shards", once[1], "--out", tmp_path / "index", "--json"
    )
    assert done.code == 3, done.err
    said = json.loads(done.out)
    expected = {"missing": 40, "missing_examples": [f"nowhere-{n:02d}" for n in range(5)]}
    expected |= {
        "twice": 2,
        "twice_examples": sorted([key_of(3, 0), key_of(4, 0)]),
        "n_kept": 7,
        "n_shards": 4,
    }
    assert {name: said[name] for name in expected} == expected
    assert len(open_index(tmp_path / "index")) == 7
    shown = command("index", run, "--shards", tmp_path / "shards", "--out", tmp_path / "again")
    assert shown.code == 3
    assert "missing     41 kept keys are in no shard: " in shown.out
    assert "twice       2 kept keys are those of several samples, all of which are taken: " in shown.out


def test_the_command_when_all_is_well(command, shards, tmp_path):
    run = write_run(tmp_path / "run", keys_by_form("webdataset"))
    done = command("index", run, "--shards", *shards, "--out", tmp_path / "index")
    assert (done.code, done.out.splitlines()[0]) == (0, str(tmp_path / "index"))
    assert "missing" not in done.out
    again = command("index", run, "--shards", *shards, "--out", tmp_path / "index")
    assert again.code == 4
    assert "holds an index" in again.err


def test_workers_that_do_not_reach_the_tries_get_them_with_the_job(spark, shards, tmp_path, monkeypatch):
    run = write_run(tmp_path / "run", [*keys_by_form("webdataset"), "nowhere"])
    monkeypatch.setattr(kept_keys, "find_problem_of_readers", lambda *_: "a task does not see it")
    report = index_shards(run, shards, tmp_path / "index", spark)
    assert (report.info["n_kept"], report.missing, report.missing_examples) == (45, 1, ["nowhere"])
    monkeypatch.setattr(kept_keys, "_MOST_SHIPPED", 10)
    with pytest.raises(ConfigError, match="workers do not reach them: a task does not see it"):
        index_shards(run, shards, tmp_path / "other", spark)


def test_where_only_spark_reaches_shards_run_and_index(spark, viewed, shards, tmp_path):
    """A store that neither driver nor workers open by themselves."""
    keys = [*keys_by_form("json:uid"), "nowhere"]
    write_run(viewed / "run of index", keys)
    for path in shards:
        (viewed / "in dex").mkdir(exist_ok=True)
        shutil.copy(path, viewed / "in dex")
    report = index_shards(
        f"{VIEW}/run of index", f"{VIEW}/in dex/*.tar", f"{VIEW}/index", spark, key="json:uid"
    )
    assert (report.info["n_kept"], report.missing) == (len(keys) - 1, 1)
    write_index(tmp_path / "index", shards, set(keys), key="json:uid")
    rows, expected = read_rows(viewed / "index"), read_rows(tmp_path / "index")
    assert [row | {"path": Path(row["path"]).name} for row in rows] == [
        row | {"path": Path(row["path"]).name} for row in expected
    ]


# What is refused.


def bad_shard(name: str, good: bytes) -> bytes:
    return {
        "cut off": good[: len(good) // 2 + 100],
        "compressed": gzip.compress(good),
        "no tar": b"not a tar " * 200,
        "empty": b"",
    }[name]


REFUSED = {
    "cut off": "is no whole tar: unexpected end of data",
    "compressed": "it is compressed",
    "no tar": "is no whole tar",
    "empty": "has 0 bytes",
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_shards_are_refused_by_name(command, shards, tmp_path, name):
    bad = tmp_path / "shards" / "00007.tar"
    bad.parent.mkdir()
    shutil.copy(shards[0], bad.parent)
    bad.write_bytes(bad_shard(name, Path(shards[0]).read_bytes()))
    run = write_run(tmp_path / "run", keys_by_form("webdataset"))
    done = command("index", run, "--shards", bad.parent, "--out", tmp_path / "index")
    assert done.code == 3, done.err
    assert str(bad) in done.err
    assert REFUSED[name] in done.err
    assert "Traceback" not in done.err
    assert not (tmp_path / "index").exists() or not list((tmp_path / "index").iterdir())


def test_what_else_is_refused(command, shards, tmp_path):
    run = write_run(tmp_path / "run", ["a"])
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("")
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "samples").mkdir()  # no lock beside it: not ours
    cases: list[tuple[list, int, str]] = [
        ([run, "--shards", *shards, "--out", tmp_path / "full"], 4, "is not empty: mine.txt"),
        ([run, "--shards", *shards, "--out", tmp_path / "samples"], 4, "is not empty: samples"),
        ([run, "--shards", *shards, "--out", tmp_path / "full" / "mine.txt"], 2, "is a file"),
        ([run, "--shards", tmp_path / "full", "--out", tmp_path / "x"], 3, "--shards .* names no .tar file"),
        (
            [run, "--shards", tmp_path / "no.tar", "--out", tmp_path / "x"],
            3,
            "--shards .*no.tar names no .tar",
        ),
        ([run, "--shards", f"{tmp_path}/{{3..1}}.tar", "--out", tmp_path / "x"], 3, "the range .* is empty"),
        ([run, "--shards", shards[0], shards[0], "--out", tmp_path / "x"], 3, "--shards: .* is named twice"),
        ([run, "--shards", *shards, "--out", tmp_path / "x", "--key", "uid"], 2, "'uid' is no form of a key"),
        (
            [run, "--shards", *shards, "--out", tmp_path / "x", "--set", "a=1"],
            2,
            "takes no settings but spark",
        ),
        ([tmp_path / "full", "--shards", *shards, "--out", tmp_path / "x"], 3, "no finished run"),
        ([run, "--out", tmp_path / "x"], 2, "required: --shards"),
    ]
    for arguments, code, words in cases:
        done: Done = command("index", *arguments)
        assert done.code == code, (arguments, done.err)
        assert re.search(words, done.err), done.err
        assert not (tmp_path / "x").exists()


@pytest.mark.slow
def test_what_a_killed_attempt_left_is_replaced(spark, shards, tmp_path):
    run = write_run(tmp_path / "run", keys_by_form("webdataset"))
    out = tmp_path / "index"
    (out / "samples").mkdir(parents=True)
    (out / "samples" / "part-00000-0123abcd-00000.parquet").write_bytes(b"half")
    (out / "lock.json").write_text(json.dumps({"pid": 1, "host": "gone"}))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lock, "WATCHED", 0.2)
        index_shards(run, shards, out, spark)
    assert len(open_index(out)) == 45
    assert len(list((out / "samples").iterdir())) == len(
        set(pq.read_table(out / "shards.parquet").column("file").to_pylist()) - {None}
    )
    with pytest.raises(ConflictError, match="holds an index"):
        index_shards(run, shards, out, spark)
    with pytest.raises(InputError, match="names no shard"):
        index_shards(run, [], tmp_path / "x", spark)
