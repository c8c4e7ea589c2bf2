"""The clusters of a finished run, as arrays: statistics, histograms, quotas.

Imports numpy, `columns`, `config`, `errors`, `kept_distances`, `lake`, `runs` and the stage `quota`; pyarrow
in functions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from spark_dbp.columns import (
    BIN,
    CLUSTER_ID,
    COMPLEXITY,
    D_INTER,
    D_INTRA,
    HISTOGRAM,
    N_ITEMS,
    QUOTA,
    TARGET,
    WEIGHT,
)
from spark_dbp.errors import DamagedRunError, InputError, SparkDbpError
from spark_dbp.kernels.kept_distances import KeptDistances
from spark_dbp.lake import parquet_files
from spark_dbp.stages.quota import find_floors

if TYPE_CHECKING:
    from spark_dbp.lake.store import EarlierSteps
    from spark_dbp.runs import Run

IntVector = npt.NDArray[np.int64]
FloatVector = npt.NDArray[np.float64]


class RunClusters:
    """What a run knows of its clusters, by rising cluster id. Read from two small tables, without Spark.

    Parameters
    ----------
    run : Run
    with_empty : bool
        Whether clusters without samples are among them.

    Attributes
    ----------
    prune : PruneConfig
        The settings that the run pruned with.
    cluster_id, n_items, quota : ndarray of int64, shape (k,)
    d_intra, d_inter, complexity : ndarray of float64, shape (k,)
        nan where a cluster has no samples. `complexity` is d_intra * d_inter, whatever the weights rest on.
    weight, target : ndarray of float64, shape (k,)
    n_rows : int
        Samples of all clusters: the rows that reached pruning.

    Raises
    ------
    DamagedRunError
        When a table of the run is not there, or not as the run wrote it.
    """

    def __init__(self, run: Run, with_empty: bool = True) -> None:
        self.run = run
        self.prune = run.config().prune
        of_stats, of_quotas = (N_ITEMS, D_INTRA, D_INTER, COMPLEXITY), (WEIGHT, TARGET, QUOTA)
        stats = read_small_table(run, "cluster_stats", CLUSTER_ID, *of_stats, HISTOGRAM)
        quotas = read_small_table(run, "quotas", CLUSTER_ID, *of_quotas)
        stats, quotas = (table.sort_by(CLUSTER_ID) for table in (stats, quotas))
        if not stats.column(CLUSTER_ID).equals(
            quotas.column(CLUSTER_ID).cast(stats.schema.field(CLUSTER_ID).type)
        ):
            raise DamagedRunError(
                f"{run.path}: the tables cluster_stats and quotas do not have the same clusters",
                mend=f"see what spark-dbp verify {run.path} says",
            )
        if not with_empty:
            used = _to_numpy(stats, N_ITEMS, np.int64) > 0
            stats, quotas = (table.take(np.flatnonzero(used)) for table in (stats, quotas))
        self.cluster_id, self.n_items = (_to_numpy(stats, name, np.int64) for name in (CLUSTER_ID, N_ITEMS))
        self.d_intra, self.d_inter, self.complexity = (
            _to_numpy(stats, name, np.float64) for name in (D_INTRA, D_INTER, COMPLEXITY)
        )
        self.weight, self.target = (_to_numpy(quotas, name, np.float64) for name in (WEIGHT, TARGET))
        self.quota = _to_numpy(quotas, QUOTA, np.int64)
        self.n_rows = int(self.n_items.sum())
        self._histogram = stats.column(HISTOGRAM).combine_chunks()

    @cached_property
    def floor(self) -> IntVector:
        """The least quota of each cluster, shape (k,)."""
        n_keep, prune = int(self.quota.sum()), self.prune
        return find_floors(self.n_items, n_keep, prune.min_per_cluster, prune.cluster_balance)

    @cached_property
    def distances(self) -> KeptDistances:
        """The histograms of distances."""
        entries = self._histogram.flatten()
        n_bins = self._histogram.value_lengths().fill_null(0).to_numpy().astype(np.int64)
        bins, counts = (entries.field(name).to_numpy().astype(np.int64) for name in (BIN, N_ITEMS))
        cluster = np.repeat(np.arange(len(n_bins)), n_bins)
        if ((np.diff(bins) < 0) & (np.diff(cluster) == 0)).any():  # they are written by rising bin
            order = np.lexsort((bins, cluster))
            bins, counts = bins[order], counts[order]
        return KeptDistances(n_bins, bins, counts, self.d_intra, self.prune.which_to_keep)

    def find_row(self, cluster: int) -> int:
        """The row of a cluster, by its id.

        Raises
        ------
        InputError
            When there is no such cluster, or it has no samples.
        """
        rows = np.flatnonzero((self.cluster_id == cluster) & (self.n_items > 0))
        if not len(rows):
            used = self.cluster_id[self.n_items > 0]
            raise InputError(
                f"{self.run.path} has no cluster {cluster!r} with samples",
                mend=f"cluster ids are whole numbers from {used.min()} to {used.max()}",
            )
        return int(rows[0])


def read_small_table(run: Run, table: str, *columns: str) -> Any:
    """A table of a run that the driver holds, as pyarrow's, without Spark.

    Parameters
    ----------
    run : Run
    table : str
        Such as ``cluster_stats`` or ``quotas``: of O(k) rows.
    *columns : str
        Columns that it must have, at least.

    Returns
    -------
    pyarrow.Table
        With all its columns, in the order of the file.

    Raises
    ------
    InputError
        When the run has no such table.
    DamagedRunError
        When the table is not there, cannot be read, or has not these columns.

    Examples
    --------
    >>> read_small_table(open_run("run"), "quotas", "quota").num_rows  # doctest: +SKIP
    """
    path = run.table_path(table)
    with translate_damage(run, table):
        found = parquet_files.read_parquet(path)
        check_columns(found.column_names, columns)
    return found


@contextmanager
def translate_damage(run: Run | EarlierSteps, table: str, path: str = "") -> Iterator[None]:
    """What pyarrow raises where a table of a run, or a file of it, cannot be read becomes DamagedRunError.

    Of steps of an unfinished run `path` must be given.
    """
    from pyarrow import ArrowException

    try:
        yield
    except SparkDbpError:  # the store is not reached: that says itself what mends it
        raise
    except (OSError, ArrowException, LookupError) as error:
        why = str(error.args[0] if error.args else "") if isinstance(error, LookupError) else str(error)
        raise DamagedRunError(
            f"{path or cast('Run', run).table_path(table)}: the table {table} of the run cannot be read: "
            f"{next(iter(why.splitlines()), type(error).__name__)}",
            mend=f"see what spark-dbp verify {run.path} says; run the job again to write it anew",
        ) from None


def check_columns(names: Iterable[str], wanted: Iterable[str]) -> None:
    """Raise KeyError, which `translate_damage` translates, where a column is missing.

    Examples
    --------
    >>> check_columns(["key", "rank"], ["key"])
    """
    held = set(names)
    missing = next((name for name in wanted if name not in held), None)
    if missing is not None:
        raise KeyError(f"it has no column {missing}")


def _to_numpy(table: Any, column: str, kind: type) -> Any:
    return table.column(column).to_numpy().astype(kind)
