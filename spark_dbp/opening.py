"""Open the input of a run, and see early that its columns serve: for `runner`, and for `explore.plan`.

Imports `pipeline`, `job`, `io` and checks of stages; pyspark inside functions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from spark_dbp.columns import find_type
from spark_dbp.config import RunConfig
from spark_dbp.config_base import name_column
from spark_dbp.engine.spark_errors import translate_errors
from spark_dbp.io.other_sources import open_format, open_shards
from spark_dbp.io.shards import list_shards
from spark_dbp.io.sources import open_source
from spark_dbp.job import Job
from spark_dbp.kernels.signatures import plan_bands
from spark_dbp.pipeline import list_compared, plan_opening
from spark_dbp.stages.exact_dedup import check_comparable, check_order
from spark_dbp.stages.list_shards import add_json_fields
from spark_dbp.stages.minhash_dedup import check_text
from spark_dbp.stages.score_filter import check_condition, check_score, check_within
from spark_dbp.steps import Step

if TYPE_CHECKING:
    from pyspark.sql import DataFrame


def open_input(
    job: Job, steps: list[Step], written: list[tuple[str, str]], *, only_looks: bool = False
) -> None:
    """Open the table of the input; or list the samples of its shards, which are a table then.

    Parameters
    ----------
    job : Job
        Gets the source.
    steps : list of Step
        From `plan_steps`.
    written : list of (str, str)
        All SQL as the user wrote it, by the key that has it.
    only_looks : bool
        Whether a view is counted but not digested (`io.sources.open_source`).

    Raises
    ------
    ConfigError, InputError
    """
    config, given = job.config, job.config.input
    how = plan_opening(config, steps, written)
    if given.format != "parquet":
        options = given.options.to_dict()
        with translate_errors():
            job.source = open_format(job.spark, given.format, given.paths, options, **how)
        return
    if not config.shards:
        compared = list_compared(config)
        job.source = open_source(
            job.spark, paths=given.paths, table=given.table, compared=compared, only_looks=only_looks, **how
        )
        return
    job.shards = list_shards(job.spark, config.shards)
    job.carry_out(steps[0])
    samples = add_json_fields(job.read_table("shard_samples"), job.info("shard_samples")["json_fields"])
    with translate_errors(job.source_name):
        job.source = open_shards(samples, job.shards, config.shards, job.count_rows("shard_samples"), **how)


def check_columns(
    config: RunConfig, steps: list[Step], frame: DataFrame, is_known: Callable[[str], bool] = lambda _: True
) -> None:
    """Refuse at once columns of the input that a late step would refuse after hours.

    Parameters
    ----------
    config : RunConfig
    steps : list of Step
        From `plan_steps`.
    frame : DataFrame
        The input; only its schema is asked.
    is_known : callable
        Takes the name of a column, and says whether `frame` can tell what it is: others are not looked at.

    Raises
    ------
    ConfigError, InputError
    """
    needed = {name for step in steps for name in step.needs.columns}
    for setting in ("key", "embedding", "cluster_id", "distance_to_centroid"):
        name = name_column(getattr(config.input, setting))
        is_made = setting == "embedding" and config.embeds_main
        if name is not None and name in needed and is_known(name) and not is_made:
            find_type(frame, name, f"input.{setting}")
    key = str(config.input.key)
    if is_known(key):
        find_type(frame, key, "input.key")
    exact, minhash = config.dedup.exact, config.dedup.minhash
    if exact is not None:
        check_comparable(frame, [str(column) for column in exact.columns if is_known(str(column))])
    if minhash is not None:
        if is_known(str(minhash.column)):
            check_text(frame, str(minhash.column))
        plan_bands(minhash.threshold, minhash.num_perm)
    for section, settings in (("dedup.exact", exact), ("dedup.minhash", minhash)):
        if settings is not None and settings.order_by is not None and is_known(str(settings.order_by)):
            check_order(frame, str(settings.order_by), f"{section}.order_by")
    score = config.score_filter
    if score is not None and score.expr is not None and is_known(score.expr):
        check_condition(frame, score.expr, score.expr)
    if score is not None and score.column is not None and is_known(str(score.column)):
        check_score(frame, str(score.column))
    if score is not None and score.within is not None and is_known(str(score.within)):
        check_within(frame, str(score.within))
