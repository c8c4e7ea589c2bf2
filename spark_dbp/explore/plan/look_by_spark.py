"""Look at the input through a session: for tables, stores that only Spark reaches, and SQL.

Imports `job`, `opening`, `engine`, `kernels`, `look`; pyspark inside functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from spark_dbp.columns import CLUSTER_ID, DISTANCE, KEY, VECTOR
from spark_dbp.engine.compat import collect_arrow, column, read_setting
from spark_dbp.engine.forms import to_embedding_column
from spark_dbp.engine.session import READ_SETTINGS
from spark_dbp.engine.spark_errors import translate_errors
from spark_dbp.explore.plan.look_at_rows import CHECKED_ROWS, SAMPLED_ROWS, check_rows, name_samples
from spark_dbp.explore.plan.seen import UNKNOWN, Count, Seen, Shape
from spark_dbp.job import Job
from spark_dbp.kernels.samples import SHAPE
from spark_dbp.opening import open_input
from spark_dbp.stages.keep_trie import check_key_expression
from spark_dbp.steps import Step


def look_by_spark(job: Job, steps: Sequence[Step], written: list[tuple[str, str]], seen: Seen | None) -> Seen:
    """What a session sees of the input: types of all columns, and whether SQL is valid on them.

    Parameters
    ----------
    job : Job
        In a directory that nothing is written to.
    steps : sequence of Step
        From `plan_steps`.
    written : list of (str, str)
        All SQL as the user wrote it, by the key that has it.
    seen : Seen or None
        What this process saw by itself; bytes of columns and sampled rows are taken from it.

    Returns
    -------
    Seen

    Raises
    ------
    ConfigError, InputError
        As a run would raise them.
    """
    if job.config.shards and seen is not None:  # a run lists their samples first; SQL is on that table
        return _with_settings(job, seen)
    open_input(job, list(steps), written, only_looks=True)
    source = job.source
    snapshot = asdict(source.snapshot)
    if source.snapshot.files is None and source.snapshot.version is None:
        snapshot |= {"digest": UNKNOWN, "bytes": UNKNOWN}
    found = Seen(source.name, Count(source.snapshot.rows), source.snapshot.files, source.snapshot.bytes)
    found.snapshot, found.shape = snapshot, Shape(source.frame.schema)
    found.in_memory = source.snapshot.bytes_per_row
    if seen is not None:
        found.stored, found.in_memory, found.dimension = seen.stored, seen.in_memory, seen.dimension
        found.sample, found.n_checked, found.most_clusters = seen.sample, seen.n_checked, seen.most_clusters
        found.centroids, found.centroids_snapshot = seen.centroids, seen.centroids_snapshot
        found.distance_spread, found.full_columns = seen.distance_spread, seen.full_columns
        found.notes, found.groups = seen.notes, seen.groups
    with translate_errors(source.name):
        if found.sample is None or found.dimension is None:
            _sample(job, steps, found)
        key_type = source.frame.schema[str(job.config.input.key)].dataType
        check_key_expression(job.spark, key_type, job.config.trie.key)
    if job.config.input.centroids is not None:
        matrix = job.given_centroids.read()[1]
        found.centroids, found.centroids_snapshot = matrix.shape, job.given_centroids.take_snapshot()
    return _with_settings(job, found)


def _with_settings(job: Job, seen: Seen) -> Seen:
    seen.settings = {name: read_setting(job.spark, name) for name in READ_SETTINGS}
    seen.by = "a Spark session"
    return seen


def _sample(job: Job, steps: Sequence[Step], seen: Seen) -> None:
    """Some rows as Spark gives them: the first that it finds, before the filter."""
    import pyarrow as pa

    frame, names = job.source.frame, name_samples(job.config, steps)
    few = [name for name in names if name in (KEY, CLUSTER_ID, DISTANCE, VECTOR)]
    many = [name for name in names if name not in (CLUSTER_ID, DISTANCE, VECTOR)]
    selected = {new: column(name).alias(new) for new, name in names.items()}
    checked = [selected[name] for name in few if name != VECTOR]
    if VECTOR in few:
        vector, problem = to_embedding_column(frame, names[VECTOR], "input.embedding")
        checked += [vector.alias(VECTOR), problem.alias(SHAPE)]
    try:
        rows = collect_arrow(frame.select(checked).limit(CHECKED_ROWS))
        seen.sample = collect_arrow(frame.select([selected[name] for name in many]).limit(SAMPLED_ROWS))
        if rows.num_rows:
            check_rows(job.config, seen, rows)
    except (pa.ArrowException, TypeError, ValueError) as error:
        seen.unchecked.append(f"rows: of types that this process does not read ({error})")
