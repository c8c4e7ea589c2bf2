"""The widest and narrowest clusters of a run. Imports `columns`, `parquet_files`, `text_table` and `runs`."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

from spark_dbp.columns import CLUSTER_ID, COMPLEXITY, D_INTER, D_INTRA, KEY, N_ITEMS, QUOTA
from spark_dbp.explore.text_table import format_table
from spark_dbp.lake import parquet_files
from spark_dbp.runs import Run

_FORMATS = {D_INTRA: "{:.3f}", D_INTER: "{:.3f}", COMPLEXITY: "{:.4f}", "kept": "{:.0%}", "mostly": "{}"}
_LEAST = (D_INTER, D_INTRA, COMPLEXITY, "mostly")


def find_extreme_clusters(
    run: Run, n: int = 3, labels: Mapping[str, str] | None = None
) -> list[dict[str, Any]]:
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
    list of dict
        By rising complexity: ``cluster_id``, ``n_items``, ``d_intra``, ``d_inter``, ``complexity``,
        ``quota``, ``kept`` (quota / n_items), and with labels ``mostly``, such as ``"7 (96%)"``. All clusters
        where there are no more than ``2 * n``; those without samples are left out.

    Examples
    --------
    >>> find_extreme_clusters(open_run("demo-run/run"))  # doctest: +SKIP
    """
    names = [CLUSTER_ID, N_ITEMS, D_INTRA, D_INTER, COMPLEXITY]
    stats = parquet_files.read_parquet(run.table_path("cluster_stats"), names).to_pylist()
    quotas = parquet_files.read_parquet(run.table_path("quotas"), [CLUSTER_ID, QUOTA]).to_pydict()
    quota = dict(zip(quotas[CLUSTER_ID], quotas[QUOTA], strict=True))
    clusters = sorted(
        (row for row in stats if row[N_ITEMS] > 0), key=lambda row: (row[COMPLEXITY], row[CLUSTER_ID])
    )
    if len(clusters) > 2 * n:
        clusters = clusters[:n] + clusters[-n:]
    for row in clusters:
        row[QUOTA] = quota[row[CLUSTER_ID]]
        row["kept"] = row[QUOTA] / row[N_ITEMS]
    if labels is not None:
        found: dict[int, Counter[str]] = defaultdict(Counter)
        rows = parquet_files.read_parquet(run.table_path("assignments"), [KEY, CLUSTER_ID])
        for key, cluster in zip(*(rows.column(c).to_pylist() for c in (KEY, CLUSTER_ID)), strict=True):
            found[cluster][labels[key]] += 1
        for row in clusters:
            label, number = min(found[row[CLUSTER_ID]].items(), key=lambda item: (-item[1], item[0]))
            row["mostly"] = f"{label} ({number / row[N_ITEMS]:.0%})"
    return clusters


def format_clusters(clusters: list[dict[str, Any]], width: int | None = None) -> str:
    """Such clusters as a table of text, for a terminal that is so many columns wide."""
    if not clusters:
        return "(none)"
    heads = list(clusters[0])
    rows = [[_FORMATS.get(name, "{:,}").format(row[name]) for name in heads] for row in clusters]
    least = [name for name in _LEAST if name in heads]
    return "\n".join(format_table(heads, rows, left=["mostly"], least=least, width=width))
