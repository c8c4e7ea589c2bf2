"""Read the input piece by piece, where a step works in parts. Imports `sources`, `input_files`, `parts`.

A piece is some rows of a file or of a shard. A view does not list its files, so its pieces are rows by a hash
of their keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING

from spark_dbp.columns import POSITION, SHARD
from spark_dbp.engine.compat import collect_arrow, column
from spark_dbp.engine.spark_errors import read_condition
from spark_dbp.io.input_files import list_read_files
from spark_dbp.io.shards import Shard
from spark_dbp.io.sources import Source
from spark_dbp.lake.parts import InputFile, Piece

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame

# Pieces into which the rows of a view are shared by hash. Each goes over the whole view.
_BUCKETS = 32
# Most pieces of a file that Spark reads from its beginning for each of them.
_MOST_RANGES = 32


@dataclass(frozen=True)
class Pieces:
    """How the rows of the input are told apart.

    Attributes
    ----------
    source : Source
    key : str
        Column of the keys.
    files : list of InputFile
        Files, or shards; of a view one that stands for all of it.
    file, row : Column
        Of `source.given`: the file that a row is from, and its number in the file, or of its bucket.
    most_ranges : int or None
        Most pieces of a file.
    shard : Column
        Where a row is from, for people.
    """

    source: Source
    key: str
    files: list[InputFile]
    file: Column | None
    row: Column | None
    most_ranges: int | None
    shard: Column

    def read(self, pieces: Sequence[Piece]) -> DataFrame:
        """Rows of these pieces that the filter of the input lets through.

        Parameters
        ----------
        pieces : sequence of Piece

        Returns
        -------
        DataFrame
        """
        from pyspark.sql import functions as F

        if self.file is None:  # a view: its columns may be computed
            rows, cut = self.source.read_rows(), self.row
            assert cut is not None
            found = [(cut >= piece.start) & (cut < piece.stop) for piece in pieces]
            return rows.where(reduce(lambda a, b: a | b, found, F.lit(False)))
        whole = [piece.file.path for piece in pieces if piece.is_whole]
        conditions = [self.file.isin(whole)] if whole else []
        for piece in pieces:
            if not piece.is_whole:
                assert self.row is not None
                inside = (self.row >= piece.start) & (self.row < piece.stop)
                conditions.append((self.file == piece.file.path) & inside)
        return self.source.read_rows(reduce(lambda a, b: a | b, conditions, F.lit(False)))


def find_pieces(source: Source, key: str, shards: Sequence[Shard] = ()) -> Pieces:
    """See of which files the input consists, and how many rows each has.

    Parameters
    ----------
    source : Source
    key : str
        Column of the keys.
    shards : sequence of Shard
        Of a WebDataset.

    Returns
    -------
    Pieces
    """
    from pyspark.sql import functions as F

    if source.has_shards:
        counted = collect_arrow(source.given.groupBy(SHARD).agg(F.count(F.lit(1)).alias("rows")))
        rows = {row[SHARD]: row["rows"] for row in counted.to_pylist()}
        found = [InputFile(one.path, one.size, one.changed, rows.get(one.path, 0)) for one in shards]
        return Pieces(source, key, found, F.col(SHARD), F.col(POSITION), None, F.col(SHARD))
    listed = list_read_files(source.given)
    if listed is None:
        name = f"{source.name} ({source.snapshot.digest})"
        bucket = F.pmod(F.xxhash64(column(key)), F.lit(_BUCKETS))
        view = InputFile(name, 0, 0, _BUCKETS)
        return Pieces(source, key, [view], None, bucket, _BUCKETS, F.lit(source.name))
    found = [
        InputFile(row["file_path"], row["file_size"], row["changed"], row["rows"])
        for row in listed.to_pylist()
    ]
    file, row = F.col("_metadata.file_path"), F.col("_metadata.row_index")
    ranges: int | None = _MOST_RANGES
    try:
        _ = source.given.select(row).schema
    except Exception as error:  # of other formats than Parquet, Spark does not number the rows
        if not read_condition(error):
            raise
        ranges = 1
    return Pieces(source, key, found, file, row, ranges, file)
