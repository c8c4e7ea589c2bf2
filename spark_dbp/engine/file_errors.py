"""Why Spark cannot read a file, in our words: its text, and a look at the file itself where this process can.

Imports `file_kinds` and `errors`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote

from spark_dbp.errors import DamagedRunError, InputError, SparkDbpError
from spark_dbp.lake.file_kinds import find_column_type, list_column_types, recognize_file
from spark_dbp.lake.files import normalize

_FILE = re.compile(r"\b(?:file|https?|s3a?|s3n|gs|hdfs|abfss?|wasbs?|dbfs|viewfs):/[^\s,'\"]+")
# Spark names a file in a sentence; its name may hold blanks.
_NAMED_FILE = re.compile(r"(?:reading file|footer for file:|converted in file) (\S.*?)\.\s")
_UNREADABLE = (
    "FAILED_READ_FILE|CANNOT_READ_FILE|is not a Parquet file|Could not read footer"
    "|Encountered error while reading file|can not read class org.apache.parquet.format"  # Spark 3.5
)
_OTHER_TYPE = "Data type mismatches when reading|Parquet column cannot be converted"
_NESTED_TYPE = (
    r"Invalid Spark read type: expected \w+ group (\S+)|ClassCastException: \w+ \w+ (\S+).*is not a group"
)
_UNKNOWN_TYPE = (
    r"Illegal Parquet type|Parquet type not yet supported|PARQUET_TYPE_|UNSUPPORTED_TIME_TYPE"
    r"|DECIMAL_PRECISION_EXCEEDS|COLUMN_ALREADY_EXISTS|Unrecognized Parquet type|INT96 is not supported"
    r"|UNSUPPORTED_DATATYPE"
)
_NAMES = {"Integer": "INT", "Long": "BIGINT", "Short": "SMALLINT", "Byte": "TINYINT"}
_MISSING_CODEC = r"Class(?:NotFoundException:)? (\S*[cC]odec\S*)"
_NO_NETWORK = (
    "ConnectException|SocketTimeoutException|SocketException|UnknownHostException|NoRouteToHostException"
    "|SSLException|ConnectTimeoutException|ConnectionPoolTimeout|Unable to execute HTTP request"
    "|SlowDown|status code 50[03]"
)
_NOT_ALLOWED = (
    r"Permission denied|AccessControlException|AccessDeniedException|Access ?Denied|403 Forbidden"
    r"|Forbidden \(Service|Status Code: 403|AuthorizationPermissionMismatch|INSUFFICIENT_PERMISSIONS"
)


@dataclass(frozen=True)
class Place:
    """Where an error came up, for messages.

    Attributes
    ----------
    reading : str
        The setting that names what is read, and its value (``input.path /data/x``); empty for the run's own
        tables.
    own : str
        The run directory. A file below it is the run's own, whatever else was read.
    """

    reading: str = ""
    own: str = ""

    @property
    def is_input(self) -> bool:
        return self.reading.startswith("input")

    @property
    def setting(self) -> str:
        """``input.path``."""
        return self.reading.split()[0] if self.reading else ""

    def without_own(self, file: str) -> Place:
        """The same place; without the setting where `file` is the run's own."""
        is_own = bool(self.own) and unquote(normalize(file)).startswith(self.own.rstrip("/") + "/")
        return Place("", self.own) if is_own else self

    def __str__(self) -> str:
        return f" ({self.reading})" if self.reading else ""

    def refuse(self, what: str, mend: str) -> InputError:
        """An error that blames the input; for the run's own tables one that says how they are mended."""
        if self.is_input:
            return InputError(what, mend=mend)
        return DamagedRunError(
            f"{what}; it belongs to the run",
            mend="run the job again: steps whose tables are not as they were written are computed anew",
        )


def is_about_types(error: BaseException) -> bool:
    """Whether Spark refuses a table because of the types or names of some columns."""
    return re.search(_UNKNOWN_TYPE, str(error)) is not None


def translate_file_error(text: str, place: Place) -> SparkDbpError | None:
    """The error that says what is wrong with a file; None where `text` is about something else.

    Parameters
    ----------
    text : str
        Of Spark's error, with its causes.
    place : Place
    """
    file = find_file(text)
    place = place.without_own(file)
    conflict = re.search(r"Conflicting (partition column names|directory structures) detected", text)
    if conflict:
        return _conflicting_folders(text[conflict.start() :], place)
    if re.search(_NOT_ALLOWED, text):
        return _not_allowed(text, file, place)
    if re.search(_OTHER_TYPE, text) or re.search(_NESTED_TYPE, text):
        return _other_type(text, file, place)
    if "URISyntaxException" in text and ":" in file.rsplit("/", 1)[-1]:
        return place.refuse(f"cannot read {file}{place}: Hadoop takes no colon in a name", "rename the file")
    if re.search(f"{_UNREADABLE}|ChecksumException", text):
        return _unreadable(text, file, place)
    if "FILE_NOT_EXIST" in text or "FileNotFoundException" in text:
        return _vanished(text, file, place)
    return None


def find_file(text: str) -> str:
    """The file that Spark could not read, as it names it."""
    # Spark 3.5 names the file that it was writing before the one that it could not read.
    broken = re.search(f"{_UNREADABLE}|{_OTHER_TYPE}", text)
    start = broken.start() if broken else 0
    found = _NAMED_FILE.search(text, start)
    if found and _FILE.match(found[1]):
        return found[1]
    found_uri = _FILE.search(text, start) or _FILE.search(text)
    return found_uri[0].rstrip(".)]") if found_uri else "a file of the input"


def _conflicting_folders(text: str, place: Place) -> SparkDbpError:
    folders = re.findall(r"^\t+([a-z0-9]+:/.*?)(?: SQLSTATE: \w+)?$", text, flags=re.MULTILINE)
    shown = ", ".join(folders[:6]) + (f" and {len(folders) - 6:,} more" if len(folders) > 6 else "")
    name = place.setting or "input.path"
    if text.startswith("Conflicting partition"):
        what = "folders give different partition columns"
        mend = (
            "give all files the same levels of folders (name=value); or name the files with globs "
            f"({name}: [PATH/*/*.parquet, PATH/*/*/*.parquet]), without columns from folders' names"
        )
    else:
        what = "partition folders lie below more than one root"
        mend = f"name one root in {name}, or the files with a glob"
    return place.refuse(f"{what}{place}: {shown}", mend)


def _not_allowed(text: str, file: str, place: Place) -> SparkDbpError:
    # HDFS, Java on a local disk, Python in a worker.
    who = re.search(r"user=([^,\s]+), access=(\w+), inode=\"([^\"]+)\"", text)
    on_disk = re.search(r"(/\S+) \(Permission denied\)|AccessDeniedException: (\S+):|denied: '([^']+)'", text)
    if who:
        what = f"user {who[1]} has no permission to {who[2].lower()} {who[3]}"
        place = place.without_own(who[3])
    else:
        named = next(filter(None, on_disk.groups())) if on_disk else file
        what = f"Spark has no permission for {named}"
        place = place.without_own(named)
    return InputError(
        f"{what}{place}",
        mend="give the user who runs Spark, on its workers too, the right to that file and to its folder",
    )


def _other_type(text: str, file: str, place: Place) -> SparkDbpError:
    """Files that have different types for a column, or another type than the table that names them."""
    found = re.search(
        r"olumn:? \[(.+?)\][.,] Expected(?: Spark type|:) (\S+?),? (?:actual Parquet type|Found:) (\w+)", text
    )
    nested = re.search(_NESTED_TYPE, text)
    column = expected = there = ""
    if found:
        path, expected, there = found[1], found[2].upper(), found[3]
        column = path.split(",")[0]
    elif nested:
        path = column = nested[1] or nested[2]
        wanted = re.search(r"found Some\((\w+?)(?:Type)?[(,)]", text)
        expected = _NAMES.get(wanted[1], wanted[1].upper()) if wanted else ""
    seen = find_column_type(file, column) if column else None
    # Of a list, Spark compares the elements.
    there = (seen.removeprefix("LIST of ") if "," in path else seen) if seen else there
    others = "the file from which Spark took the types (the first by name)"
    if place.setting == "input.table":
        others = "the table's definition"
    if there == "null":
        return place.refuse(
            f"{file}{place}: column {column!r} has no type there, because all its values are null; "
            f"it is {expected or 'something else'} in {others}",
            "write that file with the type of the others (pandas: astype; pyarrow: schema=), or leave it out",
        )
    what = f"column {column!r} has another type there than in {others}"
    if expected and there:
        what = f"column {column!r} is {there} there and {expected} in {others}"
    return place.refuse(
        f"{file}{place}: {what}",
        f"write all files with the same types, or give {place.setting or 'input.path'} those that agree",
    )


def _vanished(text: str, file: str, place: Place) -> SparkDbpError:
    spill = re.search(r"\S*/blockmgr-\S+", text)
    if spill:
        return SparkDbpError(
            f"a temporary file of Spark's vanished: {spill[0]}",
            mend="see that nothing cleans spark.local.dir while the job runs, then run the command again",
        )
    if "Too many open files" in text:
        return SparkDbpError(
            "too many files are open at once", mend="raise the limit of open files (ulimit -n) and run again"
        )
    return place.refuse(
        f"{file}{place} vanished while it was read",
        "run the same command again when nothing writes to that table",
    )


def _unreadable(text: str, file: str, place: Place) -> SparkDbpError:
    """A file that Spark could not read: damaged only where nothing else explains it."""
    cannot = f"cannot read {file}{place}"
    if "ChecksumException" in text:
        folder, _, last = file.rpartition("/")
        return place.refuse(
            f"{cannot}: it does not fit its checksum file .{last}.crc",
            f"where the file was replaced and is sound, delete {folder}/.{last}.crc; else write it again",
        )
    if "ParquetCrypto" in text or "ncrypted footer" in text or "AEADBadTagException" in text:
        return place.refuse(
            f"{cannot}: it is encrypted (Parquet modular encryption), and this session has no key that fits",
            "give Spark the keys in the spark section: spark.hadoop.parquet.crypto.factory.class "
            "(org.apache.parquet.crypto.keytools.PropertiesDrivenCryptoFactory) and "
            "spark.hadoop.parquet.encryption.kms.client.class; or write the data without encryption",
        )
    codec = re.search(_MISSING_CODEC, text)
    if codec:
        short = re.sub(r"Codec$", "", codec[1].rsplit(".", 1)[-1]).lower()
        return place.refuse(
            f"{cannot}: it is compressed with {short}, for which this Spark has no codec ({codec[1]})",
            "write the file with zstd, snappy or gzip, or add the jar of that codec (spark.jars)",
        )
    encoding = re.search(r"Unsupported encoding:? (\w+)", text)
    if encoding:
        return place.refuse(
            f"{cannot}: its encoding {encoding[1]} is unknown to this Spark",
            "write the file with encodings PLAIN or RLE_DICTIONARY (pyarrow's default), or use a newer Spark",
        )
    if "UNSUPPORTED_FILE_SYSTEM" in text:
        scheme = file.split(":")[0]
        return place.refuse(
            f"{cannot}: Spark cannot list {scheme}: addresses",
            "download the files, or give the path of a store",
        )
    if re.search(r"Cannot reserve additional contiguous bytes", text):
        return SparkDbpError(
            f"{cannot}: its rows are too wide for Spark's reader to hold 4,096 of them at once",
            mend="set spark.sql.parquet.columnarReaderBatchSize: 256",
        )
    rebase = re.search(r"spark\.sql\.parquet\.(?:int96|datetime)RebaseModeInRead", text)
    if rebase:
        return place.refuse(
            f"{cannot}: it has dates before 1582 or times before 1900, which writers count in two calendars",
            f"--set {rebase[0]}=CORRECTED, or LEGACY where Spark 2 or Hive wrote it",
        )
    duplicate = re.search(r"Found duplicate field\(s\) \"?(.+?)\"?: \[(.*?)\]", text)
    if duplicate:
        return place.refuse(
            f"{cannot}: columns {duplicate[2]} differ only in case", "set spark.sql.caseSensitive: true"
        )
    if re.search(_NO_NETWORK, text):
        return SparkDbpError(
            f"{cannot}: its store did not answer",
            mend="run the same command again when the store can be reached",
        )
    return refuse_by_its_bytes(text, file, place)


def refuse_by_its_bytes(text: str, file: str, place: Place) -> SparkDbpError:
    """The error for a file that cannot be read as Parquet, by what it is.

    Parameters
    ----------
    text : str
        Of the error, with its causes.
    file : str
        URI of the file.
    place : Place
    """
    cannot, name = f"cannot read {file}{place}", place.setting or "input.path"
    kind = recognize_file(file) if _FILE.match(file) else None
    if kind is not None and kind != "Parquet":
        mend = {
            "encrypted Parquet": "give Spark the keys: spark.hadoop.parquet.crypto.factory.class, ...",
            "gzip": "unpack it: Parquet files are compressed inside",
            "a pointer of Git LFS, not the file itself": "fetch the file itself: git lfs pull",
        }
        return place.refuse(
            f"{cannot}: it is not Parquet; by its first bytes it is {kind}",
            mend.get(kind, f"write it as Parquet, or move it away and check {name}"),
        )
    types = list_column_types(file) if kind else None
    if types == []:
        return place.refuse(f"{cannot}: it has no columns", "move it away")
    halves = [path for path, name in types or [] if name == "FLOAT16"]
    if "LogicalType" in text or (halves and "NullPointerException" in text):  # of Spark 3.5, on the footer
        column = f"column {halves[0].split('.')[0]!r}" if halves else "a column"
        return place.refuse(
            f"{cannot}: {column} has a type that this Spark does not know (FLOAT16, half floats, "
            f"{'is one' if halves else 'may be one'})",
            "write the column as float32, or use Spark 4",
        )
    return place.refuse(
        f"{cannot}: it is truncated, damaged or not Parquet",
        f"write the file again, or move it away and check {name}",
    )
