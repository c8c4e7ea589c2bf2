"""Figures as methods of a run: the one door from `runs` up to `explore`. Imports `explore` in functions.

`runs` lies below `explore`, which asks a run its questions. For people in a notebook a run offers some
answers as methods. These stand here, so that no other module looks upwards.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pyspark.sql import SparkSession

    from spark_dbp.explore.report.show import ShownCluster


class RunPlots:
    """Methods of `Run` that draw. They need matplotlib (``pip install 'spark-dbp[notebook]'``), and no Spark.

    Each returns a matplotlib Figure, which a notebook shows where a cell ends with it, and which
    ``figure.savefig("name.png")`` writes. All raise ConfigError where matplotlib is not installed, and
    DamagedRunError where a table of the run cannot be read.
    """

    def plot_clusters(self) -> Figure:
        """d_intra against d_inter of every cluster, coloured by complexity: the figure of the paper.

        Examples
        --------
        >>> open_run("run").plot_clusters()  # doctest: +SKIP
        """
        from spark_dbp.explore.plots import draw_clusters

        return draw_clusters(_as_run(self))

    def plot_quotas(self) -> Figure:
        """Quota against size of every cluster, with the floor and what is kept whole.

        Examples
        --------
        >>> open_run("run").plot_quotas()  # doctest: +SKIP
        """
        from spark_dbp.explore.plots import draw_quotas

        return draw_quotas(_as_run(self))

    def plot_distances(self, cluster: int) -> Figure:
        """Distances of the samples of a cluster to its centroid, and which of them are kept.

        Parameters
        ----------
        cluster : int
            Its cluster_id.

        Raises
        ------
        InputError
            When there is no such cluster, or it has no samples.

        Examples
        --------
        >>> open_run("run").plot_distances(7)  # doctest: +SKIP
        """
        from spark_dbp.explore.plots import draw_distances

        return draw_distances(_as_run(self), cluster)

    def plot_sweep(
        self,
        keep_ratio: float | Iterable[float] | None = None,
        temperature: float | Iterable[float] | None = None,
        complexity: str | Iterable[str] | None = None,
    ) -> Figure:
        """What other settings would keep: clusters kept whole, evenness, distances, what stays of this run.

        Parameters
        ----------
        keep_ratio, temperature, complexity
            As for `sweep`. Where none is given, ratios from 0.05 to 0.9 at temperatures that suit the run.

        Examples
        --------
        >>> open_run("run").plot_sweep(temperature=[0.01, 0.03, 0.1])  # doctest: +SKIP
        """
        from spark_dbp.explore.plots import draw_sweep, plan_sweep

        return draw_sweep(plan_sweep(_as_run(self), keep_ratio, temperature, complexity))

    def show_cluster(
        self, cluster_id: int, settings: Iterable[str] = (), spark: SparkSession | None = None
    ) -> ShownCluster:
        """Examples of one cluster: nearest to the centroid, just kept and just left out, as a table.

        Parameters
        ----------
        cluster_id : int
        settings : iterable of str
            Items like ``report.image=jpeg`` or ``report.caption=caption``.
        spark : SparkSession, optional
            As for `spark_dbp.show_cluster`, which this is.

        Raises
        ------
        InputError
            When there is no such cluster.

        Examples
        --------
        >>> open_run("run").show_cluster(7, ["report.caption=summary"])  # doctest: +SKIP
        """
        from spark_dbp.explore.report.show import show_cluster

        return show_cluster(_as_run(self), cluster_id, settings, spark)


def _as_run(plots: RunPlots) -> Any:
    """What has these methods is a `Run`."""
    return plots
