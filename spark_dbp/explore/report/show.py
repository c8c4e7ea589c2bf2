"""One cluster as a table of examples, for notebooks. Imports the modules beside it, `run_clusters`, `story`
and `runs`.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from spark_dbp.explore.report.examples import (
    ClusterExamples,
    Example,
    find_examples,
    find_key_type,
    write_key,
)
from spark_dbp.explore.report.lookup import Found, find_wanted, look_up
from spark_dbp.explore.report.words import write_count, write_share
from spark_dbp.explore.run_clusters import RunClusters
from spark_dbp.explore.story import escape_controls

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from spark_dbp.runs import Run

_TITLES = {
    "nearest": "nearest to the centroid",
    "kept": "kept, nearest to the cut",
    "dropped": "left out, nearest to the cut",
}


@dataclass(frozen=True)
class ShownCluster:
    """Examples of one cluster. It prints as text, and shows as a table in a notebook.

    Attributes
    ----------
    cluster_id, n_items, quota : int
    complexity : float
    examples : ClusterExamples
    found : Found
        Images and texts of the examples, by the text of their keys.
    key_type : str
    """

    cluster_id: int
    n_items: int
    quota: int
    complexity: float
    examples: ClusterExamples
    found: Found
    key_type: str

    @property
    def title(self) -> str:
        kept = f"{self.quota:,} of {write_count(self.n_items, 'row')} kept"
        share = write_share(self.quota, self.n_items)
        return f"Cluster {self.cluster_id}: {kept} ({share}), complexity {self.complexity:.4g}"

    def __str__(self) -> str:
        lines = [self.title]
        for name, title in _TITLES.items():
            lines.append(title)
            for one in getattr(self.examples, name):
                key = write_key(one.key, self.key_type)
                caption = self.found.captions.get(key, "")
                lines.append(f"  {one.distance:.4f}  {key}{f'  {caption}' if caption else ''}")
        return "\n".join(map(escape_controls, lines))

    __repr__ = __str__

    def _repr_html_(self) -> str:
        rows = ""
        for name, title in _TITLES.items():
            shown = "".join(map(self._show, getattr(self.examples, name))) or "none"
            rows += (
                f"<tr><th style='text-align:left;vertical-align:top;padding-right:1em'>{escape(title)}</th>"
                f"<td style='text-align:left'>{shown}</td></tr>"
            )
        note = f"<p>{escape(self.found.note)}</p>" if self.found.note else ""
        return f"<div><p><b>{escape(self.title)}</b></p>{note}<table>{rows}</table></div>"

    def _show(self, one: Example) -> str:
        key = write_key(one.key, self.key_type)
        text = self.found.captions.get(key, key)
        image = self.found.thumbnails.get(key)
        if image is None:
            more = f" <code>{escape(key)}</code>" if text != key else ""
            return f"<div>{one.distance:.4f} {escape(text)}{more}</div>"
        content = base64.b64encode(image.content).decode()
        return (
            "<div style='display:inline-block;width:7.5em;margin:0 .6em .6em 0;vertical-align:top'>"
            f"<img alt='{escape(text)}' title='{escape(key)}' style='display:block;height:6em' "
            f"src='data:image/webp;base64,{content}'>"
            f"<small>{escape(text[:40])}<br>{one.distance:.4f}</small></div>"
        )


def show_cluster(
    run: Run, cluster_id: int, settings: Iterable[str] = (), spark: SparkSession | None = None
) -> ShownCluster:
    """Examples of one cluster: nearest to the centroid, just kept and just left out.

    Parameters
    ----------
    run : Run
    cluster_id : int
    settings : iterable of str
        Items like ``report.image=jpeg`` or ``report.caption=caption``.
    spark : SparkSession, optional
        Used only to look up images and texts in the input; by default that of `get_session`.

    Returns
    -------
    ShownCluster

    Raises
    ------
    InputError
        When there is no such cluster, or it has no samples; or a column to be shown is not there.
    DamagedRunError
        When a table of the run cannot be read.

    Examples
    --------
    >>> show_cluster(open_run("demo-run/run"), 3)  # doctest: +SKIP
    """
    clusters = RunClusters(run)
    row = clusters.find_row(cluster_id)
    cluster_id = int(clusters.cluster_id[row])
    quota, n_items = int(clusters.quota[row]), int(clusters.n_items[row])
    examples = find_examples(run, [cluster_id], [quota], [n_items])[cluster_id]
    config, key_type, looked_up = run.config().with_settings(settings), find_key_type(run), Found()
    wanted = find_wanted(config)
    if wanted:
        from spark_dbp.engine.session import get_session
        from spark_dbp.explore.report.write import gather_keys

        keys = gather_keys({cluster_id: examples}, {})
        looked_up = look_up(run, wanted, spark or get_session(config.spark), keys, key_type)
    complexity = float(clusters.complexity[row])
    return ShownCluster(cluster_id, n_items, quota, complexity, examples, looked_up, key_type)
