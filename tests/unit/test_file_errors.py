"""Errors on files: the texts of Spark 4.3 (classic, Connect) and 3.5, and what is said instead.

The texts are as Spark gave them, without the lines of stack traces.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spark_dbp.engine.spark_errors import translate_errors
from spark_dbp.errors import InputError, SparkDbpError
from spark_dbp.lake.file_kinds import find_column_type, recognize_bytes


class Py4JError(Exception):
    """What Py4J raises: the text only."""


Py4JError.__module__ = "py4j.protocol"


class ConnectError(Py4JError):
    """What Connect raises: a condition beside the text."""

    def getCondition(self) -> str:
        return str(self).split("]")[0].removeprefix("[")


@dataclass(frozen=True)
class Text:
    words: list[str]
    text: str
    of: type[Exception] = Py4JError
    error: type[SparkDbpError] = InputError
    but_not: str = "damaged"


CALLED = "An error occurred while calling o101.collectToPython.\n: org.apache.spark.SparkException: "
READING = "[FAILED_READ_FILE.NO_HINT] Encountered error while reading file file:///data/in/p.parquet.  SQLSTATE: KD001\n"
FOOTER = (
    "[FAILED_READ_FILE.CANNOT_READ_FILE_FOOTER] Encountered error while reading file file:/data/in/p.parquet. "
    "Could not read footer. Please ensure that the file is in either ORC or Parquet format.\n"
    "If not, please convert it to a valid format. If the file is in the valid format, please check if it is "
    "corrupt.\nIf it is, you can choose to either ignore it or fix the corruption. SQLSTATE: KD001\n"
    "\tSuppressed: org.apache.spark.SparkException: Exception thrown in awaitResult\n"
)
CONNECT = "JVM stacktrace:\norg.apache.spark.SparkException\n"
TASK_35 = (
    "Job aborted due to stage failure: Task 0 in stage 14.0 failed 1 times, most recent failure: Lost task 0.0 in "
    "stage 14.0 (TID 12) (192.0.2.2 executor driver): org.apache.spark.SparkException: "
)
READING_35 = TASK_35 + "Encountered error while reading file file:///data/in/p.parquet. Details:\n"
BROTLI = (
    "Caused by: org.apache.parquet.hadoop.BadConfigurationException: Class "
    "org.apache.hadoop.io.compress.BrotliCodec was not found\n"
    "Caused by: java.lang.ClassNotFoundException: org.apache.hadoop.io.compress.BrotliCodec\n"
)
CHECKSUM = (
    "Caused by: org.apache.hadoop.fs.ChecksumException: Checksum error: file:/data/in/p.parquet at 3072 "
    "exp: 16909060 got: -344156730\n"
)
FOLDERS = (
    "Conflicting partition column names detected:\n\n\tPartition column name list #0: a, b\n"
    "\tPartition column name list #1: a\n\n"
    "For partitioned table directories, data files should only live in leaf directories.\n"
    "And directories at the same level should have the same partition column name.\n"
    "Please check the following directories for unexpected files or inconsistent partition column names:\n\n"
    "\tfile:/data/in/a=1\n\tfile:/data/in/a=2/b=1"
)
MISMATCH = (
    "[FAILED_READ_FILE.PARQUET_COLUMN_DATA_TYPE_MISMATCH] Encountered error while reading file "
    "file:///data/in/p.parquet. Data type mismatches when reading Parquet column [x]. Expected Spark type bigint, "
    "actual Parquet type BINARY. SQLSTATE: KD001\n"
)
CONVERT = (
    "Caused by: org.apache.spark.sql.execution.datasources.SchemaColumnConvertNotSupportedException: column: [x], "
    "physicalType: BINARY, logicalType: bigint\n"
)
COLON = "Caused by: java.net.URISyntaxException: Relative path in absolute URI: .a:b.parquet.crc\n"
NO_CODEC = ["p.parquet", "compressed with brotli", "no codec", "zstd", "spark.jars"]
STALE = ["p.parquet", "checksum file .p.parquet.crc", "delete file:/data/in/.p.parquet.crc", "write it again"]
FOLDER_WORDS = ["file:/data/in/a=1, file:/data/in/a=2/b=1", "same levels", "glob"]
TYPE_WORDS = ["p.parquet", "'x' is BINARY there and BIGINT in the file", "first by name", "same types"]
ENCRYPTED = ["p.parquet", "is encrypted", "parquet.crypto.factory.class"]

TEXTS = {
    "brotli": Text(NO_CODEC, CALLED + READING + BROTLI),
    "brotli, Connect": Text(NO_CODEC, READING + CONNECT + BROTLI, ConnectError),
    "brotli, 3.5": Text(NO_CODEC, CALLED + READING_35 + BROTLI),
    "lzo": Text(
        ["compressed with lzo", "no codec"],
        CALLED + READING + BROTLI.replace("org.apache.hadoop.io.compress.BrotliCodec", "com.hadoop.compression.lzo.LzoCodec"),
    ),
    "stale crc": Text(STALE, CALLED.replace("collectToPython", "parquet") + FOOTER + CHECKSUM),
    "stale crc, Connect": Text(STALE, FOOTER + CONNECT + CHECKSUM, ConnectError),
    "stale crc, 3.5": Text(STALE, CALLED + TASK_35 + "Exception thrown in awaitResult: \n" + CHECKSUM),
    "encrypted footer": Text(
        ENCRYPTED,
        CALLED + FOOTER + "Caused by: org.apache.parquet.crypto.ParquetCryptoRuntimeException: "
        "Trying to read file with encrypted footer. No keys available",
    ),
    "encrypted column": Text(
        ENCRYPTED,
        CALLED + READING + "Caused by: org.apache.parquet.crypto.ParquetCryptoRuntimeException: "
        "[key]. Null File Decryptor",
    ),
    "folders": Text(FOLDER_WORDS, "[CONFLICTING_PARTITION_COLUMN_NAMES] " + FOLDERS + " SQLSTATE: KD009"),
    "folders, Connect": Text(
        FOLDER_WORDS,
        "[CONFLICTING_PARTITION_COLUMN_NAMES] " + FOLDERS + " SQLSTATE: KD009\n\nJVM stacktrace:\n"
        "org.apache.spark.SparkRuntimeException",
        ConnectError,
    ),
    "folders, 3.5": Text(
        FOLDER_WORDS, "An error occurred.\n: java.lang.AssertionError: assertion failed: " + FOLDERS
    ),
    "roots": Text(
        ["more than one root", "file:/data/in/x, file:/data/in/y", "name one root"],
        "[CONFLICTING_DIRECTORY_STRUCTURES] Conflicting directory structures detected.\nSuspicious paths:\n\n"
        "\tfile:/data/in/x\n\tfile:/data/in/y\n\nIf provided paths are partition directories, please set "
        '"basePath" in the options of the data source to specify the root directory of the table.\nIf there are '
        "multiple root directories, please load them separately and then union them. SQLSTATE: KD009",
    ),
    "types": Text(TYPE_WORDS, CALLED + MISMATCH + CONVERT),
    "types, Connect": Text(TYPE_WORDS, MISMATCH + CONNECT + CONVERT, ConnectError),
    "types, 3.5": Text(
        TYPE_WORDS,
        CALLED + TASK_35 + "Parquet column cannot be converted in file file:///data/in/p.parquet. "
        "Column: [x], Expected: bigint, Found: BINARY.\n" + CONVERT,
    ),
    "a list where a number is expected": Text(
        ["p.parquet", "'embedding' has another type there", "the file from which Spark took the types"],
        CALLED + READING + "Caused by: org.apache.spark.sql.AnalysisException: Invalid Spark read type: expected "
        "optional group embedding (LIST) {\n  repeated group list {\n    optional float element;\n  }\n} to be list "
        "type but found Some(IntegerType)",
    ),
    "text where a struct is expected": Text(
        ["p.parquet", "'key' has another type there"],
        CALLED + READING + "Caused by: java.lang.ClassCastException: optional binary key (STRING) is not a group",
    ),
    "an encoding, 3.5": Text(
        ["encoding BYTE_STREAM_SPLIT is unknown to this Spark", "newer Spark"],
        CALLED + READING_35 + "Caused by: java.lang.UnsupportedOperationException: "
        "Unsupported encoding: BYTE_STREAM_SPLIT",
    ),
    "a colon in a name": Text(
        ["a:b.parquet", "no colon", "rename the file"],
        CALLED + FOOTER.replace("p.parquet", "a:b.parquet")
        + "Caused by: java.lang.IllegalArgumentException: java.net.URISyntaxException: Relative path in absolute "
        "URI: .a:b.parquet.crc\n" + COLON,
    ),
    "names that differ in case": Text(
        ["key, KEY differ only in case", "spark.sql.caseSensitive"],
        CALLED + READING + "Caused by: org.apache.spark.SparkRuntimeException: Found duplicate field(s) "
        '"key": [key, KEY] in case-insensitive mode.',
    ),
    "a file without permission": Text(
        ["no permission for /data/in/p.parquet", "on its workers too"],
        CALLED + "[FAILED_READ_FILE.FILE_NOT_EXIST] Encountered error while reading file "
        "file:///data/in/p.parquet. File does not exist. It is possible the underlying files have been updated.\n"
        "Caused by: java.io.FileNotFoundException: /data/in/p.parquet (Permission denied)",
        but_not="vanished",
    ),
    "a footer without permission": Text(
        ["no permission for /data/in/p.parquet"],
        CALLED + FOOTER + "Caused by: java.io.FileNotFoundException: /data/in/p.parquet (Permission denied)",
    ),
    "a folder without permission": Text(
        ["no permission for /data/in (input.path"],
        "An error occurred while calling o52.parquet.\n"
        ": java.nio.file.AccessDeniedException: /data/in: Permission denied",
    ),
    "a folder of HDFS without permission": Text(
        ["user etl has no permission to read_execute /data/in", "(input.path /data/in)"],
        "An error occurred.\n: org.apache.hadoop.security.AccessControlException: Permission denied: user=etl, "
        'access=READ_EXECUTE, inode="/data/in":hdfs:hdfs:drwx------',
    ),
    "S3 says no": Text(
        ["no permission for s3a://bucket/in"],
        "An error occurred.\n: java.nio.file.AccessDeniedException: s3a://bucket/in: getFileStatus on "
        "s3a://bucket/in: software.amazon.awssdk.services.s3.model.S3Exception: null (Service: S3, Status Code: "
        "403, Request ID: X):403 Forbidden",
    ),
    "a store that fails while it is read": Text(
        ["p.parquet", "store did not answer", "run the same command again"],
        CALLED + READING + "Caused by: java.net.SocketTimeoutException: Read timed out",
        error=SparkDbpError,
    ),
    "dates of an old calendar": Text(
        ["two calendars", "--set spark.sql.parquet.datetimeRebaseModeInRead=CORRECTED", "LEGACY"],
        CALLED + READING + "Caused by: org.apache.spark.SparkUpgradeException: "
        "[INCONSISTENT_BEHAVIOR_CROSS_VERSION.READ_ANCIENT_DATETIME] You may get a different result due to the "
        'upgrading to Spark >= 3.0:\nset the SQL config "spark.sql.parquet.datetimeRebaseModeInRead"',
    ),
    "rows that are too wide": Text(
        ["too wide", "spark.sql.parquet.columnarReaderBatchSize"],
        CALLED + READING + "Caused by: java.lang.RuntimeException: Cannot reserve additional contiguous bytes in "
        "the vectorized reader (integer overflow).",
        error=SparkDbpError,
    ),
    "a spilled file": Text(
        ["temporary file of Spark's", "spark.local.dir"],
        CALLED + "Job aborted.\nCaused by: java.io.FileNotFoundException: "
        "/tmp/blockmgr-7/0a/temp_shuffle_1 (No such file or directory)",
        error=SparkDbpError,
        but_not="input.path",
    ),
    "https": Text(
        ["https://host/x", "cannot list https:", "store"],
        "[FAILED_READ_FILE.UNSUPPORTED_FILE_SYSTEM] Encountered error while reading file https://host/x. The file "
        "system org.apache.hadoop.fs.http.HttpsFileSystem hasn't implemented listStatus. SQLSTATE: KD001",
        ConnectError,
    ),
    "no host": Text(
        ["does not answer", "Connection refused", "check the host in input.path"],
        "An error occurred while calling o1.parquet.\n: java.net.ConnectException: Call From vm/127.0.0.1 to "
        "localhost:1 failed on connection exception: java.net.ConnectException: Connection refused; For more "
        "details see:  http://wiki.apache.org/hadoop/ConnectionRefused\n"
        "Caused by: java.net.ConnectException: Connection refused",
        error=SparkDbpError,
    ),
    "no connector, Connect": Text(
        ['No FileSystem for scheme "s3"', "connector"],
        '(org.apache.hadoop.fs.UnsupportedFileSystemException) No FileSystem for scheme "s3"\n\nJVM stacktrace:\n'
        "org.apache.hadoop.fs.UnsupportedFileSystemException",
    ),
    "no files": Text(
        ["no Parquet files (input.path /data/in)", "check input.path", "_ or ."],
        "[UNABLE_TO_INFER_SCHEMA] Unable to infer schema for Parquet. It must be specified manually. "
        "SQLSTATE: 42KD9",
        ConnectError,
    ),
    "damaged": Text(
        ["p.parquet", "truncated, damaged or not Parquet"],
        CALLED + READING + "Caused by: java.io.IOException: could not decode the dictionary for [key]",
        but_not="codec",
    ),
}  # fmt: skip


def translate(error: Exception, *reading: str, **where: str) -> SparkDbpError:
    with pytest.raises(SparkDbpError) as caught, translate_errors(*reading, **where):
        raise error
    return caught.value


@pytest.mark.parametrize("name", TEXTS)
def test_what_is_said(name):
    case = TEXTS[name]
    error = translate(case.of(case.text), "input.path /data/in")
    assert type(error) is case.error
    for word in case.words:
        assert word in str(error)
    assert case.but_not not in str(error)


def test_the_codec_that_is_missing_for_writing_is_the_setting_s():
    text = (
        CALLED + "[TASK_WRITE_FAILED] Task failed while writing rows to file:/run/t. SQLSTATE: 58030\n"
        "Caused by: org.apache.parquet.hadoop.BadConfigurationException: Class "
        "com.hadoop.compression.lzo.LzoCodec was not found\n"
    )
    error = translate(Py4JError(text), "input.path /data/in")
    assert error.exit_code == 2
    assert "spark.sql.parquet.compression.codec" in str(error)


@pytest.mark.parametrize("where", [{"own": "/data/in"}, {}], ids=["its own file", "no input is read"])
def test_a_table_of_the_run_is_not_the_input(where):
    text = CALLED + READING + "Caused by: java.io.IOException: could not decode the dictionary for [key]"
    error = translate(Py4JError(text), *(["input.path /samples"] if where else []), **where)
    assert error.exit_code == 3
    assert "input.path" not in str(error)
    assert "belongs to the run" in str(error)
    assert "run the job again" in str(error)


def test_a_table_has_its_types_from_its_definition():
    error = translate(Py4JError(CALLED + MISMATCH + CONVERT), "input.table lake.t")
    assert "'x' is BINARY there and BIGINT in the table's definition" in str(error)


def footer_error(path: Path) -> Exception:
    return Py4JError(CALLED + FOOTER.replace("file:/data/in/p.parquet", f"file:{path}"))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"key,embedding\nk1,0.5\n", ["a text (CSV?)", "write it as Parquet"]),
        (b'{"key": "k1"}\n', ["JSON"]),
        (b"ORC\x0a\x03", ["ORC"]),
        (b"Obj\x01\x04\x14avro.codec", ["Avro"]),
        (b"ARROW1\0\0", ["Arrow IPC"]),
        (b"\x1f\x8b\x08\0", ["gzip", "unpack it"]),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", ["Git LFS", "git lfs pull"]),
        (b"<!DOCTYPE html><title>Sign in</title>", ["HTML"]),
        (b"PARE\x15\x04", ["encrypted Parquet", "parquet.crypto.factory.class"]),
        (b"\x93NUMPY\x01\0v\0", [".npy"]),
        (bytes(400), ["zero bytes"]),
        (b"PAR1\x15\x04", ["truncated, damaged or not Parquet"]),
        (b"\x02\x03\x04", ["truncated, damaged or not Parquet"]),
    ],
)
def test_a_file_that_is_something_else(tmp_path, content, words):
    file = tmp_path / "a b%20.parquet"
    file.write_bytes(content)
    error = translate(footer_error(file), f"input.path {tmp_path}")
    for word in [str(file), *words]:
        assert word in str(error)
    if content[:4] != b"PAR1" and content[0] != 2:
        assert "damaged" not in str(error)


def test_a_file_without_columns(tmp_path):
    pq.write_table(pa.table({}), tmp_path / "p.parquet")
    error = translate(footer_error(tmp_path / "p.parquet"), f"input.path {tmp_path}")
    assert "it has no columns" in str(error)


def test_half_floats_for_spark_35(tmp_path):
    pq.write_table(pa.table({"half": np.zeros(3, np.float16)}), tmp_path / "p.parquet")
    cause = (
        'Caused by: java.lang.NullPointerException: Cannot invoke "org.apache.parquet.format.LogicalType$_Fields.'
        'ordinal()" because the return value of "org.apache.parquet.format.LogicalType.getSetField()" is null'
    )
    error = translate(Py4JError(f"{footer_error(tmp_path / 'p.parquet')}{cause}"), f"input.path {tmp_path}")
    for word in ("FLOAT16", "'half'", "float32", "Spark 4"):
        assert word in str(error)


def test_a_column_without_a_type_is_named(tmp_path):
    """All its values are null, so no type was known when the file was written."""
    pq.write_table(pa.table({"x": pa.nulls(3)}), tmp_path / "p.parquet")
    text = (CALLED + MISMATCH + CONVERT).replace("file:///data/in", f"file://{tmp_path}")
    error = translate(Py4JError(text), f"input.path {tmp_path}")
    assert "column 'x' has no type there" in str(error)
    assert "BIGINT" in str(error)


def test_types_have_their_names_from_the_footer(tmp_path):
    table = pa.table(
        {
            "at": pa.array([1], pa.timestamp("ns")),
            "time": pa.array([1], pa.time64("us")),
            "list": pa.array([[1.0]], pa.list_(pa.float32())),
            "struct": pa.array([{"a": 1}]),
            "unsigned": pa.array([1], pa.uint8()),
            "id": pa.array([b"0" * 16], pa.uuid()),
            "nothing": pa.nulls(1),
            "fixed": pa.array([b"abc"], pa.binary(3)),
        }
    )
    pq.write_table(table, tmp_path / "p.parquet")
    found = {
        name: find_column_type(str(tmp_path / "p.parquet"), name) for name in [*table.column_names, "none"]
    }
    assert found == {
        "at": "TIMESTAMP(NANOS)",
        "time": "TIME(MICROS)",
        "list": "LIST of FLOAT",
        "struct": "STRUCT or MAP",
        "unsigned": "UINT8",
        "id": "UUID",
        "nothing": "null",
        "fixed": "FIXED_LEN_BYTE_ARRAY(3)",
        "none": None,
    }
    assert find_column_type(str(tmp_path / "none.parquet"), "at") is None


def test_what_cannot_be_told_is_not_guessed():
    assert recognize_bytes(b"\x02\x03") is None
    assert recognize_bytes("é".encode("latin-1")) is None
    assert recognize_bytes(b"") == "an empty file"
    assert recognize_bytes("a,b\né".encode()) == "a text (CSV?)"
