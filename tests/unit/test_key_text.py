"""One text for each key: what a worker writes of a column and what a look-up makes of a value are the same."""

from __future__ import annotations

import json
import pickle
import re
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from uuid import UUID
from zlib import crc32
from zoneinfo import ZoneInfo

import marisa_trie
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spark_dbp.errors import InputError
from spark_dbp.loaders.keep_trie import KeepTrie
from spark_dbp.loaders.key_text import find_key_text, list_key_values, open_key_text, write_key_texts

BERLIN = timezone(timedelta(hours=2))
IDENTIFIER = UUID("550e8400-e29b-41d4-a716-446655440000")


def write_trie(path, texts, n_shards=3, **manifest):
    """A trie of `texts` with the manifest of a version."""
    path.mkdir()
    shards = []
    for number in range(n_shards):
        keys = [text for text in texts if crc32(text) % n_shards == number]
        marisa_trie.BinaryTrie(keys).save(str(path / f"{number}.marisa"))
        shards.append({"shard": number, "file": f"{number}.marisa", "n_keys": len(keys)})
    manifest = {
        "format": "spark-dbp keep trie",
        "n_keys": len(texts),
        "n_shards": n_shards,
        "shards": shards,
        **manifest,
    }
    (path / "manifest.json").write_text(json.dumps(manifest))
    return KeepTrie.open(str(path))


def trie_of(path, keys, key_type, expression=None):
    texts = write_key_texts(pa.array(keys) if isinstance(keys, list) else keys, key_type).to_pylist()
    return write_trie(path, texts, version=2, key_type=key_type, expression=expression)


def latin_1(*texts: bytes) -> pa.Array:
    """An array of strings that are not UTF-8, as Spark and Parquet let them be."""
    offsets = np.cumsum([0, *map(len, texts)]).astype(np.int32)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(b"".join(texts))]
    return pa.Array.from_buffers(pa.string(), len(texts), buffers)


# type of the key: (the key as Arrow holds it, its text, values that find it, values that do not, values refused)
UTC_MORNING = datetime(2024, 5, 17, 6, 30, 0, 250_000, timezone.utc)
MORNING = UTC_MORNING.replace(tzinfo=None)
EQUAL = {
    "string": (
        pa.array(["k\u00e9y"]), "k\u00e9y",
        ["k\u00e9y", "k\u00e9y".encode(), bytearray("k\u00e9y".encode()), memoryview("k\u00e9y".encode()), np.str_("k\u00e9y"), pa.scalar("k\u00e9y")],
        ["b'key'", b"key", "", b"", "\udcff", "\ud800"],
        [7, 7.0, None, True, MORNING, IDENTIFIER, ["k\u00e9y"]],
    ),
    "binary": (
        pa.array([IDENTIFIER.bytes]), IDENTIFIER.hex,
        [IDENTIFIER.bytes, IDENTIFIER, bytearray(IDENTIFIER.bytes), IDENTIFIER.hex, str(IDENTIFIER), str(IDENTIFIER).upper(), pa.scalar(IDENTIFIER.bytes)],
        [b"", IDENTIFIER.hex.encode(), UUID(int=7), "x" * 36, "\udcff" * 36], [7, None, 1.5],
    ),
    "bigint": (
        pa.array([-7]), "-7", [-7, np.int8(-7), np.int64(-7), "-7", pa.scalar(-7)], [7, 1 << 80, "-07", "7", "\udcff"],
        [-7.0, b"-7", True, np.bool_(True), Decimal(-7), None, MORNING],
    ),
    "tinyint": (pa.array([7], pa.int8()), "7", [7, np.uint64(7), "7"], [8], [7.0, None]),
    "boolean": (pa.array([True]), "true", [True, np.bool_(True), "true"], [False, "True"], [1, None]),
    "double": (
        pa.array([1e7]), "10000000.0",
        [1e7, 10_000_000, np.float64(1e7), np.float32(1e7), np.int32(10_000_000), "10000000.0", "10000000", pa.scalar(1e7)],
        [1e7 + 1, -1e7, 10**400, "1.0E7", "010000000", "10_000_000", "9" * 5000, float("nan")], [True, None, Decimal(10_000_000), b"10000000"],
    ),
    "float": (
        pa.array([0.1], pa.float32()), "0.10000000149011612", [np.float32(0.1), float(np.float32(0.1))], [0.1, 0, "0.1"], [None, True],
    ),
    "decimal(10,2)": (
        pa.array([Decimal("1.50")]), "1.50", [Decimal("1.5"), Decimal("1.50000"), Decimal("150E-2"), "1.50"],
        [Decimal("1.505"), 1, 2, Decimal("NaN"), Decimal("-Infinity"), Decimal("1E999999"), "1.5"], [1.5, True, None, b"1.50"],
    ),
    "decimal(20,0)": (pa.array([Decimal(10**19)]), "1" + "0" * 19, [10**19, Decimal("1E19")], [Decimal("0.5")], [1e19]),
    "date": (
        pa.array([date(2024, 5, 17)]), "2024-05-17", [date(2024, 5, 17), np.datetime64("2024-05-17"), "2024-05-17"],
        [date(2024, 5, 18), np.datetime64("2024-05-18")],
        [datetime(2024, 5, 17), pd.Timestamp("2024-05-17"), np.datetime64("2024-05-17T00:00"), 19860, None, pd.NaT, np.datetime64("NaT", "D")],
    ),
    "timestamp": (
        pa.array([UTC_MORNING], pa.timestamp("us", tz="Asia/Tokyo")), "1715927400250000",
        [UTC_MORNING, UTC_MORNING.astimezone(BERLIN), UTC_MORNING.astimezone(), pd.Timestamp(UTC_MORNING).tz_convert("Asia/Tokyo"), "1715927400250000"],
        [UTC_MORNING + timedelta(microseconds=1), pd.Timestamp(UTC_MORNING) + pd.Timedelta(1, "ns"), UTC_MORNING.replace(tzinfo=BERLIN)],
        [MORNING, pd.Timestamp(MORNING), np.datetime64(MORNING), date(2024, 5, 17), 1715927400250000, pd.NaT, None],
    ),
    "timestamp_ntz": (
        pa.array([MORNING], pa.timestamp("us")), "1715927400250000", [MORNING, pd.Timestamp(MORNING), np.datetime64(MORNING), np.datetime64(MORNING, "ns")],
        [MORNING + timedelta(microseconds=1), pd.Timestamp(MORNING) + pd.Timedelta(1, "ns"), np.datetime64(MORNING, "ns") + np.timedelta64(1, "ns")],
        [UTC_MORNING, pd.Timestamp(UTC_MORNING), date(2024, 5, 17), pd.NaT, np.datetime64("NaT", "us")],
    ),
    "interval day to second": (
        pa.array([timedelta(days=-1, microseconds=5)], pa.duration("us")), "-86399999995",
        [timedelta(days=-1, microseconds=5), pd.Timedelta(timedelta(days=-1, microseconds=5)), -86399999995],
        [timedelta(0), pd.Timedelta(timedelta(days=-1, microseconds=5)) + pd.Timedelta(1, "ns")], [1.0, None, pd.NaT],
    ),
}  # fmt: skip


@pytest.mark.parametrize("key_type", EQUAL)
def test_values_of_the_key_column_are_looked_up(tmp_path, key_type):
    keys, text, same, others, refused = EQUAL[key_type]
    trie = trie_of(tmp_path / "trie", keys, key_type)
    assert write_key_texts(keys, key_type).to_pylist() == [text.encode()]
    assert text in trie
    for value in [*same, *list_key_values(keys, key_type)]:
        assert value in trie, value
    for value in others:
        assert value not in trie, value
    assert trie.contains_many([*same, *others]).tolist() == [True] * len(same) + [False] * len(others)
    for value in refused:
        with pytest.raises(TypeError, match=rf"keys of type {re.escape(key_type.upper())}; .* pass "):
            trie.contains_many([value])
    assert len(pickle.loads(pickle.dumps(trie))) == 1
    assert same[0] in pickle.loads(pickle.dumps(trie))


def test_the_message_says_what_to_pass(tmp_path):
    trie = trie_of(tmp_path / "trie", pa.array([UTC_MORNING], pa.timestamp("us", tz="UTC")), "timestamp")
    with pytest.raises(TypeError) as refused:
        trie.contains_many([MORNING])
    assert str(refused.value) == (
        "the trie holds keys of type TIMESTAMP; datetime '2024-05-17 06:30:00.250000' cannot be one: pass a datetime "
        "with a zone (those of Spark's collect() are in local time: key.astimezone()), or str of microseconds since 1970"
    )


def test_numbers_that_are_equal_are_one_key(tmp_path):
    keys = [0.0, float("nan"), float("inf"), -float("inf"), 1e16, 2.0**70, 5e-324, -2.5]
    trie = trie_of(tmp_path / "trie", keys, "double")
    for value in [
        -0.0,
        0,
        np.float32(-0.0),
        float("nan"),
        np.float16("nan"),
        float("inf"),
        10**16,
        2**70,
        *keys,
    ]:
        assert value in trie, value
    for value in [10**16 + 1, 2**70 + 1, 1e-323, 2.5, "-0"]:
        assert value not in trie, value
    assert write_key_texts(pa.array([-0.0]), "double").to_pylist() == [b"0.0"]


@pytest.mark.parametrize(
    ("strategy", "kind", "key_type"),
    [
        (st.floats(), pa.float64(), "double"),
        (st.floats(width=32), pa.float32(), "float"),
        (st.integers(-(2**63), 2**63 - 1), pa.int64(), "bigint"),
        (st.decimals(-(10**15), 10**15, places=3), pa.decimal128(20, 3), "decimal(20,3)"),
        (st.binary(), pa.binary(), "binary"),
        (st.text(st.characters(exclude_categories=["Cs"])), pa.string(), "string"),
        (st.dates(), pa.date32(), "date"),
        (
            st.datetimes(timezones=st.just(ZoneInfo("America/New_York"))),
            pa.timestamp("us", tz="UTC"),
            "timestamp",
        ),
        (st.datetimes(), pa.timestamp("us"), "timestamp_ntz"),
        (st.timedeltas(timedelta(-(10**8)), timedelta(10**8)), pa.duration("us"), "interval day to second"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_written_is_what_is_looked_up(strategy, kind, key_type):
    @given(strategy)
    def check(value):
        keys = pa.array([value], kind)
        (text,) = write_key_texts(keys, key_type).to_pylist()
        form = open_key_text(key_type)
        assert form.encode(value) == text
        assert form.encode(list_key_values(keys, key_type)[0]) == text
        assert form.encode(text.decode()) == text

    check()


def test_text_that_is_not_utf8(tmp_path):
    trie = trie_of(tmp_path / "trie", latin_1(b"caf\xe9", b"\xed\xa0\x80"), "string")
    for key in (b"caf\xe9", "caf\udce9", b"\xed\xa0\x80", "\ud800", *latin_1(b"caf\xe9")):
        assert key in trie, key
    for key in ("caf\u00e9", b"caf", "caf\ufffd", "\udced"):
        assert key not in trie, key
    assert list_key_values(latin_1(b"caf\xe9"), "string") == ["caf\udce9"]


def test_values_that_python_has_not():
    late = pa.array([2_932_897], pa.date32())
    assert (
        list_key_values(late, "date")
        == ["10000-01-01"]
        == [write_key_texts(late, "date")[0].as_py().decode()]
    )
    far = pa.array([2**62], pa.timestamp("us", tz="UTC"))
    assert list_key_values(far, "timestamp") == [str(2**62)]


def test_the_text_of_an_expression_is_looked_up_as_text(tmp_path):
    trie = write_trie(
        tmp_path / "trie", [b"7.jpg"], version=2, key_type="bigint", expression="concat(key, '.jpg')"
    )
    assert "7.jpg" in trie
    assert b"7.jpg" in trie
    assert "7" not in trie
    with pytest.raises(
        TypeError, match=r"the texts of trie\.key \"concat\(key, '\.jpg'\)\"; int '7' .* pass str or bytes"
    ):
        trie.contains_many([7])


def test_a_trie_of_version_1_is_read_as_it_was(tmp_path):
    trie = write_trie(tmp_path / "trie", [b"7", b"caf\xe9", b"0.5", b"key"], version=1)
    for key in (7, "7", "caf\udce9", 0.5, "key", np.int64(7)):
        assert key in trie, key
    assert trie.contains_many(["key", "other", 8]).tolist() == [True, False, False]
    assert "key" in pickle.loads(pickle.dumps(trie))
    with pytest.raises(TypeError, match="spark-dbp select"):
        trie.contains_many([b"key"])


@pytest.mark.parametrize("version", [0, 3, None, "2", []])
def test_a_trie_of_another_version_is_refused(tmp_path, version):
    with pytest.raises(InputError, match="version of spark-dbp that wrote it"):
        write_trie(tmp_path / "trie", [], version=version)


def test_a_trie_of_an_unknown_type_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"'geometry\(4326\)', which is not known here"):
        write_trie(tmp_path / "trie", [], version=2, key_type="geometry(4326)", expression=None)


@pytest.mark.parametrize(
    ("key_type", "is_one"),
    [
        ("string", True), ("string collate UTF8_LCASE", True), ("char(10)", True), ("varchar(5)", True),
        ("decimal(38,18)", True), ("interval hour to minute", True), ("interval day", True), ("smallint", True), ("int", True),
        ("interval year to month", False), ("interval month", False), ("interval", False), ("time(6)", False),
        ("array<int>", False), ("struct<a:int>", False), ("map<int,int>", False), ("variant", False), ("void", False),
        ("geometry(4326)", False),
    ],
)  # fmt: skip
def test_types_of_keys(key_type, is_one):
    assert (find_key_text(key_type) is not None) == is_one


@pytest.mark.parametrize("content", ["[]", "7", "{", ""])
def test_a_manifest_that_is_none_is_refused(tmp_path, content):
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(InputError, match=f"no keep trie at {tmp_path}") as caught:
        KeepTrie.open(str(tmp_path))
    assert "keep_trie directory" in caught.value.mend
