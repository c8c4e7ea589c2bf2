"""New shards of what was kept: members to the byte, order, sizes, what is gone on with, what is refused."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import tarfile
import time
from functools import partial
from pathlib import Path

import pytest
from bad_inputs import in_this_process
from made_shards import add_member, keys_of, read_members, uid_of, write_run, write_shard, write_shards

from spark_dbp import index_shards, reshard
from spark_dbp.errors import ConfigError, ConflictError, InputError
from spark_dbp.exchange import reshard as module

SIZES = [40, 7, 25, 60, 1, 12]
KEYS = [key for n, key in enumerate(keys_of(SIZES)) if n % 3 != 1 and not 40 <= n < 47]


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> list[str]:
    return write_shards(tmp_path_factory.mktemp("shards") / "a [b] ü", SIZES)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> str:
    return write_run(tmp_path_factory.mktemp("run") / "run", KEYS)


@pytest.fixture(scope="module")
def made(spark, run, shards, tmp_path_factory) -> Path:
    """The directory of one reshard, that most tests look at."""
    out = tmp_path_factory.mktemp("made") / "new shards"
    report = reshard(run, shards, out, spark, samples=30)
    assert (report.missing, report.taken_over) == (0, 0)
    return out


@pytest.fixture
def copy(made, tmp_path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "copy"))


@pytest.fixture
def command(spark, capsys):
    return lambda *arguments: in_this_process(list(arguments), capsys)


def expected_members(shards: list[str], keys: list[str]) -> list[tuple[str, list]]:
    """Kept samples in the order of the shards, from `tarfile`."""
    kept = set(keys)
    return [(k, members) for path in shards for k, members in read_members(path).items() if k in kept]


def written_members(out: Path) -> list[tuple[str, list]]:
    return [item for path in sorted(out.glob("*.tar")) for item in read_members(path).items()]


def digest(out: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(out.glob("*.tar"))}


def test_members_are_the_same_to_the_byte_and_in_order(made, shards):
    expected = expected_members(shards, KEYS)
    assert len(expected) == len(KEYS)
    assert written_members(made) == expected


def test_names_counts_and_stats(made, shards):
    n = len(KEYS)
    counts = [30] * (n // 30) + [n % 30]
    tars = sorted(made.glob("*.tar"))
    assert [path.name for path in tars] == [f"{number:05d}.tar" for number in range(len(counts))]
    assert [len(read_members(path)) for path in tars] == counts
    assert json.loads((made / "sizes.json").read_text()) == {
        path.name: count for path, count in zip(tars, counts, strict=True)
    }
    for path, count in zip(tars, counts, strict=True):
        stats = json.loads((made / f"{path.stem}_stats.json").read_text())
        assert stats["count"] == stats["successes"] == count
        assert stats["failed_to_download"] == stats["failed_to_resize"] == 0
        assert stats["status_dict"] == {"success": count}
        assert stats["end_time"] - stats["start_time"] == stats["duration"] >= 0
        body = path.read_bytes()
        assert len(body) % 10_240 == 0
        assert body.endswith(bytes(1024))
    done = json.loads((made / "_reshard.json").read_text())
    assert done["bytes_in"] == sum(Path(path).stat().st_size for path in shards)
    assert done["bytes_out"] == sum(path.stat().st_size for path in tars)
    assert (done["samples"], done["samples_in"]) == (n, sum(SIZES) + len(SIZES))
    assert {path.name for path in made.iterdir() if path.suffix != ".tar"} == {
        "sizes.json", "_plan.json", "_reshard.json", *(f"{path.stem}_stats.json" for path in tars),
    }  # fmt: skip


def test_the_same_shards_whatever_the_tasks(spark, made, run, shards, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_MOST_JOBS", 2)
    spark.conf.set("spark.sql.shuffle.partitions", "1")
    try:
        reshard(run, shards[::-1], tmp_path / "new", spark, samples=30)
    finally:
        spark.conf.set("spark.sql.shuffle.partitions", "4")
    assert digest(tmp_path / "new") == digest(made)


def test_by_size_and_by_a_field_of_the_json(spark, shards, tmp_path):
    numbers = [n for n in range(sum(SIZES)) if n % 2]
    run = write_run(tmp_path / "run", [uid_of(n) for n in numbers])
    report = reshard(run, shards, tmp_path / "new", spark, size="60kB", key="json:uid")
    tars = sorted((tmp_path / "new").glob("*.tar"))
    assert len(tars) > 3
    assert all(path.stat().st_size <= 60_000 for path in tars)
    assert all(a.stat().st_size + 20_000 > 60_000 for a in tars[:-1])  # no sample has more
    assert written_members(tmp_path / "new") == expected_members(shards, [keys_of(SIZES)[n] for n in numbers])
    assert sum(count for count, _ in report.shards.values()) == len(numbers)


def test_the_command_says_what_was_kept_and_when_it_pays(command, run, shards, tmp_path):
    done = command("reshard", run, "--shards", *shards, "--out", tmp_path / "new")
    assert done.code == 0, done.err
    assert "shards      1, with sizes.json and _stats.json of each" in done.out
    n_all = sum(SIZES) + len(SIZES)
    assert f"{len(KEYS)} of {n_all}; {1 - len(KEYS) / n_all:.1%} dropped" in done.out
    assert "filtering while loading" in done.out
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "new").iterdir()}
    again = command(
        "reshard", run, "--shards", *shards, "--out", tmp_path / "new", "--samples", 10_000, "--json"
    )
    assert again.code == 0
    assert "is complete already" in again.err
    said = json.loads(again.out)
    assert (said["samples"], said["taken_over"]) == (len(KEYS), 1)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "new").iterdir()} == before


def test_missing_and_doubled_keys(command, tmp_path):
    """The shards are written, with both samples of a key; the exit code says what is missing, again and again."""
    for shard in range(2):
        write_shard(tmp_path / "shards" / f"{shard}.tar", range(10), 0)
    keys = keys_of([10])[2:5]
    run = write_run(tmp_path / "run", [*keys, "nowhere-1", "nowhere-2"])
    for n_there in (0, 1):
        done = command("reshard", run, "--shards", tmp_path / "shards", "--out", tmp_path / "new")
        assert done.code == 3
        assert "missing     2 kept keys are in no shard: 'nowhere-1', 'nowhere-2'" in done.out
        assert "twice       3 kept keys are those of several samples, all of which are taken" in done.out
        assert ("were there already" in done.out) == bool(n_there)
    assert json.loads((tmp_path / "new" / "sizes.json").read_text()) == {"00000.tar": 6}


def test_neighbours_of_one_name_do_not_become_one_sample(spark, tmp_path):
    """Names that begin again in each shard; of the second shard, two samples of one name come together."""
    for shard, names in enumerate((["a", "b"], ["b", "x", "b", "c"], ["c", "d"])):
        (tmp_path / "shards").mkdir(exist_ok=True)
        with tarfile.open(tmp_path / "shards" / f"{shard}.tar", "w") as tar:
            for number, name in enumerate(names):
                add_member(tar, f"{name}.txt", f"{shard} {number}".encode())
    run = write_run(tmp_path / "run", ["0/a", "0/b", "1/b", "1/c", "2/c", "2/d"])
    reshard(run, str(tmp_path / "shards"), tmp_path / "new", spark, key="shard/key")
    found = [
        [(name, data.decode()) for members in read_members(path).values() for name, _, data in members]
        for path in sorted((tmp_path / "new").glob("*.tar"))
    ]
    assert found == [
        [("a.txt", "0 0"), ("b.txt", "0 1")],
        [("b.txt", "1 0")],
        [("b.txt", "1 2"), ("c.txt", "1 3")],
        [("c.txt", "2 0"), ("d.txt", "2 1")],
    ]


# Going on.


def finish(spark, run, shards, out: Path, made: Path) -> int:
    report = reshard(run, shards, out, spark, samples=30)
    assert digest(out) == digest(made)
    names = {path.name for path in out.iterdir()}
    assert names == {path.name for path in made.iterdir()}
    return report.taken_over


def cut_short(out: Path) -> None:
    """As a kill leaves it: no manifest; a shard, a part of a shard's draft, and the stats of another are not there."""
    (out / "_reshard.json").unlink()
    (out / "sizes.json").unlink()
    (out / "00001.tar").rename(out / ".00001.tar.0123abcd")
    (out / "00001_stats.json").unlink()
    (out / "00002_stats.json").unlink()
    (out / "lock.json").write_text(json.dumps({"pid": 1}))


def test_a_killed_job_goes_on(spark, run, shards, copy, made, monkeypatch):
    cut_short(copy)
    monkeypatch.setattr("spark_dbp.lake.lock.WATCHED", 0.2)
    before = (copy / "00000.tar").stat().st_ino
    assert finish(spark, run, shards, copy, made) == len(list(made.glob("*.tar"))) - 2
    assert (copy / "00000.tar").stat().st_ino == before


def test_a_shard_that_is_gone_or_cut_is_written_again(spark, run, shards, copy, made):
    (copy / "00000.tar").unlink()
    (copy / "00002.tar").write_bytes((copy / "00002.tar").read_bytes()[:-512])
    assert finish(spark, run, shards, copy, made) == len(list(made.glob("*.tar"))) - 2


@pytest.mark.slow
def test_a_failed_job_goes_on(spark, run, shards, tmp_path, made, monkeypatch):
    """The second shard cannot be written; what was finished before is taken over, and the index is not made again."""
    write = module._write_in_worker

    def fail(spark, index, new, out, renames):
        if new[0].name == "00001":
            until = time.monotonic() + 60
            while not Path(out, "00002_stats.json").exists() and time.monotonic() < until:
                time.sleep(0.05)
            raise OSError("the disk is full")
        write(spark, index, new, out, renames)

    monkeypatch.setattr(module, "_write_in_worker", fail)
    with pytest.raises(OSError, match="disk is full"):
        reshard(run, shards, tmp_path / "new", spark, samples=30)
    assert not (tmp_path / "new" / "_reshard.json").exists()
    assert (tmp_path / "new" / "_index" / "index.json").exists()
    monkeypatch.setattr(module, "_write_in_worker", write)
    monkeypatch.setattr(module, "build_index", None)
    assert finish(spark, run, shards, tmp_path / "new", made) in (1, 2, 3)


@pytest.mark.slow
def test_without_renames_shards_are_put_as_a_whole(spark, run, shards, tmp_path, made, monkeypatch):
    monkeypatch.setattr(module, "can_rename", lambda _: False)
    finish(spark, run, shards, tmp_path / "new", made)


# What is refused.


def test_another_plan_is_a_conflict(command, run, shards, copy, tmp_path):
    other = write_run(tmp_path / "other", KEYS[:5], digest="def")
    some = ["--shards", *shards]
    cases = [
        ([run, *some], "--samples was 30, is 10000"),
        ([run, *some, "--size", "1MB"], "--samples was 30, is None; --size was None, is 1000000"),
        ([run, *some, "--samples", 30, "--key", "json:uid"], "--key was webdataset, is json:uid"),
        (
            [run, "--shards", *shards[1:], "--samples", 30],
            r"--shards \(which, of what size, or changed when\) was",
        ),
        ([other, *some, "--samples", 30], "the keep list of the run was abc, is def"),
    ]
    before = digest(copy)
    for arguments, words in cases:
        done = command("reshard", *arguments, "--out", copy)
        assert done.code == 4, (arguments, done.err)
        assert re.search(f"holds shards of another plan: {words}", done.err), done.err
    assert digest(copy) == before
    (copy / "_plan.json").unlink()
    done = command("reshard", run, *some, "--samples", 30, "--out", copy)
    assert (done.code, "holds no _plan.json" in done.err) == (4, True)


def test_bad_options_and_inputs(command, run, shards, tmp_path):
    bad = tmp_path / "bad" / "x.tar"
    bad.parent.mkdir()
    bad.write_bytes(b"no tar" * 1000)
    good = ["--shards", *shards, "--out", tmp_path / "new"]
    cases = [
        ([run, *good, "--samples", 3, "--size", "1MB"], 2, "not allowed with"),
        ([run, *good, "--samples", 0], 2, "--samples is 0"),
        ([run, *good, "--size", "12 parsec"], 2, "is no size of a shard"),
        ([run, *good, "--key", "uid"], 2, "is no form of a key"),
        (
            [run, *good, "--key", "shard/key"],
            3,
            "none of the kept keys is in the 6 shards; kept are keys such as '",
        ),
        ([run, "--shards", bad, "--out", tmp_path / "new"], 3, f"{bad} is no whole tar"),
        # Another plan may begin where none has made a shard.
        ([run, "--shards", tmp_path / "no", "--out", tmp_path / "new"], 3, "names no .tar file"),
        ([tmp_path, *good], 3, "no finished run"),
    ]
    for arguments, code, words in cases:
        done = command("reshard", *arguments)
        assert done.code == code, (arguments, done.err)
        assert words in done.err, done.err
        assert "Traceback" not in done.err
    assert command("reshard", run, *good).code == 0


def test_workers_that_do_not_reach_it_are_refused(spark, run, shards, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "find_problem_of_workers", lambda *_: "a task on x does not see it")
    with pytest.raises(
        ConfigError, match=r"workers must read --shards and write .*: a task on x does not see it"
    ):
        reshard(run, shards, tmp_path / "new", spark)
    assert not (tmp_path / "new").exists()
    with pytest.raises(ConfigError, match="both given"):
        reshard(run, shards, tmp_path / "new", spark, samples=1, size=10**6)


def test_workers_that_are_away_for_a_moment_cost_nothing(spark, run, shards, copy, made, monkeypatch):
    cut_short(copy)
    monkeypatch.setattr("spark_dbp.lake.lock.WATCHED", 0.2)
    before = sorted(path.name for path in copy.glob("*.tar"))
    with monkeypatch.context() as away, pytest.raises(ConfigError, match="a task on x does not see it"):
        away.setattr(module, "find_problem_of_workers", lambda *_: "a task on x does not see it")
        finish(spark, run, shards, copy, made)
    assert sorted(path.name for path in copy.glob("*.tar")) == before
    finish(spark, run, shards, copy, made)


PLACES = {
    "no name": ("", "is empty"),
    "a web server": ("https://host/new", "nothing can be written to a web server"),
    "a whole store": ("s3://bucket", "is a whole store"),
    "the run": ("{run}", "lies in the run directory"),
    "in the run": ("{run}/new/ones", "lies in the run directory"),
}


@pytest.mark.parametrize("name", PLACES)
def test_places_that_are_none(spark, run, shards, name):
    out, words = PLACES[name]
    for write in (reshard, index_shards):
        with pytest.raises(ConfigError, match=words):
            write(run, shards, out.format(run=run), spark)
    assert not Path(run, "new").exists()


@pytest.mark.slow
def test_a_shard_that_changes_meanwhile_is_refused(spark, run, shards, tmp_path, monkeypatch):
    mine = [shutil.copy(path, tmp_path) for path in shards]
    build = module.build_index

    def change(*given, **more):
        report = build(*given, **more)
        with Path(mine[3]).open("ab") as stream:
            stream.write(bytes(512))
        return report

    monkeypatch.setattr(module, "build_index", change)
    monkeypatch.setattr(module, "run_parts", partial(module.run_parts, at_once=1))
    with pytest.raises(InputError, match=re.escape(f"{mine[3]} had ")):
        reshard(run, mine, tmp_path / "new", spark, samples=30)
    assert list((tmp_path / "new").glob("*.tar"))  # of the first shards
    with pytest.raises(ConflictError, match="another plan"):
        reshard(run, mine, tmp_path / "new", spark, samples=30)


def test_each_shard_is_a_tar_that_can_be_streamed(made):
    for path in made.glob("*.tar"):
        with tarfile.open(fileobj=io.BytesIO(path.read_bytes()), mode="r|") as tar:
            assert sum(1 for _ in tar) > 0
