"""Writing new shards in one process: from stores and to stores, and what a worker refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from made_shards import keys_of, read_members, write_shards

from spark_dbp.errors import InputError
from spark_dbp.exchange import write_shards as module
from spark_dbp.exchange.plan_shards import plan_shards
from spark_dbp.exchange.write_shards import NewShard, write_shard
from spark_dbp.lake import files
from spark_dbp.loaders import ShardIndex, open_index, write_index

SIZES = [40, 7, 25]
KEYS = [key for n, key in enumerate(keys_of(SIZES)) if n % 7]


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> list[str]:
    return write_shards(tmp_path_factory.mktemp("shards"), SIZES)


def write_all(index: ShardIndex, out: str, samples: int, *, renames: bool) -> list[str]:
    plan = plan_shards(index, samples=samples)
    for n in range(len(plan)):
        new = NewShard(plan.name(n), plan.list_pieces(n, index.kept), plan.samples[n], plan.bytes[n])
        write_shard(index, new, out, renames=renames)
    return [f"{out}/{plan.name(n)}.tar" for n in range(len(plan))]


def read_all(paths: list[str]) -> list[tuple[str, list]]:
    return [item for path in paths for item in read_members(path).items()]


@pytest.fixture(scope="module")
def expected(shards) -> list[tuple[str, list]]:
    return [(key, members) for key, members in read_all(shards) if key in set(KEYS)]


@pytest.mark.parametrize("copies", [True, False], ids=["by the kernel", "by reading"])
def test_on_a_disk(shards, expected, tmp_path, monkeypatch, copies):
    if not copies:
        monkeypatch.delattr(module.os, "copy_file_range", raising=False)
        monkeypatch.setattr(module, "_COPY_BYTES", 1000)
    write_index(tmp_path / "index", shards, KEYS)
    (tmp_path / "new").mkdir()
    paths = write_all(open_index(tmp_path / "index"), str(tmp_path / "new"), 20, renames=True)
    assert read_all(paths) == expected
    assert len(list((tmp_path / "new").iterdir())) == 2 * len(paths)  # no drafts


@pytest.mark.parametrize("most", [8 << 20, 2000])
def test_in_a_store(shards, expected, tmp_path, monkeypatch, most):
    """fsspec's store in memory: some ranges in one request, others cut."""
    pytest.importorskip("fsspec")
    monkeypatch.setattr(module, "_MOST_BYTES", most)
    base = f"memory://lake-{most}"
    for path in shards:
        files.write_bytes(f"{base}/shards/{Path(path).name}", Path(path).read_bytes())
    write_index(f"{base}/index", [f"{base}/shards/{Path(path).name}" for path in shards], KEYS)
    paths = write_all(open_index(f"{base}/index"), f"{base}/new", 20, renames=False)
    fetched = [tmp_path / Path(path).name for path in paths]
    for path, local in zip(paths, fetched, strict=True):
        local.write_bytes(files.read_bytes(path))
    assert read_all([str(path) for path in fetched]) == expected
    stats = json.loads(files.read_bytes(f"{base}/new/00000_stats.json"))
    assert stats["successes"] == 20


def test_a_shard_whose_bytes_have_moved_is_refused(shards, tmp_path):
    """Of the same size as before, so that only the samples tell."""
    mine = write_shards(tmp_path / "mine", SIZES)
    write_index(tmp_path / "index", mine, KEYS)
    body = Path(mine[1]).read_bytes()
    Path(mine[1]).write_bytes(body[1024:] + body[:1024])
    (tmp_path / "new").mkdir()
    with pytest.raises(InputError, match=r"new shard 00000|shard 00000 is no whole tar"):
        write_all(open_index(tmp_path / "index"), str(tmp_path / "new"), 1000, renames=True)
    assert not list((tmp_path / "new").iterdir())
    Path(mine[2]).unlink()
    Path(mine[1]).write_bytes(body)
    with pytest.raises(InputError, match=r"00002\.tar is gone"):
        write_all(open_index(tmp_path / "index"), str(tmp_path / "new"), 1000, renames=True)
