"""Streams of tars without an index: `kept` and `read_kept`."""

from __future__ import annotations

import bz2
import gzip
import io
import logging
import lzma
import pickle
import tarfile
from pathlib import Path

import pytest
from counted_store import register
from made_shards import add_member, expected_sample, key_of, keys_of, number_of, uid_of, write_shards

from spark_dbp.errors import ConfigError, InputError
from spark_dbp.loaders.webdataset import kept, read_kept

SIZES = [40, 7, 25]
KEPT = [number for number in range(72) if number % 5 == 0]


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> list[str]:
    return write_shards(tmp_path_factory.mktemp("shards"), SIZES)


def shard_of(number: int) -> int:
    return 0 if number < 40 else 1 if number < 47 else 2


FORMS = {
    "__key__": lambda number: key_of(number, shard_of(number)),
    "json:uid": uid_of,
    "json:number": str,
    "shard/key": lambda number: f"{shard_of(number):05d}/{key_of(number, shard_of(number))}",
}


class Pipe:
    """A stream as webdataset opens for `pipe:`; it does not seek."""

    def __init__(self, body: bytes) -> None:
        self.stream = io.BytesIO(body)
        self.n_read = 0
        self.is_closed = False

    def read(self, size: int = -1) -> bytes:
        body = self.stream.read(min(size, 700))
        self.n_read += len(body)
        return body

    def __enter__(self) -> Pipe:
        return self

    def __exit__(self, *_: object) -> None:
        self.is_closed = True


def opened(shards: list[str], how: str) -> list[dict]:
    if how == "by us":
        return [{"url": path} for path in shards]
    if how == "files":
        return [{"url": path, "stream": Path(path).open("rb"), "local_path": path} for path in shards]
    if how == "pipes":
        return [{"url": path, "stream": Pipe(Path(path).read_bytes())} for path in shards]
    pack = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}[how]
    return [{"url": path, "stream": Pipe(pack(Path(path).read_bytes()))} for path in shards]


@pytest.mark.parametrize("how", ["by us", "files", "pipes", "gz", "bz2", "xz"])
@pytest.mark.parametrize("form", FORMS)
def test_kept_samples_come_in_order(shards, form, how):
    stage = read_kept({FORMS[form](number) for number in KEPT}, key=form)
    given = opened(shards, how)
    found = list(stage(iter(given)))
    assert [number_of(sample) for sample in found] == KEPT
    for sample in found:
        number = number_of(sample)
        expected = expected_sample(number, shard_of(number), shards[shard_of(number)])
        if how == "files":
            expected["__local_path__"] = expected["__url__"]
        assert sample == expected
    assert all(shard["stream"].is_closed for shard in given if isinstance(shard.get("stream"), Pipe))


def test_bytes_of_what_is_dropped_are_not_read(tmp_path):
    """Where the stream can seek."""
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for key in "abc":
            add_member(tar, f"{key}.jpg", bytes(1 << 20))
            add_member(tar, f"{key}.json", b'{"uid": "%s"}' % key.encode())

    class Counting(io.FileIO):
        n_read = 0

        def read(self, size: int = -1) -> bytes:
            body = super().read(size)
            Counting.n_read += len(body)
            return body

    for form in ("__key__", "json:uid"):
        Counting.n_read = 0
        source = [{"url": "x.tar", "stream": Counting(tmp_path / "x.tar")}]
        (sample,) = read_kept({"b"}, key=form)(source)
        assert (sample["__key__"], len(sample["jpg"])) == ("b", 1 << 20)
        assert Counting.n_read < (1 << 20) + 20_000


def test_a_store_is_opened(shards):
    register()
    found = read_kept({FORMS["__key__"](number) for number in KEPT})([{"url": f"counted://{shards[0]}"}])
    assert [number_of(sample) for sample in found] == [number for number in KEPT if number < 40]


def test_errors_name_the_shard_and_may_be_handled(shards, tmp_path):
    body = Path(shards[0]).read_bytes()
    damaged = {
        "cut.tar": body[: len(body) // 2 + 100],
        "no.tar": b"no tar at all" * 100,
        "cut.tar.gz": gzip.compress(body)[:-100],
        "bad.tar.gz": gzip.compress(body)[:500] + b"????" + gzip.compress(body)[504:],
    }
    for name, content in damaged.items():
        (tmp_path / name).write_bytes(content)
    everything = set(keys_of(SIZES))
    for name in damaged:
        with pytest.raises(InputError, match=name) as caught:
            list(read_kept(everything)([{"url": str(tmp_path / name)}]))
        assert "to mend it" in str(caught.value)
    with pytest.raises(InputError, match=r"cannot read shard .*nowhere"):
        list(read_kept(everything)([{"url": "/nowhere/x.tar"}]))
    urls = [{"url": str(tmp_path / name)} for name in damaged] + [{"url": "/nowhere"}, {"url": shards[1]}]
    seen: list[Exception] = []

    def go_on(error: Exception) -> bool:
        seen.append(error)
        return True

    found = [number_of(sample) for sample in read_kept(everything, handler=go_on)(urls)]
    assert found[-7:] == list(range(40, 47))
    assert len(seen) == 5
    assert len(list(read_kept(everything, handler=lambda error: False)(urls))) < len(found)


def test_two_members_of_a_suffix(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name in ("a.jpg", "a.JPG"):
            add_member(tar, name)
    with pytest.raises(InputError, match=r"sample 'a' has two members \.jpg"):
        list(read_kept({"b"})([{"url": str(tmp_path / "x.tar")}]))


def test_the_predicate(shards, caplog):
    url = "s3://lake/00007.tar"
    assert kept({"a"})({"__key__": "a", "__url__": url})
    assert kept({"00007/a"}, key="shard/key")({"__key__": "a", "__url__": url})
    by_uid = kept({"x"}, key="json:uid")
    for content in (b'{"uid": "x"}', '{"uid": "x"}', {"uid": "x"}):  # decoded or not
        assert by_uid({"__key__": "a", "__url__": url, "json": content})
    assert not by_uid({"__key__": "a", "__url__": url, "json": {"uid": "y"}})
    with caplog.at_level(logging.WARNING, "spark_dbp"):
        for content in ({}, {"uid": None}, {"uid": 1.5}, [1], b"{", None):
            sample = {"__key__": "a", "__url__": url, "json": content}
            assert not by_uid({key: value for key, value in sample.items() if value is not None})
    assert len(caplog.messages) == 1
    assert "first 'a' of s3://lake/00007.tar: uid in its json is missing" in caplog.text
    with_function = kept({"A"}, key=lambda sample, fields, shard: sample.upper())
    assert with_function({"__key__": "a"})
    assert pickle.loads(pickle.dumps(by_uid))({"__key__": "a", "json": {"uid": "x"}})


def test_bad_settings_are_refused():
    with pytest.raises(ConfigError, match="which cannot be asked"):
        kept(7)
    with pytest.raises(ConfigError, match="no form of a key"):
        read_kept({"a"}, key="uid")
