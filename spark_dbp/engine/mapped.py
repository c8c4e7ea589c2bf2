"""Rows that workers make: as a DataFrame, or as Parquet files that the workers write themselves.

Imports `files`, `scan`, `columns` and `compat`; pyspark and pyarrow inside functions.

Through Spark, rows made in Python are decoded one by one and encoded again as Parquet, which takes longer
than most of what made them. A worker that writes its own file spares both. As Spark does it, files are drafts
until the driver has heard of them: what a failed or repeated task left is never part of the table.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import uuid4

from spark_dbp.columns import CLUSTER_ID
from spark_dbp.engine.arrow import gather_batches, reads_alike
from spark_dbp.engine.compat import BatchFunction, map_in_arrow, read_parquet_codec, to_arrow_schema
from spark_dbp.lake import files

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import DataFrame
    from pyspark.sql.types import StructType

# Rows and bytes of a row group.
_GROUP_ROWS, _GROUP_BYTES = 2**19, 64 << 20


@dataclass(frozen=True)
class MappedRows:
    """A function of the workers, applied to a DataFrame.

    Attributes
    ----------
    source : DataFrame
    function : callable
        From an iterator of record batches with the columns of `source` to one with those of `schema`.
    schema : StructType
    rest : DataFrame, optional
        Further rows, which Spark makes.
    """

    source: DataFrame
    function: BatchFunction
    schema: StructType
    rest: DataFrame | None = None

    def frame(self) -> DataFrame:
        """The rows as a DataFrame."""
        made = map_in_arrow(self.source, self.function, self.schema)
        return made if self.rest is None else made.unionByName(self.rest)

    def write_parquet(self, path: str) -> None:
        """Write the rows to the new directory `path`, reachable from the workers."""
        if not all(reads_alike(field.dataType) for field in self.schema):
            self.frame().write.parquet(files.to_spark_path(path))
            return
        draft = files.join(path, f"_draft-{uuid4().hex[:8]}")
        written = self._written(self.source, self.function, draft)
        if self.rest is not None:
            written += self._written(self.rest, lambda batches: batches, draft)
        files.publish(draft, written, path)
        if not written:  # Spark leaves a file that has the columns
            self.frame().limit(0).write.parquet(files.to_spark_path(path))

    def _written(self, source: DataFrame, function: BatchFunction, draft: str) -> list[str]:
        """Names of the files that the workers wrote to `draft`."""
        schema, codec = to_arrow_schema(self.schema), read_parquet_codec(source.sparkSession)

        def write(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
            import pyarrow as pa
            from pyspark import TaskContext

            context = TaskContext.get()
            name = f"part-{context.partitionId() if context else 0:05d}-{uuid4().hex[:8]}.parquet"
            sink = None
            for table in gather_batches(function(batches), _GROUP_ROWS, _GROUP_BYTES):
                if sink is None:
                    # Keys are all different: a dictionary would only grow until it is given up.
                    sink = files.ParquetSink(
                        files.join(draft, name),
                        schema,
                        compression=codec,
                        use_dictionary=[CLUSTER_ID],
                        write_statistics=True,
                    )
                sink.write(table.select(schema.names).cast(schema))
            if sink is not None:
                sink.close()
                yield pa.RecordBatch.from_pydict({"name": [name]})

        return [row.name for row in map_in_arrow(source, write, "name STRING").collect()]
