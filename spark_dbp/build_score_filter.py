"""How the table `filtered` is built: the samples that are left by their score.

Imports `job`, `build_samples`, the stages and `engine`; pyspark inside functions.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from spark_dbp.build_samples import check_feasible
from spark_dbp.columns import CLUSTER_ID, DISTANCE, KEY, VECTOR
from spark_dbp.config_base import name_column
from spark_dbp.config_embed import find_table
from spark_dbp.engine.highest import GROUP, SCORE
from spark_dbp.engine.mapped_rows import write_and_read_back
from spark_dbp.errors import InfeasibleError, InputError
from spark_dbp.job import Job
from spark_dbp.lake import files
from spark_dbp.stages.clip_score import clip_score
from spark_dbp.stages.score_filter import Passing, describe_left_out, find_passing, to_group, to_score

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

log = logging.getLogger("spark_dbp")


def build_filtered(job: Job, rows: str, with_vectors: bool) -> None:
    """Commit who is left by the score filter.

    Parameters
    ----------
    job : Job
    rows : str
        Table of the samples that are left so far.
    with_vectors : bool
        Whether the vectors are written again, beside the keys.
    """
    settings = job.config.score_filter
    assert settings is not None
    scratch = job.new_directory("scratch")
    passing = find_passing(
        _read_scores(job, rows, scratch, with_vectors and settings.keep_fraction is None),
        keep_fraction=settings.keep_fraction,
        at_least=settings.at_least,
        scratch=scratch,
    )
    _check_left(job, job.count_rows(rows), passing)
    left = passing.rows.select([name for name in passing.rows.columns if name not in (SCORE, GROUP)])
    if with_vectors and VECTOR not in left.columns:
        vectors = job.read_table("samples").select(KEY, VECTOR)
        # Where nothing but the key is known of a row, the keys need not travel with the vectors.
        left = vectors.join(left, KEY, "left_semi" if left.columns == [KEY] else "inner")
        left = left.select([name for name in (KEY, CLUSTER_ID, DISTANCE, VECTOR) if name in left.columns])
    job.write_table("filtered", left, expected_rows=passing.n_rows)
    job.delete_directory("scratch")
    log.info(
        "  %s of %s rows are left (%s left out)",
        f"{passing.n_rows:,}",
        f"{job.count_rows(rows):,}",
        describe_left_out(passing.left_out),
    )
    job.note(left_out=passing.left_out, columns=_find_columns(job))
    job.note(groups=passing.n_groups, groups_without_rows=passing.n_empty)


def _read_scores(job: Job, rows: str, scratch: str, with_vectors: bool) -> DataFrame:
    """The rows with ``score``, where it is needed ``score_group``, and what later steps read of them."""
    settings = job.config.score_filter
    assert settings is not None
    frame = job.read_table(rows)
    wanted = [KEY, CLUSTER_ID, DISTANCE, *([VECTOR] if with_vectors else [])]
    columns = {name: frame[name] for name in wanted if name in frame.columns}
    names = _find_columns(job)
    if GROUP in names:
        columns[GROUP] = to_group(frame, names[GROUP])
    if settings.clip_score is None:
        columns[SCORE] = to_score(frame, names[SCORE])
        return frame.select(*[value.alias(name) for name, value in columns.items()])
    tables = [find_table(job.config.embed, name) for name in settings.clip_score.names]
    scores = clip_score(*[job.read_table(table) for table in tables])
    scored = frame.select(*[value.alias(name) for name, value in columns.items()]).join(scores, KEY, "left")
    return write_and_read_back(scored, files.join(scratch, "scores"))


def _find_columns(job: Job) -> dict[str, str]:
    """Which columns of the samples are the score and the group, where they have such columns."""
    settings = job.config.score_filter
    assert settings is not None
    named = {SCORE: settings.score, GROUP: name_column(settings.within)}
    return {name: job.find_column(column) for name, column in named.items() if column is not None}


def _check_left(job: Job, n_rows: int, passing: Passing) -> None:
    """Refuse a filter that leaves too few rows for the steps that follow."""
    reasons = describe_left_out(passing.left_out)
    gone = f"score_filter left {passing.n_rows:,} of {n_rows:,} rows ({reasons} left out)"
    mend = "see what the scores are, and let the filter keep more rows"
    if not passing.n_rows:
        raise InfeasibleError(gone, mend=mend)
    try:
        check_feasible(job.config, passing.n_rows)
    except InputError as error:
        raise InfeasibleError(f"{gone}: {error.what}", mend=f"{mend}; or {error.mend}") from None
