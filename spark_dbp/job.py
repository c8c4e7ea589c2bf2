"""What a run has in hand: session, configuration, input, run directory; how it reads and writes tables.

Imports `config`, `steps`, `engine`, `io`, `lake`, kernels and the names of ingest's columns; no other stage.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from spark_dbp.columns import KEY, PROBLEM, VECTOR, name_carried
from spark_dbp.config import RunConfig
from spark_dbp.config_embed import EmbedConfig
from spark_dbp.engine.arrow import CommittedTable
from spark_dbp.engine.compat import column, read_setting
from spark_dbp.engine.mapped_rows import Count, MappedRows, to_frame
from spark_dbp.engine.probe import EngineChoice, can_workers_read
from spark_dbp.engine.session import bound_batches, describe_jobs
from spark_dbp.engine.spark_errors import translate_errors
from spark_dbp.engine.table_writer import (
    WrittenTable,
    check_equal,
    read_frame,
    write_small_table,
    write_table,
)
from spark_dbp.errors import SparkDbpError
from spark_dbp.io.centroids import GivenCentroids
from spark_dbp.io.shards import Shard, digest_shards
from spark_dbp.io.sources import Source
from spark_dbp.kernels.vectors import split_centroids_table
from spark_dbp.lake import files, parquet_files
from spark_dbp.lake.marks import FinishedStep
from spark_dbp.lake.mounts import split_root
from spark_dbp.lake.store import RunDirectory, StepWriter
from spark_dbp.stages.check_samples import estimate_row_bytes, good_samples
from spark_dbp.steps import INPUT, SHARDS, Facts, Needs, Step, resolve_needs

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa
    from pyspark.sql import Column, DataFrame, SparkSession


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
        # Of a WebDataset, the shards; of `embed`, what was seen once.
        self.shards: list[Shard] = []
        self.checked_keys: dict[str, int] | None = None
        self._identities: dict[str, dict[str, Any]] = {}
        self._reached: dict[Any, bool] = {}
        self._when_marked: list[Callable[[], None]] = []

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

        reads_input = INPUT in step.needs.sources or SHARDS in step.needs.sources
        title = step.title.format(**self._all_info())
        bounded = bound_batches(self.spark, self._estimate_row_bytes())
        self._title = f"spark-dbp {step.name}: {title}"
        described = describe_jobs(self.spark, self._title)
        reading = self.source_name if reads_input else ""
        translated = translate_errors(reading, own=self.directory.path)
        with bounded, described, translated:
            finished = self.directory.reuse_or_build(
                step.name,
                title,
                self.resolve(step.needs),
                build,
                self._count_rows_of(step),
            )
        while self._when_marked:
            self._when_marked.pop()()
        return finished

    def do_when_marked(self, action: Callable[[], None]) -> None:
        """Let `action` be done when the step at work is finished and marked."""
        self._when_marked.append(action)

    def _count_rows_of(self, step: Step) -> int:
        """Rows that a step goes over; 0 where that is not known yet."""
        if SHARDS in step.needs.sources:
            return 0
        if INPUT in step.needs.sources:
            return self.source.snapshot.rows
        return self.count_rows(step.needs.tables[0])

    def _describe(self, what: str) -> AbstractContextManager[None]:
        """Say in Spark's UI what jobs of the step at work are for."""
        return describe_jobs(self.spark, f"{self._title} ({what})")

    def _estimate_row_bytes(self) -> float:
        """About how many bytes a row takes in memory: of the samples, or before them of the input."""
        try:
            return estimate_row_bytes(self.info("samples"))
        except KeyError:
            return self._source.snapshot.bytes_per_row if self._source is not None else 0.0

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
        return resolve_needs(
            needs,
            Facts(
                snapshot_input=lambda: asdict(self.source.snapshot),
                digest_shards=lambda: digest_shards(self.shards),
                snapshot_centroids=lambda: self.given_centroids.take_snapshot(),
                identify_encoder=lambda name: without_place(self.identify_encoder(name)),
                name_type=lambda name: self.source.frame.schema[name].dataType.simpleString(),
                read_setting=lambda name: read_setting(self.spark, name),
                value_at=self.config.value_at,
                hash_table=lambda table: self._step_of(table).hash_table(table),
            ),
        )

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

    @source.setter
    def source(self, source: Source) -> None:
        self._source = source

    @property
    def source_name(self) -> str:
        """The setting that names the input, and its value, for messages."""
        if self.config.shards:
            return f"{SHARDS} {', '.join(self.config.shards)}"
        return self.source.name

    def find_embed(self, name: str) -> EmbedConfig:
        """The section of ``embed`` of this name."""
        return next(section for section in self.config.embed if section.name == name)

    def identify_encoder(self, name: str) -> dict[str, Any]:
        """What makes the vectors of the encoder of a section what they are; looked at once in a run."""
        from spark_dbp.encoders import EncoderSettings
        from spark_dbp.stages.embed import identify

        if name not in self._identities:
            with translate_errors():
                settings = EncoderSettings.from_config(self.find_embed(name))
                self._identities[name] = identify(self.spark, settings)
        return self._identities[name]

    def workers_read(self, path: str) -> bool:
        """Whether Python workers can read a file themselves; looked at once for a store."""
        root = files.is_local(path) or split_root(path)[0]
        if root not in self._reached:
            self._reached[root] = can_workers_read(self.spark, path)
        return self._reached[root]

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

    def measure_bytes(self, table: str) -> int:
        """Bytes of the files of a table."""
        return int(self._step_of(table).bytes[table])

    def digest_keys(self, table: str) -> str:
        """Digest of the keys of a table; of ``samples`` those of the good rows."""
        step = self._step_of(table)
        return str(step.info["keys"] if table == "samples" else step.key_digests[table])

    def _read_all(self, table: str) -> DataFrame:
        from pyspark.sql.types import StructType

        schema = self._step_of(table).schemas.get(table)
        known = StructType.fromJson(json.loads(schema)) if schema else None
        return read_frame(self.spark, self._path_of(table), known)

    def list_columns(self, table: str) -> list[str]:
        """Names of all columns of a table."""
        return list(self._read_all(table).columns)

    def read_table(self, table: str) -> DataFrame:
        """A table as a DataFrame; of ``samples`` the good rows."""
        frame = self._read_all(table)
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
            has_problems=is_samples
            and bool(self.info(table)["dropped"])
            and PROBLEM in self.list_columns(table),
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

    def find_column(self, name: str) -> str:
        """Under which name a column of the input travels in the tables of samples."""
        return KEY if name == str(self.config.input.key) else str(self.info("samples")["carried"][name])

    def read_small_table(self, table: str) -> pa.Table:
        """A table of O(k) rows, on the driver."""
        return parquet_files.read_parquet(self._path_of(table))

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
        totals: Mapping[str, Column] | None = None,
        count: Count | None = None,
        n_keys: int | None = None,
    ) -> WrittenTable:
        """Write `rows` to a new directory of the step at work, and see what lies there.

        Parameters
        ----------
        table : str
        rows : DataFrame or MappedRows
        expected_rows : int, optional
        expected_keys : str, optional
            Digest of the keys that must be there, each as often.
        totals, count, n_keys
            As for `engine.table_writer.write_table`.

        Returns
        -------
        WrittenTable

        Raises
        ------
        SparkDbpError
            When something else was written.
        """
        path = self._at_work.new_directory(table)
        written = write_table(
            self.spark,
            table,
            to_frame(rows) if self.engine.name == "sql" else rows,
            path,
            describe=self._describe,
            totals=totals or {},
            count=count,
            n_keys=n_keys,
        )
        check_equal(table, "rows", written.rows, expected_rows)
        check_equal(table, "digest of keys", written.key_digest, expected_keys)
        self._report(table, written)
        return written

    def write_small_table(self, table: str, content: pa.Table) -> None:
        """Write a table of O(k) rows from the driver, and read it back there."""
        self._report(table, write_small_table(self.spark, table, content, self._at_work.new_directory(table)))

    def _report(self, table: str, written: WrittenTable) -> None:
        self._at_work.report(
            table,
            written.rows,
            written.digest,
            written.key_digest or None,
            names=written.names,
            schema=written.frame.schema.json(),
        )

    def share_table(self, table: str, of: str) -> None:
        """Let the step at work have `table` in the files of the table `of`, which an earlier step wrote."""
        self._at_work.share(table, self._step_of(of), of)

    def new_directory(self, name: str) -> str:
        """A directory of the step at work, for a table or for what is needed on the way."""
        return self._at_work.new_directory(name)

    def delete_directory(self, name: str) -> None:
        """Delete a directory that was only needed on the way."""
        self._at_work.discard(name)

    def report_table(self, table: str, n_rows: int, names: list[str]) -> None:
        """Record the rows and the names of the files of a table that was written by other means."""
        self._at_work.report(table, n_rows, names=names)


def without_place(identity: Mapping[str, Any]) -> dict[str, Any]:
    """What vectors depend on of the identity of an encoder: not where its files are, nor the device."""
    return {name: value for name, value in identity.items() if name not in ("encoder", "device")}


def carry_columns(names: list[str]) -> dict[str, str]:
    """Under which name in ``samples`` each column travels.

    Examples
    --------
    >>> carry_columns(["caption", "sha256"])
    {'caption': 'column_0', 'sha256': 'column_1'}
    """
    return {name: name_carried(number) for number, name in enumerate(names)}
