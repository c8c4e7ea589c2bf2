"""Read the samples, check every row, and turn embeddings into unit vectors.

Imports `columns`, `compat`, `embeddings` and `errors`; pyspark inside functions; pyarrow and `vectors` in the
workers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from spark_dbp.columns import CLUSTER_ID, DIMENSION, DISTANCE, KEY, PROBLEM, VECTOR, find_type, name_carried
from spark_dbp.engine.compat import collect_arrow, column, map_in_arrow
from spark_dbp.engine.forms import to_embedding_column, to_plain_column
from spark_dbp.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import Column, DataFrame
    from pyspark.sql.types import DataType, StructType

NULL_KEY = "null key"
WRONG_DIMENSION = "embedding of another dimension"
NULL_CLUSTER = "null cluster_id"
BAD_CLUSTER = "cluster_id below 0 or above 2147483647"
BAD_DISTANCE = "distance_to_centroid null, NaN or outside [0, 2]"

# For equal or opposite vectors, 1 - cos computed in float32 may lie outside [0, 2] by this much.
_DISTANCE_SLACK = 1e-5
_EXAMPLES = 5


def ingest(
    frame: DataFrame,
    *,
    key: str = "key",
    embedding: str | None = "embedding",
    cluster_id: str | None = None,
    distance_to_centroid: str | None = None,
    carry: Sequence[str] = (),
) -> DataFrame:
    """Turn the rows of the input into samples with unit vectors. Bad rows get the reason in ``problem``.

    Parameters
    ----------
    frame : DataFrame
    key : str
        Column of any atomic type that identifies a sample.
    embedding : str or None
        Column of ARRAY<FLOAT>, ARRAY<DOUBLE>, BINARY (float32, little endian) or ``pyspark.ml``
        vectors. None when no vectors are needed.
    cluster_id, distance_to_centroid : str, optional
        Columns of data that is clustered already: an integer, and ``1 - cos`` to the centroid.
    carry : sequence of str
        Further columns that later steps need. They are renamed (`columns.name_carried`), because their own
        names may be those of other columns here.

    Returns
    -------
    DataFrame
        ``key`` in its own type. With `embedding`: ``vector`` BINARY (float32 little endian, unit norm) and
        ``dimension`` INT. Where given: ``cluster_id`` INT, ``distance_to_centroid`` FLOAT. Then ``problem``
        STRING, null for a good row, and the carried columns.

    Raises
    ------
    InputError
        When a column is missing, or its type is not supported.
    """
    from pyspark.sql import functions as F

    _check_key_type(find_type(frame, key, "input.key"))
    columns = [column(key).alias(KEY)]
    problems = [F.when(column(key).isNull(), F.lit(NULL_KEY))]
    if cluster_id is not None:
        value, problem = _checked_cluster_id(frame, cluster_id)
        columns.append(value.alias(CLUSTER_ID))
        problems.append(problem)
    if distance_to_centroid is not None:
        value, problem = _checked_distance(frame, distance_to_centroid)
        columns.append(value.alias(DISTANCE))
        problems.append(problem)
    columns.append(F.coalesce(*problems, F.lit(None).cast("string")).alias(PROBLEM))
    columns += [to_plain_column(frame, name).alias(name_carried(i)) for i, name in enumerate(carry)]
    if embedding is None:
        return frame.select(*columns)
    columns.append(to_embedding_column(frame, embedding, "input.embedding").alias(VECTOR))
    checked = frame.select(*columns)
    return map_in_arrow(checked, _with_unit_vectors, _samples_schema(checked.schema))


def _samples_schema(checked: StructType) -> StructType:
    from pyspark.sql import types as T

    return T.StructType(
        [field for field in checked.fields if field.name != VECTOR]
        + [T.StructField(VECTOR, T.BinaryType()), T.StructField(DIMENSION, T.IntegerType())]
    )


def _with_unit_vectors(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa
    import pyarrow.compute as pc

    from spark_dbp.kernels.vectors import normalize_embeddings, slice_rows

    for batch in batches:
        names = [name for name in batch.schema.names if name != VECTOR]
        for rows in slice_rows(batch.num_rows, batch.nbytes // max(1, batch.num_rows)):
            part = batch.slice(rows.start, rows.stop - rows.start)
            vectors, dimensions, problems = normalize_embeddings(part.column(VECTOR))
            columns = {name: part.column(name) for name in names}
            columns[PROBLEM] = pc.coalesce(columns[PROBLEM], problems)
            columns |= {VECTOR: vectors, DIMENSION: dimensions}
            yield pa.RecordBatch.from_pydict(columns)


def _check_key_type(data_type: DataType) -> None:
    from pyspark.sql import types as T

    nested = (T.ArrayType, T.MapType, T.StructType, T.NullType, T.UserDefinedType)
    if isinstance(data_type, nested) or type(data_type).__name__ == "VariantType":
        raise InputError(
            f"input.key: a column of type {data_type.simpleString().upper()} cannot be a key",
            mend="name a column of strings, integers or another atomic type",
        )


def _checked_cluster_id(frame: DataFrame, name: str) -> tuple[Column, Column]:
    from pyspark.sql import functions as F
    from pyspark.sql import types as T

    data_type = find_type(frame, name, "input.cluster_id")
    if not isinstance(data_type, T.IntegralType):
        raise InputError(
            f"input.cluster_id: column {name!r} is {data_type.simpleString().upper()}",
            mend="cluster ids are integers from 0; cast the column in a view",
        )
    given = column(name).cast("bigint")
    in_range = given.between(0, 2**31 - 1)
    problem = F.when(given.isNull(), F.lit(NULL_CLUSTER)).when(~in_range, F.lit(BAD_CLUSTER))
    return F.when(in_range, given).cast("int"), problem


def _checked_distance(frame: DataFrame, name: str) -> tuple[Column, Column]:
    from pyspark.sql import functions as F
    from pyspark.sql import types as T

    data_type = find_type(frame, name, "input.distance_to_centroid")
    if not isinstance(data_type, T.FractionalType):
        raise InputError(
            f"input.distance_to_centroid: column {name!r} is {data_type.simpleString().upper()}",
            mend="distances are FLOAT or DOUBLE: 1 - cos to the centroid, in [0, 2]",
        )
    given = column(name).cast("double")
    in_range = given.isNotNull() & ~F.isnan(given) & given.between(-_DISTANCE_SLACK, 2 + _DISTANCE_SLACK)
    clipped = F.greatest(F.lit(0.0), F.least(F.lit(2.0), given)).cast("float")
    return F.when(in_range, clipped), F.when(~in_range | given.isNull(), F.lit(BAD_DISTANCE))


@dataclass(frozen=True)
class InputReport:
    """What the check of the samples found.

    Attributes
    ----------
    n_rows : int
        Number of good rows. The run goes on with these.
    dimension : int or None
        Dimension of the vectors of good rows; None without embeddings.
    dropped : dict of str to int
        Number of rows left out for each problem.
    """

    n_rows: int
    dimension: int | None
    dropped: dict[str, int] = field(default_factory=dict)


def estimate_row_bytes(info: Mapping[str, Any]) -> float:
    """About how many bytes a sample takes in memory, from what the step ``ingest`` noted.

    Examples
    --------
    >>> estimate_row_bytes({"dimension": 384, "row_bytes": 1600})
    1600.0
    >>> estimate_row_bytes({"dimension": 384})  # a run of an earlier version
    1536.0
    """
    return float(info.get("row_bytes") or 4 * (info["dimension"] or 0))


def good_samples(samples: DataFrame, dimension: int | None) -> DataFrame:
    """Rows of `samples` without a problem. Where a `dimension` is given, only those of that dimension."""
    from pyspark.sql import functions as F

    good = samples.where(F.col(PROBLEM).isNull())
    if dimension is not None:
        good = good.where(F.col(DIMENSION) == dimension)
    return good.drop(PROBLEM, DIMENSION)


def check_samples(samples: DataFrame, on_bad_rows: str = "fail") -> InputReport:
    """Count the rows by problem, and refuse what cannot be used.

    If vectors have several dimensions, the most frequent one counts as right; of equally frequent ones, the
    largest.

    Parameters
    ----------
    samples : DataFrame
        From `ingest`. It is read up to three times, so give a table that was written.
    on_bad_rows : {"fail", "drop"}
        Whether bad rows are an error, or are left out.

    Returns
    -------
    InputReport

    Raises
    ------
    InputError
        For bad rows with ``fail``, for duplicate keys, and when no good row is left. It gives examples.
    """
    from pyspark.sql import functions as F

    has_vectors = VECTOR in samples.columns
    by = [PROBLEM, DIMENSION] if has_vectors else [PROBLEM]
    counted = collect_arrow(samples.groupBy(*by).agg(F.count(F.lit(1)).alias("rows"))).to_pylist()
    if not counted:
        raise InputError("the input has no rows", mend="check input.path and input.filter")
    dropped: dict[str, int] = {}
    by_dimension: dict[int | None, int] = {}
    for row in counted:
        if row[PROBLEM] is not None:
            dropped[row[PROBLEM]] = dropped.get(row[PROBLEM], 0) + row["rows"]
        else:
            by_dimension[row.get(DIMENSION)] = row["rows"]
    dimension = None
    if has_vectors and by_dimension:
        dimension = max(by_dimension, key=lambda d: (by_dimension[d], d))
        others = sum(by_dimension.values()) - by_dimension[dimension]
        if others:
            dropped[WRONG_DIMENSION] = others
    if dropped and on_bad_rows == "fail":
        raise _bad_rows_error(samples, dropped, dimension, by_dimension)
    n_rows = by_dimension.get(dimension, 0)
    if n_rows == 0:
        raise InputError(f"no usable row is left: {_counts(dropped)}", mend="check the input's columns")
    _refuse_duplicate_keys(good_samples(samples, dimension))
    return InputReport(n_rows, dimension, dict(sorted(dropped.items())))


def _counts(dropped: dict[str, int]) -> str:
    return "; ".join(f"{reason}: {rows:,} rows" for reason, rows in sorted(dropped.items()))


def _bad_rows_error(
    samples: DataFrame,
    dropped: dict[str, int],
    dimension: int | None,
    by_dimension: dict[int | None, int],
) -> InputError:
    from pyspark.sql import functions as F

    lines = []
    for reason, rows in sorted(dropped.items()):
        is_it = F.col(PROBLEM) == reason
        detail = ""
        if reason == WRONG_DIMENSION:
            is_it = F.col(PROBLEM).isNull() & (F.col(DIMENSION) != dimension)
            found = sorted(d for d in by_dimension if d != dimension and d is not None)[:_EXAMPLES]
            detail = f" ({', '.join(map(str, found))} where most have {dimension})"
        keys = "" if reason == NULL_KEY else f", such as key {_example_keys(samples.where(is_it))}"
        lines.append(f"{reason}: {rows:,} row{'s' if rows > 1 else ''}{detail}{keys}")
    return InputError(
        "the input has rows that cannot be used\n  - " + "\n  - ".join(lines),
        mend="mend them, leave them out with input.filter, or set input.on_bad_rows: drop",
    )


def _example_keys(frame: DataFrame) -> str:
    from pyspark.sql import functions as F

    rows = frame.select(F.col(KEY).cast("string")).orderBy(KEY).limit(_EXAMPLES).collect()
    return ", ".join(repr(_shortened(row[0])) for row in rows)


def _shortened(text: Any, limit: int = 80) -> Any:
    return text[:limit] + "..." if isinstance(text, str) and len(text) > limit else text


def _refuse_duplicate_keys(samples: DataFrame) -> None:
    from pyspark.sql import functions as F

    # Hashes of 8 bytes are grouped first, because that moves far fewer bytes than grouping keys. Then only
    # the keys with equal hashes are compared.
    hashed = samples.select(KEY, F.xxhash64(KEY).alias("hash"))
    suspects = hashed.groupBy("hash").count().where("count > 1").select("hash")
    if suspects.isEmpty():
        return
    repeated = (
        hashed.join(suspects, "hash", "left_semi")
        .groupBy(KEY)
        .agg(F.count(F.lit(1)).alias("times"))
        .where("times > 1")
    )
    n_keys = repeated.count()
    if n_keys == 0:
        return
    rows = repeated.select(F.col(KEY).cast("string"), "times").orderBy(F.desc("times"), KEY).limit(_EXAMPLES)
    shown = ", ".join(f"{_shortened(name)!r} ({times} times)" for name, times in rows.collect())
    raise InputError(
        f"input.key: {n_keys:,} key{'s are' if n_keys > 1 else ' is'} not unique, such as {shown}",
        mend="keep one row a key (for example a view with max_by(struct(*), ...) GROUP BY key), "
        "or name a column that is unique",
    )
