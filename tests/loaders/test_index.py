"""Indexes of shards: what is found, what is written, what is refused."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from made_shards import (
    add_member,
    expected_sample,
    key_of,
    keys_of,
    uid_of,
    write_shard,
    write_shards,
    write_trie,
)

from spark_dbp.errors import ConfigError, ConflictError, InputError
from spark_dbp.loaders.index import SampleWriter, finish_index, index_shard, open_index, write_index
from spark_dbp.loaders.keys import find_kept, open_keep, open_key_form

SIZES = [40, 7, 25, 60, 1]


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> list[str]:
    return write_shards(tmp_path_factory.mktemp("shards"), SIZES)


@pytest.fixture(scope="module")
def keep() -> set[str]:
    """A third of the keys, but none of the second shard."""
    keys = keys_of(SIZES)
    return {key for number, key in enumerate(keys) if number % 3 == 1 and not 40 <= number < 47}


@pytest.fixture(scope="module")
def index(shards, keep, tmp_path_factory):
    out = tmp_path_factory.mktemp("index") / "index"
    report = write_index(out, shards[::-1], keep, run="/runs/one", keep_list_digest="abc")
    assert (report.missing, report.twice, report.without_key) == (0, 0, 0)
    return open_index(out)


def test_the_index_says_what_is_there(index, shards, keep):
    manifest = json.loads((Path(index.path) / "index.json").read_text())
    assert manifest == {
        "format": "spark-dbp shard index",
        "version": 1,
        "n_shards": 5,
        "n_samples": sum(SIZES) + 5,  # each shard begins with a sample of its own
        "n_kept": len(keep),
        "bytes": sum(Path(path).stat().st_size for path in shards),
        "kept_bytes": int(index.kept_bytes.sum()),
        "key": "webdataset",
        "run": "/runs/one",
        "keep_list_digest": "abc",
    }
    table = pq.read_table(Path(index.path) / "shards.parquet")
    assert table.column("shard").to_pylist() == [0, 1, 2, 3, 4]
    assert table.column("path").to_pylist() == shards
    assert table.column("samples").to_pylist() == [size + 1 for size in SIZES]
    assert table.column("kept").to_pylist()[1] == 0
    assert table.column("file").to_pylist()[1] is None
    assert table.column("row_group").to_pylist()[1] is None
    assert len(index) == len(keep)
    assert index.n_shards == 5
    assert index.shard_path(2) == shards[2]


def test_a_row_group_holds_the_kept_samples_of_a_shard_in_its_order(index, keep):
    table = pq.read_table(Path(index.path) / "shards.parquet").to_pylist()
    found = []
    for row in table:
        if row["file"] is None:
            continue
        file = pq.ParquetFile(Path(index.path) / "samples" / row["file"])
        rows = file.read_row_group(row["row_group"]).to_pylist()
        assert {each["shard"] for each in rows} == {row["shard"]}
        assert [each["position"] for each in rows] == sorted(each["position"] for each in rows)
        assert row["kept"] == len(rows)
        assert row["kept_bytes"] == sum(each["stop"] - each["start"] for each in rows)
        body = Path(row["path"]).read_bytes()
        for each in rows:
            members = zip(each["suffixes"], each["offsets"], each["sizes"], strict=True)
            sample = {suffix: body[at : at + size] for suffix, at, size in members}
            number = int(sample["cls"])
            expected = expected_sample(number, row["shard"], row["path"])
            assert each["key"] == each["sample"] == expected["__key__"]
            assert sample == {suffix: expected[suffix] for suffix in expected if suffix[0] != "_"}
            assert each["position"] == 1 + number - sum(SIZES[: row["shard"]])
            # The range is a tar of its own.
            part = tarfile.open(fileobj=io.BytesIO(body[each["start"] : each["stop"]] + bytes(1024)))  # noqa: SIM115
            assert {member.name.partition(".")[0] for member in part} >= {each["key"]}
        found += [each["key"] for each in rows]
    assert sorted(found) == sorted(keep)


def test_rows_are_read_shard_by_shard(index, keep):
    index.most_rows = 25
    for shard in (0, 2, 0, 3, 4, 0):
        rows = index.read_rows(shard)
        assert len(rows) == index.kept[shard]
        assert all(rows.samples[row].as_py() in keep for row in range(len(rows)))
    assert len(index._rows) < 4
    assert len(index.read_rows(1)) == 0


def test_it_can_be_pickled(index):
    again = pickle.loads(pickle.dumps(index))
    assert (again.digest, len(again), again.path) == (index.digest, len(index), index.path)
    assert open_index(again) is again


def test_shards_that_were_moved(index, shards):
    moved = open_index(index.path, moved=(str(Path(shards[0]).parent), "/elsewhere"))
    assert moved.shard_path(0) == "/elsewhere/00000.tar"
    assert moved.digest == index.digest
    with pytest.raises(ConfigError, match="does not begin with 's3://"):
        open_index(index.path, moved=("s3://lake", "/elsewhere")).shard_path(0)


def test_parts_of_an_index_are_written_by_several(shards, keep, tmp_path, index):
    """As the workers of a job do."""
    rows = []
    for part, numbers in enumerate(([3, 0], [4, 1, 2])):
        with SampleWriter(str(tmp_path / "index"), f"part-{part:05d}") as writer:
            rows += [
                writer.add(index_shard(shards[n], keep, number=n, **opened(shards[n])), n) for n in numbers
            ]
    with pytest.raises(InputError, match="no index of shards"):
        open_index(tmp_path / "index")
    finish_index(str(tmp_path / "index"), rows, keep_list_digest="abc")
    again = open_index(tmp_path / "index")
    assert again.digest == index.digest
    for shard in range(5):
        assert again.read_rows(shard).start.tolist() == index.read_rows(shard).start.tolist()


def opened(path: str) -> dict:
    return {"content": Path(path).open("rb"), "size": Path(path).stat().st_size}


def test_many_rows_are_written_to_several_files(shards, keep, tmp_path, monkeypatch):
    monkeypatch.setattr("spark_dbp.loaders.index_shard._FILE_BYTES", 100)
    monkeypatch.setattr("spark_dbp.loaders.index_shard._BATCH_KEYS", 3)
    write_index(tmp_path / "index", shards, keep)
    index = open_index(tmp_path / "index")
    assert len(list((tmp_path / "index" / "samples").iterdir())) == (index.kept > 0).sum() == 3
    assert [len(index.read_rows(shard)) for shard in range(5)] == index.kept.tolist()


# Forms of keys.


def test_keys_of_json_of_shard_and_of_a_function(shards, tmp_path):
    numbers = [1, 45, 80]
    of_shard = [0, 1, 3]
    names = [key_of(number, shard) for number, shard in zip(numbers, of_shard, strict=True)]
    forms = {
        "json:uid": [uid_of(number) for number in numbers],
        "json:number": [str(number) for number in numbers],
        "shard/key": [f"{shard:05d}/{name}" for shard, name in zip(of_shard, names, strict=True)],
        "__key__": names,
    }
    for number, (form, keys) in enumerate(forms.items()):
        report = write_index(tmp_path / str(number), shards, keys, key=form)
        assert report.info["n_kept"] == 3, form
        assert report.missing == 0
        assert report.info["key"] == ("webdataset" if form == "__key__" else form)
        # The sample at the beginning of each shard has no such field.
        assert report.without_key == (5 if form.startswith("json") else 0)
        assert ("__info__" in report.without_key_example) == form.startswith("json")
        rows = pq.read_table(tmp_path / str(number) / "samples").to_pylist()
        assert [(row["key"], row["sample"]) for row in rows] == list(zip(keys, names, strict=True))

    def make(sample: str, fields: dict | None, shard: str) -> str | None:
        return None if "uid" not in (fields or {}) else f"{Path(shard).stem}-{fields['number']}"

    report = write_index(tmp_path / "function", shards, {"00000-1", "00001-45", "x"}, key=make)
    assert (report.info["n_kept"], report.missing, report.missing_examples) == (2, 1, ["x"])
    assert report.info["key"].startswith("function ")
    assert report.info["key"].endswith("make")


def test_keys_that_are_missing_or_found_twice_are_reported(tmp_path):
    for shard in range(2):
        write_shard(tmp_path / f"{shard}.tar", range(10), 0)  # the same keys
    keep = {key_of(3, 0), key_of(4, 0), *(f"nowhere-{n}" for n in range(9))}
    report = write_index(tmp_path / "index", tmp_path, keep)
    assert report.info["n_kept"] == 4
    assert (report.missing, report.twice) == (9, 2)
    assert report.missing_examples == [f"nowhere-{n}" for n in range(5)]
    assert set(report.twice_examples) == {key_of(3, 0), key_of(4, 0)}
    found = index_shard(str(tmp_path / "1.tar"), keep).found
    assert found == [key_of(3, 0), key_of(4, 0)]


class Asked:
    """Answers many at once."""

    def __init__(self, keys: set[str]) -> None:
        self.keys, self.n_calls = keys, 0

    def __contains__(self, key: str) -> bool:
        raise AssertionError("asked one by one")

    def contains_many(self, keys: list[str]) -> np.ndarray:
        self.n_calls += 1
        return np.array([key in self.keys for key in keys])


def test_what_answers_many_at_once_is_asked_so(shards, keep, tmp_path):
    asked = Asked(keep)
    report = write_index(tmp_path / "index", shards, asked)
    assert asked.n_calls == len(shards)
    assert (report.info["n_kept"], report.missing) == (len(keep), None)


def test_a_trie_is_asked_and_says_which_keys_are_missing(shards, keep, tmp_path):
    write_trie(tmp_path / "trie", [*sorted(keep), "nowhere-1", "nowhere-2"])
    report = write_index(tmp_path / "index", shards, tmp_path / "trie")
    assert (report.info["n_kept"], report.missing) == (len(keep), 2)
    assert report.missing_examples == ["nowhere-1", "nowhere-2"]


def test_lists_and_arrays_are_sets_of_keys():
    for keep in (["a", "b"], np.array(["a", "b"]), ("a", "b")):
        assert find_kept(open_keep(keep), ["a", "c"]).tolist() == [True, False]


# What is refused.


def damage(index, tmp_path: Path, name: str, content: bytes | dict) -> Path:
    out = tmp_path / "index"
    for file in ("index.json", "shards.parquet", "samples/part-00000.parquet"):
        (out / file).parent.mkdir(parents=True, exist_ok=True)
        (out / file).write_bytes((Path(index.path) / file).read_bytes())
    if isinstance(content, dict):
        manifest = json.loads((out / name).read_text()) | content
        content = json.dumps(manifest).encode()
    (out / name).write_bytes(content)
    return out


def cut(index, name: str) -> bytes:
    return (Path(index.path) / name).read_bytes()[:-20]


DAMAGED = {
    "other program": ("index.json", lambda _: {"format": "another"}, "holds 'another' version 1"),
    "other version": (
        "index.json",
        lambda _: {"version": 2},
        "version 2, not 'spark-dbp shard index' version 1",
    ),
    "no JSON": ("index.json", lambda _: b"{", "no index of shards"),
    "no object": ("index.json", lambda _: b"[]", "holds no names and values"),
    "cut table of shards": (
        "shards.parquet",
        lambda index: cut(index, "shards.parquet"),
        "cannot read .*shards",
    ),
    "empty table of shards": ("shards.parquet", lambda _: b"", "cannot read .*shards"),
    "other numbers": ("index.json", lambda _: {"n_kept": 3}, "contradicts itself: .* says 5 and 3"),
    "cut samples": (
        "samples/part-00000.parquet",
        lambda index: cut(index, "samples/part-00000.parquet"),
        "cannot read .*part-00000.parquet",
    ),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_indexes_are_refused(index, tmp_path, name):
    file, content, message = DAMAGED[name]
    out = damage(index, tmp_path, file, content(index))
    with pytest.raises(InputError, match=message) as caught:
        open_index(out).read_rows(0)
    assert str(out) in str(caught.value)
    assert "to mend it" in str(caught.value)


def test_samples_of_another_index_are_refused(index, shards, keep, tmp_path):
    write_index(tmp_path / "other", shards, set(list(keep)[:20]))
    body = next((tmp_path / "other" / "samples").iterdir()).read_bytes()
    out = damage(index, tmp_path, "samples/part-00000.parquet", body)
    with pytest.raises(InputError, match="contradicts itself: row group"):
        [open_index(out).read_rows(shard) for shard in range(5)]


def test_other_tables_of_shards_are_refused(index, tmp_path):
    table = pq.read_table(Path(index.path) / "shards.parquet")
    for changed, message in (
        (table.drop_columns(["kept_bytes"]), "kept_bytes"),
        (table.set_column(2, "samples", table.column("path")), "samples"),
        (table.take([1, 0, 2, 3, 4]), "does not number"),
    ):
        stream = io.BytesIO()
        pq.write_table(changed, stream)
        with pytest.raises(InputError, match=message):
            open_index(damage(index, tmp_path, "shards.parquet", stream.getvalue()))


def test_no_index(tmp_path):
    with pytest.raises(InputError, match=r"no index of shards at .*nowhere"):
        open_index(tmp_path / "nowhere")


def bad_shard(tmp_path: Path, **members: bytes) -> str:
    with tarfile.open(tmp_path / "bad.tar", "w", errors="surrogateescape") as tar:
        for name, content in members.items():
            add_member(tar, name, content)
    return str(tmp_path / "bad.tar")


BAD = {
    "no shard": (lambda tmp: index_shard(f"{tmp}/no.tar", {"a"}), InputError, "cannot read shard .*no.tar"),
    "no shards": (lambda tmp: write_index(tmp / "i", [], {"a"}), InputError, "names no shard"),
    "a folder without": (lambda tmp: write_index(tmp / "i", tmp, {"a"}), InputError, "names no shard"),
    "twice": (lambda tmp: write_index(tmp / "i", ["a.tar", "a.tar"], {"a"}), InputError, "is named twice"),
    "keep without in": (lambda tmp: open_keep(7), ConfigError, "keep is int, which cannot be asked"),
    "keep a generator": (lambda tmp: open_keep(x for x in "a"), ConfigError, "keep is generator"),
    "keep of numbers": (lambda tmp: open_keep({1, 2}), ConfigError, "keep holds int"),
    "no trie": (lambda tmp: open_keep(f"{tmp}/run"), InputError, "no keep trie at"),
    "key": (lambda tmp: open_key_form("uid"), ConfigError, "key 'uid' is no form"),
    "json without field": (lambda tmp: open_key_form("json:"), ConfigError, "'json:' is no form"),
    "key None": (lambda tmp: open_key_form(None), ConfigError, "key None is no form"),
    "a function of numbers": (
        lambda tmp: index_shard(bad_shard(tmp, **{"a.jpg": b""}), {"a"}, lambda *_: 7),
        ConfigError,
        "returned int for sample 'a' of .*bad.tar",
    ),
    "two members": (
        lambda tmp: index_shard(bad_shard(tmp, **{"a.jpg": b"", "a.JPG": b""}), {"a"}),
        InputError,
        "bad.tar: sample 'a' has two members .jpg",
    ),
    "a suffix in bytes": (
        lambda tmp: index_shard(bad_shard(tmp, **{"a.j\udcffpg": b""}), {"a"}),
        InputError,
        "bad.tar: the name of a member is not UTF-8",
    ),
    "size not said": (
        lambda tmp: index_shard("x.tar", {"a"}, content=io.BytesIO()),
        ConfigError,
        "the size of shard .* is not given",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_by_name(tmp_path, name):
    make, kind, message = BAD[name]
    with pytest.raises(kind, match=message) as caught:
        make(tmp_path)
    assert "to mend it" in str(caught.value)


def test_an_index_is_not_written_over(index, shards, keep):
    with pytest.raises(ConflictError, match="there is an index at"):
        write_index(index.path, shards, keep)
