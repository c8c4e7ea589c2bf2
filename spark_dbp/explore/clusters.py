"""The widest and narrowest clusters of a run. Imports `columns`, `files` and `runs`; pandas in a function."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING

from spark_dbp.columns import CLUSTER_ID, COMPLEXITY, D_INTER, D_INTRA, KEY, N_ITEMS, QUOTA
from spark_dbp.lake import parquet_files
from spark_dbp.runs import Run

if TYPE_CHECKING:
    import pandas as pd


def describe_extreme_clusters(run: Run, n: int = 3, labels: Mapping[str, str] | None = None) -> pd.DataFrame:
    """The clusters of lowest and of highest complexity: narrow and wide concepts, and what was kept of them.

    Parameters
    ----------
    run : Run
    n : int
        How many of either end.
    labels : mapping of str to str, optional
        What a sample is, by key: to say what a cluster mostly holds. All assignments are read then, so this
        is for small runs.

    Returns
    -------
    DataFrame
        By rising complexity: ``cluster_id``, ``n_items``, ``d_intra``, ``d_inter``, ``complexity``,
        ``quota``, ``kept`` (quota / n_items), and with labels ``mostly``, such as ``"7 (96%)"``. All clusters
        where there are no more than ``2 * n``; those without samples are left out.

    Examples
    --------
    >>> describe_extreme_clusters(open_run("demo-run/run"))  # doctest: +SKIP
    """
    import pandas as pd

    names = [CLUSTER_ID, N_ITEMS, D_INTRA, D_INTER, COMPLEXITY]
    clusters = run.cluster_stats()[names].merge(run.quotas()[[CLUSTER_ID, QUOTA]], on=CLUSTER_ID)
    clusters = clusters[clusters[N_ITEMS] > 0].sort_values([COMPLEXITY, CLUSTER_ID], ignore_index=True)
    if len(clusters) > 2 * n:
        clusters = pd.concat([clusters.head(n), clusters.tail(n)], ignore_index=True)
    clusters["kept"] = clusters[QUOTA] / clusters[N_ITEMS]
    if labels is not None:
        found: dict[int, Counter[str]] = defaultdict(Counter)
        rows = parquet_files.read_parquet(run.table_path("assignments"))
        for key, cluster in zip(*(rows.column(c).to_pylist() for c in (KEY, CLUSTER_ID)), strict=True):
            found[cluster][labels[key]] += 1
        most = [min(found[c].items(), key=lambda item: (-item[1], item[0])) for c in clusters[CLUSTER_ID]]
        clusters["mostly"] = [
            f"{label} ({number / n_items:.0%})"
            for (label, number), n_items in zip(most, clusters[N_ITEMS], strict=True)
        ]
    return clusters


def format_clusters(clusters: pd.DataFrame) -> str:
    """Such a table as text, for a terminal."""
    formats = dict.fromkeys((D_INTRA, D_INTER), "{:.3f}".format)
    formats |= {COMPLEXITY: "{:.4f}".format, "kept": "{:.0%}".format}
    return clusters.to_string(index=False, formatters=formats)
