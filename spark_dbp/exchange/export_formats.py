"""How each format is written: what Spark makes of the rows, and what the driver writes of them.

Imports `config_embed`, `runs`, `engine`, `explore.run_tables` and what is beside it; pyspark in functions.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from spark_dbp.columns import CLUSTER_ID, DISTANCE, KEY, VECTOR
from spark_dbp.config_embed import MAIN
from spark_dbp.engine.compat import collect_rows, map_in_arrow, to_arrow_schema
from spark_dbp.engine.memory import read_memory_limit
from spark_dbp.engine.sorted_rows import stream_sorted
from spark_dbp.errors import InputError
from spark_dbp.exchange import cluster_files, key_files, pygtrie_file, row_folders, shard_counts
from spark_dbp.exchange.exported_rows import ExportedRows
from spark_dbp.exchange.written_keys import (
    WRITTEN,
    make_value,
    refuse_other_than_whole,
    write_numbers,
    write_texts,
    write_values,
)
from spark_dbp.explore.run_tables import RunTables

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import Column, DataFrame, SparkSession

    from spark_dbp.config_embed import EmbedConfig
    from spark_dbp.runs import Run

log = logging.getLogger("spark_dbp")

KEPT, DROPPED, NO_ROW = "kept", "dropped", "none"
# Bytes of a row that is written and sorted, besides its key.
_ROW_BYTES = 16


@dataclass(frozen=True)
class Task:
    """What is to be written: options of `export`, and what is known of the rows."""

    run: Run
    spark: SparkSession
    rows: ExportedRows
    form: str
    key: str | None
    row: str | None
    shard: str | None
    research_keys: bool
    key_bytes: float

    def stream(
        self, frame: DataFrame, *order: Column | str, row_bytes: float = 0.0
    ) -> Iterator[pa.RecordBatch]:
        n_bytes = self.rows.n_rows * (self.key_bytes + _ROW_BYTES + row_bytes)
        return stream_sorted(frame, order, n_bytes)


@dataclass(frozen=True)
class Form:
    """A format.

    Attributes
    ----------
    write : callable
        Writes to a local path; returns the number of rows.
    is_folder : bool
    rows : str
        Which rows are written unless it is said.
    options : tuple of str
        Options that it takes, besides those that all take.
    row_bytes : float or None
        About how many bytes of output a row makes besides its key; None where it makes none.
    has_key : bool
        Whether the key itself is written.
    """

    write: Callable[[Task, Path], int]
    is_folder: bool = False
    rows: str = KEPT
    options: tuple[str, ...] = ("key",)
    row_bytes: float | None = 1
    has_key: bool = True


def _write_texts(task: Task, sink: key_files.KeySink) -> int:
    frame = write_texts(task.rows.frame, task.key, task.form)
    for batch in task.stream(frame, WRITTEN):
        sink.add(batch.column(0))
    return sink.finish()


def _write_txt(task: Task, path: Path) -> int:
    return _write_texts(task, key_files.LineSink(task.form, path))


def _write_subset(task: Task, path: Path) -> int:
    from pyspark.sql import functions as F

    frame = write_texts(task.rows.frame, task.key, task.form)
    # The same number whatever the case of its digits, and the order of these texts is that of the numbers.
    lower = frame.select(F.lower(F.col(WRITTEN).cast("string")).cast("binary").alias(WRITTEN))
    sink = key_files.SubsetSink(task.form, path)
    for batch in task.stream(lower, WRITTEN):
        sink.add(batch.column(0))
    return sink.finish()


def _write_npy(task: Task, path: Path) -> int:
    sink = key_files.NumberSink(task.form, path)
    for batch in task.stream(write_numbers(task.rows.frame, task.key, task.form), WRITTEN):
        sink.add(batch.column(0))
    return sink.finish()


def _write_pygtrie(task: Task, path: Path) -> int:
    sink = pygtrie_file.TrieSink(task.form, path, research_keys=task.research_keys)
    needed = task.rows.n_rows * (pygtrie_file.KEY_BYTES + task.key_bytes)
    log.info("  the trie is built in this process: it takes about %s MB of memory", f"{needed / 1e6:,.0f}")
    limit = read_memory_limit()
    if needed > limit:
        raise InputError(
            f"--to pygtrie: a trie of {task.rows.n_rows:,} keys takes about {needed / 1e9:,.0f} GB of memory "
            f"in this process, which may take {limit / 1e9:,.0f} GB",
            mend="run it where there is more memory; or use the trie of the run, which takes 2 to 3 bytes a "
            "key (docs/loaders.md)",
        )
    return _write_texts(task, sink)


def _write_semdedup(task: Task, folder: Path) -> int:
    from pyspark.sql import functions as F
    from pyspark.sql import types as T

    rows = task.rows.frame
    homeless = rows.where(F.col(CLUSTER_ID).isNull())
    if n := homeless.count():
        raise InputError(
            f"--to semdedup: {n:,} of these rows were left out before the clustering, and are in no cluster",
            mend="export the rows that were kept, or those of --reason prune",
        )
    if task.row == NO_ROW:
        row = F.lit(None).cast("bigint")
    else:
        value, kind = make_value(rows, task.row, "--row")
        refuse_other_than_whole(kind, task.form, "--row")
        row = value.cast("bigint")
        if n := rows.where(row.isNull()).count():
            raise InputError(f"--row {task.row!r} is null for {n:,} rows", mend="use coalesce() in it")
    kind = make_value(rows, task.key, "--key")[1]
    as_bytes = isinstance(kind, T.BinaryType)
    others = {CLUSTER_ID: F.col(CLUSTER_ID), DISTANCE: F.col(DISTANCE), cluster_files.ROW: row}
    frame = write_texts(rows, task.key, task.form, **others)
    if task.key is not None:
        _refuse_equal(frame, task.form)
    width = F.octet_length(WRITTEN) if as_bytes else F.char_length(F.col(WRITTEN).cast("string"))
    found = collect_rows(frame.groupBy(CLUSTER_ID).agg(F.count(F.lit(1)), F.max(width)))
    sizes = {cluster: (int(n), int(longest or 0)) for cluster, n, longest in found}
    longest = max((size[1] for size in sizes.values()), default=0)
    if longest > cluster_files.LEAST_WIDTH:
        log.warning(
            "  keys have up to %s characters: the research code cuts them to %s when it reads these files",
            f"{longest:,}",
            cluster_files.LEAST_WIDTH,
        )
    ids = task.run.centroids()[0].tolist()
    batches = task.stream(frame, CLUSTER_ID, F.desc(DISTANCE), WRITTEN)
    return cluster_files.write_clusters(batches, folder, sizes, ids, as_bytes=as_bytes)


def _refuse_equal(frame: DataFrame, form: str) -> None:
    from pyspark.sql import functions as F

    equal = frame.groupBy(WRITTEN).count().where((F.col("count") > 1) | F.col(WRITTEN).isNull())
    if n := equal.count():
        shown = collect_rows(equal.select(F.col(WRITTEN).cast("string")).orderBy(WRITTEN).limit(3))
        raise InputError(
            f"--to {form}: {n:,} keys are null or are written by more than one row, such as "
            + ", ".join(key_files.show_key(row[0]) for row in shown),
            mend="give --key an expression that is another one for every row",
        )


def _write_curator(task: Task, folder: Path) -> int:
    value, _ = write_values(task.rows.frame, task.key, task.form)
    frame = task.rows.frame.select(value.alias("id"))
    return row_folders.write_ids(task.stream(frame, "id"), folder, to_arrow_schema(frame.schema))


def _write_clip_retrieval(task: Task, folder: Path) -> int:
    from pyspark.sql import functions as F
    from pyspark.sql import types as T

    samples = RunTables(task.run, task.spark).good_samples()
    if VECTOR not in samples.columns:
        raise InputError(
            f"--to clip_retrieval: {task.run.path} has no vectors, for its clusters were given",
            mend="write another format; or run the job with input.embedding",
        )
    value, _ = write_values(task.rows.frame, task.key, task.form)
    joined = task.rows.frame.select(KEY, value.alias(WRITTEN), CLUSTER_ID, DISTANCE)
    joined = joined.join(samples.select(KEY, F.col(VECTOR).alias(row_folders.IMAGES)), KEY)
    texts, dimensions = find_texts(task.run), list_dimensions(task.run)
    if texts is not None:
        others = task.run.table(texts.table, task.spark).select(KEY, F.col(VECTOR).alias(row_folders.TEXTS))
        joined = joined.join(others, KEY, "left")
    joined = joined.select(WRITTEN, CLUSTER_ID, DISTANCE, *dimensions)
    n_vectors = len(dimensions)

    def shorten(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        for batch in batches:
            columns = [*batch.columns[:-n_vectors], *map(row_folders.to_halves, batch.columns[-n_vectors:])]
            yield pa.RecordBatch.from_arrays(columns, batch.schema.names)

    frame = map_in_arrow(joined, shorten, joined.schema)
    fields = [T.StructField("image_path", joined.schema[WRITTEN].dataType), *joined.schema.fields[1:3]]
    return row_folders.write_embeddings(
        task.stream(frame, WRITTEN, row_bytes=2.0 * sum(dimensions.values())),
        folder,
        task.rows.n_rows,
        dimensions,
        to_arrow_schema(T.StructType(fields)),
    )


def find_texts(run: Run) -> EmbedConfig | None:
    """The section that made vectors of the samples' texts, beside those that were clustered."""
    return next((one for one in run.config().embed if one.kind == "texts" and one.name != MAIN), None)


def list_dimensions(run: Run) -> dict[str, int]:
    """Of the vectors that ``clip_retrieval`` has of a sample, by the name of their array."""
    texts, steps = find_texts(run), {row_folders.IMAGES: "ingest"}
    if texts is not None:
        steps[row_folders.TEXTS] = f"embed_{texts.name}"
    return {name: int(run.document["stages"][step]["info"]["dimension"] or 0) for name, step in steps.items()}


def _write_shard_counts(task: Task, path: Path) -> int:
    return shard_counts.write_shard_counts(task.run, task.spark, task.rows, task.shard, path)


FORMS = {
    "txt": Form(_write_txt),
    "datacomp": Form(_write_subset, row_bytes=16, has_key=False),
    "npy": Form(_write_npy, row_bytes=8, has_key=False),
    "pygtrie": Form(_write_pygtrie, options=("key", "research_keys"), row_bytes=20),
    "semdedup": Form(_write_semdedup, is_folder=True, options=("key", "row"), row_bytes=500),
    "curator": Form(_write_curator, is_folder=True, rows=DROPPED),
    "clip_retrieval": Form(_write_clip_retrieval, is_folder=True),
    "shard_counts": Form(_write_shard_counts, options=("shard",), row_bytes=None),
}
