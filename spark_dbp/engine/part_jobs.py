"""Run a Spark job for each part of a long step, some at a time. Imports `compat`.

Each job has few tasks, and Spark gives cores to the job that came first. So the parts that are under way are
about as many as there are cores, and whatever ends before the run is killed is finished.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar
from uuid import uuid4

from spark_dbp.engine.compat import cancel_jobs, tag_jobs

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

Item = TypeVar("Item")
Result = TypeVar("Result")

# Jobs that wait in Spark at once: enough that each core of a large cluster has the next one at hand.
MOST_AT_ONCE = 64
# Seconds between two looks, so that Ctrl-C is heard.
_HEARD = 0.5


def run_parts(
    spark: SparkSession, parts: Sequence[Item], work: Callable[[Item], Result], at_once: int = MOST_AT_ONCE
) -> Iterator[tuple[Item, Result]]:
    """Do `work` for each of `parts`, some at a time, in threads.

    Parameters
    ----------
    spark : SparkSession
        Whose jobs are cancelled when one part fails, or when the caller goes on to no further result.
    parts : sequence
    work : callable
        Takes a part. It may start Spark jobs.
    at_once : int
        Most parts under way.

    Yields
    ------
    (part, result)
        In the order in which they end.

    Raises
    ------
    Exception
        The first one that `work` raises.
    """
    waiting: queue.SimpleQueue[Item] = queue.SimpleQueue()
    for part in parts:
        waiting.put(part)
    ended: queue.SimpleQueue[tuple[Item | None, Result | None, BaseException | None]] = queue.SimpleQueue()
    stopped, tag = threading.Event(), f"spark-dbp-{uuid4().hex[:8]}"

    def work_on() -> None:
        try:
            with tag_jobs(spark, tag):
                while not stopped.is_set():
                    try:
                        part = waiting.get_nowait()
                    except queue.Empty:
                        return
                    ended.put((part, work(part), None))
        except BaseException as error:  # whatever it is, the caller must not wait for ever
            ended.put((None, None, error))

    # Daemons: where the jobs cannot be cancelled, the process does not wait for them at its end.
    for _ in range(min(at_once, len(parts))):
        threading.Thread(target=work_on, daemon=True).start()
    try:
        for _ in parts:
            while True:
                try:
                    done, result, error = ended.get(timeout=_HEARD)
                    break
                except queue.Empty:
                    continue
            if error is not None:
                raise error
            yield done, result  # type: ignore[misc]
    finally:
        stopped.set()
        cancel_jobs(spark, tag)
