"""The tables of a finished run, as `verify` reads them.

Imports `columns`, `config_embed`, `engine`, `runs`, `lake`, `run_clusters`, `second_look` and a stage;
pyspark in functions.
"""

from __future__ import annotations

import json
from functools import cached_property
from typing import TYPE_CHECKING

from spark_dbp.columns import KEY
from spark_dbp.config_embed import MAIN
from spark_dbp.engine.arrow import CommittedTable
from spark_dbp.engine.compat import collect_rows
from spark_dbp.engine.session import TIME_ZONE
from spark_dbp.engine.table_writer import read_frame
from spark_dbp.explore.run_clusters import RunClusters
from spark_dbp.explore.second_look import choose_other_engine
from spark_dbp.lake.marks import FinishedStep
from spark_dbp.stages.check_samples import bad_samples, good_samples

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

    from spark_dbp.runs import Run


_EXAMPLES = 5


class RunTables:
    """The tables of a run, as the checks read them."""

    def __init__(self, run: Run, spark: SparkSession) -> None:
        self.run, self.spark = run, spark
        self.steps = {name: FinishedStep(**step) for name, step in run.document["stages"].items()}
        self.config = run.config()

    @cached_property
    def _others(self) -> dict[str, str | None]:
        """By the engine that made a step, the other one; None where that cannot read the run."""
        made = {self.steps[name].engine for name in ("cluster_stats", "select")}
        read = [self.run.list_files(table)[0] for table in ("assignments", "keep_list")]
        return {engine: choose_other_engine(self.spark, engine, read) for engine in made}

    def read(self, table: str) -> DataFrame:
        """A table, without a look into its files where run.json tells their columns."""
        from pyspark.sql.types import StructType

        steps = self.steps.values()
        schema = next((step.schemas.get(table) for step in steps if table in step.tables), None)
        known = StructType.fromJson(json.loads(schema)) if schema else None
        return read_frame(self.spark, self.run.table_path(table), known)

    def say_how(self, step: str) -> str:
        """For the name of a check: the engine that computes a step again."""
        engine = self.steps[step].engine
        other = self._others[engine]
        return f", by engine {other} (not {engine or 'arrow'})" if other else f", by engine {engine} again"

    def open(self, table: str, step: str) -> CommittedTable | DataFrame:
        """A table as the engine reads it that did not make `step`, where it can."""
        engine = self.steps[step].engine
        frame = self.run.table(table, self.spark)
        if (self._others[engine] or engine) == "sql":
            return frame
        names = tuple(path.rpartition("/")[2] for path in self.run.list_files(table))
        return CommittedTable(self.spark, self.run.table_path(table), frame, names=names)

    @property
    def lack_the_other_engine(self) -> bool:
        """Whether some step is computed again only by the engine that made it."""
        return None in self._others.values()

    @property
    def first_step(self) -> str:
        """The step that reads the input and leaves bad rows out."""
        return f"embed_{MAIN}" if self.config.embeds_main else "ingest"

    @cached_property
    def clusters(self) -> RunClusters:
        """The clusters, also those without samples."""
        return RunClusters(self.run)

    def without_duplicates(self, rows: DataFrame) -> DataFrame:
        """Rows of samples, but for those that deduplication left out."""
        if "duplicates" not in self.run.document["tables"]:
            return rows
        return rows.join(self.read("duplicates").select(KEY), KEY, "left_anti")

    def left_out_by_score(self) -> DataFrame | None:
        """Keys of samples that are no duplicates and not in the table `filtered`; None without a filter."""
        if "filtered" not in self.run.document["tables"]:
            return None
        rest = self.without_duplicates(self.good_samples().select(KEY))
        return rest.join(self.read("filtered").select(KEY), KEY, "left_anti")

    def good_samples(self) -> DataFrame:
        return good_samples(self.read("samples"), self.steps["ingest"].info["dimension"])

    def bad_samples(self) -> DataFrame:
        """``key`` and ``problem`` of bad rows, as far as the run's tables hold them."""
        return bad_samples(self.read("samples"), self.steps["ingest"].info["dimension"])


def read_zone(run: Run) -> str:
    """The time zone in which SQL of a run was evaluated; versions that do not say it used UTC."""
    return str(run.document.get("session", {}).get(TIME_ZONE, "UTC"))


def show_examples(rows: DataFrame) -> str:
    """Some keys of rows that should not be there, for a message; of rows without keys, their first column."""
    from pyspark.sql import functions as F

    name = KEY if KEY in rows.columns else rows.columns[0]
    found = collect_rows(rows.select(F.col(name).cast("string")).orderBy(name).limit(_EXAMPLES))
    return ", ".join(repr((row[0] or "null")[:80]) for row in found)
