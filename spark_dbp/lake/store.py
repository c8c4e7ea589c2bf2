"""The run directory: its steps, tables and run.json.

Imports `files`, `lock`, `progress`, `published` and `table_files`; never pyspark.

::

    run.json                        written last: from then on the run exists; names all its tables
    stages/<step>.json              the mark of a finished step: fingerprint, tables, files, rows, digests
    tables/<table>/<attempt>/       Parquet files (or tries); a directory is never written twice
    derived/<name>.json             names a run elsewhere that shares tables of this one
    published.json                  names the catalog tables that hold the run, and what they point to
    lock.json                       while a run is under way

A step writes to new directories. They belong to the run once the mark of the step is written. What no mark
names was left by a failed attempt. It is never read, and `cleaning` deletes it.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime, timezone
from typing import Any
from uuid import uuid4

from spark_dbp._version import __version__
from spark_dbp.errors import ConfigError, InputError, SparkDbpError
from spark_dbp.lake import files
from spark_dbp.lake.lock import LOCK, Lock, acquire_lock
from spark_dbp.lake.marks import (
    FORMAT_VERSION,
    FinishedStep,
    compare_steps,
    hash_leaves,
    hash_value,
    make_fingerprint,
)
from spark_dbp.lake.progress import show_progress
from spark_dbp.lake.published import PUBLISHED, find_same_run
from spark_dbp.lake.table_files import compare_files, list_table_files

log = logging.getLogger("spark_dbp")

RUN_JSON = "run.json"
DERIVED = "derived"
_OURS = {RUN_JSON, LOCK, "stages", "tables", DERIVED, PUBLISHED}


class EarlierSteps:
    """What an earlier run has finished in a run directory. It only reads, and needs no lock.

    Parameters
    ----------
    path : str
        Normalized (see `files.normalize`).
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def at(self, relative: str) -> str:
        """Absolute path of what lies at `relative` in the run directory."""
        return files.resolve(self.path, relative)

    def read_earlier(self, name: str) -> FinishedStep | None:
        """A step as an earlier run finished it, whatever it depended on; None without such a run.

        Parameters
        ----------
        name : str

        Returns
        -------
        FinishedStep or None
        """
        path = self.at(f"stages/{name}.json")
        if not files.exists(path):
            return None
        try:
            return FinishedStep(**json.loads(files.read_bytes(path)))
        except (ValueError, TypeError):
            return None  # not written by this program, so treat it as missing

    def find_difference(self, known: FinishedStep, depends: Mapping[str, str]) -> str:
        """Why a step that was finished cannot be taken over; empty when it can.

        Parameters
        ----------
        known : FinishedStep
        depends : mapping
            What it would depend on now, hashed (`marks.hash_leaves`).

        Returns
        -------
        str
        """
        return compare_steps(known, known.name, depends) or self.describe_damage(known)

    def describe_damage(self, step: FinishedStep) -> str:
        """How the files of a step's tables differ from what its mark says; empty when they do not."""
        for table, path in step.tables.items():
            difference = compare_files(
                files.list_sizes(self.at(path)), step.files.get(table, {}), step.ignored.get(table, ())
            )
            if difference:
                return f"{self.at(path)} is not as it was written: {difference}"
        return ""


class RunDirectory(EarlierSteps):
    """Write access to a run directory, whose lock it holds. `open_run_directory` makes one.

    Parameters
    ----------
    path : str
        Normalized (see `files.normalize`).
    lock : Lock
        Lock of that directory.
    """

    def __init__(self, path: str, lock: Lock) -> None:
        super().__init__(path)
        self._lock = lock
        self.steps: dict[str, FinishedStep] = {}
        self.reused: list[str] = []
        self.is_fresh = False
        # Rows of one pass of the step at work, to show progress.
        self.rows_to_pass = 0
        # Where workers note how many rows they have read.
        self.progress = self.at(".progress")

    def reuse_or_build(
        self,
        name: str,
        title: str,
        depends_on: Mapping[str, Any],
        build: Callable[[StepWriter], None],
        n_rows: int = 0,
    ) -> FinishedStep:
        """Take the result of a step from an earlier run if nothing it depends on changed; else compute it.

        Parameters
        ----------
        name, title : str
            `name` is that of the mark; `title` is for the log.
        depends_on : mapping
            Everything that the result depends on, by the names that messages use. Among it are the hashes of
            tables of earlier steps. It can be written as JSON.
        build : callable
            Takes a `StepWriter`, writes the tables, and reports them to it.
        n_rows : int
            Rows of one pass over the samples, to show progress.

        Returns
        -------
        FinishedStep
        """
        known, why_anew = self._find(name, depends_on)
        if known and not why_anew:
            log.info("%s: reused from the earlier run", title)
            self.steps[name] = known
            self.reused.append(name)
            return known
        log.info("%s%s", title, f": computed anew, for {why_anew}" if why_anew else " ...")
        started = time.monotonic()
        depends = hash_leaves(depends_on)
        writer = StepWriter(
            self,
            FinishedStep(
                name, make_fingerprint(name, depends), format_version=FORMAT_VERSION, depends=depends
            ),
        )
        try:
            self.rows_to_pass = n_rows
            with show_progress(title, self.progress, lambda: self.rows_to_pass):
                build(writer)
            writer.list_files()
        except BaseException:
            writer.abandon()
            raise
        step = writer.step
        step.seconds = round(time.monotonic() - started, 3)
        self._mark(step)
        counted = ", ".join(f"{table} {rows:,} rows" for table, rows in step.rows.items())
        log.info("  done in %.1f s%s", step.seconds, f": {counted}" if counted else "")
        return step

    def why_anew(self, name: str, depends_on: Mapping[str, Any]) -> str | None:
        """Why a step would be computed; None when it would be reused.

        Parameters
        ----------
        name, depends_on
            As for `reuse_or_build`.

        Returns
        -------
        str or None
        """
        known, why_anew = self._find(name, depends_on)
        return (why_anew or None) if known else "it was not finished before"

    def _find(self, name: str, depends_on: Mapping[str, Any]) -> tuple[FinishedStep | None, str]:
        """The step as an earlier run finished it, and why it cannot be reused (empty when it can)."""
        known = self.read_earlier(name)
        if known is None:
            return None, ""
        return known, self.find_difference(known, hash_leaves(depends_on))

    def forget(self) -> None:
        """Reuse nothing of an earlier run. What that run committed stays until this one commits."""
        self.is_fresh = True
        for name in files.list_names(self.at("stages")):
            files.delete(self.at(f"stages/{name}"))

    def adopt(self, steps: Iterable[FinishedStep]) -> None:
        """Take over steps of another run: all of them, or none. Their tables stay where they are.

        Raises
        ------
        InputError
            When the files of a table are not as they were written.
        """
        steps = list(steps)
        for step in steps:
            damage = self.describe_damage(step)
            if damage:
                raise InputError(damage, mend="run that job again; it computes anew what is damaged")
        self._note_derived(path for step in steps for path in step.tables.values())
        for step in steps:
            self._mark(step)

    def _note_derived(self, tables: Iterable[str]) -> None:
        """Write a note into every run that holds one of `tables`, so that `clean` there does not delete them.

        There may be several such runs, because the other run may share tables of a third one.
        """
        by_base: dict[str, list[str]] = {}
        for path in map(self.at, tables):
            by_base.setdefault(path.rpartition("/tables/")[0], []).append(path)
        for base, paths in by_base.items():
            own = files.make_relative(self.path, base)
            note = files.join(base, DERIVED, f"{hash_value(own)[:16]}.json")
            shared = sorted(files.make_relative(path, base) for path in paths)
            try:
                files.write_bytes(note, _to_json({"run": own, "tables": shared}))
            except (OSError, SparkDbpError) as error:
                log.warning("cannot write %s (%s): `clean` there will not know of this run", note, error)

    def _mark(self, step: FinishedStep) -> None:
        self._lock.check()
        files.write_bytes(self.at(f"stages/{step.name}.json"), _to_json(asdict(step)))
        self.steps[step.name] = step

    def check_lock(self) -> None:
        """Raise a `ConflictError` where another run has taken the directory over."""
        self._lock.check()

    def commit(self, document: dict[str, Any]) -> dict[str, Any]:
        """Write run.json; from then on the run exists. Returns its whole content."""
        whole = {
            "spark_dbp": __version__,
            "format_version": FORMAT_VERSION,
            "run_id": uuid4().hex,
            "committed_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "tables": {},
            "rows": {},
            "digests": {},
            **document,
            "stages": {name: asdict(step) for name, step in self.steps.items()},
            "reused_stages": self.reused,
        }
        for step in self.steps.values():
            whole["tables"].update(step.tables)
            whole["rows"].update(step.rows)
            whole["digests"].update(step.digests)
        whole["run_id"] = find_same_run(self.at(RUN_JSON), whole) or whole["run_id"]
        self._lock.check()
        files.write_bytes(self.at(RUN_JSON), _to_json(whole))
        return whole


class StepWriter:
    """Gives a step new directories to write to, and records what is in them."""

    def __init__(self, directory: RunDirectory, step: FinishedStep) -> None:
        self._directory = directory
        self.step = step
        self._names: dict[str, list[str]] = {}
        self._shared: set[str] = set()
        self._attempt = f"{datetime.now(timezone.utc):%Y%m%dT%H%M%S}-{uuid4().hex[:8]}"

    def new_directory(self, table: str) -> str:
        """Path of a directory for `table` that does not exist yet."""
        self.step.tables[table] = f"tables/{table}/{self._attempt}"
        return self._directory.at(self.step.tables[table])

    def share(self, table: str, step: FinishedStep, of: str) -> None:
        """Let `table` be in the files of the table `of`, which another step wrote."""
        self.step.tables[table] = step.tables[of]
        self._shared.add(table)
        self.report(
            table,
            step.rows[of],
            step.digests.get(of),
            step.key_digests.get(of),
            names=step.files[of],
            schema=step.schemas.get(of),
        )

    def discard(self, table: str) -> None:
        """Delete the directory of a table that was only needed in between."""
        files.delete(self._directory.at(self.step.tables.pop(table)))
        files.delete_if_empty(self._directory.at(f"tables/{table}"))

    def report(
        self,
        table: str,
        rows: int,
        digest: str | None = None,
        key_digest: str | None = None,
        names: Iterable[str] = (),
        schema: str | None = None,
    ) -> None:
        """Record what is in `table`, and the names of its files (by default all there are)."""
        self.step.rows[table] = rows
        self._names[table] = list(names)
        if digest is not None:
            self.step.digests[table] = digest
        if key_digest is not None:
            self.step.key_digests[table] = key_digest
        if schema is not None:
            self.step.schemas[table] = schema

    def list_files(self) -> None:
        """Record the files of the tables, and what lies beside them, as a failed attempt may leave it."""
        for table, path in self.step.tables.items():
            sizes, others = list_table_files(self._directory.at(path), self._names.get(table, ()))
            self.step.files[table] = sizes
            self.step.bytes[table] = sum(sizes.values())
            if others:
                self.step.ignored[table] = others
                log.info("  %s: %d files are no part of it, such as %s", table, len(others), others[0])

    def abandon(self) -> None:
        """Delete what a failed attempt wrote, where possible."""
        own = [path for table, path in self.step.tables.items() if table not in self._shared]
        for path in map(self._directory.at, own):
            try:
                files.delete(path)
                files.delete_if_empty(files.join(path, ".."))
            except Exception as error:
                log.warning("the failed attempt leaves %s behind: %s", path, error)


@contextmanager
def open_run_directory(path: str) -> Iterator[RunDirectory]:
    """Open a new or an existing run directory, and hold its lock.

    Raises
    ------
    ConfigError
        When the directory holds something that is not a run.
    ConflictError
        When another run is at work in it.
    """
    base = files.normalize(path)
    refuse_strangers(base)
    try:
        with acquire_lock(base) as lock:
            try:
                yield RunDirectory(base, lock)
            finally:
                for name in ("tables", "stages", DERIVED):
                    files.delete_if_empty(files.join(base, name))
    finally:
        files.delete_if_empty(base)


def refuse_strangers(base: str) -> None:
    """Refuse a directory that holds something that is not a run. It need not be there.

    Raises
    ------
    ConfigError
    """
    strangers = [name for name in list_directory(base) if name not in _OURS and not name.startswith(".")]
    if strangers:
        raise ConfigError(
            f"output.path {base} holds something that is not a run: {', '.join(strangers[:5])}",
            mend="name a new or an empty directory, or the directory of an earlier run",
        )


def list_directory(base: str) -> list[str]:
    """Names in the directory `base`; an error when it is a file."""
    try:
        return files.list_names(base)
    except NotADirectoryError:
        raise ConfigError(f"output.path {base} is a file", mend="name a directory") from None


def _to_json(document: Any) -> bytes:
    return (json.dumps(document, indent=1, sort_keys=False, default=str) + "\n").encode()
