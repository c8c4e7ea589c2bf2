"""A dataset in a format of others, whose rows workers read. Imports what is beside it, `engine` and `lake`.

pyspark inside functions.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from spark_dbp.engine.compat import BatchFunction, count_shuffle_partitions, from_arrow_schema
from spark_dbp.engine.file_scan import FileScan
from spark_dbp.engine.mapped_rows import MappedRows
from spark_dbp.engine.probe import can_workers_read
from spark_dbp.engine.spark_errors import refuse_in_worker
from spark_dbp.engine.whole_files import MOST_BYTES, bring_groups, iter_groups
from spark_dbp.errors import InputError
from spark_dbp.io.formats import clip_retrieval, curator, datacomp, npy, semdedup
from spark_dbp.io.formats.arrays import serve_contents
from spark_dbp.io.formats.parts import Part, Range, find_schema, read_range, share_rows
from spark_dbp.lake import files
from spark_dbp.lake.mounts import split_root
from spark_dbp.lake.table_files import map_in_threads

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import DataFrame, SparkSession

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
    by_spark : bool
        Whether Spark reads the files, because workers do not reach them.
    """

    parts: list[Part]
    schema: pa.Schema
    files: list[tuple[str, int, int]]
    by_spark: bool = False

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

    def choose_reader(self, spark: SparkSession) -> Dataset:
        """The same, with `by_spark` as it must be: tasks look whether they reach a file of each store.

        Raises
        ------
        InputError
            When only Spark reaches the files, and some are too large for it.
        """
        stores = {files.is_local(name) or split_root(name)[0]: name for name, *_ in self.files}
        if all(can_workers_read(spark, name) for name in stores.values()):
            return self
        self._check_brought()
        return replace(self, by_spark=True)

    def _check_brought(self) -> None:
        mend = "let workers reach the store themselves (a mount, credentials)"
        sizes, seen = {name: size for name, size, _ in self.files}, set[str]()
        for part in self.parts:
            paths = part.paths
            n_bytes = sum(sizes[path] for path in paths)
            if n_bytes > MOST_BYTES:
                raise InputError(
                    f"{', '.join(paths)}: {n_bytes:,} bytes, and Spark, which alone reaches them, brings at "
                    "most 1 GiB to a task",
                    mend=f"{mend}, or write smaller files",
                )
            if not seen.isdisjoint(paths):
                raise InputError(
                    f"{next(path for path in paths if path in seen)}: each cluster needs the whole file, and "
                    "only Spark reaches it, which would bring it to a task for each",
                    mend=mend,
                )
            seen.update(paths)

    def plan_scan(self, spark: SparkSession, progress: str = "") -> FileScan:
        """Share the rows among tasks, which read them.

        Parameters
        ----------
        spark : SparkSession
        progress : str
            Directory in which workers note how many rows they have read; empty for none.
        """
        tasks = share_rows(self.parts, count_shuffle_partitions(spark))
        return FileScan(spark, tasks, self.n_rows, progress, self._make_reader())

    def _make_reader(self) -> Callable[[Sequence[Range], Mapping[str, str]], Iterator[pa.RecordBatch]]:
        parts, schema = self.parts, self.schema

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

        return read

    def plan_rows(self, spark: SparkSession, names: Mapping[str, str] | None = None) -> MappedRows:
        """The rows, which workers make of the files.

        Parameters
        ----------
        spark : SparkSession
        names : mapping of str to str, optional
            Columns that are wanted, by the names that they get. By default all.
        """
        import pyarrow as pa

        given = {name: name for name in self.schema.names} if names is None else names
        schema = pa.schema([(new, self.schema.field(name).type) for new, name in given.items()])
        if self.by_spark:
            source, function = self._plan_brought(spark, given)
        else:
            source, function = self.plan_scan(spark).plan(given, lambda batches: batches)
        return MappedRows(source, function, from_arrow_schema(schema))

    def _plan_brought(self, spark: SparkSession, names: Mapping[str, str]) -> tuple[DataFrame, BatchFunction]:
        """What `mapInArrow` takes, where Spark brings the files of a part to a task."""
        read, parts = self._make_reader(), self.parts
        sizes = {name: size for name, size, _ in self.files}

        def over_files(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
            for number, brought in iter_groups(batches):
                part = parts[number]
                contents = {path: brought.get(path, b"") for path in part.paths}
                for path, content in contents.items():
                    if len(content) != sizes[path]:
                        raise InputError(f"{path} changed while it was read", mend="run again")
                with serve_contents(contents):
                    yield from read([Range(number, 0, part.n_rows)], names)

        def refuse(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
            with refuse_in_worker():
                yield from over_files(batches)

        return bring_groups(spark, [part.paths for part in parts]), refuse


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
    twice = [path for path, n in Counter(map(files.normalize, paths)).items() if n > 1]
    if twice:
        raise InputError(f"{twice[0]} is named twice", mend="name it once")
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
    names = sorted({path for part in parts for path in part.paths})
    seen = map_in_threads(files.look_up, names)
    return Dataset(parts, find_schema(parts), [(name, *one) for name, one in zip(names, seen, strict=True)])


def _check_folder(path: str) -> None:
    if not files.exists(files.normalize(path)):
        raise InputError(f"there is no folder {path}", mend="check the path")
