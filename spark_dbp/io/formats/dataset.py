"""A dataset in a format of others, whose rows workers read. Imports what is beside it, `engine` and `lake`.

pyspark inside functions.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from spark_dbp.engine.compat import from_arrow_schema
from spark_dbp.engine.file_scan import FileScan
from spark_dbp.engine.mapped_rows import MappedRows
from spark_dbp.engine.spark_errors import refuse_in_worker
from spark_dbp.errors import InputError
from spark_dbp.io.formats import clip_retrieval, curator, datacomp, npy, semdedup
from spark_dbp.io.formats.parts import Part, Range, find_schema, read_range, share_rows
from spark_dbp.lake import files
from spark_dbp.lake.table_files import map_in_threads

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import SparkSession

_FOLDERS: dict[str, Callable[..., list[Part]]] = {
    "clip_retrieval": clip_retrieval.find_parts,
    "datacomp": datacomp.find_parts,
    "semdedup": semdedup.find_parts,
    "curator": curator.find_parts,
}


@dataclass(frozen=True)
class Dataset:
    """A dataset as it was when it was looked at. `open_dataset` makes it.

    Attributes
    ----------
    parts : list of Part
    schema : pyarrow.Schema
    files : list of (str, int, int)
        Path, bytes, and time of the last change of each file.
    """

    parts: list[Part]
    schema: pa.Schema
    files: list[tuple[str, int, int]]

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return sum(part.n_rows for part in self.parts)

    @property
    def n_bytes(self) -> int:
        """Bytes of the files."""
        return sum(size for _, size, _ in self.files)

    @property
    def digest(self) -> str:
        """Of paths, sizes and times of change of the files, and of the number of rows."""
        seen = json.dumps([self.n_rows, *self.files])
        return hashlib.sha256(seen.encode()).hexdigest()[:16]

    def plan_scan(self, spark: SparkSession, progress: str = "") -> FileScan:
        """Share the rows among tasks.

        Parameters
        ----------
        spark : SparkSession
        progress : str
            Directory in which workers note how many rows they have read; empty for none.
        """
        parts, tasks, schema = self.parts, share_rows(self.parts), self.schema

        def read(ranges: Sequence[Range], names: Mapping[str, str]) -> Iterator[pa.RecordBatch]:
            import pyarrow as pa

            wanted = list(dict.fromkeys(names.values()))
            with refuse_in_worker():
                for place in ranges:
                    for batch in read_range(parts[place.number], place, wanted):
                        columns = {
                            new: batch.column(name).cast(schema.field(name).type)  # of nulls alone
                            for new, name in names.items()
                        }
                        yield pa.RecordBatch.from_pydict(columns)

        return FileScan(spark, tasks, self.n_rows, progress, read)

    def plan_rows(self, spark: SparkSession, columns: Collection[str] | None = None) -> MappedRows:
        """The rows, which workers read.

        Parameters
        ----------
        spark : SparkSession
        columns : collection of str, optional
            Those that are wanted. By default all.
        """
        import pyarrow as pa

        names = [name for name in self.schema.names if columns is None or name in columns]
        source, function = self.plan_scan(spark).plan({name: name for name in names}, lambda batches: batches)
        schema = pa.schema([self.schema.field(name) for name in names])
        return MappedRows(source, function, from_arrow_schema(schema))


def open_dataset(form: str, paths: Sequence[str], options: Mapping[str, Any]) -> Dataset:
    """Find the files of a dataset, and see whether they go together. No row is read.

    Parameters
    ----------
    form : {"clip_retrieval", "datacomp", "semdedup", "curator", "npy"}
    paths : sequence of str
        Folders; for ``npy`` matrices.
    options : mapping
        As the format takes them (``input.options``).

    Returns
    -------
    Dataset

    Raises
    ------
    InputError
        When a file is missing, damaged, of a form that is not read, or does not go with its partner.
    """
    given = {name: value for name, value in options.items() if value is not None}
    parts: list[Part] = []
    if form == "npy":
        keys = given.pop("keys")
        for path, of_path in zip(paths, [keys] if isinstance(keys, str) else keys, strict=True):
            parts += npy.find_parts(path, keys=files.normalize(of_path), **given)
    else:
        for path in paths:
            _check_folder(path)
            parts += _FOLDERS[form](files.normalize(path), **given)
    if not sum(part.n_rows for part in parts):
        raise InputError(f"{', '.join(paths)}: there are no rows", mend="check the path")
    names = sorted({file.path for part in parts for file in part.files})
    seen = map_in_threads(files.look_up, names)
    return Dataset(parts, find_schema(parts), [(name, *one) for name, one in zip(names, seen, strict=True)])


def _check_folder(path: str) -> None:
    if not files.exists(files.normalize(path)):
        raise InputError(f"there is no folder {path}", mend="check the path")
