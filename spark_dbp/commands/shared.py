"""What the commands share: the run they ask about, its session. Imports `parsers`, `runs` and `engine`."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING

from spark_dbp.commands.parsers import Options as Options
from spark_dbp.commands.parsers import make_options as make_options
from spark_dbp.errors import ConfigError, SparkDbpError

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from spark_dbp.runs import Run

# How long, in seconds, a store may take to answer before a session is asked.
_PATIENCE = 20.0


def keep_spark_settings(command: str, settings: list[str]) -> list[str]:
    if not all(item.startswith("spark.") for item in settings):
        raise ConfigError(f"{command} takes no settings but spark.*", mend="leave the others out of --set")
    return settings


def open_run(path: str, settings: list[str]) -> tuple[Run, SparkSession | None]:
    """A finished run, and the session through which its store may be reached; None for a local one."""
    from spark_dbp import runs

    spark = find_session(path, settings)
    return runs.open_run(path, spark), spark


def open_run_without_spark(path: str, settings: list[str], tables: Iterable[str]) -> Run:
    """A finished run of which this process reads some tables; through a session only where it has to.

    Settings of Spark name a session, so they ask for one where the run is not local.
    """
    from spark_dbp import runs
    from spark_dbp.engine.patience import finish_within
    from spark_dbp.engine.session import get_session
    from spark_dbp.lake import files
    from spark_dbp.settings import apply_settings

    def reach() -> Run | None:
        run = runs.open_run(path)
        places = [run.table_path(table) for table in tables if table in run.document["tables"]]
        try:
            reached = all(files.is_local(place) or files.exists(place) for place in places)
        except SparkDbpError:
            reached = False
        return run if reached else None

    found = None
    if files.is_local(path):
        found = reach()
    elif not settings:
        with suppress(SparkDbpError, OSError):  # another store of that name may be the session's
            found = finish_within(_PATIENCE, reach)
    if found is None:
        spark = get_session(apply_settings({}, settings).get("spark"))
        found = runs.open_run(path, spark)
        found.reach_storage(spark)
    return found


def find_session(path: str, settings: list[str]) -> SparkSession | None:
    """The session, with these settings, for a run directory that is not local."""
    from spark_dbp.engine.session import get_session
    from spark_dbp.lake import files
    from spark_dbp.settings import apply_settings

    return None if files.is_local(path) else get_session(apply_settings({}, settings).get("spark"))
