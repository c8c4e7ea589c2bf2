"""`encode_stream`: order, bad items, batches, memory, one model a process."""

from __future__ import annotations

import gc
import os
import weakref
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import sample_encoders
from conftest import encode_picture, make_batch, make_picture, normalize, read_vectors, run_stream
from sample_encoders import look

from spark_dbp.encoders import BadItemError, EncoderSettings, bad_items, encode_stream, get_encoder
from spark_dbp.errors import ConfigError, SparkDbpError
from spark_dbp.kernels.vectors import NOT_FINITE, ZERO_VECTOR

MEANS = EncoderSettings("images", "python:sample_encoders.Means", batch_size=4)
PREPARED = EncoderSettings("images", "python:sample_encoders.Prepared")
LENGTHS = EncoderSettings("texts", "python:sample_encoders.Lengths")


@pytest.fixture(autouse=True)
def fresh():
    sample_encoders.Prepared.calls.clear()
    sample_encoders.Prepared.loads = 0
    sample_encoders.Lengths.batches.clear()


@pytest.mark.parametrize("step", [1, 3, 7, 100])
def test_rows_keep_their_order_whatever_the_batches(step: int, files: list, pictures: list):
    table = run_stream(MEANS, files, step)
    assert table["key"].to_pylist() == [f"k{number}" for number in range(len(files))]
    expected = normalize(np.stack([look(picture) for picture in pictures]))
    assert np.abs(read_vectors(table) - expected).max() < 1e-6
    assert table.schema.names == ["key", "vector", "dimension", "problem"]
    assert table.schema.types[1:] == [pa.binary(), pa.int32(), pa.string()]


@pytest.mark.parametrize("step", [1, 3, 100])
def test_batches_of_the_model_go_across_batches_of_arrow(step: int, files: list):
    run_stream(PREPARED, files, step)
    assert sample_encoders.Prepared.calls == [4, 4, 2]


def test_bad_images_among_good_ones(files: list):
    broken = [None, b"", b"no image", files[0][:200]]
    items = [files[0], broken[0], files[1], broken[1], broken[2], files[2], broken[3], files[3], files[4]]
    for settings in (MEANS, PREPARED):
        table = run_stream(settings, items, 2)
        assert table["problem"].to_pylist() == [
            None,
            bad_items.NULL_IMAGE,
            None,
            bad_items.EMPTY_IMAGE,
            bad_items.UNDECODABLE,
            None,
            bad_items.TRUNCATED,
            None,
            None,
        ]
        good = table.filter(pa.compute.is_null(table["problem"]))
        alone = run_stream(settings, files[:5])
        assert np.abs(read_vectors(good) - read_vectors(alone)).max() < 1e-6
        for name in ("vector", "dimension"):
            assert table[name].is_null().to_pylist() == table["problem"].is_valid().to_pylist()


def test_only_bad_rows():
    table = run_stream(PREPARED, [None, b"", b"x"] * 20)
    assert table.num_rows == 60
    assert table["vector"].null_count == 60
    assert not sample_encoders.Prepared.calls


def test_no_rows():
    assert list(encode_stream(iter([]), MEANS, cores=2)) == []
    assert list(encode_stream(iter([make_batch([], "images")]), MEANS, cores=2)) == []


def test_rows_that_are_bad_already_are_not_touched(files: list):
    def load(value: bytes) -> bytes:
        assert value != b"never read"
        return value

    batch = make_batch([b"never read", files[0]], "images", problem=["checksum differs", None])
    (found,) = encode_stream(iter([batch]), MEANS, load=load, cores=2)
    assert found["problem"].to_pylist() == ["checksum differs", None]
    assert found.schema.names == ["key", "vector", "dimension", "problem"]


def test_what_load_says(tmp_path: Path, files: list):
    (tmp_path / "good").write_bytes(files[0])

    def load(name: str) -> bytes:
        if name == "odd":
            raise BadItemError("odd name")
        if name == "denied":
            raise PermissionError
        return (tmp_path / name).read_bytes()

    batch = pa.record_batch({"item": ["good", "none", "odd", "denied", None]})
    found = pa.Table.from_batches(list(encode_stream(iter([batch]), MEANS, load=load, cores=2)))
    reasons = [None, bad_items.NO_SUCH_FILE, "odd name", bad_items.UNREADABLE, bad_items.NULL_IMAGE]
    assert found["problem"].to_pylist() == reasons


def test_texts(files: list):
    texts = ["one", None, "", "  \n", "three hundred", "x"]
    table = run_stream(LENGTHS, texts, 2)
    assert table["problem"].to_pylist() == [
        None,
        bad_items.NULL_TEXT,
        bad_items.EMPTY_TEXT,
        bad_items.EMPTY_TEXT,
        None,
        None,
    ]


def test_texts_are_sorted_by_length_inside_and_come_back_in_order():
    rng = np.random.default_rng(0)
    texts = ["ab"[number % 2] * int(rng.integers(1, 300)) for number in range(200)]
    table = run_stream(LENGTHS, texts, 9)
    expected = normalize(np.array([[len(t), ord(t[0]), 1.0] for t in texts]))
    assert np.abs(read_vectors(table) - expected).max() < 1e-6
    spread = [max(lengths) - min(lengths) for lengths in sample_encoders.Lengths.batches]
    assert np.mean(spread) < 40
    assert {len(lengths) for lengths in sample_encoders.Lengths.batches[:-1]} == {4}


def test_columns_of_any_type_travel(files: list):
    columns = {
        "d": pa.array([{"a": 1}, None, {"a": 3}]),
        "l": pa.array([[1], [], None], pa.list_(pa.int8())),
        "c": pa.array(["x", "y", "x"]).dictionary_encode(),
    }
    batch = pa.record_batch({**columns, "item": pa.array(files[:3], pa.large_binary())})
    found = pa.Table.from_batches(list(encode_stream(iter([batch] * 3), MEANS, cores=2)))
    for name, column in columns.items():
        assert found[name].to_pylist() == column.to_pylist() * 3
    (alone,) = encode_stream(iter([batch.select(["item"])]), MEANS, cores=2)
    assert alone.schema.names == ["vector", "dimension", "problem"]


def test_memory_does_not_grow_with_the_number_of_items(files: list):
    """What came in is let go while the stream goes on, and no more than a few batches are read ahead."""
    alive: weakref.WeakSet = weakref.WeakSet()
    most = 0

    class Tracked:
        pass

    taken = 0

    def load(value: bytes) -> bytes:
        nonlocal most
        most = max(most, taken - given)
        return value

    def make():
        nonlocal taken
        for number in range(300):
            batch = make_batch([files[number % 10]], "images", number)
            tracked = Tracked()
            alive.add(tracked)
            taken += 1
            yield batch

    given = 0
    for found in encode_stream(make(), PREPARED, load=load, cores=2):
        given += len(found)
    assert given == 300
    assert most <= 4 * 4
    gc.collect()
    assert len(alive) == 0


def test_memory_of_one_large_batch():
    """Of 300 images in one batch a dozen are decoded at once, in three buffers."""
    import resource
    import tracemalloc

    content = encode_picture(make_picture(400, 400), "JPEG")
    batch = make_batch([content] * 300, "images")
    list(encode_stream(iter([batch.slice(0, 20)]), PREPARED, cores=2))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tracemalloc.start()
    n = sum(len(found) for found in encode_stream(iter([batch]), PREPARED, cores=2))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert n == 300
    assert peak < 8_000_000  # 300 decoded images are 144 MB
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 60_000


def test_the_model_is_loaded_once_in_a_process(files: list):
    for _ in range(3):
        run_stream(PREPARED, files)
    assert sample_encoders.Prepared.loads == 1


def test_another_model_takes_its_place(files: list):
    first = get_encoder(PREPARED)
    run_stream(MEANS, files)
    assert get_encoder(PREPARED) is not first


def test_a_model_in_use_stays(files: list):
    batches = (make_batch([file], "images") for file in files)
    stream = encode_stream(batches, PREPARED, cores=2)
    next(stream)
    run_stream(MEANS, files)
    assert len(list(stream)) == 2


def test_a_stream_that_is_left_ends_its_threads(files: list):
    import threading

    stream = encode_stream((make_batch([file], "images") for file in files), PREPARED, cores=2)
    next(stream)
    stream.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("spark-dbp-read")]


def test_batches_are_halved_where_memory_is_short(caplog):
    settings = EncoderSettings("texts", "python:sample_encoders.Small", batch_size=16)
    texts = ["abc" * number for number in range(1, 60)]
    table = run_stream(settings, texts)
    expected = normalize(np.array([[len(t), ord("a"), 1.0] for t in texts]))
    assert np.abs(read_vectors(table) - expected).max() < 1e-6
    assert max(len(lengths) for lengths in sample_encoders.Lengths.batches) == 2
    assert get_encoder(settings).batch_size == 2  # it stays
    assert [record.args[1] for record in caplog.records] == [8, 4, 2]


def test_no_memory_for_one_item():
    settings = EncoderSettings("texts", "python:sample_encoders.Tiny")
    with pytest.raises(ConfigError, match=r"embed.batch_size"):
        run_stream(settings, ["a", "b", "c"])


def test_numbers_that_are_none_make_bad_items():
    settings = EncoderSettings("texts", "python:sample_encoders.Weird")
    table = run_stream(settings, ["a", "nan", "zero", "inf", "b"])
    assert table["problem"].to_pylist() == [None, NOT_FINITE, ZERO_VECTOR, NOT_FINITE, None]
    assert table["dimension"].to_pylist() == [3, None, None, None, 3]


def test_an_error_of_the_model_is_not_swallowed():
    settings = EncoderSettings("texts", "python:sample_encoders.Weird")
    with pytest.raises(SparkDbpError, match=r"Weird failed on a batch of 2 items: ValueError: weird item"):
        run_stream(settings, ["a", "fail"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("OneRowLess", "returned 2 rows for 3 items"),
        ("ThreeAxes", r"shape \(3, 3, 3\)"),
        ("AList", "returned a list, not an array"),
        ("Words", "returned an array of <U1"),
        ("Growing", "returned embeddings of 4 values after some of 3"),
    ],
)
def test_what_is_no_embedding_is_refused(name: str, message: str):
    settings = EncoderSettings("texts", f"python:sample_encoders.{name}", batch_size=3)
    with pytest.raises(ConfigError, match=message):
        run_stream(settings, ["a", "b", "c"] * 3)


def test_arrays_of_different_shapes_are_refused(files: list):
    with pytest.raises(ConfigError, match="different shapes"):
        run_stream(EncoderSettings("images", "python:sample_encoders.Shapes"), files)


def test_items_of_the_wrong_type():
    with pytest.raises(ConfigError, match=r"images\.path_column"):
        list(encode_stream(iter([pa.record_batch({"item": ["a.jpg"]})]), MEANS, cores=2))
    with pytest.raises(ConfigError, match=r"texts\.column"):
        list(encode_stream(iter([pa.record_batch({"item": [b"abc"]})]), LENGTHS, cores=2))


def test_more_threads_than_items(files: list):
    settings = EncoderSettings("images", "python:sample_encoders.Prepared", decode_threads=32)
    assert run_stream(settings, files[:3])["problem"].null_count == 3


def test_the_same_vectors_twice(dinov2: Path, files: list):
    settings = EncoderSettings("images", str(dinov2), batch_size=3)
    assert run_stream(settings, files, 1)["vector"] == run_stream(settings, files, 10)["vector"]


def test_tokenizers_are_bound_to_the_cores_of_the_task(monkeypatch):
    # They read it with their first batch.
    monkeypatch.setenv("RAYON_NUM_THREADS", "")  # so that it is as before afterwards
    monkeypatch.delenv("RAYON_NUM_THREADS")
    get_encoder(MEANS, cores=3)
    assert os.environ["RAYON_NUM_THREADS"] == "3"
    get_encoder(MEANS, cores=1)
    assert os.environ["RAYON_NUM_THREADS"] == "3"
