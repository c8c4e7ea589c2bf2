"""The clusters of a finished run, as arrays: statistics, histograms, quotas.

Imports numpy, `columns`, `config`, `errors`, `kept_distances`, `lake` and `runs`; pyarrow in a function.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

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
)
from spark_dbp.errors import DamagedRunError, InputError, SparkDbpError
from spark_dbp.kernels.kept_distances import KeptDistances
from spark_dbp.lake import parquet_files

if TYPE_CHECKING:
    from spark_dbp.runs import Run

IntVector = npt.NDArray[np.int64]
FloatVector = npt.NDArray[np.float64]

_MAIN_COLUMNS = {"cluster_stats": HISTOGRAM, "quotas": QUOTA}


class RunClusters:
    """What a run knows of its clusters, by rising cluster id. Read from two small tables, without Spark.

    Parameters
    ----------
    run : Run

    Attributes
    ----------
    prune : PruneConfig
        The settings that the run pruned with.
    cluster_id, n_items, quota : ndarray of int64, shape (k,)
    d_intra, d_inter, complexity : ndarray of float64, shape (k,)
        nan where a cluster has no samples. `complexity` is d_intra * d_inter, whatever the weights rest on.
    n_rows : int
        Samples of all clusters: the rows that reached pruning.

    Raises
    ------
    DamagedRunError
        When a table of the run is not there, or not as the run wrote it.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.prune = run.config().prune
        stats, quotas = read_small_table(run, "cluster_stats"), read_small_table(run, "quotas")
        self.cluster_id, self.n_items = (_to_numpy(stats, name, np.int64) for name in (CLUSTER_ID, N_ITEMS))
        self.d_intra, self.d_inter, self.complexity = (
            _to_numpy(stats, name, np.float64) for name in (D_INTRA, D_INTER, COMPLEXITY)
        )
        self.quota = _to_numpy(quotas, QUOTA, np.int64)
        self.n_rows = int(self.n_items.sum())
        if not np.array_equal(self.cluster_id, _to_numpy(quotas, CLUSTER_ID, np.int64)):
            raise DamagedRunError(
                f"{run.path}: the tables cluster_stats and quotas do not have the same clusters",
                mend=f"see what spark-dbp verify {run.path} says",
            )
        self._histogram = stats.column(HISTOGRAM).combine_chunks()

    @cached_property
    def distances(self) -> KeptDistances:
        """The histograms of distances."""
        bins = self._histogram.flatten()
        n_bins = self._histogram.value_lengths().fill_null(0).to_numpy().astype(np.int64)
        numbers, counts = (bins.field(name).to_numpy() for name in (BIN, N_ITEMS))
        return KeptDistances(n_bins, numbers, counts, self.d_intra, self.prune.which_to_keep)

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


def read_small_table(run: Run, table: str) -> Any:
    """A table of O(k) rows as pyarrow's, read without Spark.

    Raises
    ------
    DamagedRunError
        When it is not there, cannot be read, or lacks the column that it is for.
    """
    from pyarrow import ArrowException

    path, column = run.table_path(table), _MAIN_COLUMNS.get(table)
    try:
        found = parquet_files.read_parquet(path)
        if column is not None and column not in found.column_names:
            raise KeyError(f"it has no column {column}")
    except SparkDbpError:  # the store is not reached: that says itself what mends it
        raise
    except (OSError, ArrowException, KeyError) as error:
        raise DamagedRunError(
            f"{path}: the table {table} of the run cannot be read: {[*str(error).splitlines(), ''][0]}",
            mend=f"see what spark-dbp verify {run.path} says; run the job again to write it anew",
        ) from None
    return found


def _to_numpy(table: Any, column: str, kind: type) -> Any:
    return table.column(column).to_numpy().astype(kind)
