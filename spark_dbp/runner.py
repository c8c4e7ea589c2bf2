"""Carry out the steps of `pipeline`: a whole run, or pruning again.

Imports `pipeline`, `job`, `accounting`, `publishing`, `engine`, `io`, `lake`, `runs` and checks of stages.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING

from spark_dbp.accounting import account_for_rows, commit_run
from spark_dbp.columns import KEY
from spark_dbp.config import RunConfig
from spark_dbp.engine.catalog_target import Target, check_input, check_key_type, open_target
from spark_dbp.engine.expressions import evaluate_calls
from spark_dbp.engine.probe import choose_engine
from spark_dbp.engine.session import describe_jobs, get_session, guard_session
from spark_dbp.engine.spark_errors import translate_errors
from spark_dbp.engine.storage import reach_storage
from spark_dbp.errors import ConfigError
from spark_dbp.job import Job
from spark_dbp.lake import files
from spark_dbp.lake.marks import FinishedStep
from spark_dbp.lake.store import RunDirectory, open_run_directory
from spark_dbp.opening import check_columns, open_input
from spark_dbp.pipeline import plan_steps
from spark_dbp.publishing import publish_run
from spark_dbp.runs import Run, open_run
from spark_dbp.stages.embed import find_items
from spark_dbp.stages.keep_trie import check_key_expression
from spark_dbp.steps import Step

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


def run(config: RunConfig, spark: SparkSession | None = None, *, fresh: bool = False) -> Run:
    """Run the whole job: from an embeddings table to a keep list and its tries.

    Steps that an earlier run in the same directory finished with the same input and settings are
    reused. Progress goes to the logger ``spark_dbp``.

    Parameters
    ----------
    config : RunConfig
    spark : SparkSession, optional
        Classic or Connect; by default the active, the platform's or a new local one.
    fresh : bool
        Reuse nothing of an earlier run.

    Returns
    -------
    Run

    Raises
    ------
    ConfigError, InputError, ConflictError
        With a message that names what is wrong and what mends it. Nothing is committed then.
    """
    spark = spark or get_session(config.spark, records_classes=True)
    given = dict.fromkeys(config.shards or config.input.paths, config.source_setting)
    given |= {config.input.centroids: "input.centroids"} if config.input.centroids is not None else {}
    for path, setting in given.items():
        reach_storage(spark, path, setting, is_needed=False)
    reach_storage(spark, config.output.path, "output.path", writes=True)
    with open_run_directory(config.output.path) as directory, guard_session(spark), translate_errors():
        with describe_jobs(spark, "spark-dbp: choosing the engine"):
            engine = choose_engine(spark, directory.path, config.engine)
        with describe_jobs(spark, "spark-dbp: trying where to publish"):
            target = _open_target(spark, config)
        if fresh:
            directory.forget()
        sql = config.list_sql()
        config = config.replace_sql(evaluate_calls(spark, (text for _, text in sql)))
        steps = plan_steps(config)
        job = Job(config, spark, directory, engine)
        with describe_jobs(spark, "spark-dbp: looking at the input"):
            open_input(job, steps, sql)
        with describe_jobs(spark, "spark-dbp: checking the settings"), translate_errors(job.source.name):
            _check_early(job, steps, target)
        for step in steps[1:] if config.shards else steps:
            job.carry_out(step)
        commit_run(job, asdict(job.source.snapshot), account_for_rows(job))
        with describe_jobs(spark, "spark-dbp: publishing the tables"):
            publish_run(job, target)
    return open_run(config.output.path)


def _open_target(spark: SparkSession, config: RunConfig) -> Target | None:
    """Where the run is to be published; what cannot be is refused."""
    target = open_target(spark, config.output.table, config.output.table_format, config.output.path)
    check_input(target, config.input.table)
    return target


def _check_early(job: Job, steps: list[Step], target: Target | None) -> None:
    """Refuse at once what a late step would refuse after hours."""
    config, frame = job.config, job.source.frame
    check_columns(config, steps, frame)
    key_type = frame.schema[str(config.input.key)].dataType
    check_key_expression(job.spark, key_type, config.trie.key)
    check_key_type(target, key_type)
    if config.input.centroids is not None:
        job.given_centroids.read()
    for one in config.embed:
        find_items(frame, one.item_column, one.kind, one.item_setting)
        job.identify_encoder(one.name)


def prune_again(
    source: Run, out: str, settings: Iterable[str] = (), spark: SparkSession | None = None
) -> Run:
    """Prune a finished run again with other ``prune`` or ``trie`` settings, without clustering.

    Parameters
    ----------
    source : Run
    out : str
        Directory of the new run; its run.json refers to the tables of `source` that it shares.
    settings : iterable of str
        Items like ``prune.keep_ratio=0.2``. The new run is published only where they name ``output.table``.
    spark : SparkSession, optional

    Returns
    -------
    Run

    Raises
    ------
    ConfigError
        Also when a setting is named that cannot change.
    """
    settings = list(settings)
    for item in settings:
        if not re.match(r"(prune|trie|spark)\.|(engine|output\.table|output\.table_format)=", item):
            raise ConfigError(
                f"--set {item!r} cannot change when pruning again",
                mend="only prune.*, trie.*, spark.*, engine, output.table and output.table_format can; run "
                "the job anew for other settings",
            )
    out = files.normalize(out)
    if out == source.path:
        raise ConfigError(f"--out {out} is the run to prune again", mend="name another directory")
    before = source.config()
    # Tables of the base run are not replaced unless they are named again.
    config = before.with_settings(["output.table=null", *settings, f"output.path={out}"])
    spark = spark or get_session(config.spark)
    source.reach_storage(spark)
    reach_storage(spark, out, "--out", writes=True)
    steps = plan_steps(config)
    # Steps before the first one with other settings are shared; quotas and what follows never are.
    first = next(i for i, step in enumerate(steps) if step.name == "quota" or _differs(step, before, config))
    anew = {step.name: step for step in steps[first:]}
    with open_run_directory(out) as directory, guard_session(spark), translate_errors():
        shared = [file for name in source.document["tables"] for file in source.list_files(name)[:1]]
        with describe_jobs(spark, "spark-dbp: choosing the engine"):
            engine = choose_engine(spark, directory.path, config.engine, reads=shared)
        with describe_jobs(spark, "spark-dbp: trying where to publish"):
            target = _open_target(spark, config)
        config = config.replace_sql(evaluate_calls(spark, (text for _, text in config.list_sql())))
        directory.adopt(
            _see_from(source, directory, name) for name in source.document["stages"] if name not in anew
        )
        job = Job(config, spark, directory, engine)
        check_key_type(target, source.assignments(spark).schema[KEY].dataType)
        for step in anew.values():
            job.carry_out(step)
        account = dict(source.document["accounting"])
        n_rows, n_keep = job.count_rows("assignments"), job.count_rows("keep_list")
        account["dropped"] = {**account["dropped"], "pruned": n_rows - n_keep}
        account["kept"] = n_keep
        commit_run(job, source.document["input"], account, base=source)
        with describe_jobs(spark, "spark-dbp: publishing the tables"):
            publish_run(job, target)
    return open_run(out)


def _differs(step: Step, before: RunConfig, config: RunConfig) -> bool:
    return any(before.value_at(path) != config.value_at(path) for path in step.needs.settings)


def _see_from(source: Run, directory: RunDirectory, name: str) -> FinishedStep:
    """A step of `source`, its tables as seen from another run directory."""
    step = FinishedStep(**source.document["stages"][name])
    step.tables = {
        table: files.make_relative(source.table_path(table), directory.path) for table in step.tables
    }
    return step
