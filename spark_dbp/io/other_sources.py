"""Open what is neither a Parquet table nor one of the catalog as the input: shards, and formats of others.

Imports `sources`, `shards`, `formats`, `expressions` and `forms`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from spark_dbp.engine.expressions import check_expression, find_names, refuse_ambiguous_names
from spark_dbp.engine.forms import compute_columns
from spark_dbp.io.formats.dataset import Dataset, open_dataset
from spark_dbp.io.shards import SETTING, Shard, digest_shards, list_shards
from spark_dbp.io.sources import Snapshot, Source

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

    from spark_dbp.engine.file_scan import FileScan


def open_shards(
    listed: DataFrame, shards: Sequence[Shard], patterns: Sequence[str], n_rows: int, **how: Any
) -> Source:
    """Open the samples of a WebDataset as the input.

    Parameters
    ----------
    listed : DataFrame
        One row for each sample, with the fields of its json.
    shards : sequence of Shard
    patterns : sequence of str
        Paths and globs that name the shards.
    n_rows : int
        Number of samples.
    **how
        ``predicate``, ``columns``, ``computed``, ``written``: as for `open_source`.

    Returns
    -------
    Source

    Raises
    ------
    ConfigError
        When SQL of the configuration is refused.
    """
    spark = listed.sparkSession

    def look_again() -> Snapshot:
        return _snapshot_shards(list_shards(spark, patterns), n_rows)

    snapshot = _snapshot_shards(shards, n_rows)
    name = f"{SETTING} {', '.join(patterns)}"
    return _make_source(listed, snapshot, name, look_again, has_shards=True, **how)


def _snapshot_shards(shards: Sequence[Shard], n_rows: int) -> Snapshot:
    n_bytes = sum(shard.size for shard in shards)
    return Snapshot(n_rows, len(shards), n_bytes, digest_shards(shards))


def open_format(
    spark: SparkSession,
    form: str,
    paths: Sequence[str],
    options: Mapping[str, Any],
    *,
    columns: list[str],
    computed: Collection[tuple[str, str]] = (),
    **how: Any,
) -> Source:
    """Open a dataset in a format of others as the input.

    Parameters
    ----------
    spark : SparkSession
    form : str
        ``input.format``.
    paths : sequence of str
    options : mapping
        ``input.options``.
    columns, computed, **how
        ``columns``, ``computed``, ``predicate``, ``written``: as for `open_source`.

    Returns
    -------
    Source

    Raises
    ------
    InputError
        When a file is missing, damaged, of a form that is not read, or does not go with its partner.
    ConfigError
        When SQL of the configuration is refused.
    """
    dataset = open_dataset(form, paths, options).choose_reader(spark)
    # What a predicate names is seen only when Spark reads it, so then all columns are there.
    needed = [*columns, *(name for _, sql in computed for name in find_names(sql))]
    known = dataset.schema.names
    if how.get("predicate") is None:  # a field is of the column that its name begins with
        known = [name for name in known if any(one == name or one.startswith(f"{name}.") for one in needed)]
    given = dataset.plan_rows(spark, {name: name for name in known}).to_frame()
    name = f"input.path {', '.join(paths)}"

    def look_again() -> Snapshot:
        return _snapshot_dataset(open_dataset(form, paths, options))

    return _make_source(
        given,
        _snapshot_dataset(dataset),
        name,
        look_again,
        scan=None if dataset.by_spark else partial(dataset.plan_scan, spark),
        columns=columns,
        computed=computed,
        **how,
    )


def _snapshot_dataset(dataset: Dataset) -> Snapshot:
    return Snapshot(dataset.n_rows, len(dataset.files), dataset.n_bytes, dataset.digest)


def _make_source(
    given: DataFrame,
    snapshot: Snapshot,
    name: str,
    look_again: Callable[[], Snapshot],
    *,
    columns: list[str],
    computed: Collection[tuple[str, str]] = (),
    predicate: str | None = None,
    written: Iterable[tuple[str, str]] = (),
    scan: Callable[[str], FileScan] | None = None,
    has_shards: bool = False,
) -> Source:
    refuse_ambiguous_names(written, given.columns)
    if predicate is not None:
        check_expression(given, predicate, "input.filter")
    compute = partial(compute_columns, names=columns, expressions=computed)
    return Source(
        given.sparkSession, [], None, predicate, compute(given), snapshot, False, given, compute, name,
        look_again, scan, has_shards,
    )  # fmt: skip
