"""The run directory: stages that commit, run.json. Imports `files`, `lock` and `progress`; never pyspark.

::

    run.json                        the only commit point; names every table of the run
    stages/<stage>.json             a finished stage: fingerprint, its tables, their files, rows, digests
    tables/<table>/<attempt>/       Parquet files (or tries); a directory is never written twice
    derived/<name>.json             a run elsewhere that shares tables of this one
    lock.json                       while a run is under way

A stage writes new directories, which become part of the run when its mark is written; ``run.json``
is written last. What no mark names is debris of a failed attempt and is never read; `cleaning` deletes it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from uuid import uuid4

from spark_dbp._version import __version__
from spark_dbp.errors import ConfigError, InputError, SparkDbpError
from spark_dbp.lake import files
from spark_dbp.lake.lock import LOCK, Lock, acquire_lock
from spark_dbp.lake.progress import show_progress

log = logging.getLogger("spark_dbp")

RUN_JSON = "run.json"
DERIVED = "derived"
_OURS = {RUN_JSON, LOCK, "stages", "tables", DERIVED}


@dataclass
class FinishedStep:
    """A finished (or running) stage: what it wrote and what it found.

    Attributes
    ----------
    name, fingerprint : str
    tables : dict of str to str
        Table name to path, relative to the run directory.
    rows, digests, key_digests : dict
        Of those tables; the last of the column ``key`` alone.
    files : dict of str to dict
        Table name to the size in bytes of each of its files.
    version : str
        Of this package, which wrote them.
    depends : dict of str to str
        What the result depends on, each as a hash.
    info : dict
        What later stages and reports need to know; JSON.
    seconds : float
    """

    name: str
    make_fingerprint: str
    tables: dict[str, str] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    key_digests: dict[str, str] = field(default_factory=dict)
    files: dict[str, dict[str, int]] = field(default_factory=dict)
    version: str = __version__
    depends: dict[str, str] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def content(self) -> str:
        """What a later stage depends on: how the tables were made, and what came out when they were.

        A stage may be computed anew with the same fingerprint, after damage; if it then gives something else
        (embeddings of a model need not agree to the last bit), what was made of its tables is outdated.
        """
        return _hash([self.fingerprint, self.digests])


def make_fingerprint(name: str, depends: Mapping[str, str]) -> str:
    """SHA-256 of a stage's name, what it depends on and the version of this package.

    Examples
    --------
    >>> fingerprint("a", {"x": "1"}) == fingerprint("a", {"x": "1"})
    True
    >>> fingerprint("a", {"x": "1"}) == fingerprint("b", {"x": "1"})
    False
    """
    return _hash([__version__, name, dict(depends)])


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def _hashes(depends_on: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Hashes of all leaves, by their path: values may be secret, and differences are told by name."""
    found: dict[str, str] = {}
    for name, value in depends_on.items():
        if isinstance(value, Mapping):
            found |= _hashes(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = _hash(value)[:16]
    return found


class RunDirectory:
    """Write access to a run directory.

    Use `opened` to get one; it holds the directory's lock.

    Parameters
    ----------
    path : str
        Normalized (see `files.normalize`).
    lock : Lock
        Of that directory.
    """

    def __init__(self, path: str, lock: Lock) -> None:
        self.path = path
        self._lock = lock
        self.stages: dict[str, FinishedStep] = {}
        self.reused: list[str] = []
        # Rows that a pass goes over, and where workers note how far they are.
        self.n_rows = 0
        self.progress = self.at(".progress")

    def at(self, relative: str) -> str:
        """Absolute path of something in the run directory."""
        return files.resolve(self.path, relative)

    def stage(
        self, name: str, title: str, depends_on: Mapping[str, Any], build: Callable[[StepWriter], None]
    ) -> FinishedStep:
        """Run a stage, or take its result of an earlier run that had the same inputs.

        Parameters
        ----------
        name, title : str
            `title` is for people.
        depends_on : mapping
            Everything the result depends on, by the name that a message gives it; JSON-able. The
            `content` of earlier stages is among it.
        build : callable
            Gets a `StageWriter`, writes the tables and reports them to it.

        Returns
        -------
        Stage
        """
        depends = _hashes(depends_on)
        wanted = FinishedStep(name, make_fingerprint(name, depends), depends=depends)
        known = self._committed(name)
        why_not = _difference(known, wanted) if known else ""
        if known and not why_not:
            why_not = self.damage_of(known)
            if not why_not:
                log.info("%s: reused from the earlier run", title)
                self.stages[name] = known
                self.reused.append(name)
                return known
        log.info("%s%s", title, f": computed anew, for {why_not}" if why_not else " ...")
        started = time.monotonic()
        writer = StepWriter(self, wanted)
        try:
            with show_progress(title, self.progress, self.n_rows):
                build(writer)
        except BaseException:
            writer.abandon()
            raise
        stage = writer.stage
        stage.files = {table: files.list_sizes(self.at(path)) for table, path in stage.tables.items()}
        stage.seconds = round(time.monotonic() - started, 3)
        self._mark(stage)
        counted = ", ".join(f"{table} {rows:,} rows" for table, rows in stage.rows.items())
        log.info("  done in %.1f s%s", stage.seconds, f": {counted}" if counted else "")
        return stage

    def damage_of(self, stage: FinishedStep) -> str:
        """What differs between the files of a stage's tables and its mark; empty when nothing does."""
        for table, path in stage.tables.items():
            difference = compare_files(files.list_sizes(self.at(path)), stage.files.get(table, {}))
            if difference:
                return f"{self.at(path)} is not as it was written: {difference}"
        return ""

    def forget(self) -> None:
        """Reuse nothing of an earlier run; what it committed stays until this one commits."""
        for name in files.list_names(self.at("stages")):
            files.delete(self.at(f"stages/{name}"))

    def adopt(self, stages: Iterable[FinishedStep]) -> None:
        """Take over stages of another run, whose tables stay where they are; all of them or none.

        Raises
        ------
        InputError
            When files of a table are not as they were written.
        """
        stages = list(stages)
        for stage in stages:
            damage = self.damage_of(stage)
            if damage:
                raise InputError(damage, mend="run that job again; it computes anew what is damaged")
        self._note_derived(path for stage in stages for path in stage.tables.values())
        for stage in stages:
            self._mark(stage)

    def _note_derived(self, tables: Iterable[str]) -> None:
        """Leave word, in every run that `tables` lie in, that this run shares them: `clean` keeps them there.

        These may be several: a run that shares tables may itself share some of a third one's.
        """
        by_base: dict[str, list[str]] = {}
        for path in map(self.at, tables):
            by_base.setdefault(path.rpartition("/tables/")[0], []).append(path)
        for base, paths in by_base.items():
            own = files.make_relative(self.path, base)
            note = files.join(base, DERIVED, f"{_hash(own)[:16]}.json")
            shared = sorted(files.make_relative(path, base) for path in paths)
            try:
                files.write_bytes(note, _json({"run": own, "tables": shared}))
            except (OSError, SparkDbpError) as error:
                log.warning("cannot write %s (%s): `clean` there will not know of this run", note, error)

    def _mark(self, stage: FinishedStep) -> None:
        self._lock.check()
        files.write_bytes(self.at(f"stages/{stage.name}.json"), _json(asdict(stage)))
        self.stages[stage.name] = stage

    def _committed(self, name: str) -> FinishedStep | None:
        path = self.at(f"stages/{name}.json")
        if not files.exists(path):
            return None
        try:
            return FinishedStep(**json.loads(files.read_bytes(path)))
        except (ValueError, TypeError):
            return None  # not written by this version: as good as absent

    def commit(self, document: dict[str, Any]) -> dict[str, Any]:
        """Write run.json: from here on the run exists. Returns the whole document."""
        whole = {
            "spark_dbp": __version__,
            "run_id": uuid4().hex,
            "committed_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "tables": {},
            "rows": {},
            "digests": {},
            **document,
            "stages": {name: asdict(stage) for name, stage in self.stages.items()},
            "reused_stages": self.reused,
        }
        for stage in self.stages.values():
            whole["tables"].update(stage.tables)
            whole["rows"].update(stage.rows)
            whole["digests"].update(stage.digests)
        self._lock.check()
        files.write_bytes(self.at(RUN_JSON), _json(whole))
        return whole


class StepWriter:
    """What a stage writes with: new directories, and the record of what is in them."""

    def __init__(self, store: RunDirectory, stage: FinishedStep) -> None:
        self._store = store
        self.stage = stage
        self._attempt = f"{datetime.now(timezone.utc):%Y%m%dT%H%M%S}-{uuid4().hex[:8]}"

    def new_directory(self, table: str) -> str:
        """Path of a directory for `table` that does not exist yet."""
        self.stage.tables[table] = f"tables/{table}/{self._attempt}"
        return self._store.at(self.stage.tables[table])

    def discard(self, table: str) -> None:
        """Delete a directory that was only needed on the way."""
        files.delete(self._store.at(self.stage.tables.pop(table)))
        delete_if_empty(self._store.at(f"tables/{table}"))

    def report(self, table: str, rows: int, digest: str | None = None, key_digest: str | None = None) -> None:
        """Record what was read back from `table`."""
        self.stage.rows[table] = rows
        if digest is not None:
            self.stage.digests[table] = digest
        if key_digest is not None:
            self.stage.key_digests[table] = key_digest

    def abandon(self) -> None:
        """Delete what a failed attempt wrote, as far as that is possible."""
        for path in self.stage.tables.values():
            try:
                files.delete(self._store.at(path))
                delete_if_empty(files.join(self._store.at(path), ".."))
            except Exception as error:
                log.warning("debris of the failed attempt stays at %s: %s", self._store.at(path), error)


@contextmanager
def open_run_directory(path: str) -> Iterator[RunDirectory]:
    """The store of a new or an existing run directory, locked.

    Raises
    ------
    ConfigError
        When the directory holds something that is not a run.
    ConflictError
        When another run is at work in it.
    """
    base = files.normalize(path)
    strangers = [name for name in list_directory(base) if name not in _OURS and not name.startswith(".")]
    if strangers:
        raise ConfigError(
            f"output.path {base} holds something that is not a run: {', '.join(strangers[:5])}",
            mend="name a new or an empty directory, or the directory of an earlier run",
        )
    try:
        with acquire_lock(base) as lock:
            try:
                yield RunDirectory(base, lock)
            finally:
                for name in ("tables", "stages", DERIVED):
                    delete_if_empty(files.join(base, name))
    finally:
        delete_if_empty(base)


def compare_files(found: Mapping[str, int], written: Mapping[str, int]) -> str:
    """How the files of a table, with their sizes, differ from those that were written; empty when not.

    Examples
    --------
    >>> files_differ({"a": 3}, {"a": 4})
    "file 'a' has 3 bytes where 4 were written"
    >>> files_differ({"a": 3, "c": 1}, {"a": 3})
    "file 'c' does not belong to it"
    """
    for name, size in written.items():
        if name not in found:
            return f"file {name!r} is missing"
        if found[name] != size:
            return f"file {name!r} has {found[name]:,} bytes where {size:,} were written"
    alien = sorted(set(found) - set(written))
    return f"file {alien[0]!r} does not belong to it" if alien else ""


def _difference(known: FinishedStep, wanted: FinishedStep) -> str:
    """Why a stage that was finished is of no use now; empty when it is."""
    if known.fingerprint == wanted.fingerprint:
        return ""
    if known.version != wanted.version:
        return f"it was made by version {known.version or 'unknown'} of spark-dbp"
    names = known.depends.keys() | wanted.depends.keys()
    changed = sorted(name for name in names if known.depends.get(name) != wanted.depends.get(name))
    return f"{', '.join(changed)} changed"


def list_directory(base: str) -> list[str]:
    """Names in a directory; refuses what is none."""
    try:
        return files.list_names(base)
    except NotADirectoryError:
        raise ConfigError(f"output.path {base} is a file", mend="name a directory") from None


def delete_if_empty(path: str) -> None:
    """Delete a directory that holds nothing; object stores keep none of these."""
    if files.is_local(path):
        try:
            Path(path).rmdir()
        except OSError:
            return  # not empty, or not there


def _json(document: Any) -> bytes:
    return (json.dumps(document, indent=1, sort_keys=False, default=str) + "\n").encode()
