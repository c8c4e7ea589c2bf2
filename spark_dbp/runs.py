"""Read a finished run.

Imports `config`, `hints`, `lake`, `kernels.vectors`, `run_plots` and `secrets`; `loaders.keep_trie` and
`engine.storage` inside functions. Only methods that return DataFrames need pandas or pyspark.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from spark_dbp._version import __version__
from spark_dbp.config import RunConfig
from spark_dbp.errors import ConfigError, InputError, SparkDbpError
from spark_dbp.hints import list_hints
from spark_dbp.kernels.vectors import split_centroids_table
from spark_dbp.lake import files, parquet_files, paths
from spark_dbp.lake.marks import FORMAT_VERSION, describe_version
from spark_dbp.lake.mounts import split_root
from spark_dbp.lake.published import read_published
from spark_dbp.lake.store import RUN_JSON
from spark_dbp.run_plots import RunPlots
from spark_dbp.secrets import HIDDEN

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pandas as pd
    from pyspark.sql import DataFrame, SparkSession

    from spark_dbp.loaders.keep_trie import KeepTrie


# How the summary puts what was kept within the quotas.
_WHICH = {
    "hard": "hard first",
    "easy": "easy first",
    "random": "at random (by a hash of the key)",
    "stratified": "stratified (evenly over the distances)",
}
# Sections that every run.json must have.
_PARTS = ("tables", "summary", "stages", "config", "accounting")


class Run(RunPlots):
    """A finished run.

    Attributes
    ----------
    path : str
        The run directory.
    document : dict
        Content of ``run.json``.
    """

    def __init__(self, path: str, document: dict[str, Any]) -> None:
        self.path = path
        self.document = document

    def config(self) -> RunConfig:
        """The configuration of the run.

        It lacks secrets, because these are never written to run.json. The session must have its own.
        """
        values = dict(self.document["config"])
        values["spark"] = {name: value for name, value in values["spark"].items() if value != HIDDEN}
        values["prune"] = {name: value for name, value in values["prune"].items() if value is not None}
        return RunConfig.from_dict(values, source=f"{self.path}/{RUN_JSON}")

    def reach_storage(self, spark: SparkSession) -> None:
        """See that this process reaches the tables of the run, through `spark` where it cannot by itself.

        Raises
        ------
        ConfigError
            When it does not reach them.
        """
        from spark_dbp.engine.storage import reach_storage

        tables = [self.table_path(table) for table in self.document["tables"]]
        remote = [path for path in (*tables, self.path) if not files.is_local(path)]
        for path in {split_root(path)[0]: path for path in remote}.values():  # one for each store
            reach_storage(spark, path, "run")

    def table_path(self, table: str) -> str:
        """Path of a table.

        Raises
        ------
        InputError
            When the run has no such table.
        """
        tables = self.document["tables"]
        if table not in tables:
            raise InputError(f"{self.path} has no table {table!r}", mend=f"it has: {', '.join(tables)}")
        return files.resolve(self.path, tables[table])

    def list_files(self, table: str) -> list[str]:
        """Paths of the files of a table."""
        steps = self.document["stages"].values()
        names = next(step.get("files", {}).get(table, {}) for step in steps if table in step["tables"])
        return [files.join(self.table_path(table), name) for name in names]

    def table(self, name: str, spark: SparkSession) -> DataFrame:
        """Any Parquet table of the run as a DataFrame."""
        return spark.read.parquet(paths.to_spark_source(self.table_path(name)))

    def keep_list(self, spark: SparkSession) -> DataFrame:
        """Kept samples: ``key``, ``cluster_id``, ``distance_to_centroid``, ``rank``."""
        return self.table("keep_list", spark)

    def assignments(self, spark: SparkSession) -> DataFrame:
        """All samples: ``key``, ``cluster_id``, ``distance_to_centroid``."""
        return self.table("assignments", spark)

    def cluster_stats(self) -> pd.DataFrame:
        """Size, d_intra, d_inter, complexity and distance histogram of every cluster."""
        return parquet_files.read_parquet(self.table_path("cluster_stats")).to_pandas()

    def quotas(self) -> pd.DataFrame:
        """Weight, target and quota of every cluster."""
        return parquet_files.read_parquet(self.table_path("quotas")).to_pandas()

    def centroids(self) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
        """Cluster ids, shape (k,), and centroids, shape (k, dim), unit norm."""
        return split_centroids_table(parquet_files.read_parquet(self.table_path("centroids")))

    def keep_trie(self) -> KeepTrie:
        """The kept keys as a set on disk."""
        from spark_dbp.loaders.keep_trie import KeepTrie

        return KeepTrie.open(self.table_path("keep_trie"))

    def duplicates(self, spark: SparkSession) -> DataFrame:
        """Duplicates that were left out: ``key``, ``duplicate_of``, ``method``, ``similarity``."""
        return self.table("duplicates", spark)

    def semantic_sweep(self) -> list[dict[str, Any]]:
        """How many samples each eps would remove: ``eps``, ``removed``, ``share``, ``applied``.

        Raises
        ------
        InputError
            When the run had no semantic deduplication.
        """
        step = self.document["stages"].get("semantic_dedup")
        if step is None:
            raise InputError(
                f"{self.path} had no semantic deduplication",
                mend="run the job with dedup.semantic, for example eps: [0.02, 0.05, 0.1]",
            )
        info = step["info"]
        return [{**row, "applied": row["eps"] == info["eps"]} for row in info["sweep"]]

    def published(self) -> dict[str, str]:
        """Names of the catalog tables that hold this run (``output.table``), by its own tables.

        Empty for a run that was not published, or not wholly.
        """
        named = read_published(self.path).get(self.document["config"].get("output", {}).get("table"), {})
        return dict(named["tables"]) if named.get("run_id") == self.document["run_id"] else {}

    def summary(self) -> RunSummary:
        """What the run did. It prints as a short text, and shows as a table in a notebook."""
        return RunSummary(self)

    def __repr__(self) -> str:
        return f"Run({self.path!r})"

    def _repr_html_(self) -> str:
        from html import escape

        return f"<div><code>{escape(self.path)}</code></div>{self.summary()._repr_html_()}"


class RunSummary:
    """What a run did, for people. ``items`` has it as pairs of a label and a text, ``hints`` what is odd."""

    def __init__(self, run: Run) -> None:
        document, summary = run.document, run.document["summary"]
        account = document["accounting"]
        dropped = [f"{rows:,} {reason}" for reason, rows in account["dropped"].items() if rows]
        kept, reached = account["kept"], summary["rows_to_prune"]
        dimension = document["stages"].get("ingest", {}).get("info", {}).get("dimension")
        which = _WHICH.get(summary["which_to_keep"], summary["which_to_keep"])
        self.items: list[tuple[str, str]] = [
            ("rows in", f"{account['rows_in']:,}"),
            ("rows out", f"{', '.join(dropped) or 'none'}"),
            *([("embeddings", f"{dimension:,} dimensions")] if dimension else []),
            ("clusters", f"{summary['clusters']:,} (sizes {_span(summary['cluster_sizes'])})"),
            ("kept", f"{kept:,} of {reached:,} ({kept / reached:.1%}), {which}"),
            ("quotas", f"{_span(summary['quotas'])}; {summary['saturated']:,} clusters kept whole, "
                       f"{summary['at_floor']:,} at their floor"),
            ("distance", f"mean {summary['mean_distance']:.4f} to the centroid, "
                         f"{summary['mean_distance_kept']:.4f} among the kept"),
            ("digest", f"{document['digests']['keep_list']} (of the keep list)"),
        ]  # fmt: skip
        self.hints = list_hints(document)
        self.items += [("hint", hint) for hint in self.hints]
        self.tables = [(name, run.table_path(name)) for name in document["tables"]]
        self.published = list(run.published().items())

    def __str__(self) -> str:
        lines = [f"{label:<12}{text}" for label, text in self.items]
        lines += ["tables", *(f"  {name:<22}{path}" for name, path in self.tables)]
        if self.published:
            lines += ["published", *(f"  {name:<22}{table}" for name, table in self.published)]
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        from html import escape

        rows = "".join(
            f"<tr><th style='text-align:left'>{escape(label)}</th>"
            f"<td style='text-align:left'>{escape(text)}</td></tr>"
            for label, text in self.items
        )
        return f"<table>{rows}</table>"


def _span(pair: list[int]) -> str:
    return f"{pair[0]:,} to {pair[1]:,}"


def open_run(path: str | os.PathLike[str], spark: SparkSession | None = None) -> Run:
    """Open a finished run.

    Parameters
    ----------
    path : str or path
        The run directory; local or a URI.
    spark : SparkSession, optional
        For a store that this process cannot open by itself: the files are read through this session.

    Returns
    -------
    Run

    Raises
    ------
    InputError
        When there is no finished run.
    ConfigError
        When the store is not reached.

    Examples
    --------
    >>> open_run("/no/such/run")
    Traceback (most recent call last):
    ...
    spark_dbp.errors.InputError: no finished run at /no/such/run: there is no run.json
      to mend it: give the directory that output.path named; a run that was cut off has no run.json yet
    """
    base = files.normalize(path)
    file = files.join(base, RUN_JSON)
    if spark is not None:
        from spark_dbp.engine.storage import reach_storage

        reach_storage(spark, base, "run")
    if not _exists(file):
        raise InputError(
            f"no finished run at {base}: there is no {RUN_JSON}",
            mend="give the directory that output.path named; a run that was cut off has no run.json yet",
        )
    try:
        document = json.loads(files.read_bytes(file))
        format_version = document.get("format_version", 1)
        if type(format_version) is not int or format_version < 1:
            raise TypeError
        if not all(isinstance(document[part], dict) for part in _PARTS):
            raise TypeError
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{file} is not a run.json of this program", mend="run the job again") from None
    if format_version > FORMAT_VERSION:
        made_by = describe_version(document.get("spark_dbp"), format_version)
        raise InputError(
            f"{base} was made by {made_by}; this is {describe_version(__version__, FORMAT_VERSION)}",
            mend=f"open it with spark-dbp {document.get('spark_dbp')} or a later one",
        )
    return Run(base, document)


def _exists(file: str) -> bool:
    try:
        return files.exists(file)
    except SparkDbpError as error:
        raise ConfigError(
            f"run {file}: this process does not reach it: {error.what}",
            mend="give it rights there, or pass a Spark session that has them: open_run(path, spark)",
        ) from None
