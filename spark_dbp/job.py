"""What a run has in hand: session, configuration, input, run directory; how it reads and writes tables.

Imports `config`, `steps`, `engine`, `io`, `lake`, kernels and the names of ingest's columns; no other stage.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from spark_dbp.columns import KEY, VECTOR, name_carried
from spark_dbp.config import RunConfig
from spark_dbp.engine.arrow import (
    CommittedTable,
    MappedRows,
    WrittenFile,
    list_file_names,
    to_frame,
    write_rows,
)
from spark_dbp.engine.compat import column, from_arrow_schema, open_reader, read_setting, to_arrow_schema
from spark_dbp.engine.probe import EngineChoice
from spark_dbp.engine.session import bound_batches, describe_jobs
from spark_dbp.engine.spark_errors import translate_errors
from spark_dbp.errors import SparkDbpError
from spark_dbp.io.centroids import GivenCentroids
from spark_dbp.io.sources import Source
from spark_dbp.kernels.row_hash import digest_rows, write_digest
from spark_dbp.kernels.vectors import split_centroids_table
from spark_dbp.lake import files, paths
from spark_dbp.lake.digest import digest_and_sum
from spark_dbp.lake.store import FinishedStep, RunDirectory, StepWriter
from spark_dbp.lake.table_files import read_footers
from spark_dbp.stages.ingest import estimate_row_bytes, good_samples
from spark_dbp.steps import CENTROIDS, INPUT, Needs, Step

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa
    from pyspark.sql import Column, DataFrame, SparkSession
    from pyspark.sql.types import StructType


@dataclass(frozen=True)
class Total:
    """A sum over the rows of a table, taken while it is written or read back.

    Attributes
    ----------
    column : Column
        Whole numbers, as Spark computes them.
    count : callable
        Their sum over a pyarrow Table of rows.
    """

    column: Column
    count: Callable[[pa.Table], int]


@dataclass(frozen=True)
class WrittenTable:
    """What is known of a table that a step wrote.

    Attributes
    ----------
    frame : DataFrame
        The table.
    rows : int
    digest : str
        Of all columns.
    key_digest : str
        Of the column ``key`` alone; empty for a table without it.
    totals : dict of str to int
        Sums of whole numbers that the writer asked for.
    """

    frame: DataFrame
    rows: int
    digest: str
    key_digest: str = ""
    totals: dict[str, int] = field(default_factory=dict)


class Job:
    """A run under way.

    Parameters
    ----------
    config : RunConfig
    spark : SparkSession
    directory : RunDirectory
    engine : EngineChoice
    source : Source, optional
        The input; None where nothing is read from it any more.
    """

    def __init__(
        self,
        config: RunConfig,
        spark: SparkSession,
        directory: RunDirectory,
        engine: EngineChoice,
        source: Source | None = None,
    ) -> None:
        self.config = config
        self.spark = spark
        self.directory = directory
        self.engine = engine
        self._source = source
        self._writer: StepWriter | None = None
        self._title = ""

    # Steps.

    def carry_out(self, step: Step) -> FinishedStep:
        """Carry a step out, or take its result of an earlier run that depends on the same.

        Raises
        ------
        SparkDbpError
            With a message that names what is wrong and what mends it. Nothing of the step is committed then.
        """

        def build(writer: StepWriter) -> None:
            self._writer = writer
            writer.step.engine = self.engine.name
            try:
                step.build(self)
            finally:
                self._writer = None
            if set(writer.step.tables) != set(step.writes):
                raise SparkDbpError(
                    f"step {step.name} wrote {sorted(writer.step.tables)}, not {sorted(step.writes)}",
                    mend="please report this as a bug",
                )

        reads_input = INPUT in step.needs.sources
        title = step.title.format(**self._all_info())
        bounded = bound_batches(self.spark, self._estimate_row_bytes())
        self._title = f"spark-dbp {step.name}: {title}"
        described = describe_jobs(self.spark, self._title)
        translated = translate_errors(self.source.name if reads_input else "", own=self.directory.path)
        with bounded, described, translated:
            return self.directory.reuse_or_build(
                step.name,
                title,
                self.resolve(step.needs),
                build,
                self.source.snapshot.rows if reads_input else self.count_rows(step.needs.tables[0]),
            )

    def _describe(self, what: str) -> AbstractContextManager[None]:
        """Say in Spark's UI what jobs of the step at work are for."""
        return describe_jobs(self.spark, f"{self._title} ({what})")

    def _estimate_row_bytes(self) -> float:
        """About how many bytes a row takes in memory: of the samples, or before them of the input."""
        try:
            return estimate_row_bytes(self.info("samples"))
        except KeyError:
            return self.source.snapshot.bytes_per_row

    def why_anew(self, step: Step) -> str | None:
        """Why a step would be computed and not reused; None when it would be reused.

        Asked before the steps that write what it needs have been carried out, it cannot be answered.

        Raises
        ------
        KeyError
            Then.
        """
        return self.directory.why_anew(step.name, self.resolve(step.needs))

    def resolve(self, needs: Needs) -> dict[str, Any]:
        """What a step needs, as it is now, by the name that a message gives it; JSON.

        Raises
        ------
        KeyError
            When an earlier step that writes a table of it has not been carried out.
        """
        found: dict[str, Any] = {}
        if INPUT in needs.sources:
            found["the input"] = asdict(self.source.snapshot)
        if CENTROIDS in needs.sources:
            found["the content of input.centroids"] = self.given_centroids.take_snapshot()
        for name in needs.columns:
            data_type = self.source.frame.schema[name].dataType
            found[f"the type of column {name}"] = data_type.simpleString()
        found |= {name: read_setting(self.spark, name) for name in needs.session}
        found |= {path: self.config.value_at(path) for path in needs.settings}
        found |= {f"table {table}": self._step_of(table).hash_table(table) for table in needs.tables}
        return found

    def note(self, **info: Any) -> None:
        """Write down what the step at work found, for later steps and reports; JSON."""
        self._at_work.step.info.update(info)

    def info(self, table: str) -> Mapping[str, Any]:
        """What the step that wrote `table` found."""
        return self._step_of(table).info

    @property
    def _at_work(self) -> StepWriter:
        if self._writer is None:
            raise RuntimeError("no step is at work")
        return self._writer

    def _step_of(self, table: str) -> FinishedStep:
        for step in self.directory.steps.values():
            if table in step.tables:
                return step
        raise KeyError(table)

    def _all_info(self) -> dict[str, Any]:
        return {name: value for step in self.directory.steps.values() for name, value in step.info.items()}

    # What is read from outside.

    @property
    def source(self) -> Source:
        """The input."""
        if self._source is None:
            raise RuntimeError("nothing is read from the input in this run")
        return self._source

    @property
    def given_centroids(self) -> GivenCentroids:
        """The centroids that the user brings."""
        assert self.config.input.centroids is not None
        return GivenCentroids(self.spark, self.config.input.centroids)

    # Tables of the run.

    def count_rows(self, table: str) -> int:
        """Rows of a table; of ``samples`` the good ones."""
        step = self._step_of(table)
        return int(step.info["n_rows"] if table == "samples" else step.rows[table])

    def digest_keys(self, table: str) -> str:
        """Digest of the keys of a table; of ``samples`` those of the good rows."""
        step = self._step_of(table)
        return str(step.info["keys"] if table == "samples" else step.key_digests[table])

    def _read(self, path: str, schema: StructType | None = None) -> DataFrame:
        """The Parquet files of a directory. Without a schema, Spark starts a job to look for it."""
        reader = open_reader(self.spark)
        return (reader if schema is None else reader.schema(schema)).parquet(paths.to_spark_source(path))

    def read_table(self, table: str) -> DataFrame:
        """A table as a DataFrame; of ``samples`` the good rows."""
        from pyspark.sql.types import StructType

        schema = self._step_of(table).schemas.get(table)
        frame = self._read(self._path_of(table), StructType.fromJson(json.loads(schema)) if schema else None)
        return good_samples(frame, self.info(table)["dimension"]) if table == "samples" else frame

    def open_table(self, table: str) -> CommittedTable | DataFrame:
        """A table as the engine reads it; of ``samples`` the good rows.

        Workers read a `CommittedTable` themselves. What stages do with a DataFrame, they do through Spark.
        """
        if self.engine.name == "sql":
            return self.read_table(table)
        is_samples = table == "samples"
        return CommittedTable(
            self.spark,
            self._path_of(table),
            self.read_table(table),
            dimension=self.info(table)["dimension"] if is_samples else None,
            has_problems=is_samples and bool(self.info(table)["dropped"]),
            progress=self.directory.progress,
            names=tuple(self._step_of(table).files[table]),
        )

    def open_vectors(self, table: str) -> CommittedTable | DataFrame:
        """The samples whose keys are in `table`, with their vectors.

        Where `table` has the vectors itself, workers may read it; else they are those of ``samples``.
        """
        frame = self.read_table(table)
        if VECTOR in frame.columns:
            return self.open_table(table)
        return self.read_table("samples").join(frame.select(KEY), KEY, "left_semi")

    def read_as_input(self, table: str) -> DataFrame:
        """Keys and carried columns of `table`, under the names that they have in the input."""
        frame = self.read_table(table)
        key = str(self.config.input.key)
        carried = {
            name: column(carried).alias(name)
            for name, carried in self.info("samples")["carried"].items()
            if carried in frame.columns
        }
        return frame.select(column(KEY).alias(key), *carried.values())

    def read_small_table(self, table: str) -> pa.Table:
        """A table of O(k) rows, on the driver."""
        return files.read_parquet(self._path_of(table))

    def read_centroids(
        self, table: str = "centroids"
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
        """Cluster ids, shape (k,), and centroids, shape (k, dim)."""
        return split_centroids_table(self.read_small_table(table))

    def _path_of(self, table: str) -> str:
        return self.directory.at(self._step_of(table).tables[table])

    def write_table(
        self,
        table: str,
        rows: DataFrame | MappedRows,
        *,
        expected_rows: int | None = None,
        expected_keys: str | None = None,
        totals: Mapping[str, Total] | None = None,
    ) -> WrittenTable:
        """Write `rows` to a new directory of the step at work, and see what lies there.

        Columns, number of rows and keys are compared to what was to be written. Where workers write, they
        count and digest their rows on the way, and the footers of their files must agree. What Spark writes
        is read back. So what is committed is what lies there, whatever the tasks that wrote it went through.

        Parameters
        ----------
        table : str
        rows : DataFrame or MappedRows
        expected_rows : int, optional
        expected_keys : str, optional
            Digest of the keys that must be there, each as often.
        totals : mapping of str to Total, optional
            Sums to take on the way.

        Returns
        -------
        WrittenTable

        Raises
        ------
        SparkDbpError
            When something else was written.
        """
        path, totals = self._at_work.new_directory(table), totals or {}
        schema = rows.schema
        with self._describe(f"write {table}"):
            counts = {name: total.count for name, total in totals.items()}
            by_workers = write_rows(to_frame(rows) if self.engine.name == "sql" else rows, path, counts)
        if by_workers:
            _check_footers(table, path, schema, by_workers)
            written = _add_up(self._read(path, schema), by_workers)
            names = [file.name for file in by_workers]
        else:
            back = self._read(path)
            names = list_file_names(back)
            _check_equal(table, "columns", _describe_columns(back.schema), _describe_columns(schema))
            columns = [total.column for total in totals.values()]
            # The first pass over what was written, by which it is also known that it can be read.
            with self._describe(f"read {table} back"):
                n_rows, (digest, keys), sums = digest_and_sum(back, [back.columns, [KEY]], columns)
            written = WrittenTable(back, n_rows, digest, keys, dict(zip(totals, sums, strict=True)))
        _check_equal(table, "rows", written.rows, expected_rows)
        _check_equal(table, "digest of keys", written.key_digest, expected_keys)
        self._at_work.report(
            table, written.rows, written.digest, written.key_digest, names=names, schema=schema.json()
        )
        return written

    def write_small_table(self, table: str, content: pa.Table) -> None:
        """Write a table of O(k) rows from the driver, and read it back there."""
        path = self._at_work.new_directory(table)
        name = files.write_parquet(path, content)
        _check_equal(table, "files", files.list_names(path), [name])
        back = files.read_parquet(path)
        _check_equal(table, "content", back.equals(content), True)
        schema = from_arrow_schema(content.schema)
        self._at_work.report(table, back.num_rows, digest_rows(back), names=[name], schema=schema.json())

    def new_directory(self, name: str) -> str:
        """A directory of the step at work, for a table or for what is needed on the way."""
        return self._at_work.new_directory(name)

    def delete_directory(self, name: str) -> None:
        """Delete a directory that was only needed on the way."""
        self._at_work.discard(name)

    def report_table(self, table: str, n_rows: int, names: list[str]) -> None:
        """Record the rows and the names of the files of a table that was written by other means."""
        self._at_work.report(table, n_rows, names=names)


def carry_columns(names: list[str]) -> dict[str, str]:
    """Under which name in ``samples`` each column travels.

    Examples
    --------
    >>> carry_columns(["caption", "sha256"])
    {'caption': 'column_0', 'sha256': 'column_1'}
    """
    return {name: name_carried(number) for number, name in enumerate(names)}


def _describe_columns(schema: StructType) -> str:
    return ", ".join(f"{field.name} {field.dataType.simpleString()}" for field in schema)


def _add_up(frame: DataFrame, written: list[WrittenFile]) -> WrittenTable:
    """A table, from what workers counted of its files."""
    totals: Counter[str] = Counter()
    for file in written:
        totals.update(file.totals)
    digest, keys = (sum(getattr(file, name) for file in written) for name in ("digest", "key_digest"))
    n_rows = sum(file.rows for file in written)
    return WrittenTable(frame, n_rows, write_digest(digest), write_digest(keys), dict(totals))


def _check_footers(table: str, path: str, schema: StructType, written: list[WrittenFile]) -> None:
    """See that the files that workers wrote, and no others, lie in the directory of a table."""
    shown = [name for name in files.list_names(path) if not name.startswith(("_", "."))]
    names = [file.name for file in written]
    _check_files(table, shown, names)
    columns = to_arrow_schema(schema)
    for file, (n_rows, found) in zip(written, read_footers(path, names), strict=True):
        _check_equal(f"{table}, file {file.name!r}", "rows", n_rows, file.rows)
        _check_equal(f"{table}, file {file.name!r}", "columns", found.equals(columns), True)


def _check_files(table: str, found: list[str], written: list[str]) -> None:
    for name in sorted(set(found) ^ set(written)):
        raise SparkDbpError(
            f"table {table}: file {name!r} was "
            + ("not written, and lies there" if name in found else "written, and is not there"),
            mend="something else wrote to the run directory, or this is a bug: run again, then report it",
        )


def _check_equal(table: str, what: str, found: Any, expected: Any) -> None:
    if expected is not None and found != expected:
        raise SparkDbpError(
            f"table {table} has {what} {found} where {expected} was written",
            mend="something else wrote to the run directory, or this is a bug: run again, then report it",
        )
