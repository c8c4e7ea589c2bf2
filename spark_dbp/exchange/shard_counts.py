"""Count rows by shard, as open_clip's sizes.json has it. Imports `columns`, `run_tables`,
`exported_rows`, `written_keys`.

A shard of which no row is left has the count 0: what reads the file looks every shard up.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spark_dbp.columns import KEY, SHARD, describe_type
from spark_dbp.engine.compat import collect_rows
from spark_dbp.errors import ConfigError, InputError
from spark_dbp.exchange.exported_rows import ExportedRows
from spark_dbp.exchange.written_keys import make_value
from spark_dbp.explore.run_tables import RunTables

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame, SparkSession

    from spark_dbp.runs import Run

log = logging.getLogger("spark_dbp")

_TAR, _EXAMPLES = ".tar", 5
# The driver holds a count for each.
_MOST_SHARDS = 2_000_000
_LISTED = "shard_samples"


def write_shard_counts(
    run: Run, spark: SparkSession, rows: ExportedRows, shard: str | None, path: Path
) -> int:
    """Write the counts of all shards as JSON.

    Parameters
    ----------
    run : Run
    spark : SparkSession
    rows : ExportedRows
    shard : str or None
        SQL expression for the name of a row's shard. By default that of the tar that the run read the row
        from; or what stands in the key before its last ``/``, with ``.tar`` at its end.
    path : Path

    Returns
    -------
    int
        Number of rows.

    Raises
    ------
    InputError
        When some keys name no shard, or two shards have one name.
    """
    if shard is None and _LISTED in run.document["tables"] and run.document["config"]["input"]["key"] == KEY:
        counts = _count_listed(run, spark, rows.frame)
    else:
        counts = _count_named(run, spark, rows.frame, shard)
    content = json.dumps(dict(sorted(counts.items())), indent=1, ensure_ascii=False)
    path.write_text(content + "\n", encoding="utf-8")
    return sum(counts.values())


def _count_listed(run: Run, spark: SparkSession, rows: DataFrame) -> dict[str, int]:
    """By the table that says in which tar each sample of the run lies."""
    from pyspark.sql import functions as F

    listed = run.table(_LISTED, spark).select(KEY, SHARD)
    shards = [row[0] for row in collect_rows(listed.select(SHARD).distinct())]
    names = Counter(path.rpartition("/")[2] for path in shards)
    twice = sorted(name for name, n in names.items() if n > 1)
    if twice:
        raise InputError(
            f"--to shard_counts: {len(twice):,} names are of more than one shard, such as {twice[0]!r}",
            mend="open_clip looks shards up by name alone: give --shard an expression that tells them apart",
        )
    named = listed.select(KEY, F.substring_index(SHARD, "/", -1).alias(SHARD))
    found = collect_rows(rows.select(KEY).join(named, KEY).groupBy(SHARD).count())
    return {**dict.fromkeys(names, 0), **{name: int(n) for name, n in found}}


def _count_named(run: Run, spark: SparkSession, rows: DataFrame, shard: str | None) -> dict[str, int]:
    """By what an expression makes of each row."""
    from pyspark.sql import functions as F

    named = rows.select(KEY, _name_shard(rows, shard).alias(SHARD))
    nameless = named.where(F.col(SHARD).isNull() | (F.col(SHARD) == ""))
    if n_rows := nameless.count():
        shown = collect_rows(
            nameless.select(F.col(KEY).cast("string").alias(KEY)).orderBy(KEY).limit(_EXAMPLES)
        )
        raise InputError(
            f"--to shard_counts: {n_rows:,} keys name no shard, such as "
            + ", ".join(repr((row[0] or "null")[:80]) for row in shown),
            mend="give --shard a SQL expression for the name of a row's tar, such as "
            "\"concat(substr(key, 1, 5), '.tar')\"",
        )
    found = _collect_counts(named.groupBy(SHARD).count())
    everyone = RunTables(run, spark).good_samples().select(KEY)
    try:
        all_names = everyone.select(_name_shard(everyone, shard).alias(SHARD), F.lit(0)).distinct()
    except ConfigError:
        log.info(
            "  --shard looks at more than the key: shards of which no row is written are not in the file"
        )
        return {name: int(n) for name, n in found}
    names = [row[0] for row in _collect_counts(all_names) if row[0]]
    return {**dict.fromkeys(names, 0), **{name: int(n) for name, n in found}}


def _collect_counts(counts: DataFrame) -> list[Any]:
    """A row for each shard, of which there must not be as many as there are samples."""
    found = collect_rows(counts.limit(_MOST_SHARDS + 1))
    if len(found) > _MOST_SHARDS:
        raise InputError(
            f"--to shard_counts: more than {_MOST_SHARDS:,} names of shards, such as {found[0][0]!r}",
            mend="give --shard a SQL expression that is the same for all samples of a tar",
        )
    return found


def _name_shard(rows: DataFrame, shard: str | None) -> Column:
    from pyspark.sql import functions as F
    from pyspark.sql import types as T

    if shard is not None:
        return make_value(rows, shard, "--shard")[0].cast("string")
    kind = rows.schema[KEY].dataType
    if not isinstance(kind, T.StringType | T.BinaryType):
        raise InputError(
            f"--to shard_counts: keys of type {describe_type(kind)} name no shard",
            mend="give --shard a SQL expression for the name of a row's tar, such as "
            "\"concat(lpad(key div 10000, 5, '0'), '.tar')\"",
        )
    text = F.col(KEY).cast("string")
    name = F.when(text.contains("/"), F.regexp_replace(text, r"/[^/]*\z", ""))
    return F.when(name == "", None).when(name.endswith(_TAR), name).otherwise(F.concat(name, F.lit(_TAR)))
