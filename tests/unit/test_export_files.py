"""What export writes to files, without Spark: forms, refusals, and that nothing appears by halves."""

from __future__ import annotations

import errno
import io
import os
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from moto.server import ThreadedMotoServer
from pyarrow import fs

from spark_dbp.errors import ConfigError, ConflictError, InputError
from spark_dbp.exchange import cluster_files, row_folders
from spark_dbp.exchange.key_files import LineSink, NumberSink, SubsetSink, make_header
from spark_dbp.exchange.pygtrie_file import TrieSink, shorten_key
from spark_dbp.exchange.whole_output import check_output, write_whole
from spark_dbp.lake import files, mounts

RNG = np.random.default_rng(0)
UIDS = [*sorted(RNG.bytes(16).hex() for _ in range(200)), "f" * 32]


def fill(sink, keys, kind=None, at=(70, 71)) -> int:
    """Hand keys over in batches of uneven length."""
    array = pa.array(keys, kind or pa.binary())
    for start, stop in zip((0, *at), (*at, len(array)), strict=True):
        sink.add(array[start:stop])
    return sink.finish()


def find_samples(subset: np.ndarray, uid: str) -> int:
    """How often DataComp's resharder writes a sample: by a binary search from either side."""
    wanted = np.array([divmod(int(uid, 16), 2**64)], "u8,u8")[0]
    return int(np.searchsorted(subset, wanted, "right") - np.searchsorted(subset, wanted, "left"))


def test_a_subset_is_what_numpy_saves_and_the_resharder_finds(tmp_path):
    kept = UIDS[::2]
    assert fill(SubsetSink("datacomp", tmp_path / "x.npy"), [uid.encode() for uid in kept]) == len(kept)
    numbers = [(int(uid[:16], 16), int(uid[16:], 16)) for uid in kept]
    expected = io.BytesIO()
    np.save(expected, np.array(numbers, "u8,u8"))
    assert (tmp_path / "x.npy").read_bytes() == expected.getvalue()
    subset = np.load(tmp_path / "x.npy", allow_pickle=False)
    assert subset.dtype == np.dtype("u8,u8")
    assert [find_samples(subset, uid) for uid in UIDS] == [1, 0] * 100 + [1]


def test_lines_and_numbers(tmp_path):
    texts = sorted(["", " a ", "a\tb", "é'\"\\", "\N{LINE SEPARATOR}", "x" * 5000])
    fill(LineSink("txt", tmp_path / "x.txt"), [text.encode() for text in texts], at=(1, 1, 3))
    assert (tmp_path / "x.txt").read_bytes().decode().split("\n") == [*texts, ""]
    fill(NumberSink("npy", tmp_path / "x.npy"), [-(2**63), -1, 0, 2**63 - 1], pa.int64(), at=(2,))
    expected = io.BytesIO()
    np.save(expected, np.array([-(2**63), -1, 0, 2**63 - 1]))
    assert (tmp_path / "x.npy").read_bytes() == expected.getvalue()


def test_nothing_to_write(tmp_path):
    for sink, dtype in ((SubsetSink, np.dtype("u8,u8")), (NumberSink, np.dtype("i8"))):
        sink("x", tmp_path / "x").finish()
        assert np.load(tmp_path / "x").shape == (0,)
        assert np.load(tmp_path / "x").dtype == dtype
    LineSink("txt", tmp_path / "x").finish()
    assert (tmp_path / "x").read_bytes() == b""


def test_headers_are_numpys():
    for dtype, shape in (("<f2", (7, 3)), ("<U59", (12345, 4)), ("S32", (1, 4)), ("u8,u8", (10**9,))):
        sink = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            sink,
            {
                "descr": np.dtype(dtype).descr if "," in dtype else np.dtype(dtype).str,
                "fortran_order": False,
                "shape": shape,
            },
        )
        assert make_header(np.dtype(dtype), *shape) == sink.getvalue()


REFUSED = {
    "a null": (LineSink, [None, None, b"a"], "2 of 3 keys are null"),
    "two are equal": (LineSink, [b"a", b"a", b"b", b"b", b"b"], "3 of 5 keys are written by more than one row, such as 'a', 'b'"),
    "newline": (LineSink, [b"a\n", b"b", b"\r"], r"2 of 3 keys hold a newline or a carriage return, such as 'a\n', '\r'"),
    "latin-1": (LineSink, [b"caf\xe9", b"d"], "1 of 2 keys are not UTF-8, such as 'caf\ufffd'"),
    "two reasons": (LineSink, [b"\xe9", b"\xe9\n"], "\n  - 2 of 2 keys are not UTF-8"),
    "a short uid": (SubsetSink, [b"0" * 31, b"0" * 32], "1 of 2 keys are not 32 hexadecimal digits"),
    "a uid with hyphens": (SubsetSink, [b"f81d4fae-7dec-11d0-a765-00a0c91e6bf6"], "such as 'f81d4fae-7dec"),
    "a uid in upper case": (SubsetSink, [b"A" * 32], "32 hexadecimal"),  # Spark makes them lower case before
    "a uid and a newline": (SubsetSink, [b"0" * 32 + b"\n"], "32 hexadecimal"),
    "no uid": (SubsetSink, [b"0x" + b"0" * 30, b"x" * 300], "2 of 2 keys are not"),
    "all wrong": (SubsetSink, [b"%d" % i for i in range(2000)], "2,000 of 2,000 keys are not"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("at", [(), (1,), (1, 2)])
def test_keys_that_are_refused(tmp_path, name, at):
    sink, keys, message = REFUSED[name]
    with pytest.raises(InputError) as error:
        fill(sink("form", tmp_path / "x"), keys, at=at if len(keys) > 2 else ())
    assert message in str(error.value)
    assert "to mend it: " in str(error.value)
    assert len(str(error.value)) < 700


def test_without_pygtrie(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pygtrie", None)
    with pytest.raises(ConfigError, match=r"pip install 'spark-dbp\[pygtrie\]'"):
        TrieSink("pygtrie", tmp_path / "x")


def test_keys_of_the_research_code():
    assert shorten_key("127/00362/003620001.jpg") == "127/00362/003620001"
    assert shorten_key("a" * 30 + ".webp") == "a" * 28  # first cut to 32 characters, then four fewer
    assert shorten_key("a.j") == ""


# Clusters.


def cluster_batch(rows) -> pa.RecordBatch:
    keys, rows_, distances, clusters = zip(*rows, strict=True)
    columns = {
        "written": pa.array(keys, pa.binary()), "cluster_id": pa.array(clusters, pa.int32()),
        "distance_to_centroid": pa.array(distances, pa.float32()), "row": pa.array(rows_, pa.int64()),
    }  # fmt: skip
    return pa.RecordBatch.from_pydict(columns)


CLUSTERED = [
    (b"b", 3, 0.75, 1),
    (b"a", 4, 1e-07, 1),
    ("é/".encode() * 20, 0, 0.1, 1),
    (b"c", 10**12, -0.0, 7),
]


@pytest.mark.parametrize("as_bytes", [False, True])
@pytest.mark.parametrize("cuts", [[4], [1, 3], [2, 1, 1]])
def test_clusters_are_texts_in_arrays(tmp_path, as_bytes, cuts):
    ends = np.cumsum([0, *cuts])
    batches = [cluster_batch(CLUSTERED[a:b]) for a, b in pairwise(ends)]
    sizes = {1: (3, 60 if as_bytes else 40), 7: (1, 1)}
    n_rows = cluster_files.write_clusters(iter(batches), tmp_path, sizes, [1, 2, 7], as_bytes=as_bytes)
    assert n_rows == 4
    folder = tmp_path / "sorted_clusters"
    assert sorted(path.name for path in folder.iterdir()) == [
        "cluster_1.npy",
        "cluster_2.npy",
        "cluster_7.npy",
    ]
    assert np.load(folder / "cluster_2.npy").shape == (0,)
    found = np.load(folder / "cluster_1.npy", allow_pickle=False)
    assert found.dtype == np.dtype("S60" if as_bytes else "<U40")
    texts = [key if as_bytes else key.decode() for key, *_ in CLUSTERED[:3]]
    assert found[:, 0].tolist() == texts
    assert found[:, 1].astype("int32").tolist() == [3, 4, 0]
    assert (found[:, 2].astype("float32") == np.float32([0.75, 1e-07, 0.1])).all()
    assert found[:, 3].astype("int32").tolist() == [1, 1, 1]
    last = np.load(folder / "cluster_7.npy")
    assert last.dtype == np.dtype("S32" if as_bytes else "<U32")
    assert last.shape == (1, 4)


def test_clusters_refuse_what_numpy_would_cut(tmp_path):
    with pytest.raises(InputError, match="1 of 2 keys end with a character of code 0"):
        rows = cluster_batch([(b"a\0", 0, 0.5, 0), (b"b", 0, 0.5, 0)])
        cluster_files.write_clusters(iter([rows]), tmp_path, {0: (2, 2)}, [0], as_bytes=True)


# Folders of arrays and tables.


@pytest.mark.parametrize("step", [7, 10, 1000])
def test_embeddings_are_in_files_of_a_number_of_rows(tmp_path, monkeypatch, step):
    monkeypatch.setattr(row_folders, "FILE_ROWS", 30)
    monkeypatch.setattr(row_folders, "_METADATA", 10)
    vectors = RNG.standard_normal((305, 6)).astype(np.float16)
    keys = [f"k{number:04d}" for number in range(305)]
    columns = {
        "written": keys, "cluster_id": pa.array(range(305), pa.int32()),
        "distance_to_centroid": pa.array(np.full(305, 0.5, np.float32)),
        "img_emb": [vector.tobytes() for vector in vectors],
        "text_emb": [None if row == 33 else vector[:2].tobytes() for row, vector in enumerate(vectors)],
    }  # fmt: skip
    table = pa.table(columns)
    schema = (
        table.drop_columns(["img_emb", "text_emb"])
        .rename_columns(["image_path", "cluster_id", "distance_to_centroid"])
        .schema
    )
    batches = iter(table.to_batches(max_chunksize=step))
    dimensions = {"img_emb": 6, "text_emb": 2}
    assert row_folders.write_embeddings(batches, tmp_path, 305, dimensions, schema) == 305
    arrays, tables = sorted((tmp_path / "img_emb").iterdir()), sorted((tmp_path / "metadata").iterdir())
    assert [path.name for path in arrays] == [f"img_emb_{number:02d}.npy" for number in range(11)]
    assert [path.name for path in tables] == [f"metadata_{number:02d}.parquet" for number in range(11)]
    # As embedding-reader pairs them: in the order of their names, as many rows in both.
    found = [np.load(path, allow_pickle=False) for path in arrays]
    rows = [pq.read_table(path) for path in tables]
    assert [len(part) for part in found] == [30] * 10 + [5] == [len(part) for part in rows]
    assert (np.concatenate(found) == vectors).all()
    texts = [np.load(tmp_path / "text_emb" / f"text_emb_{number:02d}.npy") for number in range(11)]
    assert [len(part) for part in texts] == [30] * 10 + [5]
    expected = np.where(np.arange(305)[:, None] == 33, np.float16("nan"), vectors[:, :2])
    assert np.array_equal(np.concatenate(texts), expected, equal_nan=True)
    assert pa.concat_tables(rows).column("image_path").to_pylist() == keys


# Nothing by halves.


def test_what_is_whole_appears(tmp_path):
    base = check_output(tmp_path / "new" / "x é[1].txt", str(tmp_path / "run"))
    with write_whole(base, is_folder=False) as draft:
        draft.write_text("x")
        assert not Path(base).exists()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["x é[1].txt"]


@pytest.mark.parametrize("is_folder", [False, True])
def test_nothing_is_left_of_what_fails(tmp_path, is_folder):
    with pytest.raises(RuntimeError), write_whole(str(tmp_path / "x"), is_folder=is_folder) as draft:
        (draft / "y" if is_folder else draft).write_text("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("is_folder", [False, True])
def test_what_is_there_is_not_replaced(tmp_path, is_folder):
    (tmp_path / "x").mkdir()
    (tmp_path / "y").symlink_to(tmp_path / "nowhere")
    for name in ("x", "y"):
        with pytest.raises(ConflictError, match="exists"):
            check_output(tmp_path / name, str(tmp_path / "run"))
    # It may appear meanwhile.
    with (
        pytest.raises(ConflictError, match="exists"),
        write_whole(str(tmp_path / "z"), is_folder=is_folder) as draft,
    ):
        (draft / "y" if is_folder else draft).write_text("whole")
        (tmp_path / "z").write_text("of another one")
    assert (tmp_path / "z").read_text() == "of another one"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x", "y", "z"]


@pytest.mark.parametrize("is_folder", [False, True])
def test_where_nothing_can_be_renamed(tmp_path, monkeypatch, is_folder):
    def refuse(*_):
        raise OSError(errno.EOPNOTSUPP, "not here")

    monkeypatch.setattr(Path, "rename", refuse)
    monkeypatch.setattr(os, "rename", refuse)
    with write_whole(str(tmp_path / "x"), is_folder=is_folder) as draft:
        assert tmp_path not in draft.parents
        (draft / "y" if is_folder else draft).write_text("whole")
    assert (tmp_path / "x" / "y" if is_folder else tmp_path / "x").read_text() == "whole"
    assert not draft.parent.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_places_that_are_refused(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "run")
    for out in (tmp_path / "run", tmp_path / "run" / "kept.txt", tmp_path / "link" / "kept.txt"):
        with pytest.raises(ConfigError, match="lies in the run directory"):
            check_output(out, str(tmp_path / "run"))
    with pytest.raises(ConfigError, match="is empty"):
        check_output("", str(tmp_path / "run"))
    with pytest.raises(ConfigError, match="is a file"):
        base = check_output(tmp_path / "file" / "x", str(tmp_path / "run"))
        with write_whole(base, is_folder=False):
            pass


@pytest.mark.parametrize("is_folder", [False, True])
def test_a_store_gets_what_is_whole(tmp_path, monkeypatch, is_folder):
    """moto's server stands for S3."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    folder = f"s3a://lake/{is_folder}"  # what servers of one process hold is the same
    try:
        host, port = server.get_host_and_port()
        for name, value in {"ACCESS_KEY_ID": "x", "SECRET_ACCESS_KEY": "x", "REGION": "us-east-1"}.items():
            monkeypatch.setenv(f"AWS_{name}", value)
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        mounts.forget_clients()
        fs.FileSystem.from_uri("s3://lake/?allow_bucket_creation=true")[0].create_dir("lake")
        base = check_output(f"{folder}/x é", "s3://lake/run")
        with pytest.raises(RuntimeError), write_whole(base, is_folder=is_folder) as draft:
            (draft / "y" if is_folder else draft).write_text("half")
            raise RuntimeError
        assert files.list_tree(folder) == {}
        with write_whole(base, is_folder=is_folder) as draft:
            (draft / "y" if is_folder else draft).write_text("whole")
            assert files.list_tree(folder) == {}
        assert files.list_tree(base) == {"y" if is_folder else "": 5}
        with pytest.raises(ConflictError, match="exists"):
            check_output(f"{folder}/x é", "s3://lake/run")
        with pytest.raises(ConfigError, match="lies in the run directory"):
            check_output("s3a://lake/run/x", "s3://lake/run")
    finally:
        mounts.forget_clients()
        server.stop()
