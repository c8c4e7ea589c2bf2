"""The real command with one fault in it: what the tests of this folder start in a process of its own.

    python faulty_job.py '{"stage": "assign", "when": "working", "what": "kill driver"}' run conf.yaml

``when`` is ``before`` (the stage begins), ``working`` (a worker has read a part of its rows), ``written`` (its
tables are written, its mark is not) or ``marked``; the stage ``run.json`` stands for the last commit. ``what`` is
``kill driver``, ``kill worker``, ``kill executor``, ``raise``, ``hang`` (until the file ``go`` is there)
or ``slow`` (until a copy of the task has begun). ``times`` is how often (1). ``notes`` is a folder in which faults leave word.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

from spark_dbp.cli import main
from spark_dbp.lake import files, store

try:
    from pyspark.sql.classic.dataframe import DataFrame
except ImportError:  # before Spark 4 there was one class
    from pyspark.sql import DataFrame

fault = json.loads(sys.argv[1])
notes = Path(fault["notes"])
driver, now = os.getpid(), {"stage": ""}


def claimed() -> bool:
    """Whether this process is the one to fail: so many are, whoever comes first."""
    for number in range(fault.get("times", 1)):
        try:
            (notes / f"fault-{number}").touch(exist_ok=False)
            return True
        except FileExistsError:
            continue
    return False


def executor_of(pid: int) -> int:
    """The executor's process, above the daemon that the worker is a child of."""
    while pid > 1:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        if b"CoarseGrainedExecutorBackend" in Path(f"/proc/{pid}/cmdline").read_bytes():
            return pid
    raise RuntimeError("no executor above this process")


def wait_for(sign, seconds=120) -> bool:
    deadline = time.monotonic() + seconds
    while not sign() and time.monotonic() < deadline:
        time.sleep(0.1)
    return sign()


def strike() -> None:
    what = fault["what"]
    if what == "kill driver":
        os.kill(driver, signal.SIGKILL)
        time.sleep(2)  # a worker outlives its driver for a moment, and goes on
    elif what == "kill worker":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "kill executor":
        os.kill(executor_of(os.getpid()), signal.SIGKILL)
    elif what == "kill host":
        # The worker of a standalone cluster, which started the executor, and all that it runs.
        executor = executor_of(os.getpid())
        host = int(Path(f"/proc/{executor}/stat").read_text().rpartition(")")[2].split()[1])
        assert b"deploy.worker.Worker" in Path(f"/proc/{host}/cmdline").read_bytes()
        for process in (host, executor, os.getpid()):
            os.kill(process, signal.SIGKILL)
    elif what == "raise":
        raise OSError("the disk of this worker is gone")
    elif what == "slow":
        from pyspark import TaskContext

        if wait_for((notes / f"attempt-1-of-{TaskContext.get().partitionId()}").exists):
            (notes / "copied").touch()
            time.sleep(10)  # the copy is the first to end
    elif what == "hang":
        wait_for((notes / "go").exists)
    else:
        raise ValueError(f"no such fault: {what}")


def with_fault(function):
    """`function` of batches, in which the worker that claims it strikes when it has read its first rows."""

    def faulty(batches):
        from pyspark import TaskContext

        context = TaskContext.get()
        if context is not None and context.attemptNumber() > 0:
            (notes / f"attempt-{context.attemptNumber()}-of-{context.partitionId()}").touch()

        def interrupted():
            for batch in batches:
                yield batch
                if claimed():
                    strike()

        yield from function(interrupted())

    return faulty


def map_in_arrow(frame, function, schema, *rest, **more):
    if now["stage"] == fault["stage"] and fault["when"] == "working":
        function = with_fault(function)
    return original_map(frame, function, schema, *rest, **more)


def reuse_or_build(self, name, title, depends_on, build, n_rows=0):
    def with_faults(writer):
        now["stage"] = name
        at(name, "before")
        build(writer)
        at(name, "written")

    done = original_step(self, name, title, depends_on, with_faults, n_rows)
    at(name, "marked")
    return done


def write_bytes(path, content):
    """The last commit: a draft that is renamed. Killed in between, it leaves the draft."""
    if path.endswith("/run.json") and fault["stage"] == "run.json":
        Path(path).with_name(".run.json.12345678").write_bytes(content[: len(content) // 2])
        if claimed():
            strike()
    original_write(path, content)


def at(name, when):
    if (name, when) == (fault["stage"], fault["when"]) and claimed():
        strike()


original_map, DataFrame.mapInArrow = DataFrame.mapInArrow, map_in_arrow
original_step = store.RunDirectory.reuse_or_build
store.RunDirectory.reuse_or_build = reuse_or_build
original_write, files.write_bytes = files.write_bytes, write_bytes

if __name__ == "__main__":
    sys.exit(main(sys.argv[2:]))
