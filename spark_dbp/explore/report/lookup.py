"""Fetch images and texts of a few rows from the input of a run, where it is as it was.

Imports `columns`, `config`, `engine`, `encoders.images`, `io`, the stage `embed`, `explore` and `runs`;
pyspark, pyarrow and Pillow inside functions.

Spark opens the input as the run did, and workers make the thumbnails, so the driver holds a few kilobytes
of each row.
"""

from __future__ import annotations

import io
import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from spark_dbp.columns import KEY, SHARD, find_type, quote_name
from spark_dbp.encoders.bad_items import BadItemError
from spark_dbp.encoders.images import decode_image
from spark_dbp.engine.compat import collect_arrow, column, create_frame, map_in_arrow
from spark_dbp.engine.probe import can_workers_read
from spark_dbp.engine.session import describe_jobs, guard_session
from spark_dbp.engine.spark_errors import translate_errors
from spark_dbp.errors import ConfigError
from spark_dbp.explore.given_input import reopen_input
from spark_dbp.explore.report.examples import write_keys
from spark_dbp.explore.run_tables import RunTables, read_zone
from spark_dbp.io.sources import Source
from spark_dbp.stages.embed import find_items, read_members_by_spark

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import SparkSession

    from spark_dbp.config import RunConfig
    from spark_dbp.config_base import ColumnOrSql
    from spark_dbp.runs import Run

log = logging.getLogger("spark_dbp")

# The longer side of a thumbnail in pixels, and how good WebP makes it; characters of a caption.
_SIDE, _QUALITY, _MOST_CHARACTERS = 96, 60, 200
_MOST_PIXELS = 100_000_000
_PLACE, _CAPTION, _PROBLEM = "place", "caption", "problem"


@dataclass(frozen=True)
class Thumbnail:
    """A small image as bytes of WebP, and its size in pixels."""

    content: bytes
    width: int
    height: int


@dataclass
class Found:
    """What the input had of some keys, by the text of the key.

    Attributes
    ----------
    has_images, has_captions : bool
        Whether it was asked for these.
    problems : Counter
        How many images were not shown, by reason.
    note : str
        Why nothing was looked up; empty where it was.
    """

    has_images: bool = False
    has_captions: bool = False
    thumbnails: dict[str, Thumbnail] = field(default_factory=dict)
    captions: dict[str, str] = field(default_factory=dict)
    problems: Counter[str] = field(default_factory=Counter)
    note: str = ""


@dataclass(frozen=True)
class Wanted:
    """What is looked up: columns of the input, None for nothing; images of shards have no column."""

    image: ColumnOrSql | None
    caption: ColumnOrSql | None
    images_in_shards: bool

    def __bool__(self) -> bool:
        return self.image is not None or self.caption is not None or self.images_in_shards


def find_wanted(config: RunConfig) -> Wanted:
    """What the report shows of rows: what ``report`` names, else what ``embed`` reads.

    Examples
    --------
    >>> from spark_dbp import RunConfig
    >>> config = RunConfig.from_dict({
    ...     "input": {"path": "e"}, "output": {"path": "o"}, "cluster": {"n_clusters": 9},
    ...     "prune": {"keep_ratio": 0.5}, "report": {"caption": "summary"},
    ... })
    >>> find_wanted(config)
    Wanted(image=None, caption='summary', images_in_shards=False)
    """
    image, caption, in_shards = config.report.image, config.report.caption, False
    for section in config.embed:
        if image is None and section.images is not None:
            image = section.images.column or section.images.path_column
            in_shards = section.has_shards
        if caption is None and section.texts is not None:
            caption = section.texts.column
    return Wanted(image or None, caption or None, in_shards)


def look_up(run: Run, wanted: Wanted, spark: SparkSession, keys: pa.Array, key_type: str) -> Found:
    """Fetch thumbnails and captions of some rows from the input.

    Parameters
    ----------
    run : Run
    wanted : Wanted
    spark : SparkSession
    keys : pyarrow.Array
        A few thousand at most.
    key_type : str

    Returns
    -------
    Found
        With a note and nothing else where the input is not there, or not as the run read it.

    Raises
    ------
    InputError
        When a column is not there, or of a type that is no image.
    ConfigError
        When SQL of ``report`` is refused, or Pillow is missing.
    """
    found = Found(wanted.image is not None or wanted.images_in_shards, wanted.caption is not None)
    if found.has_images:
        _check_pillow()
    asked = {"report.image": wanted.image, "report.caption": wanted.caption}
    described = describe_jobs(spark, "spark-dbp report: looking up images and texts")
    with guard_session(spark, read_zone(run)), described, translate_errors(run.config().source_setting):
        more = {setting: one for setting, one in asked.items() if one is not None}
        given = reopen_input(RunTables(run, spark), more)
        if given.source is None:
            found.note = f"Neither images nor texts are shown: {given.why_not}."
            return found
        rows = _read_rows(given.source, str(run.config().input.key), wanted, keys)
        texts = write_keys(rows.column(KEY).combine_chunks(), key_type)
        # Not the keys: Python has no value for text that is not UTF-8.
        for text, row in zip(texts, rows.drop_columns(KEY).to_pylist(), strict=True):
            if row[_CAPTION] is not None:
                found.captions.setdefault(text, _shorten(row[_CAPTION]))
            if row[_PLACE] is not None:
                found.thumbnails.setdefault(text, Thumbnail(row[_PLACE], row["width"], row["height"]))
            elif found.has_images and row[_PROBLEM] is not None:
                found.problems[row[_PROBLEM]] += 1
    return found


def _check_pillow() -> None:
    try:
        import PIL.Image  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"report.image needs the package pillow, which cannot be imported here: {error}",
            mend="pip install pillow on the driver and the workers, or --set report.image=false",
        ) from None


def _read_rows(source: Source, key: str, wanted: Wanted, keys: pa.Array) -> pa.Table:
    """Key, thumbnail (`_PLACE`), its width and height, what was wrong, and caption of each wanted row."""
    import pyarrow as pa
    from pyspark.sql import functions as F
    from pyspark.sql import types as T

    spark, nothing = source.spark, F.lit(None)
    find_type(source.frame, key, "input.key")
    caption = nothing.cast("string")
    if wanted.caption is not None:
        find_type(source.frame, str(wanted.caption), "report.caption")
        text = F.substring(column(str(wanted.caption)).cast("string"), 1, 4 * _MOST_CHARACTERS)
        caption = text.cast("binary")  # text that is not UTF-8 passes as bytes
    sought = create_frame(spark, pa.table({"sought": keys}))
    all_rows = source.read_rows()
    rows = all_rows.join(F.broadcast(sought), all_rows[quote_name(key)] == sought["sought"], "left_semi")
    make_reader, problem, place = None, nothing.cast("string"), nothing.cast("binary")
    if wanted.image is not None or wanted.images_in_shards:
        name = str(wanted.image) if wanted.image is not None else None
        if source.has_shards and name is None and not can_workers_read(spark, _first_shard(source)):
            rows, items = read_members_by_spark(rows)
        else:
            items = find_items(rows, name, "images", "report.image")
        make_reader, place = items.make_reader, items.value
        problem = items.problem if items.problem is not None else problem
    chosen = rows.select(
        column(key).alias(KEY), place.alias(_PLACE), problem.alias(_PROBLEM), caption.alias(_CAPTION)
    )
    schema = T.StructType([chosen.schema[KEY], T.StructField(_PLACE, T.BinaryType())])
    schema.add("width", T.IntegerType()).add("height", T.IntegerType())
    schema.add(_PROBLEM, T.StringType()).add(_CAPTION, T.BinaryType())

    def shrink(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        read = make_reader() if make_reader is not None else bytes
        for batch in batches:
            yield _shrink_batch(batch, read)

    return collect_arrow(map_in_arrow(chosen, shrink, schema))


def _first_shard(source: Source) -> str:
    return str(source.given.select(SHARD).limit(1).collect()[0][0])


def _shrink_batch(batch: pa.RecordBatch, read: Any) -> pa.RecordBatch:
    import pyarrow as pa

    small: list[Thumbnail | None] = []
    problems = batch.column(_PROBLEM).to_pylist()
    for row, place in enumerate(batch.column(_PLACE)):
        thumbnail = None
        try:
            if place.is_valid:
                thumbnail = shrink_image(read(place.as_py()))
        except BadItemError as error:
            problems[row] = str(error)
        except ConfigError:
            problems[row] = "Pillow is not installed on the workers"
        except OSError:
            problems[row] = "the file cannot be read"
        small.append(thumbnail)
        if thumbnail is None and problems[row] is None:
            problems[row] = "there is no image"
    columns = {
        KEY: batch.column(KEY),
        _PLACE: pa.array([one and one.content for one in small], pa.binary()),
        "width": pa.array([one and one.width for one in small], pa.int32()),
        "height": pa.array([one and one.height for one in small], pa.int32()),
        _PROBLEM: pa.array(problems, pa.string()),
        _CAPTION: batch.column(_CAPTION).cast(pa.binary()),
    }
    return pa.RecordBatch.from_pydict(columns)


def shrink_image(content: bytes) -> Thumbnail:
    """Make a thumbnail of an image file; one that is small already keeps its size.

    Raises
    ------
    BadItemError
        For what is no image.
    """
    image = decode_image(content, _MOST_PIXELS)
    image.thumbnail((_SIDE, _SIDE))
    sink = io.BytesIO()
    image.save(sink, "WEBP", quality=_QUALITY, method=6)
    return Thumbnail(sink.getvalue(), *image.size)


def _shorten(text: bytes) -> str:
    """A caption of one line.

    Examples
    --------
    >>> _shorten(b" two\\nlines  ")
    'two lines'
    """
    line = " ".join(text.decode("utf-8", "replace").split())
    return line if len(line) <= _MOST_CHARACTERS else line[: _MOST_CHARACTERS - 1].rstrip() + "…"
