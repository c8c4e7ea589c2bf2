"""The input of a finished run, looked at once more: where keys lie, and rows that its tables do not hold.

Imports `pipeline`, `io`, `engine`, the stages `ingest` and `list_shards`, `runs` and `run_tables`; pyspark
inside functions.

Rows that `input.filter` left out are in no table of a run, and of clustered data bad rows are neither. Where
the input is still as the run read it, they are found there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from spark_dbp.columns import KEY, PROBLEM, SHARD
from spark_dbp.config_base import SqlColumn, name_column
from spark_dbp.engine.compat import column
from spark_dbp.engine.spark_errors import read_condition
from spark_dbp.engine.storage import reach_storage
from spark_dbp.errors import ConfigError, SparkDbpError
from spark_dbp.explore.run_tables import RunTables
from spark_dbp.io.other_sources import open_format, open_shards
from spark_dbp.io.shards import list_shards
from spark_dbp.io.sources import Snapshot, Source, open_source
from spark_dbp.kernels.samples import NULL_KEY
from spark_dbp.lake import files
from spark_dbp.pipeline import list_compared, plan_opening, plan_steps
from spark_dbp.secrets import redact
from spark_dbp.stages.ingest import ingest, to_sample_columns
from spark_dbp.stages.list_shards import add_json_fields

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

    from spark_dbp.config_base import ColumnOrSql

FILE, PASSES = "file", "passes"
FILTER = "input.filter"

_FILE = "spark_dbp_file"


@dataclass(frozen=True)
class GivenInput:
    """The input of a run as it is now. `reopen_input` makes it.

    Attributes
    ----------
    tables : RunTables
    name : str
        The setting and its value: ``input.path /data/x``.
    source : Source or None
        None where it cannot be read, or is not as the run read it.
    why_not : str
        Why `source` is None; else empty.
    """

    tables: RunTables
    name: str
    source: Source | None
    why_not: str = ""

    @property
    def _key(self) -> str:
        return str(self.tables.config.input.key)

    def find_keys(self, keys: DataFrame) -> DataFrame:
        """Where rows with some keys lie.

        Parameters
        ----------
        keys : DataFrame
            ``number`` and ``key``, few.

        Returns
        -------
        DataFrame
            ``number``; ``passes``: whether the filter lets the row through; ``file`` STRING, a path, or null
            where the input does not tell its files.
        """
        from pyspark.sql import functions as F

        source = self._source
        frame, predicate = _with_file(source), source.predicate
        passes = F.lit(True) if predicate is None else _is_true(predicate)
        rows = frame.select(
            to_sample_columns(frame, self._key)[0].alias(KEY), passes.alias(PASSES), F.col(_FILE).alias(FILE)
        )
        return rows.join(F.broadcast(keys), KEY).select("number", PASSES, FILE)

    def left_out_by_filter(self) -> DataFrame:
        """Keys of the rows that the filter did not let through."""
        source = self._source
        assert source.predicate is not None
        rows = source.frame.where(~_is_true(source.predicate))
        return rows.select(to_sample_columns(rows, self._key)[0].alias(KEY))

    def bad_rows(self) -> DataFrame:
        """``key`` and ``problem`` of bad rows that the run's tables do not hold."""
        from pyspark.sql import functions as F

        given, rows = self.tables.config.input, self._source.read_rows()
        if self.tables.config.embeds_main:
            keys = rows.select(to_sample_columns(rows, self._key)[0].alias(KEY))
            return keys.where(F.col(KEY).isNull()).select(KEY, F.lit(NULL_KEY).alias(PROBLEM))
        checked = ingest(
            rows,
            key=self._key,
            embedding=None,
            cluster_id=name_column(given.cluster_id),
            distance_to_centroid=name_column(given.distance_to_centroid),
        )
        return checked.where(F.col(PROBLEM).isNotNull()).select(KEY, PROBLEM)

    @property
    def _source(self) -> Source:
        if self.source is None:
            raise RuntimeError(self.why_not)
        return self.source


def reopen_input(tables: RunTables, more: Mapping[str, ColumnOrSql] | None = None) -> GivenInput:
    """Look at the input of a run once more, and see whether it is as the run read it.

    Files and shards are compared by their paths, sizes and times. A view does not list its files, so its rows
    are read for that: the columns that the run read.

    Parameters
    ----------
    tables : RunTables
    more : mapping of str to str or SqlColumn, optional
        Columns that are read beside those of the run, by the setting that names each.

    Returns
    -------
    GivenInput
        Also where the input is gone or cannot be read.

    Raises
    ------
    ConfigError
        When SQL of `more` is refused.
    """
    config, more = tables.config, more or {}
    name = f"{config.source_setting} {', '.join(config.shards or config.input.paths) or config.input.table}"
    name = redact(name)
    try:
        source = _open(tables, more)
    except SparkDbpError as error:
        if more and isinstance(error, ConfigError):
            raise
        return GivenInput(tables, name, None, f"{name} cannot be read any more: {error.what}")
    noted, now = tables.run.document["input"], asdict(source.snapshot)
    # The digest tells more than the bytes do, which of a view and of some tables are about.
    if any(now[field] != value for field, value in noted.items() if field in now and field != "bytes"):
        before = Snapshot(**{field: noted[field] for field in now if field in noted})
        alike = ", with other times, names or contents" if str(before) == str(source.snapshot) else ""
        why = f"{name} has changed since the run: {before} then, {source.snapshot} now{alike}"
        return GivenInput(tables, name, None, why)
    return GivenInput(tables, name, source)


def count_outside(tables: RunTables) -> dict[str, int]:
    """Rows left out of which the tables of a run hold no keys, by reason.

    Null keys of a run with `embed` are among them.
    """
    account, info = tables.run.document["accounting"]["dropped"], tables.steps["ingest"].info
    found = {FILTER: account[FILTER]} if account[FILTER] else {}
    if tables.config.embeds_main:
        return found | {name: n for name, n in info["dropped"].items() if name == NULL_KEY}
    if info["dropped"] and PROBLEM not in tables.read("samples").columns:
        found |= info["dropped"]
    return found


def _open(tables: RunTables, more: Mapping[str, ColumnOrSql]) -> Source:
    config, given, spark = tables.config, tables.config.input, tables.spark
    sql = [(setting, one.sql) for setting, one in more.items() if isinstance(one, SqlColumn)]
    how = plan_opening(config, plan_steps(config), [*config.list_sql(), *sql])
    of_run, known = how["columns"], {text for _, text in how["computed"]}
    how["columns"] = list(dict.fromkeys([*of_run, *map(str, more.values())]))
    how["computed"] = [*how["computed"], *((setting, text) for setting, text in sql if text not in known)]
    for path in config.shards or given.paths:
        reach_storage(spark, path, config.source_setting, is_needed=False)
    if config.shards:
        fields = tables.steps["list_shards"].info["json_fields"]
        listed = add_json_fields(tables.read("shard_samples"), fields)
        shards, n_rows = list_shards(spark, config.shards), tables.run.document["rows"]["shard_samples"]
        return open_shards(listed, shards, config.shards, n_rows, **how)
    if given.format != "parquet":
        return open_format(spark, given.format, given.paths, given.options.to_dict(), **how)
    compared = list_compared(config)
    where: dict[str, Any] = {"paths": given.paths, "table": given.table}
    return open_source(spark, **where, compared=compared, digested=of_run, **how)


def _is_true(predicate: str) -> Any:
    """Whether a condition of SQL is true of a row, and not false or null."""
    from pyspark.sql import functions as F

    return F.coalesce(F.expr(f"(\n{predicate}\n)"), F.lit(False))


def _with_file(source: Source) -> DataFrame:
    """All rows with the file that they are from, where Spark tells it; of shards the tar."""
    from pyspark.sql import functions as F

    given = source.given
    file = column(SHARD) if source.has_shards else F.col("_metadata.file_path")
    try:
        named = given.withColumn(_FILE, file)
        _ = named.schema
    except Exception as error:
        if not read_condition(error):
            raise
        named = given.withColumn(_FILE, F.lit(None).cast("string"))
    return source.compute(named)


def show_file(uri: str | None) -> str | None:
    """A path as people write it.

    Examples
    --------
    >>> show_file("file:///data/a%20b.parquet"), show_file("s3://lake/x")
    ('/data/a b.parquet', 's3://lake/x')
    """
    if uri is None or not uri.startswith("file:"):
        return uri
    return files.normalize(unquote(uri))
