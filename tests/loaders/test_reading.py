"""Samples read by their bytes: from local disks, stores, and whole shards in a cache."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from counted_store import register
from made_shards import expected_sample, key_of, keys_of, number_of, write_shards

from spark_dbp.errors import ConfigError, InputError, SparkDbpError
from spark_dbp.loaders import stores
from spark_dbp.loaders.index import open_index, write_index
from spark_dbp.loaders.reading import SampleReader
from spark_dbp.loaders.shard_cache import ShardCache

SIZES = [40, 7, 25, 60, 1]


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> list[str]:
    return write_shards(tmp_path_factory.mktemp("shards"), SIZES)


@pytest.fixture
def store(monkeypatch):
    monkeypatch.setattr(stores, "_PAUSES", (0.0, 0.0))
    store = register()
    yield store
    store.reset()


def index_of(shards: list[str], keep: list[str], out: Path, *, remote: bool = False):
    write_index(out, shards, set(keep))
    folder = str(Path(shards[0]).parent)
    return open_index(out, moved=(folder, f"counted://{folder}") if remote else None)


def every_sample(index) -> tuple[np.ndarray, np.ndarray]:
    shards = np.repeat(np.arange(index.n_shards), index.kept)
    rows = np.concatenate([np.arange(kept) for kept in index.kept])
    return shards, rows


def shard_of(number: int) -> int:
    return int(np.searchsorted(np.cumsum(SIZES), number, side="right"))


def check(samples: list[dict], index, numbers: list[int]) -> None:
    assert [number_of(sample) for sample in samples] == numbers
    for sample in samples:
        number = number_of(sample)
        shard = shard_of(number)
        assert sample == expected_sample(number, shard, index.shard_path(shard))


SOME = [0, 1, 2, 39, 47, 48, 60, 71, 72, 100, 131, 132]


@pytest.mark.parametrize("remote", [False, True])
def test_samples_are_as_webdataset_gives_them(shards, store, tmp_path, remote):
    keys = keys_of(SIZES)
    index = index_of(shards, [keys[n] for n in SOME], tmp_path / "index", remote=remote)
    reader = SampleReader(index)
    check(reader.read(*every_sample(index)), index, SOME)
    backwards = tuple(values[::-1] for values in every_sample(index))
    check(reader.read(*backwards), index, SOME[::-1])
    batches = [tuple(values[at : at + 5] for values in every_sample(index)) for at in (0, 5, 10)]
    check([sample for batch in reader.read_batches(batches) for sample in batch], index, SOME)
    assert list(reader.read_batches([])) == []


def test_neighbours_in_a_store_are_read_with_one_request(shards, store, tmp_path, monkeypatch):
    keys = keys_of(SIZES)
    index = index_of(shards, [keys[n] for n in SOME], tmp_path / "index", remote=True)
    # 0-2, 39 | 47-48, 60, 71 | 72, 100, 131 | 132
    for gap, most, expected in ((1 << 30, 1 << 30, 4), (0, 1 << 30, 9), (1 << 30, 1, len(SOME))):
        store.reset()
        monkeypatch.setattr("spark_dbp.loaders.reading._GAP_BYTES", gap)
        monkeypatch.setattr("spark_dbp.loaders.reading._MOST_BYTES", most)
        check(SampleReader(index).read(*every_sample(index)), index, SOME)
        assert len(store.requests) == expected


def test_batches_of_a_store_are_read_ahead(shards, store, tmp_path):
    index = index_of(shards, keys_of(SIZES), tmp_path / "index", remote=True)
    every = every_sample(index)
    batches = [tuple(values[at : at + 10] for values in every) for at in range(0, 133, 10)]
    given = iter(batches)
    stream = SampleReader(index).read_batches(given)
    next(stream)
    assert len(list(given)) == len(batches) - 4  # one was delivered, two are read, one waits
    stream.close()


def test_errors_of_a_store(shards, store, tmp_path):
    index = index_of(shards, keys_of(SIZES)[:1], tmp_path / "index", remote=True)
    reader = SampleReader(index)
    store.fails = [OSError("a hiccup"), RuntimeError("another")]
    check(reader.read(*every_sample(index)), index, [0])
    store.fails = [OSError("down")] * 3
    with pytest.raises(SparkDbpError, match=r"cannot read counted:.*00000\.tar: OSError\('down'\)"):
        reader.read(*every_sample(index))
    store.fails = [PermissionError("not yours")]
    with pytest.raises(SparkDbpError, match="not yours"):
        reader.read(*every_sample(index))
    assert not store.fails
    store.fails = [FileNotFoundError("gone")]
    with pytest.raises(InputError, match=r"there is no file counted:.*00000\.tar"):
        reader.read(*every_sample(index))
    store.ignores_ranges = True
    with pytest.raises(InputError, match="does not give byte ranges"):
        reader.read(*every_sample(index))


def test_a_store_that_nobody_knows():
    with pytest.raises(ConfigError, match="cannot open nothing://x") as caught:
        stores.read_range("nothing://x/y", 0, 1)
    assert "install fsspec" in str(caught.value)


def test_without_fsspec_pyarrow_reads(shards, store, tmp_path, monkeypatch):
    """Here by a file system that is mounted, as pyarrow's own for S3 would do it."""
    from pyarrow import fs

    from spark_dbp.lake import mounts

    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    mounts.mount("viewed://here", fs.LocalFileSystem())
    try:
        path = f"viewed://here{shards[0]}"
        body = Path(shards[0]).read_bytes()
        assert stores.read_size(path) == len(body)
        assert stores.read_range(path, 100, 900) == body[100:900]
        assert stores.open_file(path).read() == body
        with pytest.raises(InputError, match="were asked for, and"):
            stores.read_range(path, 100, len(body) + 1)
        with pytest.raises(InputError, match="there is no file"):
            stores.read_range(f"{path}-no", 0, 1)
    finally:
        mounts.unmount("viewed://here")


# Shards that are not as they were.


def test_a_shard_that_has_changed_is_refused(tmp_path):
    shards = write_shards(tmp_path / "shards", SIZES)
    index = index_of(shards, keys_of(SIZES), tmp_path / "index")
    every = every_sample(index)
    body = Path(shards[2]).read_bytes()
    Path(shards[2]).write_bytes(body + bytes(512))
    with pytest.raises(InputError, match=rf"00002.tar has {len(body) + 512:,} bytes; .* had {len(body):,}"):
        SampleReader(index).read(*every)
    Path(shards[2]).write_bytes(bytes(512) + body[:-512])  # of the same size
    with pytest.raises(
        InputError, match=r"00002.tar has changed since it was indexed: sample .* is not at byte"
    ):
        SampleReader(index).read(*every)
    Path(shards[2]).unlink()
    with pytest.raises(InputError, match=r"cannot read shard .*00002.tar") as caught:
        SampleReader(index).read(*every)
    assert "moved=" in str(caught.value)


def test_a_shard_that_is_cut_off_while_it_is_read(tmp_path):
    shards = write_shards(tmp_path / "shards", SIZES)
    index = index_of(shards, keys_of(SIZES), tmp_path / "index")
    shard_numbers, rows = every_sample(index)
    reader = SampleReader(index)
    reader.read(shard_numbers[:1], rows[:1])
    os.truncate(shards[0], 9000)
    with pytest.raises(InputError, match=r"00000.tar ends at byte 9,000, in the sample"):
        reader.read(shard_numbers[:30], rows[:30])


def test_few_files_are_open_at_once(shards, tmp_path, monkeypatch):
    monkeypatch.setattr("spark_dbp.loaders.reading._MOST_OPEN", 2)
    index = index_of(shards, keys_of(SIZES), tmp_path / "index")
    reader = SampleReader(index)
    for _ in range(2):
        check(reader.read(*every_sample(index)), index, list(range(133)))
    assert len(reader._open) == 2


# Whole shards.


def test_shards_of_which_most_is_kept_are_fetched_whole(shards, store, tmp_path):
    keys = keys_of(SIZES)
    kept = [*range(40), 47, *range(72, 132)]  # all of two shards, one sample of another
    index = index_of(shards, [keys[n] for n in kept], tmp_path / "index", remote=True)
    for _ in range(2):  # the second reader finds them there
        reader = SampleReader(index, cache_dir=str(tmp_path / "cache"), whole_shard_above=0.5)
        check(reader.read(*every_sample(index)), index, kept)
        assert sorted({Path(path).name for path, start, _ in store.requests if start == 0}) == (
            ["00000.tar", "00003.tar"] if _ == 0 else []
        )
        assert [Path(path).name for path, start, _ in store.requests if start] == ["00002.tar"]
        store.reset()
    held = [file for file in (tmp_path / "cache").iterdir() if file.suffix == ".tar"]
    assert sorted(file.stat().st_size for file in held) == sorted(index.bytes[[0, 3]].tolist())
    assert not list((tmp_path / "cache").glob(".*.part"))


def test_the_share_of_this_machine_decides(shards, store, tmp_path, monkeypatch):
    """Of ranks on other machines, each would fetch the whole shard for its few samples."""
    index = index_of(shards, keys_of(SIZES), tmp_path / "index", remote=True)
    reader = SampleReader(index, cache_dir=str(tmp_path / "cache"), whole_shard_above=0.5, share=0.25)
    check(reader.read(*every_sample(index)), index, list(range(133)))
    assert not list((tmp_path / "cache").glob("*.tar"))


def test_without_a_cache_the_log_says_what_would_help(shards, store, tmp_path, caplog):
    index = index_of(shards, keys_of(SIZES), tmp_path / "index", remote=True)
    with caplog.at_level(logging.WARNING, "spark_dbp"):
        SampleReader(index).read(*every_sample(index))
    assert len([text for text in caplog.messages if "cache_dir=DIRECTORY" in text]) == 1


def test_parts_of_a_shard_are_fetched_at_once(shards, store, tmp_path, monkeypatch):
    monkeypatch.setattr("spark_dbp.loaders.shard_cache._PART_BYTES", 1000)
    index = index_of(shards, keys_of(SIZES), tmp_path / "index", remote=True)
    store.seconds = 0.002
    reader = SampleReader(index, cache_dir=str(tmp_path / "cache"))
    check(reader.read(*every_sample(index)), index, list(range(133)))


def test_the_cache_holds_so_many_bytes(shards, store, tmp_path):
    index = index_of(shards, keys_of(SIZES), tmp_path / "index", remote=True)
    sizes = index.bytes.tolist()
    room = sizes[3] + min(sizes)
    reader = SampleReader(index, cache_dir=str(tmp_path / "cache"), cache_bytes=room)
    for _ in range(3):
        check(reader.read(*every_sample(index)), index, list(range(133)))
        held = sum(file.stat().st_size for file in (tmp_path / "cache").glob("*.tar"))
        assert 0 < held <= room
    # A shard that does not fit is read by ranges.
    reader = SampleReader(index, cache_dir=str(tmp_path / "small"), cache_bytes=1000)
    check(reader.read(*every_sample(index)), index, list(range(133)))
    assert not list((tmp_path / "small").glob("*.tar"))


def test_a_shard_of_another_size_is_not_put_into_the_cache(store, tmp_path):
    shards = write_shards(tmp_path / "shards", SIZES)
    index = index_of(shards, keys_of(SIZES), tmp_path / "index", remote=True)
    with Path(shards[0]).open("ab") as stream:
        stream.write(bytes(512))
    reader = SampleReader(index, cache_dir=str(tmp_path / "cache"))
    with pytest.raises(InputError, match=r"00000.tar has .* bytes; when it was indexed"):
        reader.read(*every_sample(index))
    assert not list((tmp_path / "cache").glob("*.tar"))


def test_processes_that_need_the_same_shard_fetch_it_once(shards, store, tmp_path):
    """Here threads, each with a cache of its own: the lock is in the directory."""
    index = index_of(shards, keys_of(SIZES), tmp_path / "index", remote=True)
    store.seconds = 0.05
    found: list[list[dict]] = []

    def read() -> None:
        reader = SampleReader(open_index(index.path, index.moved), cache_dir=str(tmp_path / "cache"))
        found.append(reader.read(*every_sample(index)))

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(store.requests) == len(shards)
    assert len(found) == 4
    for samples in found:
        check(samples, index, list(range(133)))


def test_what_is_needed_next_is_fetched_in_the_background(shards, store, tmp_path):
    index = index_of(shards, keys_of(SIZES), tmp_path / "index", remote=True)
    cache = tmp_path / "cache"
    reader = SampleReader(index, cache_dir=str(cache), cache_bytes=2 * int(index.bytes[:3].sum()))
    reader.fetch_ahead([0, 1, 2, 3])
    assert reader._ahead is not None
    reader._ahead.join()
    # Half of the cache is for what comes next.
    assert {Path(path).name for path, _, _ in store.requests} == {"00000.tar", "00001.tar", "00002.tar"}
    check(reader.read(*every_sample(index)), index, list(range(133)))
    store.fails = [OSError("down")] * 9
    reader.fetch_ahead([4])  # an error is told to who needs the shard
    reader._ahead.join()


def test_drafts_of_killed_processes_go(store, tmp_path):
    cache = ShardCache(str(tmp_path), 1000)
    draft = tmp_path / ".abc.part"
    draft.write_bytes(bytes(900))
    cache._make_room(100)
    assert draft.exists()
    os.utime(draft, (time.time() - 7200,) * 2)
    cache._make_room(100)
    assert not draft.exists()


BAD = {
    "whole_shard_above": ({"whole_shard_above": "most"}, "whole_shard_above is 'most'"),
    "cache_bytes": ({"cache_dir": "{tmp}/c", "cache_bytes": 0}, "cache_bytes is 0"),
    "cache_dir": ({"cache_dir": "/dev/null/x"}, "cache_dir /dev/null/x cannot be made"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_settings_are_refused(shards, tmp_path, name):
    settings, message = BAD[name]
    settings = {
        key: value.format(tmp=tmp_path) if isinstance(value, str) else value
        for key, value in settings.items()
    }
    index = index_of(shards, [key_of(0, 0)], tmp_path / "index")
    with pytest.raises(ConfigError, match=message) as caught:
        SampleReader(index, **settings)
    assert "to mend it" in str(caught.value)
