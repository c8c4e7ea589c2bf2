"""How the samples are built: who reads the input, who writes, what is refused at once.

Imports `job`, the stages, `engine`, `kernels`; pyspark inside functions.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from spark_dbp.columns import (
    CLUSTER_ID,
    DISTANCE,
    KEY,
    PROBLEM,
)
from spark_dbp.config import ClusterConfig, RunConfig, SemanticConfig
from spark_dbp.config_base import name_column
from spark_dbp.engine.file_scan import FileScan, NotPlainError
from spark_dbp.engine.mapped_rows import MappedRows
from spark_dbp.engine.memory import read_collect_limit, read_memory_limit
from spark_dbp.engine.row_bytes import count_row_bytes
from spark_dbp.engine.spark_errors import is_from_spark, read_reason
from spark_dbp.engine.table_writer import WrittenTable
from spark_dbp.io.centroids import check_centroids
from spark_dbp.job import Job, carry_columns
from spark_dbp.kernels.samples import NULL_KEY, count_samples
from spark_dbp.lake.digest import digest_columns
from spark_dbp.stages import kmeans
from spark_dbp.stages.check_samples import (
    InputReport,
    check_counts,
    check_samples,
    count_samples_by_spark,
    good_samples,
    refuse_duplicate_keys,
)
from spark_dbp.stages.ingest import check_binary_embeddings, ingest, plan_ingest

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

log = logging.getLogger("spark_dbp")

# Columns of samples of which nothing but cluster and distance is needed.
_CLUSTERED = [KEY, CLUSTER_ID, DISTANCE, PROBLEM]


def build_samples(job: Job, has_vectors: bool, carried: list[str]) -> None:
    """Read and check the input; refuse at once what a later step could not do with so many rows."""
    given = job.config.input
    rows = job.source.read_rows()
    if has_vectors:
        check_binary_embeddings(rows, str(given.embedding), given.embedding_binary)
    columns: dict[str, Any] = {
        "key": str(given.key),
        "embedding": str(given.embedding) if has_vectors else None,
        "embedding_binary": given.embedding_binary,
        "cluster_id": name_column(given.cluster_id),
        "distance_to_centroid": name_column(given.distance_to_centroid),
        "carry": carried,
    }
    written, report = _write_samples(job, rows, columns)
    if given.centroids is not None:  # the file may change, so steps that use it check it again
        good = good_samples(written.frame, report.dimension)
        check_centroids(good, *job.given_centroids.read(), report.dimension, job.given_centroids.path)
    if report.dimension is not None:
        log.info("  embeddings of %s dimensions", f"{report.dimension:,}")
    n_read = report.n_rows + sum(report.dropped.values())
    job.note(**asdict(report), filtered=job.source.snapshot.rows - n_read, carried=carry_columns(carried))
    job.note(row_bytes=-(-written.totals["bytes"] // max(1, n_read)))
    _check_what_follows(job, report)


def build_embedded_samples(job: Job) -> None:
    """Take the vectors that were embedded as the samples: their keys were checked before."""
    info, n_rows = job.info("embeddings"), job.count_rows("embeddings")
    job.share_table("samples", "embeddings")
    dropped = {**info["rejected"], **({NULL_KEY: info["null_keys"]} if info["null_keys"] else {})}
    report = InputReport(n_rows, info["dimension"], dropped, job.digest_keys("embeddings"))
    job.note(**asdict(report), filtered=info["filtered"], carried=info["carried"])
    job.note(row_bytes=-(-job.measure_bytes("embeddings") // n_rows))
    _check_what_follows(job, report)


def _check_what_follows(job: Job, report: InputReport) -> None:
    """Refuse what a later step could not do with so many rows."""
    semantic = job.config.dedup.semantic
    if semantic is not None and semantic.n_clusters is not None:
        kmeans.check_n_clusters(semantic.n_clusters, report.n_rows, "dedup.semantic.n_clusters")
        _check_training_sample(job, report, semantic, "dedup.semantic")
    if job.config.cluster.n_clusters is not None and job.config.input.cluster_id is None:
        _check_training_sample(job, report, job.config.cluster, "cluster")
    check_feasible(job.config, report.n_rows)


def _write_samples(job: Job, rows: DataFrame, columns: dict[str, Any]) -> tuple[WrittenTable, InputReport]:
    """Write the samples, by workers where these can, and say which of them are good."""
    if job.engine.name == "arrow":
        scan = _plan_scan(job, columns)
        planned = _leave_out_bad_rows(plan_ingest(rows, **columns, scan=scan))
        if planned.can_be_written():
            return _write_by_workers(
                job, rows, columns, planned, may_fall_back=scan is not None and bool(job.source.paths)
            )
    samples, on_bad_rows = ingest(rows, **columns), job.config.input.on_bad_rows
    if samples.columns == _CLUSTERED:  # the good ones are the assignments too
        report = count_samples_by_spark(samples, on_bad_rows)
        good = samples.where(f"{PROBLEM} IS NULL").drop(PROBLEM)
        written = job.write_table("samples", good, totals={"bytes": count_row_bytes(good)})
        job.source.check_unchanged(written.rows + sum(report.dropped.values()))
        refuse_duplicate_keys(written.frame)
        return written, replace(report, keys=written.key_digest)
    written = job.write_table("samples", samples, totals={"bytes": count_row_bytes(samples)})
    job.source.check_unchanged(written.rows)
    report, keys = check_samples(written.frame, on_bad_rows), written.key_digest
    if report.dropped:
        _, (keys,) = digest_columns(good_samples(written.frame, report.dimension), [KEY])
    return written, replace(report, keys=keys)


def _write_by_workers(
    job: Job, rows: DataFrame, columns: dict[str, Any], planned: MappedRows, may_fall_back: bool
) -> tuple[WrittenTable, InputReport]:
    how: dict[str, Any] = {"count": count_samples, "n_keys": job.source.snapshot.rows}
    try:
        written = job.write_table("samples", planned, **how)
    except Exception as error:
        if not (may_fall_back and is_from_spark(error)):
            raise
        # Spark says what is wrong with a file, or it reads what only it can read.
        log.info("  workers could not read the input themselves (%s): Spark reads it", read_reason(error))
        job.delete_directory("samples")
        written = job.write_table("samples", _leave_out_bad_rows(plan_ingest(rows, **columns)), **how)
    job.source.check_unchanged(written.totals.get("rows", 0))
    samples = written.frame if PROBLEM in written.frame.columns else ingest(rows, **columns)
    return written, check_counts(written.by_workers, samples, job.config.input.on_bad_rows)


def _plan_scan(job: Job, columns: dict[str, Any]) -> FileScan | None:
    """The files of the input where workers can read them themselves; None where Spark reads it."""
    named = [columns[name] for name in ("key", "embedding", "cluster_id", "distance_to_centroid")]
    needed = [name for name in [*named, *columns["carry"]] if name is not None]
    try:
        scan = job.source.plan_scan(needed, job.directory.progress)
    except NotPlainError as error:
        log.info("  Spark reads the input: %s", error)
        return None
    log.info("  workers read the input themselves, in %d tasks", len(scan.tasks))
    return scan


def _leave_out_bad_rows(planned: MappedRows) -> MappedRows:
    """Of clustered data, write only good rows, for these are the assignments too; else also the bad ones."""
    from pyspark.sql.types import StructType

    if planned.schema.names != _CLUSTERED:
        return planned
    return replace(planned, schema=StructType(planned.schema.fields[:-1]), problem=PROBLEM)


def _check_training_sample(
    job: Job, report: InputReport, settings: ClusterConfig | SemanticConfig, section: str
) -> None:
    assert settings.n_clusters is not None
    assert report.dimension is not None
    n_points = min(report.n_rows, settings.n_clusters * settings.max_points_per_centroid)
    limits = read_memory_limit(), read_collect_limit(job.spark)
    kmeans.check_training_sample(n_points, report.dimension, *limits, section)


def check_feasible(config: RunConfig, n_rows: int) -> None:
    """Refuse numbers of clusters, or of samples to keep, that so many rows do not have.

    Raises
    ------
    InputError
    """
    if config.cluster.n_clusters is not None and config.input.cluster_id is None:
        kmeans.check_n_clusters(config.cluster.n_clusters, n_rows)
    config.prune.count_to_keep(n_rows)
