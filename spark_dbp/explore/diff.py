"""What two runs keep differently, and why: settings, input, rows by reason, clusters, keys.

Imports numpy, `columns`, `engine`, `kernels`, `lake`, `runs` and what is beside it; pyspark inside functions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import reduce
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from spark_dbp.columns import CENTROID, CLUSTER_ID, KEY, REASON, describe_type
from spark_dbp.engine.session import describe_jobs, get_session, guard_session
from spark_dbp.engine.spark_errors import translate_errors
from spark_dbp.engine.storage import reach_storage
from spark_dbp.engine.table_writer import write_table
from spark_dbp.errors import ConflictError, DamagedRunError, InputError
from spark_dbp.explore.cluster_pairs import pair_centroids
from spark_dbp.explore.given_input import count_outside, reopen_input
from spark_dbp.explore.left_out import list_dropped, list_outside
from spark_dbp.explore.run_clusters import RunClusters, read_small_table
from spark_dbp.explore.run_tables import RunTables, read_zone
from spark_dbp.explore.story import PRUNED
from spark_dbp.kernels.vectors import split_centroids_table
from spark_dbp.lake import files

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

    from spark_dbp.runs import Run

CHANGE, GAINED, LOST = "change", "gained", "lost"
ABSENT = "not in the tables of that run"
_SHOWN = 10
# Clusters in `to_dict`: those whose quotas differ most.
_MOST_CLUSTERS = 1000
_MISSING = "(none)"
_PART = "part"


@dataclass(frozen=True)
class Diff:
    """What two runs keep differently.

    Attributes
    ----------
    runs : list of str
        Paths of the two.
    settings : list of dict
        ``setting``, ``one``, ``other``: settings and versions that differ.
    input : dict
        ``same``; ``one``, ``other``: the snapshots.
    rows : list of dict
        ``reason`` (``rows in`` and ``kept`` too), ``one``, ``other``: numbers of rows.
    clustering : dict
        ``same``; ``matched``: how clusters were paired (``cluster_id``, ``centroids``, or null); ``pairs``,
        ``similarity``: the mean cosine of paired centroids; ``unmatched``: clusters of either without a pair.
    clusters : list of dict
        ``cluster_id``, ``other_id``, ``similarity``, ``n_items``, ``other_n_items``, ``quota``,
        ``other_quota`` of paired clusters with other sizes or quotas, the most different quotas first.
    keys : dict
        ``both``, ``gained`` (kept by the other run only), ``lost`` (kept by the first only);
        ``gained_from``, ``lost_to``: of these, the numbers by what became of them in the run that keeps them
        not; ``out``: the table of them, or null.
    """

    runs: list[str]
    settings: list[dict[str, Any]]
    input: dict[str, Any]
    rows: list[dict[str, Any]]
    clustering: dict[str, Any]
    clusters: list[dict[str, Any]]
    keys: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {**vars(self), "clusters": self.clusters[:_MOST_CLUSTERS]}

    def list_tables(self) -> list[tuple[str, list[list[str]]]]:
        """For people: a title, and rows of texts, of each part."""
        one, other = ("same", "same") if self.input["same"] else (self.input["one"], self.input["other"])
        parts = [
            ("runs", [["", *self.runs]]),
            ("settings", [[row["setting"], _show(row["one"]), _show(row["other"])] for row in self.settings]),
            ("input", [["", one, other]]),
            ("rows", [[row["reason"], f"{row['one']:,}", f"{row['other']:,}"] for row in self.rows]),
        ]
        shown = self.clusters[:_SHOWN]
        rows = [
            [
                f"{row['cluster_id']}"
                + (f" ~ {row['other_id']} ({row['similarity']:.3f})" if not self.clustering["same"] else ""),
                f"{row['quota']:,} of {row['n_items']:,}",
                f"{row['other_quota']:,} of {row['other_n_items']:,}",
            ]
            for row in shown
        ]
        if len(self.clusters) > len(shown):
            rows.append([f"and {len(self.clusters) - len(shown):,} more", "", ""])
        parts.append((f"clusters ({self._tell_clustering()}): kept", rows))
        keys = [["kept by both", f"{self.keys['both']:,}", ""]]
        for label, name, of in (("gained", GAINED, "gained_from"), ("lost", LOST, "lost_to")):
            why = ", ".join(f"{n:,} {reason}" for reason, n in self.keys[of].items())
            keys.append([label, f"{self.keys[name]:,}", why])
        if self.keys["out"]:
            keys.append(["table", self.keys["out"], ""])
        return [*parts, ("keys", keys)]

    def _tell_clustering(self) -> str:
        if self.clustering["same"]:
            return "the same clustering"
        if self.clustering["matched"] is None:
            return "another clustering, of vectors of other dimensions"
        if self.clustering["matched"] == CLUSTER_ID:
            return "the same centroids, other samples"
        return f"paired by centroids, mean cosine {self.clustering['similarity']:.3f}"

    def __str__(self) -> str:
        lines = []
        for title, rows in self.list_tables():
            widths = [max((len(row[i]) for row in rows), default=0) for i in range(3)]
            lines.append(title if rows else f"{title}  (no difference)")
            lines += [
                "  "
                + "  ".join(
                    text.ljust(width) for text, width in zip(row, widths, strict=True) if width
                ).rstrip()
                for row in rows
            ]
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        body = "".join(
            f"<tr><th colspan='3' style='text-align:left'>{escape(title)}</th></tr>"
            + "".join(
                "<tr>" + "".join(f"<td style='text-align:left'>{escape(t)}</td>" for t in row) + "</tr>"
                for row in rows
            )
            for title, rows in self.list_tables()
        )
        return f"<table>{body}</table>"


def diff(run: Run, other: Run, spark: SparkSession | None = None, *, out: str | None = None) -> Diff:
    """Compare two finished runs.

    Parameters
    ----------
    run, other : Run
    spark : SparkSession, optional
        By default the session of `get_session`.
    out : str, optional
        A new or empty directory: the keys gained and lost are written there as a Parquet table, with ``key``,
        ``change`` (gained, lost) and ``reason``: what became of them in the run that does not keep them.

    Returns
    -------
    Diff

    Raises
    ------
    InputError
        When the runs have keys of different types.
    ConflictError
        When something is in `out` already.

    Examples
    --------
    >>> print(diff(open_run("run"), open_run("run-0.2")))  # doctest: +SKIP
    """
    spark = spark or get_session()
    if out is not None:
        out = files.normalize(out)
        reach_storage(spark, out, "--out", writes=True)
        names = files.list_names(out) if files.exists(out) else []
        if names:
            raise ConflictError(f"--out {out} is not empty: {names[0]} is there", mend="name a new directory")
        files.delete_if_empty(out)
    for one in (run, other):
        one.reach_storage(spark)
    described = describe_jobs(spark, "spark-dbp diff: comparing two runs")
    with guard_session(spark, read_zone(run)), described, translate_errors(f"runs {run.path}, {other.path}"):
        types = [one.keep_list(spark).schema[KEY].dataType for one in (run, other)]
        if types[0] != types[1]:
            shown = " and ".join(
                f"{describe_type(kind)} in {one.path}" for kind, one in zip(types, (run, other), strict=True)
            )
            raise InputError(
                f"keys of different types cannot be compared: {shown}", mend="compare runs on the same key"
            )
        clustering, clusters = _compare_clusters(run, other)
        return Diff(
            runs=[run.path, other.path],
            settings=_compare_settings(run, other),
            input=_compare_inputs(run, other),
            rows=_compare_rows(run, other),
            clustering=clustering,
            clusters=clusters,
            keys=_compare_keys(run, other, spark, out),
        )


def _compare_settings(run: Run, other: Run) -> list[dict[str, Any]]:
    """Settings that differ; where the runs were written is none."""
    flat = [dict(_flatten(one.config().model_dump())) for one in (run, other)]
    for values, one in zip(flat, (run, other), strict=True):
        values.pop("output.path", None)
        values["version of spark-dbp"] = one.document.get("spark_dbp")
    names = list(dict.fromkeys([*flat[0], *flat[1]]))
    return [
        {"setting": name, "one": flat[0].get(name), "other": flat[1].get(name)}
        for name in names
        if flat[0].get(name) != flat[1].get(name)
    ]


def _flatten(values: Any, prefix: str = "") -> Iterable[tuple[str, Any]]:
    if isinstance(values, Mapping) and values:
        for name, value in values.items():
            yield from _flatten(value, f"{prefix}.{name}" if prefix else name)
    elif isinstance(values, list) and values and all(isinstance(v, dict) and "name" in v for v in values):
        for value in values:  # sections of `embed`
            yield from _flatten(value, f"{prefix}.{value['name']}")
    else:
        yield prefix, values


def _compare_inputs(run: Run, other: Run) -> dict[str, Any]:
    snapshots = [dict(one.document["input"]) for one in (run, other)]
    # Earlier versions noted less.
    known = set(snapshots[0]) & set(snapshots[1])
    same = all(snapshots[0][name] == snapshots[1][name] for name in known)
    shown = [
        f"{s['rows']:,} rows" + (f" in {s['files']:,} files" if s.get("files") else "") for s in snapshots
    ]
    versions = [s.get("version") or f"digest {s.get('digest')}" for s in snapshots]
    one, two = (f"{text}, {version}" for text, version in zip(shown, versions, strict=True))
    return {"same": same, "one": one, "other": two}


def _compare_rows(run: Run, other: Run) -> list[dict[str, Any]]:
    counted = []
    for one in (run, other):
        account = one.document["accounting"]
        counted.append({"rows in": account["rows_in"], **account["dropped"], "kept": account["kept"]})
    names = [name for name in dict.fromkeys([*counted[0], *counted[1]]) if name != "kept"]
    rows = [
        {"reason": name, "one": counted[0].get(name, 0), "other": counted[1].get(name, 0)}
        for name in [*names, "kept"]
    ]
    return [row for row in rows if row["one"] or row["other"]]


def _compare_clusters(run: Run, other: Run) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """How the clusters are paired, and the pairs that differ in size or quota."""
    digests = [one.document["digests"] for one in (run, other)]
    same_centroids = digests[0]["centroids"] == digests[1]["centroids"]
    same = same_centroids and digests[0]["assignments"] == digests[1]["assignments"]
    (ids, centroids), (other_ids, other_centroids) = map(_read_centroids, (run, other))
    if same_centroids:
        rows = other_rows = np.arange(len(ids))
        order, other_order = np.argsort(ids), np.argsort(other_ids)
        rows, other_rows = order[rows], other_order[other_rows]
        similarity = np.ones(len(ids))
    elif centroids.shape[1] != other_centroids.shape[1]:
        none = {"pairs": 0, "similarity": None, "unmatched": [len(ids), len(other_ids)]}
        return {"same": False, "matched": None, **none}, []
    else:
        rows, other_rows, similarity = pair_centroids(centroids, other_centroids)
    found = []
    sizes, other_sizes = _read_quotas(run, ids), _read_quotas(other, other_ids)
    for row, other_row, cosine in zip(rows, other_rows, similarity, strict=True):
        one, two = int(ids[row]), int(other_ids[other_row])
        (n_items, quota), (other_n_items, other_quota) = sizes[one], other_sizes[two]
        if (n_items, quota) != (other_n_items, other_quota):
            found.append(
                {
                    "cluster_id": one, "other_id": two, "similarity": float(cosine),
                    "n_items": n_items, "other_n_items": other_n_items,
                    "quota": quota, "other_quota": other_quota,
                }
            )  # fmt: skip
    found.sort(key=lambda row: (-abs(row["quota"] - row["other_quota"]), row["cluster_id"]))
    clustering = {
        "same": same,
        "matched": CLUSTER_ID if same_centroids else "centroids",
        "pairs": len(rows),
        "similarity": float(similarity.mean()) if len(rows) else None,
        "unmatched": [len(ids) - len(rows), len(other_ids) - len(rows)],
    }
    return clustering, found


def _read_centroids(run: Run) -> tuple[Any, Any]:
    return split_centroids_table(read_small_table(run, "centroids", CLUSTER_ID, CENTROID))


def _read_quotas(run: Run, ids: Any) -> dict[int, tuple[int, int]]:
    """Size and quota of every cluster; those of `ids` must be there."""
    of = RunClusters(run)
    columns = (values.tolist() for values in (of.cluster_id, of.n_items, of.quota))
    found = {cluster: (n_items, quota) for cluster, n_items, quota in zip(*columns, strict=True)}
    if missing := set(ids.tolist()) - set(found):
        raise DamagedRunError(
            f"{run.path}: the table quotas has no cluster {min(missing)}, the table centroids has",
            mend=f"see what spark-dbp verify {run.path} says",
        )
    return found


def _compare_keys(run: Run, other: Run, spark: SparkSession, out: str | None) -> dict[str, Any]:
    """Keys that one of the runs keeps and the other does not."""
    from pyspark.sql import functions as F

    keeps = [one.keep_list(spark).select(KEY) for one in (run, other)]
    same = run.document["digests"]["keep_list"] == other.document["digests"]["keep_list"]
    gained = keeps[1].join(keeps[0], KEY, "left_anti")
    lost = keeps[0].join(keeps[1], KEY, "left_anti")
    if same and out is None:
        counted: dict[str, dict[str, int]] = {GAINED: {}, LOST: {}}
    else:
        told = _tell_why(gained, run, spark, GAINED).unionByName(_tell_why(lost, other, spark, LOST))
        if out is not None:
            try:
                told = write_table(
                    spark, "diff", told, out, describe=lambda what: describe_jobs(spark, what), totals={}
                ).frame
            except BaseException:
                files.delete(out)
                raise
        rows = told.groupBy(CHANGE, REASON).agg(F.count(F.lit(1)).alias("times")).collect()
        counted = {
            change: {
                row[REASON]: int(row["times"])
                for row in sorted(rows, key=lambda row: (-row["times"], row[REASON]))
                if row[CHANGE] == change
            }
            for change in (GAINED, LOST)
        }
    n_lost = sum(counted[LOST].values())
    return {
        "both": int(run.document["rows"]["keep_list"]) - n_lost,
        GAINED: sum(counted[GAINED].values()),
        LOST: n_lost,
        "gained_from": counted[GAINED],
        "lost_to": counted[LOST],
        "out": out,
    }


def _tell_why(keys: DataFrame, run: Run, spark: SparkSession, change: str) -> DataFrame:
    """``key``, ``change`` and ``reason``: what became of keys in a run that does not keep them."""
    from pyspark.sql import functions as F

    tables = RunTables(run, spark)
    pruned = tables.read("assignments").select(KEY, F.lit(PRUNED).alias("pruned"))
    parts, outside = list_dropped(tables), count_outside(tables)
    if outside:
        given = reopen_input(tables)
        parts += list_outside(tables, given, outside) if given.source is not None else []
    # Only good rows have keys of their own: that of a bad row, or of one that the filter left out, may be
    # that of others too. What became of the good row is told, else the first of the parts that has the key.
    rows = keys.join(pruned, KEY, "left").withColumn(REASON, F.col("pruned"))
    if parts:
        numbered = [part.select(KEY, F.lit(n).alias(_PART), REASON) for n, part in enumerate(parts)]
        told = F.min(F.struct(_PART, REASON))[REASON].alias("dropped")
        left_out = reduce(lambda a, b: a.unionByName(b), numbered).groupBy(KEY).agg(told)
        rows = rows.join(left_out, KEY, "left").withColumn(REASON, F.coalesce("pruned", "dropped"))
    return rows.select(KEY, F.lit(change).alias(CHANGE), F.coalesce(REASON, F.lit(ABSENT)).alias(REASON))


def _show(value: Any) -> str:
    return _MISSING if value is None else str(value)
