"""Read the samples, check every row, and turn embeddings into unit vectors.

Imports `columns`, `compat`, `forms`, `mapped_rows`, `samples` and `errors`; pyspark inside functions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from spark_dbp.columns import (
    CLUSTER_ID,
    DIMENSION,
    DISTANCE,
    KEY,
    PROBLEM,
    VECTOR,
    describe_type,
    find_type,
    name_carried,
)
from spark_dbp.engine.compat import collect_arrow, column
from spark_dbp.engine.forms import (
    check_embedding_type,
    log_how_text_compares,
    to_embedding_column,
    to_key_column,
    to_plain_column,
)
from spark_dbp.engine.mapped_rows import MappedRows
from spark_dbp.errors import InputError
from spark_dbp.kernels.samples import BAD_CLUSTER, BAD_DISTANCE, DISTANCE_SLACK, NULL_CLUSTER, NULL_KEY, SHAPE
from spark_dbp.loaders.key_text import find_key_text

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import Column, DataFrame
    from pyspark.sql.types import DataType

    from spark_dbp.engine.file_scan import FileScan

# So many rows show whether bytes are numbers of the type that they are read as. Sizes that spread wider than
# this (see `kernels.vectors.Sizes`) are hardly those of an embedding.
_JUDGED_ROWS, _WIDE = 500, 9.0


def ingest(
    frame: DataFrame,
    *,
    key: str = "key",
    embedding: str | None = "embedding",
    embedding_binary: str | None = None,
    cluster_id: str | None = None,
    distance_to_centroid: str | None = None,
    carry: Sequence[str] = (),
) -> DataFrame:
    """Turn the rows of the input into samples with unit vectors. Bad rows get the reason in ``problem``.

    Parameters
    ----------
    frame : DataFrame
    key : str
        Column that identifies a sample, of any atomic type but TIME and intervals of months.
    embedding : str or None
        Column of arrays of numbers, BINARY (bare numbers, little endian) or ``pyspark.ml`` vectors; see
        `engine.forms.to_embedding_column`. None when no vectors are needed.
    embedding_binary : {"float32", "float64", "float16"}, optional
        What the bytes of BINARY are; float32 by default.
    cluster_id, distance_to_centroid : str, optional
        Columns of data that is clustered already: an integer, and ``1 - cos`` to the centroid.
    carry : sequence of str
        Further columns that later steps need. They are renamed (`columns.name_carried`), because their own
        names may be those of other columns here.

    Returns
    -------
    DataFrame
        ``key`` in its own type, text as plain STRING (compared by its bytes, whatever the collation). With
        `embedding`: ``vector`` BINARY (float32 little endian, unit norm) and ``dimension`` INT. Where given:
        ``cluster_id`` INT, ``distance_to_centroid`` FLOAT. Then ``problem``
        STRING, null for a good row, and the carried columns.

    Raises
    ------
    InputError
        When a column is missing, or its type is not supported.
    """
    from pyspark.sql import functions as F

    if embedding is not None:  # workers see all rows, and check them too
        planned = plan_ingest(
            frame,
            key=key,
            embedding=embedding,
            embedding_binary=embedding_binary,
            cluster_id=cluster_id,
            distance_to_centroid=distance_to_centroid,
            carry=carry,
        )
        return planned.to_frame()
    given = _name_columns(frame, key, None, cluster_id, distance_to_centroid, carry)
    columns, problems = {name: F.col(name) for name in given.columns}, [F.when(F.col(KEY).isNull(), NULL_KEY)]
    if cluster_id is not None:
        columns[CLUSTER_ID], problem = _check_cluster_id()
        problems.append(problem)
    if distance_to_centroid is not None:
        columns[DISTANCE], problem = _check_distance()
        problems.append(problem)
    columns[PROBLEM] = F.coalesce(*problems, F.lit(None).cast("string"))
    return given.select(*[value.alias(name) for name, value in columns.items()])


def plan_ingest(
    frame: DataFrame,
    *,
    key: str = "key",
    embedding: str | None = "embedding",
    embedding_binary: str | None = None,
    cluster_id: str | None = None,
    distance_to_centroid: str | None = None,
    carry: Sequence[str] = (),
    scan: FileScan | None = None,
) -> MappedRows:
    """Like `ingest`, but it returns rows that workers check, count and can write themselves.

    Parameters
    ----------
    frame, key, embedding, embedding_binary, cluster_id, distance_to_centroid, carry
        As for `ingest`.
    scan : FileScan, optional
        The files of `frame`, which workers then read themselves.
    """
    from pyspark.sql import types as T

    given = _name_columns(frame, key, embedding, cluster_id, distance_to_centroid, carry)
    types = {item.name: item.dataType for item in given.schema.fields}
    types.pop(SHAPE, None)
    types |= {CLUSTER_ID: T.IntegerType()} if cluster_id is not None else {}
    types |= {DISTANCE: T.FloatType()} if distance_to_centroid is not None else {}
    types[PROBLEM] = T.StringType()
    if embedding is not None:
        types |= {VECTOR: T.BinaryType(), DIMENSION: T.IntegerType()}
    binary_type, columns = embedding_binary or "float32", list(types)

    def check(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        from spark_dbp.kernels.samples import make_samples

        return (batch.select(columns) for batch in make_samples(batches, binary_type))

    schema = T.StructType([T.StructField(name, data_type) for name, data_type in types.items()])
    if scan is None:
        return MappedRows(given, check, schema)
    names = {KEY: key, VECTOR: embedding, CLUSTER_ID: cluster_id, DISTANCE: distance_to_centroid}
    names |= {name_carried(number): name for number, name in enumerate(carry)}
    source, mapped = scan.plan({new: name for new, name in names.items() if name is not None}, check)
    return MappedRows(source, mapped, schema)


def to_sample_columns(
    frame: DataFrame, key: str, carry: Sequence[str] = ()
) -> tuple[Column, dict[str, Column]]:
    """The key, and columns that travel, in the forms that they have in samples.

    Raises
    ------
    InputError
        When a column is missing, or the key is of a type that cannot be one.
    """
    _check_key_type(find_type(frame, key, "input.key"))
    return to_key_column(frame, key), {name: to_plain_column(frame, name) for name in carry}


def check_types(
    frame: DataFrame,
    key: str,
    embedding: str | None = None,
    cluster_id: str | None = None,
    distance: str | None = None,
) -> None:
    """Refuse columns that are missing, or of types that samples are not made of; only the schema is asked.

    Raises
    ------
    InputError
    """
    _check_key_type(find_type(frame, key, "input.key"))
    if cluster_id is not None:
        _check_cluster_type(find_type(frame, cluster_id, "input.cluster_id"), cluster_id)
    if distance is not None:
        _check_distance_type(find_type(frame, distance, "input.distance_to_centroid"), distance)
    if embedding is not None:
        check_embedding_type(frame, embedding, "input.embedding")


def _name_columns(
    frame: DataFrame,
    key: str,
    embedding: str | None,
    cluster_id: str | None,
    distance: str | None,
    carry: Sequence[str],
) -> DataFrame:
    """The columns of the input that are needed, under the names that they have in samples; not checked yet.

    Raises
    ------
    InputError
        When a column is missing, or its type is not supported.
    """
    check_types(frame, key, embedding, cluster_id, distance)
    as_key, carried = to_sample_columns(frame, key, carry)
    log_how_text_compares(frame, key, carry)
    columns = [as_key.alias(KEY)]
    if cluster_id is not None:
        columns.append(column(cluster_id).cast("bigint").alias(CLUSTER_ID))
    if distance is not None:
        columns.append(column(distance).cast("double").alias(DISTANCE))
    columns += [value.alias(name_carried(number)) for number, value in enumerate(carried.values())]
    if embedding is not None:
        value, problem = to_embedding_column(frame, embedding, "input.embedding")
        columns += [value.alias(VECTOR), problem.alias(SHAPE)]
    return frame.select(*columns)


def check_binary_embeddings(frame: DataFrame, embedding: str, embedding_binary: str | None) -> None:
    """Refuse BINARY embeddings whose bytes are likely numbers of another type than they are read as.

    Parameters
    ----------
    frame : DataFrame
        The input, of which some rows are looked at.
    embedding : str
        Column of embeddings. Of other types than BINARY, nothing is checked.
    embedding_binary : {"float32", "float64", "float16"}, optional
        The type that the user named, if any.

    Raises
    ------
    InputError
    """
    from pyspark.sql import types as T

    if not isinstance(find_type(frame, embedding, "input.embedding"), T.BinaryType):
        return
    from spark_dbp.kernels.vectors import measure_sizes

    value = column(embedding)
    rows = collect_arrow(frame.select(value.alias(VECTOR)).where(value.isNotNull()).limit(_JUDGED_ROWS))
    if rows.num_rows == 0:
        return
    sizes = measure_sizes(rows.column(VECTOR).combine_chunks())
    used = embedding_binary or "float32"
    if used not in sizes or sizes[used].is_likely:
        return  # where rows are of a wrong length, the check of each row says so
    likely = [name for name in sizes if sizes[name].is_likely]
    if not likely and (embedding_binary is not None or sizes[used].spread <= _WIDE):
        return
    raise InputError(
        f"input.embedding: column {embedding!r} is BINARY, and its bytes are hardly {used}: the values would "
        f"range from {sizes[used].low:.0e} to {sizes[used].high:.0e} in size",
        mend=f"set input.embedding_binary: {likely[0]}"
        if likely
        else "set input.embedding_binary to float32, float64 or float16 if they are that (little endian, no "
        "header); otherwise write arrays of numbers",
    )


def _check_key_type(data_type: DataType) -> None:
    from pyspark.sql import types as T

    if find_key_text(data_type.simpleString()) is None or isinstance(data_type, T.UserDefinedType):
        raise InputError(
            f"input.key: a column of type {describe_type(data_type)} cannot be a key",
            mend="name a column of text, numbers, dates, times or BINARY; input.key: {sql: ...} makes one",
        )


def _check_cluster_type(data_type: DataType, name: str) -> None:
    from pyspark.sql import types as T

    if not isinstance(data_type, T.IntegralType):
        raise InputError(
            f"input.cluster_id: column {name!r} is {describe_type(data_type)}",
            mend="cluster ids are integers from 0; input.cluster_id: {sql: 'cast(... as int)'} makes some",
        )


def _check_distance_type(data_type: DataType, name: str) -> None:
    from pyspark.sql import types as T

    if not isinstance(data_type, T.FractionalType):
        raise InputError(
            f"input.distance_to_centroid: column {name!r} is {describe_type(data_type)}",
            mend="distances are FLOAT or DOUBLE: 1 - cos to the centroid, in [0, 2]; "
            "input.distance_to_centroid: {sql: ...} makes some of another measure",
        )


def _check_cluster_id() -> tuple[Column, Column]:
    """The column of cluster ids as INT, and what is wrong with a row."""
    from pyspark.sql import functions as F

    given = F.col(CLUSTER_ID)
    in_range = given.between(0, 2**31 - 1)
    problem = F.when(given.isNull(), F.lit(NULL_CLUSTER)).when(~in_range, F.lit(BAD_CLUSTER))
    return F.when(in_range, given).cast("int"), problem


def _check_distance() -> tuple[Column, Column]:
    """The column of distances as FLOAT in [0, 2], and what is wrong with a row."""
    from pyspark.sql import functions as F

    given = F.col(DISTANCE)
    in_range = given.isNotNull() & ~F.isnan(given) & given.between(-DISTANCE_SLACK, 2 + DISTANCE_SLACK)
    clipped = F.greatest(F.lit(0.0), F.least(F.lit(2.0), given)).cast("float")
    return F.when(in_range, clipped), F.when(~in_range | given.isNull(), F.lit(BAD_DISTANCE))
