"""Turn images and texts into unit vectors with a pretrained encoder, in the workers.

Imports `columns`, `engine`, `item_readers`, `encoders` and `config_embed`; pyspark inside functions.

An encoder is loaded once in each Python worker. What it makes of an item depends on the machine in the last
bits, so vectors are computed once, written, and read from then on.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from spark_dbp.columns import (
    DIMENSION,
    IMAGE_OFFSET,
    IMAGE_SIZE,
    KEY,
    PROBLEM,
    SHARD,
    VECTOR,
    describe_type,
    find_type,
)
from spark_dbp.config_embed import EmbedConfig, make_embed_config
from spark_dbp.encoders import EncoderSettings, encode_stream, identify_encoder, probe_encoder
from spark_dbp.engine.compat import column, map_in_arrow
from spark_dbp.engine.mapped_rows import MappedRows
from spark_dbp.engine.spark_errors import refuse_in_worker
from spark_dbp.engine.whole_files import iter_contents, read_whole_files
from spark_dbp.errors import ConfigError, InputError
from spark_dbp.io.item_readers import MemberReader, read_whole_file
from spark_dbp.lake.progress import report_progress
from spark_dbp.lake.tar_samples import read_tar_samples

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import Column, DataFrame, SparkSession
    from pyspark.sql.types import DataType

ITEM = "item"
NO_IMAGE = "no image in the sample"


def embed_images(frame: DataFrame, *, key: str = "key", image: str = "image", **settings: Any) -> DataFrame:
    """Turn images into unit vectors.

    Parameters
    ----------
    frame : DataFrame
    key : str
        Column that identifies a sample.
    image : str
        Column of the images: BINARY holds their bytes, STRING the paths of their files. A frame of
        `read_webdataset` has none: there the images are in the shards.
    **settings
        As in the section ``embed`` of the configuration: ``encoder`` (by default
        ``hf:facebook/dinov2-large``), ``revision``, ``batch_size``, ``dtype``, ``device`` ...

    Returns
    -------
    DataFrame
        ``key``, ``vector`` BINARY (float32 little endian, unit norm; null for a bad item), ``dimension`` INT,
        ``problem`` STRING (null for a good item). It is computed each time that it is used, so write it.

    Raises
    ------
    ConfigError
        For settings that are wrong.
    InputError
        When there is no such column, or it is of another type.

    Examples
    --------
    >>> vectors = embed_images(photos, image="jpeg", encoder="models/dinov2-large")  # doctest: +SKIP
    >>> vectors.where("problem IS NULL").write.parquet("embeddings")  # doctest: +SKIP
    """
    return _embed(frame, key, image, make_embed_config({**settings, "images": {"column": image}}))


def embed_texts(frame: DataFrame, *, key: str = "key", text: str = "text", **settings: Any) -> DataFrame:
    """Turn texts into unit vectors. Texts beyond the length of the model are cut to it.

    Parameters
    ----------
    frame : DataFrame
    key : str
    text : str
        Column of STRING.
    **settings
        As for `embed_images`; ``encoder`` must be given.

    Returns
    -------
    DataFrame
        As from `embed_images`.
    """
    return _embed(frame, key, text, make_embed_config({**settings, "texts": {"column": text}}))


def _embed(frame: DataFrame, key: str, name: str, section: EmbedConfig) -> DataFrame:
    of_a_run = sorted(section.model_fields_set & {"name", "on_bad_items", "max_bad_share"})
    if of_a_run:
        raise ConfigError(
            f"{of_a_run[0]} is a setting of a run, not of this function",
            mend="leave it out: bad items have the reason in the column problem",
        )
    items = find_items(frame, name, section.kind)
    find_type(frame, key, "key")
    return plan_embedding(frame, column(key), items, EncoderSettings.from_config(section)).to_frame()


@dataclass(frozen=True)
class Items:
    """What is to be embedded.

    Attributes
    ----------
    value : Column
        BINARY (bytes of an image), STRING (a text, or a path), or a struct that says where a member lies.
    make_reader : callable, optional
        Makes, in a worker, what turns a value into bytes.
    problem : Column, optional
        What is wrong with an item that is not there at all.
    """

    value: Column
    make_reader: Callable[[], Callable[[Any], bytes]] | None = None
    problem: Column | None = None


def find_items(frame: DataFrame, name: str | None, kind: str, setting: str = "embed") -> Items:
    """The items of a frame, by the name of their column.

    Parameters
    ----------
    frame : DataFrame
    name : str or None
        Column of images or texts; for images in shards None, or a name that `frame` lacks.
    kind : {"images", "texts"}
    setting : str
        For messages.

    Returns
    -------
    Items

    Raises
    ------
    InputError
        When there is no such column, or it is of another type.
    """
    from pyspark.sql import functions as F
    from pyspark.sql import types as T

    in_shards = {SHARD, IMAGE_OFFSET, IMAGE_SIZE} <= set(frame.columns)
    if kind == "images" and in_shards and (name is None or name not in frame.columns):
        place = F.struct(
            F.col(SHARD).alias("path"), F.col(IMAGE_OFFSET).alias("offset"), F.col(IMAGE_SIZE).alias("size")
        )
        is_there = F.col(IMAGE_OFFSET).isNotNull()
        return Items(F.when(is_there, place), MemberReader, F.when(~is_there, F.lit(NO_IMAGE)))
    assert name is not None
    if isinstance(check_item_type(frame, name, kind, setting), T.BinaryType):
        return Items(column(name))
    return Items(column(name).cast("string"), (lambda: read_whole_file) if kind == "images" else None)


def check_item_type(frame: DataFrame, name: str, kind: str, setting: str) -> DataType:
    """The type of a column of items; only the schema is asked.

    Raises
    ------
    InputError
        When there is no such column, or images or texts are not of its type.
    """
    from pyspark.sql import types as T

    data_type = find_type(frame, name, setting)
    if isinstance(data_type, T.StringType) or (kind == "images" and isinstance(data_type, T.BinaryType)):
        return data_type
    raise InputError(
        f"{setting}: column {name!r} is {describe_type(data_type)}",
        mend="images are BINARY (the bytes of their files) or STRING (paths); texts are STRING; of a struct "
        "such as image: {bytes, path} name the field: image.bytes",
    )


def read_members_by_spark(rows: DataFrame) -> tuple[DataFrame, Items]:
    """Let Spark read the shards of some samples, where workers do not reach them.

    Parameters
    ----------
    rows : DataFrame
        Samples of `read_webdataset`, of a few shards.

    Returns
    -------
    rows : DataFrame
        With the bytes of the images.
    items : Items
    """
    from pyspark.sql import functions as F

    shards = [row[0] for row in rows.select(SHARD).distinct().collect()]
    if not shards:
        return rows, Items(F.lit(None).cast("binary"))
    wanted = rows.where(F.col(IMAGE_OFFSET).isNotNull())

    def cut(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        with refuse_in_worker():
            for path, body in iter_contents(batches):
                for sample in read_tar_samples(io.BytesIO(body), path, size=len(body), with_texts=False):
                    if sample.image is not None:
                        yield _to_member(path, sample.image, body)

    contents = map_in_arrow(
        read_whole_files(rows.sparkSession, sorted(shards)), cut, f"of_shard STRING, at BIGINT, {ITEM} BINARY"
    )
    found = contents.join(
        F.broadcast(wanted), (F.col("of_shard") == F.col(SHARD)) & (F.col("at") == F.col(IMAGE_OFFSET))
    ).drop("of_shard", "at")
    without = rows.where(F.col(IMAGE_OFFSET).isNull()).withColumn(ITEM, F.lit(None).cast("binary"))
    problem = F.when(F.col(IMAGE_OFFSET).isNull(), F.lit(NO_IMAGE))
    return found.unionByName(without), Items(F.col(ITEM), problem=problem)


def _to_member(path: str, image: tuple[int, int], shard: Any) -> pa.RecordBatch:
    import pyarrow as pa

    start, size = image
    columns = {
        "of_shard": pa.array([path]),
        "at": pa.array([start], pa.int64()),
        ITEM: pa.array([shard[start : start + size]], pa.binary()),
    }
    return pa.RecordBatch.from_pydict(columns)


def plan_embedding(
    rows: DataFrame,
    key: Column,
    items: Items,
    settings: EncoderSettings,
    *,
    identity: Mapping[str, Any] | None = None,
    further: Mapping[str, Column] | None = None,
    notes: str | None = None,
) -> MappedRows:
    """The vectors of items, as rows that workers compute and can write themselves.

    Parameters
    ----------
    rows : DataFrame
    key : Column
    items : Items
        Of `rows`.
    settings : EncoderSettings
    identity : mapping, optional
        From `identify`. Workers that have other weights are refused.
    further : mapping of str to Column, optional
        Columns that travel along, by their names in the result.
    notes : str, optional
        Directory in which workers note how many items they have done.

    Returns
    -------
    MappedRows
        ``key``, ``vector``, ``dimension``, ``problem`` and the further columns.
    """
    from pyspark.sql import types as T

    columns = {KEY: key, ITEM: items.value, **(further or {})}
    if items.problem is not None:
        columns[PROBLEM] = items.problem
    given = rows.select(*[value.alias(name) for name, value in columns.items()])
    made = {VECTOR: T.BinaryType(), DIMENSION: T.IntegerType(), PROBLEM: T.StringType()}
    types = {field.name: field.dataType for field in given.schema.fields if field.name != ITEM}
    types = {KEY: types.pop(KEY), **made, **{name: t for name, t in types.items() if name != PROBLEM}}
    schema = T.StructType([T.StructField(name, data_type) for name, data_type in types.items()])
    names, make_reader = list(types), items.make_reader
    known = dict(identity) if identity is not None else None

    def encode(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        cores, gpu = _look_at_task()
        with refuse_in_worker():
            load = make_reader() if make_reader is not None else None
            found = encode_stream(batches, settings, load=load, cores=cores, gpu=gpu, identity=known)
            selected = (batch.select(names) for batch in found)
            yield from selected if notes is None else report_progress(selected, notes)

    return MappedRows(given, encode, schema)


def _look_at_task() -> tuple[int, str | None]:
    """Cores of the task at work, and its GPU where Spark has given it one."""
    from pyspark import TaskContext

    context = TaskContext.get()
    if context is None:
        return 1, None
    gpu = context.resources().get("gpu")
    return max(1, context.cpus()), gpu.addresses[0] if gpu is not None and gpu.addresses else None


def identify(spark: SparkSession, settings: EncoderSettings) -> dict[str, Any]:
    """What makes the vectors of an encoder what they are: hashes of its files, versions (`identify_encoder`).

    A worker looks, for there the encoder is installed.

    Raises
    ------
    ConfigError
        When there is no such encoder, or a library is missing.
    """
    return _ask_worker(spark, lambda: identify_encoder(settings))


def probe(
    spark: SparkSession, settings: EncoderSettings, identity: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Load an encoder in a worker and try it: ``dimension``, ``device``, ``dtype`` (`probe_encoder`).

    Raises
    ------
    ConfigError
        When it cannot be loaded, has no such device, or returns something else than finite vectors.
    """
    known = dict(identity) if identity is not None else None

    def ask() -> dict[str, Any]:
        cores, gpu = _look_at_task()
        return probe_encoder(settings, cores=cores, gpu=gpu, identity=known)

    return _ask_worker(spark, ask)


def _ask_worker(spark: SparkSession, question: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    def answer(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        for _ in batches:
            pass
        with refuse_in_worker():
            yield pa.RecordBatch.from_pydict({"answer": [json.dumps(question())]})

    rows: Sequence[Any] = map_in_arrow(spark.range(0, 1, 1, 1), answer, "answer STRING").collect()
    return dict(json.loads(rows[0].answer))
