"""The trie for the research code's loader, with the package that makes and reads it."""

from __future__ import annotations

import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pygtrie
import pytest

from spark_dbp import RunConfig, export, run
from spark_dbp.errors import InputError
from spark_dbp.exchange.pygtrie_file import TrieSink

KEYS = sorted(f"{i % 3}/{i // 100:05d}/{i:09d}.jpg" for i in range(300))


def write(path, keys, **options) -> None:
    sink = TrieSink("pygtrie", path, **options)
    for start in range(0, len(keys), 77):
        sink.add(pa.array([key.encode() for key in keys[start : start + 77]], pa.binary()))
    assert sink.finish() == len(keys)


def look_up(trie, key: str) -> bool:
    """As the loader does: what has no value, or leads to others only, is passed over."""
    try:
        return bool(trie[key])
    except KeyError:
        return False


@pytest.mark.parametrize("research_keys", [False, True])
def test_what_the_loader_finds(tmp_path, research_keys):
    write(tmp_path / "x.pickle", KEYS[::2], research_keys=research_keys)
    with (tmp_path / "x.pickle").open("rb") as stream:
        trie = pickle.load(stream)
    assert isinstance(trie, pygtrie.StringTrie)
    stored = [key[:-4] if research_keys else key for key in KEYS]
    assert [look_up(trie, key) for key in stored] == [True, False] * 150
    assert not look_up(trie, "0/00000")
    assert set(trie.values()) == {1}
    assert list(trie) == stored[::2]


def test_the_bytes_are_always_the_same(tmp_path):
    for name in "ab":
        write(tmp_path / name, KEYS)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_nothing_to_write(tmp_path):
    write(tmp_path / "x", [])
    assert len(pickle.loads((tmp_path / "x").read_bytes())) == 0


def test_keys_that_become_one(tmp_path):
    keys = sorted([*(f"{'a' * 30}{i:03d}.jpg" for i in range(200)), "b.jpg", "b.png", ".jpg"])
    with pytest.raises(InputError) as error:
        write(tmp_path / "x", keys, research_keys=True)
    assert "200 of 203 keys are the same as another one after that" in str(error.value)
    assert "1 of 203 keys have no more than 4 characters" in str(error.value)
    write(tmp_path / "x", keys)


def test_a_whole_run(tmp_path):
    (tmp_path / "in").mkdir()
    distances = np.random.default_rng(0).random(len(KEYS)).astype(np.float32)
    columns = {"key": KEYS, "cluster": pa.array([0] * 300, pa.int32()), "distance": distances}
    pq.write_table(pa.table(columns), tmp_path / "in" / "x.parquet")
    np.save(tmp_path / "centroids.npy", np.eye(1, 4, dtype=np.float32))
    given = {
        "cluster_id": "cluster",
        "distance_to_centroid": "distance",
        "centroids": str(tmp_path / "centroids.npy"),
    }
    values = {
        "input": {"path": str(tmp_path / "in"), **given},
        "output": {"path": str(tmp_path / "run")},
        "prune": {"keep_ratio": 0.5},
        "spark": {"spark.sql.shuffle.partitions": 2},
    }
    done = run(RunConfig.from_dict(values))
    export(done, "pygtrie", tmp_path / "kept.pickle", research_keys=True)
    trie = pickle.loads((tmp_path / "kept.pickle").read_bytes())
    kept = done.keep_trie()
    assert [look_up(trie, key[:-4]) for key in KEYS] == [key in kept for key in KEYS]
    assert len(trie) == 150
