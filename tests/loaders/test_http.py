"""Shards on a web server with some latency, as fsspec reads them; in a forked process too."""

from __future__ import annotations

import multiprocessing
import re
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from made_shards import keys_of, number_of, write_shards

from spark_dbp.errors import InputError
from spark_dbp.loaders.index import open_index, write_index
from spark_dbp.loaders.webdataset import KeptShards, read_kept

pytest.importorskip("aiohttp")

SIZES = [40, 7, 25]
LATENCY = 0.01


class Handler(BaseHTTPRequestHandler):
    """Gives byte ranges of files, each after a moment."""

    folder: Path
    gives_ranges = True

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, *, with_body: bool) -> None:
        time.sleep(LATENCY)
        file = self.folder / self.path.lstrip("/")
        if not file.is_file():
            self.send_error(404)
            return
        body = file.read_bytes()
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if asked and self.gives_ranges:
            self.send_response(206)
            start, last = int(asked[1]), min(int(asked[2]), len(body) - 1)
            self.send_header("Content-Range", f"bytes {start}-{last}/{len(body)}")
            body = body[start : last + 1]
        else:
            self.send_response(200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> list[str]:
    return write_shards(tmp_path_factory.mktemp("shards"), SIZES)


@pytest.fixture
def url(shards) -> Iterator[str]:
    Handler.folder, Handler.gives_ranges = Path(shards[0]).parent, True
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def index_of(url: str, tmp_path: Path) -> str:
    report = write_index(tmp_path / "index", [f"{url}/{n:05d}.tar" for n in range(3)], set(keys_of(SIZES)))
    assert report.missing == 0
    return str(tmp_path / "index")


def read(queue: multiprocessing.Queue, shards: KeptShards) -> None:
    queue.put(sorted(number_of(sample) for sample in shards))


def test_shards_on_a_server(url, shards, tmp_path):
    index = index_of(url, tmp_path)
    local = write_index(tmp_path / "local", shards, set(keys_of(SIZES)))
    assert open_index(index).digest == open_index(tmp_path / "local").digest
    assert local.info["n_kept"] == 72
    by_ranges = KeptShards(index, batch_size=8)
    whole = KeptShards(index, batch_size=8, cache_dir=str(tmp_path / "cache"))
    for kept in (by_ranges, whole):
        assert sorted(number_of(sample) for sample in kept) == list(range(72))
    assert len(list((tmp_path / "cache").glob("*.tar"))) == 3
    # The client that this process has is of no use in a forked one.
    fork = multiprocessing.get_context("fork")
    queue = fork.Queue()
    child = fork.Process(target=read, args=(queue, by_ranges))
    child.start()
    assert queue.get(timeout=60) == list(range(72))
    child.join()
    streamed = read_kept(set(keys_of(SIZES)))([{"url": f"{url}/00001.tar"}])
    assert [number_of(sample) for sample in streamed] == list(range(40, 47))


def test_a_server_without_byte_ranges_and_a_file_that_is_gone(url, tmp_path):
    shards = KeptShards(index_of(url, tmp_path), batch_size=8)
    Handler.gives_ranges = False
    with pytest.raises(InputError, match="does not give byte ranges"):
        list(shards)
    Handler.gives_ranges, Handler.folder = True, tmp_path
    with pytest.raises(InputError, match=r"there is no file http://.*\.tar"):
        list(shards)
