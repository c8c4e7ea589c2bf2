"""Check a finished run: its files, its numbers, and every table against the others.

Imports numpy, `engine`, `lake`, `loaders.keep_trie` and the stages that are computed again; pyspark inside
functions.

Statistics, quotas and the keep list are computed again from the tables that they were made from, by the
engine that did not make them where that one can read the run. The value of every kept key is looked up in the
trie. The samples and the centroids are not computed again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from spark_dbp.columns import (
    CLUSTER_ID,
    COMPLEXITY,
    D_INTER,
    D_INTRA,
    DISTANCE,
    DUPLICATE_OF,
    HISTOGRAM,
    KEY,
    KEY_TYPE,
    N_ITEMS,
    PROBLEM,
    QUOTA,
    TABLE_SCHEMAS,
    TARGET,
    WEIGHT,
)
from spark_dbp.engine.compat import map_in_arrow
from spark_dbp.engine.session import TIME_ZONE, bound_batches, describe_jobs, get_session, guard_session
from spark_dbp.engine.spark_errors import translate_errors
from spark_dbp.errors import DamagedRunError, InfeasibleError, SparkDbpError
from spark_dbp.explore.check_filter import check_filtered
from spark_dbp.explore.run_tables import RunTables, show_examples
from spark_dbp.explore.second_look import check_in_numpy, sample_clusters
from spark_dbp.lake import files
from spark_dbp.lake.digest import add_digests, digest_columns, digest_table, digest_tables
from spark_dbp.lake.table_files import compare_files
from spark_dbp.loaders.keep_trie import MANIFEST, KeepTrie, read_manifest
from spark_dbp.stages.check_samples import estimate_row_bytes
from spark_dbp.stages.cluster_stats import cluster_stats, complete_stats
from spark_dbp.stages.keep_trie import find_missing_keys, read_shards
from spark_dbp.stages.quota import plan_quotas
from spark_dbp.stages.select import select

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    from pyspark.sql import DataFrame, SparkSession

    from spark_dbp.runs import Run

# Allowed difference of float64 sums and powers, which libraries of another machine may round differently.
_ROUNDING = 1e-9
# Allowed difference of a norm from 1, because components are rounded to multiples of 2**-26.
_NORM_SLACK = 1e-5

Problems = Iterator[str]


def verify(run: Run, spark: SparkSession | None = None) -> list[str]:
    """Check every table of a finished run against run.json and the others.

    Parameters
    ----------
    run : Run
    spark : SparkSession, optional
        By default the session of `get_session`.

    Returns
    -------
    list of str
        What was checked, in order.

    Raises
    ------
    DamagedRunError
        Lists everything that is wrong: the table, file or key, what was found, and what was expected.
    """
    passed: list[str] = []
    if not files.is_local(run.path):
        spark = spark or get_session()
        run.reach_storage(spark)
    # Files first: without them, the other checks would fail with a less clear message.
    _hold(run, passed, [("files of every table as they were written", lambda: _files(run))])
    spark = spark or get_session()
    # Runs that do not say in which zone their SQL was evaluated are of a version that used UTC.
    zone = run.document.get("session", {}).get(TIME_ZONE, "UTC")
    bounded = bound_batches(spark, estimate_row_bytes(run.document["stages"]["ingest"]["info"]))
    described = describe_jobs(spark, "spark-dbp verify: checking every table against the others")
    with guard_session(spark, zone), bounded, described, translate_errors(f"run {run.path}"):
        tables = RunTables(run, spark)
        _hold(run, passed, [("columns, rows and digest of every table", lambda: _contents(tables))])
        # Tables must fit each other before anything is computed again from them.
        checks: list[tuple[str, Callable[[], Problems]]] = [
            (f"every input row accounted for{_name_version(run)}", lambda: _account(tables)),
            (f"keys: samples = assignments + {_list_left_out(tables)}", lambda: _keys(tables)),
            *_plan_filtered(tables),
            ("centroids of unit norm, distances within [0, 2]", lambda: _bounds(tables)),
        ]
        _hold(run, passed, checks)
        checks = [
            (
                f"statistics as computed again from the assignments{tables.say_how('cluster_stats')}",
                lambda: _stats(tables),
            ),
            ("quotas optimal within their bounds", lambda: _quotas(tables)),
            (
                f"keep list as selected again from the assignments{tables.say_how('select')}",
                lambda: _keep_list(tables),
            ),
            *_plan_numpy(tables),
            ("trie holds the keys of the keep list and no others", lambda: _trie(tables)),
        ]
        _hold(run, passed, checks)
    return passed


def _hold(run: Run, passed: list[str], checks: list[tuple[str, Callable[[], Problems]]]) -> None:
    found = []
    for name, check in checks:
        problems = list(check())
        found += problems
        if not problems:
            passed.append(name)
    if found:
        raise DamagedRunError(
            f"{run.path} is not a run as it was committed\n  - " + "\n  - ".join(found),
            mend="restore the directory from a copy, or run the job again with --fresh",
        )


def _files(run: Run) -> Problems:
    for name, step in run.document["stages"].items():
        for table in step["tables"]:
            path = run.table_path(table)
            written, ignored = (step.get(field, {}).get(table, {}) for field in ("files", "ignored"))
            difference = compare_files(files.list_sizes(path), written, ignored)
            if difference:
                yield f"table {table} (step {name}) at {path}: {difference}"


def _contents(tables: RunTables) -> Problems:
    key_type = dict(tables.run.assignments(tables.spark).dtypes).get(KEY)
    found: list[tuple[str, int, dict[str, str], DataFrame, list[list[str]]]] = []
    for step in tables.steps.values():
        for table, rows in step.rows.items():
            if table == "keep_trie":
                continue
            frame = tables.run.table(table, tables.spark)
            schema = TABLE_SCHEMAS.get(table, dict(frame.dtypes)).items()
            wanted = {name: key_type if kind == KEY_TYPE else kind for name, kind in schema}
            if dict(frame.dtypes) != wanted:
                yield f"table {table} has the columns {dict(frame.dtypes)}, not {wanted}"
                continue
            stored = {"digest": step.digests.get(table), "digest of keys": step.key_digests.get(table)}
            expected = {name: value for name, value in stored.items() if value is not None}
            lists = [frame.columns if name == "digest" else [KEY] for name in expected]
            found.append((table, rows, expected, frame, lists))
    counted = zip(found, digest_tables([one[3:] for one in found]), strict=True)
    for (table, rows, expected, *_), (n_rows, digests) in counted:
        if n_rows != rows:
            yield f"table {table} has {n_rows:,} rows, run.json says {rows:,}"
        for (name, value), digest in zip(expected.items(), digests, strict=True):
            if digest != value:
                yield f"table {table} has the {name} {digest}, run.json says {value}: values were changed"


def _name_version(run: Run) -> str:
    version = run.document["input"].get("version")
    return f", as of {version}" if version else ""


def _account(tables: RunTables) -> Problems:
    account = tables.run.document["accounting"]
    dropped, kept = account["dropped"], account["kept"]
    total = kept + sum(dropped.values())
    if account["rows_in"] != total:
        yield f"run.json accounts for {total:,} of {account['rows_in']:,} input rows"
    ingest, rows = tables.steps["ingest"], tables.run.document["rows"]
    bad = sum(n for reason, n in dropped.items() if reason in ingest.info["dropped"])
    samples = tables.run.table("samples", tables.spark)
    bad_among = bad if PROBLEM in samples.columns else 0  # some runs keep the bad rows beside the good ones
    by_table = {
        "samples": account["rows_in"] - dropped["input.filter"] - bad + bad_among,
        "filtered": kept + dropped["pruned"],
        "assignments": kept + dropped["pruned"],
        "keep_list": kept,
        "duplicates": sum(n for reason, n in dropped.items() if reason.endswith(" duplicates")),
    }
    for step in tables.steps.values():
        for name in step.rows:
            if name.split("_")[0] == "rejected":
                by_table[name] = sum(step.info["rejected"].values())
    for table, expected in by_table.items():
        if table in rows and rows[table] != expected:
            yield f"table {table} has {rows[table]:,} rows where the account of rows needs {expected:,}"
    n_good = tables.good_samples().count()
    wanted = rows["samples"] - bad_among
    if wanted != n_good:
        yield f"table samples has {n_good:,} good rows where the account of rows needs {wanted:,}"
    if PROBLEM not in samples.columns:
        return
    found = samples.where(f"{PROBLEM} IS NOT NULL").groupBy(PROBLEM).count().collect()
    for reason, n in found:
        if dropped.get(reason) != n:
            yield f"table samples has {n:,} rows with {reason!r}, the account has {dropped.get(reason, 0):,}"


def _list_left_out(tables: RunTables) -> str:
    """What of the samples is not in the assignments, for the name of a check."""
    return "duplicates + left out by score" if "filtered" in tables.run.document["tables"] else "duplicates"


def _plan_filtered(tables: RunTables) -> list[tuple[str, Callable[[], Problems]]]:
    if "filtered" not in tables.run.document["tables"]:
        return []
    return [("filtered samples as the score filter lets them through", lambda: check_filtered(tables))]


def _keys(tables: RunTables) -> Problems:
    from pyspark.sql import functions as F

    _, (samples,) = digest_columns(tables.good_samples(), [KEY])
    digests = {name: d for step in tables.steps.values() for name, d in step.key_digests.items()}
    parts = [digests["assignments"], *([digests["duplicates"]] if "duplicates" in digests else [])]
    left_out = tables.left_out_by_score()
    if left_out is not None:
        parts += digest_columns(left_out, [KEY])[1]
    if add_digests(*parts) == samples:
        if "duplicates" not in digests:
            return
        found = tables.run.duplicates(tables.spark)
        unknown = found.join(
            tables.good_samples().select(F.col(KEY).alias(DUPLICATE_OF)), DUPLICATE_OF, "left_anti"
        ).select(DUPLICATE_OF)
        if n := unknown.count():
            shown = show_examples(unknown)
            yield f"table duplicates: duplicate_of of {n:,} rows is no sample, such as {shown}"
        return
    good, keys = tables.good_samples(), tables.run.assignments(tables.spark).select(KEY)
    if "duplicates" in digests:
        keys = keys.union(tables.run.duplicates(tables.spark).select(KEY))
    if left_out is not None:
        keys = keys.union(left_out)
    told = False
    for what, rows in (
        ("are neither assigned nor duplicates", good.join(keys, KEY, "left_anti")),
        (
            "are assigned or duplicates without being samples",
            keys.join(good, KEY, "left_anti"),
        ),
        ("occur more than once in assignments and duplicates", keys.groupBy(KEY).count().where("count > 1")),
    ):
        if n := rows.count():
            told = True
            yield f"table assignments: {n:,} keys {what}, such as {show_examples(rows)}"
    if not told:
        yield "table samples: a key occurs more than once"


def _bounds(tables: RunTables) -> Problems:
    from pyspark.sql import functions as F

    ids, centroids = tables.run.centroids()
    norms = np.linalg.norm(centroids.astype(np.float64), axis=1)
    wrong = ~(np.abs(norms - 1) < _NORM_SLACK)
    if wrong.any():
        yield f"table centroids: that of cluster {ids[wrong][0]} has norm {norms[wrong][0]:.6g}, not 1"
    if len(set(ids.tolist())) != len(ids):
        yield "table centroids: a cluster_id occurs more than once"
    assignments = tables.run.assignments(tables.spark)
    inside = F.col(DISTANCE).between(0, 2) & ~F.isnan(DISTANCE)
    outside = assignments.where(~F.coalesce(inside, F.lit(False)))
    if n := outside.count():
        yield f"table assignments: {n:,} distances are not within [0, 2], such as of {show_examples(outside)}"
    known = tables.run.table("centroids", tables.spark).select(CLUSTER_ID)
    unknown = assignments.join(F.broadcast(known), CLUSTER_ID, "left_anti")
    if n := unknown.count():
        yield f"table assignments: {n:,} rows are in unknown clusters, such as {show_examples(unknown)}"


def _stats(tables: RunTables) -> Problems:
    stored = tables.run.cluster_stats()
    n_neighbors = tables.config.prune.n_neighbors
    again = complete_stats(
        cluster_stats(tables.open("assignments", "cluster_stats")), *tables.run.centroids(), n_neighbors
    ).to_pandas()
    if stored[CLUSTER_ID].tolist() != again[CLUSTER_ID].tolist():
        yield "table cluster_stats: its clusters are not those of table centroids"
        return
    for name in (N_ITEMS, D_INTRA, D_INTER, COMPLEXITY):
        slack = _ROUNDING if name in (D_INTER, COMPLEXITY) else 0
        yield from _unequal("cluster_stats", name, stored, again[name], slack)
    for cluster, a, b in zip(stored[CLUSTER_ID], stored[HISTOGRAM], again[HISTOGRAM], strict=True):
        if list(a) != list(b):
            yield f"table cluster_stats: the histogram of cluster {cluster} is not that of its assignments"
            return


def _unequal(table: str, name: str, stored: pd.DataFrame, again: Any, slack: float) -> Problems:
    a, b = stored[name].to_numpy(float), np.asarray(again, float)
    wrong = ~((np.abs(a - b) <= slack * np.maximum(1, np.abs(b))) | (np.isnan(a) & np.isnan(b)))
    if wrong.any():
        row = np.flatnonzero(wrong)[0]
        yield (
            f"table {table}: {name} of cluster {stored[CLUSTER_ID].iloc[row]} is {a[row]:.12g}, "
            f"computed again {b[row]:.12g} ({wrong.sum():,} clusters differ)"
        )


def _quotas(tables: RunTables) -> Problems:
    stats, quotas = tables.run.cluster_stats(), tables.run.quotas()
    prune = tables.config.prune
    if quotas[CLUSTER_ID].tolist() != stats[CLUSTER_ID].tolist():
        yield "table quotas: its clusters are not those of table cluster_stats"
        return
    yield from _unequal("quotas", N_ITEMS, quotas, stats[N_ITEMS], 0)
    try:
        n_keep = prune.count_to_keep(int(stats[N_ITEMS].sum()))
        plan = plan_quotas(
            stats[N_ITEMS], stats[D_INTRA], stats[D_INTER], n_keep,
            complexity=prune.complexity, temperature=prune.temperature,
            min_per_cluster=prune.min_per_cluster, cluster_balance=prune.cluster_balance,
        )  # fmt: skip
    except InfeasibleError as error:
        yield f"table quotas: {error.what}"
        return
    for name in (WEIGHT, TARGET):
        yield from _unequal("quotas", name, quotas, plan[name], _ROUNDING)
    quota, low, high = quotas[QUOTA].tolist(), plan["floor"].tolist(), stats[N_ITEMS].tolist()
    if sum(quota) != n_keep:
        yield f"table quotas: the quotas add up to {sum(quota):,}, not {n_keep:,}"
    # The quotas are optimal when moving one unit to another cluster is never a gain. That holds when the most
    # expensive unit taken costs no more than the cheapest unit left.
    left = [Fraction(x) - Fraction(t) for x, t in zip(quota, quotas[TARGET].tolist(), strict=True)]
    taken, free = None, None
    for j, (x, gap) in enumerate(zip(quota, left, strict=True)):
        cluster = quotas[CLUSTER_ID].iloc[j]
        if not low[j] <= x <= high[j]:
            yield f"table quotas: quota {x:,} of cluster {cluster} is not within [{low[j]:,}, {high[j]:,}]"
        if x > low[j] and (taken is None or gap - 1 > taken[0]):
            taken = (gap - 1, cluster)
        if x < high[j] and (free is None or gap < free[0]):
            free = (gap, cluster)
    if taken and free and taken[0] > free[0]:
        yield f"table quotas are not optimal: moving one from cluster {taken[1]} to {free[1]} is a gain"


def _keep_list(tables: RunTables) -> Problems:
    from pyspark.sql import functions as F

    prune, kept = tables.config.prune, tables.run.keep_list(tables.spark)
    try:
        again = select(
            tables.open("assignments", "select"),
            tables.run.table("quotas", tables.spark),
            which_to_keep=prune.which_to_keep,
            seed=prune.seed,
        )
        if digest_table(again) == digest_table(kept):
            return
    except SparkDbpError as error:
        yield f"the keep list cannot be selected again: {error.what}"
        return
    both = [F.col(name) for name in kept.columns]
    told = False
    for what, rows in (
        (f"should not be kept, or not so ({', '.join(kept.columns)})", kept.select(both).exceptAll(again)),
        ("should be kept and are not, or not so", again.exceptAll(kept.select(both))),
    ):
        if n := rows.count():
            told = True
            yield f"table keep_list: {n:,} rows {what}, such as key {show_examples(rows)}"
    if not told:
        yield "table keep_list: it differs from the selection made again"


def _plan_numpy(tables: RunTables) -> list[tuple[str, Callable[[], Problems]]]:
    """Where the other engine cannot read the run: some clusters are computed again on the driver."""
    if not tables.lack_the_other_engine:
        return []
    stats, quotas = tables.run.cluster_stats(), tables.run.quotas()
    sizes, ids = stats[N_ITEMS].to_numpy(), stats[CLUSTER_ID].to_numpy()
    clusters = sample_clusters(sizes, ids, tables.run.document["run_id"])
    prune = tables.config.prune

    def check() -> Problems:
        rows = tables.run.assignments(tables.spark), tables.run.keep_list(tables.spark)
        yield from check_in_numpy(clusters, *rows, stats, quotas, prune.which_to_keep, prune.seed)

    return [(f"{len(clusters):,} clusters computed again in numpy, for workers cannot read the run", check)]


def _trie(tables: RunTables) -> Problems:
    from pyspark.sql import functions as F

    path = tables.run.table_path("keep_trie")
    try:
        base, manifest = read_manifest(path)
        trie = KeepTrie(base, manifest)  # `KeepTrie.open` may copy shards here, and Spark reads them
        named = {shard["file"]: shard for shard in manifest["shards"]}
    except (SparkDbpError, OSError, ValueError, KeyError, TypeError) as error:
        yield f"table keep_trie: {MANIFEST} at {path} cannot be read: {error}"
        return

    def look_at_shards(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        from zlib import crc32

        import marisa_trie
        import pyarrow as pa

        for batch in batches:
            for name, content in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                n_keys = -1
                if name in named and crc32(content) == named[name]["crc32"]:  # marisa_trie does not check it
                    n_keys = len(marisa_trie.BinaryTrie().frombytes(content))
                yield pa.RecordBatch.from_pydict({"file": [name], "n_keys": pa.array([n_keys], pa.int64())})

    looked_at = map_in_arrow(read_shards(tables.spark, path), look_at_shards, "file STRING, n_keys BIGINT")
    found = {file: n_keys for file, n_keys in looked_at.collect() if file in named}
    for file in sorted(named):
        if found.get(file, -1) < 0:
            yield f"table keep_trie: shard {file!r} is not as it was written (its CRC-32 differs)"
            return
    n_found = sum(found.values())
    kept = tables.run.keep_list(tables.spark)
    n_kept = kept.count()
    if not n_found == n_kept == manifest["n_keys"]:
        yield (
            f"table keep_trie: its shards hold {n_found:,} keys, {MANIFEST} says {manifest['n_keys']:,}, "
            f"the keep list has {n_kept:,}"
        )
    missing = find_missing_keys(kept, trie, tables.config.trie.key)
    if n := missing.agg(F.count(F.lit(1))).collect()[0][0]:
        yield f"table keep_trie: {n:,} kept keys are not in it, such as {show_examples(missing)}"
