"""Plan a run: look at configuration and input, compare with an earlier run, count what it would cost.

Imports what is beside it, `run_clusters`, `pipeline`, `opening`, `job`, `config`, `engine` and
`lake`; pyspark inside functions.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from spark_dbp.columns import N_ITEMS, show_name, split_name
from spark_dbp.config import RunConfig
from spark_dbp.config_base import name_column
from spark_dbp.engine.catalog_target import TABLES, VIEW, Target, check_input, refuse_glob
from spark_dbp.engine.compat import count_cores
from spark_dbp.engine.expressions import evaluate_calls
from spark_dbp.engine.hadoop import has_jvm
from spark_dbp.engine.memory import parse_size, read_memory_limit
from spark_dbp.engine.patience import finish_within
from spark_dbp.engine.probe import EngineChoice
from spark_dbp.engine.session import borrow_session, guard_session
from spark_dbp.engine.spark_errors import translate_errors
from spark_dbp.engine.storage import reach_storage
from spark_dbp.errors import ConfigError, SparkDbpError
from spark_dbp.explore.plan.costs import Machine, estimate_cost, measure_machine
from spark_dbp.explore.plan.feasible import judge_quotas, refuse_infeasible
from spark_dbp.explore.plan.look import list_places, look
from spark_dbp.explore.plan.look_by_spark import look_by_spark
from spark_dbp.explore.plan.planned import Plan, PlannedStep
from spark_dbp.explore.plan.reuse import Judged, judge_steps
from spark_dbp.explore.plan.seen import OnlySparkError, Seen
from spark_dbp.explore.plan.sizes import Sizer, count_partitions
from spark_dbp.explore.run_clusters import check_columns as check_names
from spark_dbp.explore.run_clusters import translate_damage
from spark_dbp.job import Job
from spark_dbp.lake import files, mounts, parquet_files
from spark_dbp.lake.local_files import is_store_mount
from spark_dbp.lake.lock import describe_holder
from spark_dbp.lake.store import RUN_JSON, EarlierSteps, refuse_strangers
from spark_dbp.opening import check_columns
from spark_dbp.pipeline import plan_steps
from spark_dbp.stages.embed import check_item_type
from spark_dbp.stages.ingest import check_types
from spark_dbp.stages.kmeans import check_training_sample
from spark_dbp.steps import Step

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


Result = TypeVar("Result")

# How long, in seconds, a store may take before a session is asked; the output's, which has answered once; and
# a session.
_PATIENCE, _OUTPUT_PATIENCE, _SESSION_PATIENCE = 20.0, 60.0, 600.0


def plan(config: RunConfig, spark: SparkSession | None = None) -> Plan:
    """Say what a run of this configuration would compute, reuse and write, and at what cost.

    Nothing is written, no lock is taken. Only metadata is read: listings, footers, sizes, and a few rows.

    Parameters
    ----------
    config : RunConfig
    spark : SparkSession, optional
        It checks SQL and reads types as a run does. Without one, a session is started only where this process
        cannot look at the input itself.

    Returns
    -------
    Plan
        It prints as a table for each step; `Plan.to_dict` has it all.

    Raises
    ------
    ConfigError, InputError
        What a run would refuse, as far as metadata tells.

    Examples
    --------
    >>> from spark_dbp import RunConfig, plan
    >>> print(plan(RunConfig.from_yaml("conf.yaml")))  # doctest: +SKIP
    """
    count_partitions(config)
    written = config.list_sql()
    steps = plan_steps(config)
    path = files.normalize(config.output.path)
    places = dict.fromkeys(config.shards or config.input.paths, config.source_setting)
    places |= {config.input.centroids: "input.centroids"} if config.input.centroids is not None else {}
    seen, why_spark, cores = None, "", None
    with ExitStack() as held:
        try:
            seen = _look_in_time(config, steps, path)
        except OnlySparkError as error:
            why_spark = str(error)
            if spark is None:
                spark = held.enter_context(borrow_session(config.spark))
                held.callback(_unmount, [path, *places])
        if spark is not None:
            for place, setting in places.items():
                reach_storage(spark, place, setting, is_needed=False, must_answer=True)
            reach_storage(spark, path, "output.path")
            with guard_session(spark), translate_errors():
                config = config.replace_sql(evaluate_calls(spark, (text for _, text in written)))
                steps = plan_steps(config)
                if seen is None and config.input.table is None:
                    seen = _look_again(config, steps)
                if config.output.table is not None:
                    target = Target(spark, config.output.table, config.output.table_format, path)
                    check_input(target, config.input.table)
                job = Job(config, spark, _NoDirectory(path), EngineChoice("sql", "nothing is run"))  # type: ignore[arg-type]
                ask = partial(look_by_spark, job, steps, written, seen)
                # Of a session without a JVM here nobody knows beforehand whether a store answers it.
                seen = ask() if has_jvm(spark) else _wait_for(_SESSION_PATIENCE, places, ask)
                cores = count_cores(spark)
        assert seen is not None
        has_session = spark is not None
        make = partial(_make_plan, config, steps, seen, written, cores, why_spark, has_session)
        return _wait_for(_OUTPUT_PATIENCE, {path: "output.path"}, make)


def _make_plan(
    config: RunConfig,
    steps: list[Step],
    seen: Seen,
    written: list[tuple[str, str]],
    cores: int | None,
    why_spark: str,
    has_session: bool,
) -> Plan:
    """What follows from what was seen, and from what is in the output directory."""
    path = files.normalize(config.output.path)
    earlier = EarlierSteps(path)
    seen.notes += _find_parts(config, earlier)
    _check_output(config, path)
    _check_columns(config, steps, seen)
    refuse_infeasible(config, seen)
    judged = judge_steps(steps, config, seen, earlier)
    machine = measure_machine(cores)
    sizer = Sizer(config, seen, steps)
    planned = [_plan_step(one, config, sizer, machine) for one in judged]
    if not sizer.has_dimension and any(step.vector_passes for step in steps):
        seen.notes.append(f"vectors: {sizer.widths.dimension:,} dimensions assumed, for none were seen")
    _check_driver(config, sizer, planned)
    return Plan(
        config,
        seen,
        planned,
        _predict_engine(config, path, why_spark),
        judge_quotas(config, sizer.tables["assignments"].rows, sizer.k, _read_cluster_sizes(judged, earlier)),
        describe_holder(path),
        files.exists(earlier.at(RUN_JSON)),
        _name_catalog(config),
        machine,
        _list_unchecked(config, seen, written, has_session),
    )


def _unmount(places: Iterable[str]) -> None:
    """Forget the file systems of a session that ends."""
    for place in map(files.normalize, places):
        if not files.is_local(place):
            mounts.unmount(mounts.split_root(place)[0])


def _wait_for(seconds: float, places: Mapping[str, str], work: Callable[[], Result]) -> Result:
    """What `work` gives, which reads at places that settings name; stores among them may never answer.

    Raises
    ------
    ConfigError
        When that takes longer.
    """
    far = [place for place in places if not files.is_local(files.normalize(place))]
    if not far:
        return work()
    try:
        return finish_within(seconds, work)
    except TimeoutError as error:
        named = ", ".join(f"{places[place]} {place}" for place in far)
        raise ConfigError(
            f"{named}: {error}",
            mend="see that the store is up, and that its address and the network are right; or name another",
        ) from None


def _find_parts(config: RunConfig, earlier: EarlierSteps) -> list[str]:
    """What an attempt that was cut off has left of steps that work in parts."""
    return [
        f"embed_{section.name}: parts that an earlier attempt finished are taken over, as far as they fit"
        for section in config.embed
        if earlier.read_earlier(f"embed_{section.name}") is None
        and files.list_names(earlier.at(f"tables/{section.table}_parts"))
    ]


def _check_output(config: RunConfig, path: str) -> None:
    """Refuse an output directory that a run would refuse, without writing there."""
    refuse_strangers(path)
    if config.output.table is not None:
        refuse_glob(config.output.table_format, path)
    if files.is_local(path):
        above = next(place for place in (Path(path), *Path(path).parents) if place.exists())
        if not above.is_dir() or not os.access(above, os.W_OK):
            why = "may not be written" if above.is_dir() else "is a file"
            raise ConfigError(
                f"output.path: cannot write to {path}: {above} {why}",
                mend="name a directory that can be written",
            )


class _NoDirectory:
    """Stands for the run directory where nothing is written: a `Job` asks for its path only."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.progress = ""
        self.steps: dict[str, Any] = {}


def _look_in_time(config: RunConfig, steps: list[Step], path: str) -> Seen:
    """What this process sees of the input by itself; a store may never answer."""
    if all(map(files.is_local, [path, *list_places(config)])):
        return look(config, steps, partial(_check_columns, config, steps))
    try:
        finish_within(_PATIENCE, lambda: files.list_names(path))
    except (SparkDbpError, OSError) as error:
        raise OnlySparkError(f"output.path is not reached: {error}") from error
    try:
        return finish_within(_PATIENCE, lambda: look(config, steps, partial(_check_columns, config, steps)))
    except TimeoutError as error:
        raise OnlySparkError(f"{config.source_setting}: {error}") from error


def _look_again(config: RunConfig, steps: list[Step]) -> Seen | None:
    """Look once more, where a session has lent its file system; what cannot be seen so, Spark looks at."""
    try:
        return finish_within(_PATIENCE, lambda: look(config, steps, partial(_check_columns, config, steps)))
    except (OnlySparkError, TimeoutError) as error:
        if config.shards:
            raise SparkDbpError(
                f"{config.source_setting}: the samples of shards cannot be counted from here: {error}",
                mend="let this process reach the store (credentials, a mount); `run` lists them on workers",
            ) from None
        return None


def _check_columns(config: RunConfig, steps: list[Step], seen: Seen) -> None:
    """Refuse columns that are missing or of the wrong type, as a run would at its start and in `ingest`."""
    if seen.shape is None:
        return
    frame: Any = seen.shape
    check_columns(config, steps, frame, seen.is_known)
    for section in config.embed:
        item = section.item_column
        if item is not None and seen.is_known(item):
            check_item_type(frame, item, section.kind, section.item_setting)
    needed = {name for step in steps for name in step.needs.columns}
    given = config.input

    def choose(column: Any) -> str | None:
        name = name_column(column)
        return name if name is not None and name in needed and seen.is_known(name) else None

    key = str(given.key)
    if seen.is_known(key):
        embedding = None if config.embeds_main else choose(given.embedding)
        check_types(frame, key, embedding, choose(given.cluster_id), choose(given.distance_to_centroid))


def _plan_step(judged: Judged, config: RunConfig, sizer: Sizer, machine: Machine) -> PlannedStep:
    sizer.add(judged)
    tables = {table: sizer.tables[table] for table in judged.step.writes}
    cost = None if judged.is_reused else estimate_cost(judged.step, config, sizer, machine)
    return PlannedStep(judged, tables, cost)


def _check_driver(config: RunConfig, sizer: Sizer, planned: list[PlannedStep]) -> None:
    """Refuse a training sample that the driver cannot hold, as the step `ingest` would."""
    if sizer.seen.dimension is None or sizer.rows_of_input.kind != "exact":
        return  # fewer rows may fit
    sections: list[tuple[str, Any]] = [("dedup.semantic", config.dedup.semantic)]
    sections += [("cluster", config.cluster)] if config.input.cluster_id is None else []
    limit = _read_collect_limit(config)
    for name, settings in sections:
        if settings is not None and settings.n_clusters is not None:
            n_points = min(sizer.rows_of_input.n, settings.n_clusters * settings.max_points_per_centroid)
            check_training_sample(n_points, sizer.seen.dimension, read_memory_limit(), limit, name)


def _read_cluster_sizes(judged: list[Judged], earlier: EarlierSteps) -> Any:
    """Sizes of the clusters where the statistics of an earlier run are taken over; else None."""
    one = next(one for one in judged if one.step.name == "cluster_stats")
    if not one.is_reused or one.known is None:
        return None
    path = earlier.at(one.known.tables["cluster_stats"])
    with translate_damage(earlier, "cluster_stats", path):
        stats = parquet_files.read_parquet(path)
        check_names(stats.column_names, [N_ITEMS])
        return stats.column(N_ITEMS).to_numpy()


def _read_collect_limit(config: RunConfig) -> float:
    return parse_size(str(config.spark.get("spark.driver.maxResultSize", "1g"))) or float("inf")


def _predict_engine(config: RunConfig, path: str, why_spark: str) -> EngineChoice:
    """Which engine a run is likely to choose, without a probe."""
    if config.engine != "auto":
        return EngineChoice(config.engine, "the configuration asks for it")
    if why_spark.startswith("output.path") or mounts.is_mounted(path):  # a session lent it, now or before
        return EngineChoice("sql", "this process reaches output.path only through Spark")
    if files.is_local(path) and is_store_mount(f"{path}/"):
        return EngineChoice("sql", f"{Path(path).parts[1]} is a mount of a store, which renames nothing")
    master = str(config.spark.get("spark.master", config.spark.get("spark.remote", "local")))
    if files.is_local(path) and not master.startswith("local"):
        return EngineChoice("arrow", "if all machines of the cluster have output.path; else the run says so")
    return EngineChoice("arrow", "this process reaches output.path; a run also asks its workers")


def _name_catalog(config: RunConfig) -> list[str]:
    if config.output.table is None:
        return []
    *schema, prefix = split_name(config.output.table)
    tables = [table for table in TABLES if table != "duplicates" or any(config.dedup.model_dump().values())]
    tables += [VIEW] if config.input.table is not None else []
    return [show_name([*schema, f"{prefix}_{table}"]) for table in tables]


def _list_unchecked(
    config: RunConfig, seen: Seen, written: list[tuple[str, str]], has_session: bool
) -> list[str]:
    found = list(seen.unchecked)
    if not has_session or config.shards:
        why = "SQL is checked when a run has listed the samples" if config.shards else "not without a session"
        found += [f"{setting}: {text!r} ({why})" for setting, text in written]
    folders = [name for name in sorted(seen.unknown_columns) if name not in [text for _, text in written]]
    if folders:
        found.append(f"types of {', '.join(folders)}: only Spark tells them")
    if config.output.table is not None:
        found.append(f"output.table {config.output.table}: whether tables can be made there (a run tries)")
    for section in config.embed:
        found.append(f"embed.{section.name}: the encoder {section.encoder_name}, and how fast it is")
    return found
