"""Files in local directories that rename nothing, and in stores that pyarrow alone does not serve well."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from pyarrow import fs

from spark_dbp import KeepTrie
from spark_dbp.errors import ConfigError, ConflictError, SparkDbpError
from spark_dbp.lake import files, local_files, lock, mounts
from spark_dbp.lake.cleaning import clean
from spark_dbp.lake.store import open_run_directory


@pytest.fixture(params=["known by its place", "found out by its answers"])
def volume(request, tmp_path, monkeypatch):
    """A directory that renames nothing and creates nothing exclusively."""
    base = tmp_path / "Volumes"
    base.mkdir()
    monkeypatch.setattr(lock, "SETTLED", 0.05)
    if request.param == "known by its place":
        monkeypatch.setattr(local_files, "STORE_MOUNTS", (f"{base}/",))

    def refuse(*_):
        if request.param == "known by its place":
            raise AssertionError("not to be relied on here")
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    original = Path.open

    def open_whole(path, mode="r", *more, **named):
        return refuse() if "x" in mode else original(path, mode, *more, **named)

    monkeypatch.setattr(Path, "open", open_whole)
    monkeypatch.setattr(Path, "replace", refuse)
    return base


def test_files_are_written_in_their_place(volume):
    path = str(volume / "run" / "file")
    files.write_bytes(path, b"1")
    files.write_bytes(path, b"22")
    assert files.read_bytes(path) == b"22"
    assert os.listdir(volume / "run") == ["file"]  # noqa: PTH208
    assert files.create_file(path, b"3") == (False, False)
    assert files.create_file(f"{path}-2", b"3") == (True, False)


def test_a_file_that_cannot_be_renamed_for_another_reason_is_an_error(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="Input/output error"):
        files.write_bytes(str(tmp_path / "file"), b"1")
    assert list(tmp_path.iterdir()) == []


def test_the_lock_is_held_refused_and_given_back(volume):
    base = str(volume / "run")
    with open_run_directory(base) as directory:
        with pytest.raises(ConflictError, match="in use"), open_run_directory(base):
            pass
        directory._lock.check()
    assert not (volume / "run").exists()


def test_the_lock_of_a_dead_process_is_taken_over(volume):
    ended = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True
    )
    holder = {**lock._find_process_space(), "pid": int(ended.stdout), "token": "theirs"}
    files.write_bytes(str(volume / "run/lock.json"), json.dumps(holder).encode())
    with open_run_directory(str(volume / "run")):
        assert json.loads((volume / "run/lock.json").read_text())["pid"] == os.getpid()


def test_steps_are_committed_and_cleaned(volume):
    def count(writer):
        path = writer.new_directory("numbers")
        files.write_bytes(files.join(path, "_draft", "data"), b"123")
        files.publish(files.join(path, "_draft"), ["data"], path)
        writer.report("numbers", rows=3)

    base = str(volume / "run")
    with open_run_directory(base) as directory:
        step = directory.reuse_or_build("count", "Counting", {}, count)
        directory.commit({"summary": {}, "config": {}, "accounting": {}})
    assert step.files == {"numbers": {"data": 3}}
    files.write_bytes(files.join(base, "tables/numbers/failed/part"), b"12345")
    assert clean(base) == [(f"{base}/tables/numbers/failed", 5)]


def run_below(environment: dict[str, str], program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, env={**os.environ, **environment}
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_real_directory_that_renames_nothing(whole_files_only):
    """libc itself refuses here, to Python and to pyarrow. It maps no files either."""
    program = """
import json, os, sys, threading
from concurrent.futures import ThreadPoolExecutor
import marisa_trie
from pyarrow import fs
from spark_dbp import KeepTrie
from spark_dbp.errors import ConflictError
from spark_dbp.lake import files, lock
from spark_dbp.lake.store import open_run_directory
from spark_dbp.loaders.keep_trie import FORMAT, FORMAT_VERSION
volume = os.environ["WHOLE_FILES_ONLY"]
files.write_bytes(f"{volume}/file", b"22")
for refused in (lambda: os.rename(f"{volume}/file", f"{volume}/x"), lambda: open(f"{volume}/y", "x"),
                lambda: open(f"{volume}/file", "a"), lambda: os.link(f"{volume}/file", f"{volume}/x"),
                lambda: fs.LocalFileSystem().move(f"{volume}/file", f"{volume}/x")):
    try:
        refused()
        sys.exit("not refused")
    except OSError as error:
        assert error.errno == 95, error
lock.SETTLED = 0.3
at_once, ended = threading.Barrier(3), threading.Barrier(3)
def start(_):
    at_once.wait()
    try:
        with open_run_directory(f"{volume}/run"):
            ended.wait()
            return 1
    except ConflictError:
        ended.wait()
        return 0
with ThreadPoolExecutor(3) as threads:
    print(sum(threads.map(start, range(3))))
files.touch(f"{volume}/draft/part")
files.publish(f"{volume}/draft", ["part"], f"{volume}/draft/..")
files.write_bytes(f"{volume}/trie/0", marisa_trie.BinaryTrie([b"a"]).tobytes())
manifest = {"format": FORMAT, "version": FORMAT_VERSION, "n_shards": 1, "n_keys": 1, "key_type": "string",
            "expression": None, "shards": [{"shard": 0, "file": "0"}]}
files.write_bytes(f"{volume}/trie/manifest.json", json.dumps(manifest).encode())
keep = KeepTrie.open(f"{volume}/trie")
print("a" in keep, "b" in keep, sorted(os.listdir(volume)))
"""
    assert run_below(whole_files_only, program) == "1\nTrue False ['file', 'part', 'trie']\n"


class LibHdfs:
    """What matters of pyarrow's HDFS: its name, and that it renames over nothing."""

    type_name = "hdfs"

    def __init__(self, disk: Path) -> None:
        self._disk = fs.SubTreeFileSystem(str(disk), fs.LocalFileSystem())
        self.written: list[str] = []

    def __getattr__(self, name):
        return getattr(self._disk, name)

    def open_output_stream(self, path):
        self.written.append(path)
        return self._disk.open_output_stream(path)

    def move(self, source, target):
        if self._disk.get_file_info(target).type != fs.FileType.NotFound:
            raise OSError(errno.EIO, "rename returned false")
        self._disk.move(source, target)


@pytest.fixture
def hdfs(tmp_path):
    filesystem = LibHdfs(tmp_path)
    mounts.mount("hdfs://cluster", filesystem)
    yield filesystem
    mounts.unmount("hdfs://cluster")


def test_on_hdfs_a_file_is_never_shown_before_its_end(hdfs):
    (Path(hdfs._disk.base_path) / "run").mkdir()
    for content in (b"1", b"22"):
        files.write_bytes("hdfs://cluster/run/run.json", content)
        assert files.read_bytes("hdfs://cluster/run/run.json") == content
    assert all(path.startswith("/run/.run.json.") for path in hdfs.written)
    assert files.list_names("hdfs://cluster/run") == ["run.json"]


def test_a_mount_is_of_this_process_only(hdfs):
    assert mounts.is_mounted("hdfs://cluster/run")
    child = os.fork()
    if child == 0:
        os._exit(int(mounts.is_mounted("hdfs://cluster/run")))
    assert os.waitpid(child, 0)[1] == 0


def test_a_scheme_that_only_fsspec_knows():
    fsspec = pytest.importorskip("fsspec")
    assert fsspec
    base = "memory://store/run"
    files.write_bytes(f"{base}/a/x", b"1")
    files.write_bytes(f"{base}/a/x", b"22")
    assert (files.read_bytes(f"{base}/a/x"), files.list_names(base), files.list_tree(base)) == (
        b"22",
        ["a"],
        {"a/x": 2},
    )
    with (
        open_run_directory(f"{base}/locked"),
        pytest.raises(ConflictError),
        open_run_directory(f"{base}/locked"),
    ):
        pass
    files.delete(base)
    assert not files.exists(f"{base}/a/x")


@pytest.mark.parametrize("scheme", ["gopher", "viewfs2"])
def test_a_scheme_that_nobody_knows(scheme):
    with pytest.raises(ConfigError, match=f"cannot open '{scheme}://x/'"):
        files.exists(f"{scheme}://x/y")


def test_a_client_that_is_missing_is_told_in_one_line():
    with pytest.raises(SparkDbpError, match="cannot open 'hdfs://nowhere/'") as caught:
        files.exists("hdfs://nowhere/run")
    assert len(caught.value.what.splitlines()) == 1


def test_a_shard_that_cannot_be_mapped_is_mapped_from_a_copy(tmp_path, monkeypatch):
    import marisa_trie

    from spark_dbp.loaders.keep_trie import FORMAT, FORMAT_VERSION

    monkeypatch.setattr(local_files, "STORE_MOUNTS", (f"{tmp_path}/",))
    (tmp_path / "0").write_bytes(marisa_trie.BinaryTrie([b"a"]).tobytes())
    shards = [{"shard": 0, "file": "0"}]
    manifest = {"format": FORMAT, "version": FORMAT_VERSION, "n_shards": 1, "n_keys": 1, "shards": shards}
    (tmp_path / "manifest.json").write_text(
        json.dumps({**manifest, "key_type": "string", "expression": None})
    )
    keep = KeepTrie.open(str(tmp_path))
    assert keep.contains_many(["a", "b"]).tolist() == [True, False]
    mapped = Path("/proc/self/maps").read_text() if sys.platform == "linux" else "spark-dbp-trie-"
    assert "spark-dbp-trie-" in mapped and f"{tmp_path}/0" not in mapped
