"""List the samples of WebDataset shards: their keys, where their images lie, texts and metadata.

Imports `columns`, `compat`, `mapped_rows`, `whole_files`, `shards`, `tar_samples`, `errors`; pyspark inside
functions.

Only headers, texts and json are read; the images stay where they are.
"""

from __future__ import annotations

import io
import json
import logging
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import IO, TYPE_CHECKING, Any

from spark_dbp.columns import (
    IMAGE_OFFSET,
    IMAGE_SIZE,
    JSON,
    KEY,
    POSITION,
    SHARD,
    TXT,
)
from spark_dbp.engine.compat import collect_arrow, count_shuffle_partitions, map_in_arrow
from spark_dbp.engine.mapped_rows import MappedRows
from spark_dbp.engine.spark_errors import refuse_in_worker
from spark_dbp.engine.whole_files import iter_contents
from spark_dbp.errors import InputError
from spark_dbp.io.shards import SETTING, Shard, list_shards, read_by_spark
from spark_dbp.lake import files
from spark_dbp.lake.progress import name_pass, report_progress
from spark_dbp.lake.tar_samples import TarSample, read_tar_samples

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import DataFrame, SparkSession

log = logging.getLogger("spark_dbp")

# Rows of a batch. Bytes of the buffer through which a shard in a store is read.
_BATCH_ROWS, _BUFFER_BYTES = 4096, 8 << 20
# Fields of json beyond these are not made columns of.
_MOST_FIELDS = 1000
# What is told apart in json, and the type of a column that holds just these.
_TYPES = {
    frozenset(["int"]): "BIGINT",
    frozenset(["int", "float"]): "DOUBLE",
    frozenset(["float"]): "DOUBLE",
    frozenset(["long"]): "BIGINT",
    frozenset(["int", "long"]): "BIGINT",
    frozenset(["bool"]): "BOOLEAN",
}
_BROKEN = "no JSON object"

# Columns that a sample has beside the fields of its json.
OWN_COLUMNS = (KEY, SHARD, POSITION, IMAGE_OFFSET, IMAGE_SIZE, TXT, JSON)


def read_webdataset(
    spark: SparkSession, shards: str | Sequence[str], *, fields: Collection[str] | None = None
) -> DataFrame:
    """The samples of a WebDataset as a DataFrame. The images stay in the shards until they are embedded.

    Parameters
    ----------
    spark : SparkSession
    shards : str or sequence of str
        Tars, folders, globs, or ranges such as ``s3://lake/shards/{00000..00127}.tar``. Workers read them.
    fields : collection of str, optional
        Fields of the json that become columns. By default all.

    Returns
    -------
    DataFrame
        ``key`` STRING (as webdataset forms it), ``shard`` STRING, ``position`` INT, ``image_offset`` and
        ``image_size`` BIGINT (null without an image), ``txt`` STRING, ``json`` STRING, and a column for each
        field of the json. It is computed each time that it is used.

    Raises
    ------
    InputError
        When there is no shard, or one is no tar.

    Examples
    --------
    >>> frame = read_webdataset(spark, "shards/{00000..00004}.tar")  # doctest: +SKIP
    >>> frame.select("key", "txt", "uid").show(2)  # doctest: +SKIP
    """
    given = [shards] if isinstance(shards, str) else list(shards)
    rows = plan_shard_samples(spark, list_shards(spark, given)).to_frame()
    return add_json_fields(rows, find_json_fields(rows), fields)


def plan_shard_samples(
    spark: SparkSession,
    shards: Sequence[Shard],
    *,
    by_spark: bool = False,
    progress: str | None = None,
) -> MappedRows:
    """The samples of shards, as rows that workers read from the headers.

    Parameters
    ----------
    spark : SparkSession
    shards : sequence of Shard
    by_spark : bool
        Whether Spark reads the shards, because workers do not reach them.
    progress : str, optional
        Directory in which workers note how many samples they have read.

    Returns
    -------
    MappedRows
        Columns as of `read_webdataset`, without the fields of the json.
    """
    from pyspark.sql import types as T

    schema = T.StructType([T.StructField(name, T.StringType()) for name in (KEY, SHARD)])
    schema.add(POSITION, T.IntegerType()).add(IMAGE_OFFSET, T.LongType()).add(IMAGE_SIZE, T.LongType())
    schema.add(TXT, T.StringType()).add(JSON, T.StringType())
    notes = progress and name_pass(progress)

    def to_rows(opened: Iterator[tuple[str, int | None, IO[bytes]]]) -> Iterator[pa.RecordBatch]:
        held: list[TarSample] = []
        for path, size, content in opened:
            with content:
                for sample in read_tar_samples(content, path, size=size):
                    held.append(sample)
                    if len(held) >= _BATCH_ROWS:
                        yield _to_batch(held, path)
                        held = []
            if held:
                yield _to_batch(held, path)
                held = []

    def refuse(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        with refuse_in_worker():
            yield from report_progress(batches, notes) if notes else batches

    if by_spark:
        source = read_by_spark(spark, shards, SETTING)

        def over_contents(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
            return refuse(
                to_rows((path, len(body), io.BytesIO(body)) for path, body in iter_contents(batches))
            )

        return MappedRows(source, over_contents, schema)
    paths = [(shard.path, shard.size) for shard in shards]
    n_tasks = max(1, min(len(paths), count_shuffle_partitions(spark)))

    def over_shards(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        numbers = (number for batch in batches for number in batch.column(0).to_pylist())
        return refuse(to_rows(_open_shard(*paths[number]) for number in numbers))

    return MappedRows(spark.range(0, len(paths), 1, n_tasks), over_shards, schema)


def _open_shard(path: str, size: int) -> tuple[str, int | None, Any]:
    """A shard, open for reading: on a disk one that can seek; in a store from beginning to end."""
    try:
        with files.reached(path) as (filesystem, inner):
            if files.is_local(path):
                return path, size, filesystem.open_input_file(inner)
            return path, None, filesystem.open_input_stream(inner, buffer_size=_BUFFER_BYTES)
    except OSError as error:
        raise InputError(
            f"shard {path} cannot be read: {error}", mend="see that workers may read it; then run again"
        ) from None


def _to_batch(samples: list[TarSample], path: str) -> pa.RecordBatch:
    import pyarrow as pa

    offsets = [sample.image[0] if sample.image else None for sample in samples]
    sizes = [sample.image[1] if sample.image else None for sample in samples]
    columns = {
        KEY: pa.array([sample.key for sample in samples], pa.string()),
        SHARD: pa.array([path] * len(samples), pa.string()),
        POSITION: pa.array([sample.position for sample in samples], pa.int32()),
        IMAGE_OFFSET: pa.array(offsets, pa.int64()),
        IMAGE_SIZE: pa.array(sizes, pa.int64()),
    }
    for name, contents in ((TXT, [one.text for one in samples]), (JSON, [one.json for one in samples])):
        decoded = [body if body is None else body.decode("utf-8", "replace") for body in contents]
        columns[name] = pa.array(decoded, pa.string())
    return pa.RecordBatch.from_pydict(columns)


def find_json_fields(rows: DataFrame) -> dict[str, list[str]]:
    """What values the fields of the json have, in all samples.

    Parameters
    ----------
    rows : DataFrame
        With the column ``json``.

    Returns
    -------
    dict of str to list of str
        Field to the kinds of its values (int, long, float, bool, string, other). A json that is no object is
        counted under the empty name.
    """

    def count(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        found: Counter[tuple[str, str]] = Counter()
        for batch in batches:
            for text in batch.column(0).to_pylist():
                found.update(_describe_json(text) if text is not None else ())
        kept = sorted(found)[: 6 * _MOST_FIELDS]
        yield pa.RecordBatch.from_pydict(
            {
                "field": pa.array([field for field, _ in kept], pa.string()),
                "kind": pa.array([kind for _, kind in kept], pa.string()),
                "n": pa.array([found[item] for item in kept], pa.int64()),
            }
        )

    counted = map_in_arrow(rows.select(JSON), count, "field STRING, kind STRING, n BIGINT")
    table = collect_arrow(counted.groupBy("field", "kind").agg({"n": "sum"}))
    kinds: dict[str, list[str]] = {}
    for row in sorted(table.to_pylist(), key=lambda row: (row["field"], row["kind"])):
        kinds.setdefault(row["field"], []).append(row["kind"])
    return kinds


def _describe_json(text: str) -> list[tuple[str, str]]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        return [("", _BROKEN)]
    return [(field, _name_kind(value)) for field, value in found.items() if value is not None]


def _name_kind(value: Any) -> str:
    """How a value of json is told apart.

    Examples
    --------
    >>> [_name_kind(value) for value in (1, 2**60, 2**70, 0.5, True, "a", [1])]
    ['int', 'long', 'other', 'float', 'bool', 'string', 'other']
    """
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):  # a whole number above 2**53 is not exact as DOUBLE
        return "int" if abs(value) <= 2**53 else "long" if -(2**63) <= value < 2**63 else "other"
    return {float: "float", str: "string"}.get(type(value), "other")


def add_json_fields(
    rows: DataFrame, kinds: dict[str, list[str]], wanted: Collection[str] | None = None
) -> DataFrame:
    """Add columns for fields of the json.

    Parameters
    ----------
    rows : DataFrame
        With the column ``json``.
    kinds : dict
        From `find_json_fields`.
    wanted : collection of str, optional
        Names of fields. By default all.

    Returns
    -------
    DataFrame
        A field is BIGINT, DOUBLE, BOOLEAN or STRING. One whose values are of several kinds, or are lists or
        objects, is STRING and holds them as JSON. Fields named as other columns are left out: they can be
        had as ``get_json_object(json, '$.NAME')``.
    """
    from pyspark.sql import functions as F

    from spark_dbp.columns import quote_name

    taken = {name.lower() for name in rows.columns}
    types: dict[str, str] = {}
    for field, found in sorted(kinds.items()):
        if not field or (wanted is not None and field not in wanted):
            continue
        if field.lower() in taken:
            log.debug("the field %r of the json has the name of another column", field)
            continue
        taken.add(field.lower())
        types[field] = _TYPES.get(frozenset(found), "STRING")
    if not types:
        return rows
    schema = ", ".join(f"{quote_name(field)} {name}" for field, name in types.items())
    parsed = F.from_json(JSON, schema)
    return rows.select("*", *[parsed.getField(field).alias(field) for field in types])
