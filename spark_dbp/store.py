"""The run directory: locks, stages that commit, run.json. Imports `files` and `progress`; never pyspark.

::

    run.json                        the only commit point; names every table of the run
    stages/<stage>.json             a finished stage: fingerprint, its tables, rows, digests
    tables/<table>/<attempt>/       Parquet files (or tries); a directory is never written twice
    lock.json                       while a run is under way

A stage writes new directories, which become part of the run when its mark is written; ``run.json``
is written last. What no mark names is debris of a failed attempt and is never read.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from uuid import uuid4

from spark_dbp import files
from spark_dbp._version import __version__
from spark_dbp.errors import ConfigError, ConflictError
from spark_dbp.progress import shown

log = logging.getLogger("spark_dbp")

RUN_JSON = "run.json"
LOCK = "lock.json"
_OURS = {RUN_JSON, LOCK, "stages", "tables"}


@dataclass
class Stage:
    """A finished (or running) stage: what it wrote and what it found.

    Attributes
    ----------
    name, fingerprint : str
    tables : dict of str to str
        Table name to path, relative to the run directory.
    rows, digests : dict
        Of those tables.
    info : dict
        What later stages and reports need to know; JSON.
    seconds : float
    """

    name: str
    fingerprint: str
    tables: dict[str, str] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


def fingerprint(*parts: Any) -> str:
    """SHA-256 of JSON-able `parts` and the version of this package.

    Examples
    --------
    >>> fingerprint({"a": 1}) == fingerprint({"a": 1}), fingerprint(1) == fingerprint(2)
    (True, False)
    """
    text = json.dumps([__version__, *parts], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


class RunStore:
    """Write access to a run directory.

    Use `opened` to get one; it holds the directory's lock.

    Parameters
    ----------
    path : str
        Normalized (see `files.normalize`).
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.stages: dict[str, Stage] = {}
        self.reused: list[str] = []
        # Rows that a pass goes over, and where workers note how far they are.
        self.n_rows = 0
        self.progress = self.at(".progress")

    def at(self, relative: str) -> str:
        """Absolute path of something in the run directory."""
        return files.resolve(self.path, relative)

    def stage(self, name: str, title: str, depends_on: Any, build: Callable[[StageWriter], None]) -> Stage:
        """Run a stage, or take its result of an earlier run that had the same inputs.

        Parameters
        ----------
        name, title : str
            `title` is for people.
        depends_on : JSON-able
            Everything the result depends on, the fingerprints of earlier stages included.
        build : callable
            Gets a `StageWriter`, writes the tables and reports them to it.

        Returns
        -------
        Stage
        """
        wanted = fingerprint(name, depends_on)
        known = self._committed(name)
        if known is not None and known.fingerprint == wanted:
            if all(files.exists(self.at(path)) for path in known.tables.values()):
                log.info("%s: reused from the earlier run", title)
                self.stages[name] = known
                self.reused.append(name)
                return known
            log.info("%s: computed anew, for its tables are gone", title)
        elif known is not None:
            log.info("%s: computed anew, for its input, settings or version changed", title)
        else:
            log.info("%s ...", title)
        started = time.monotonic()
        writer = StageWriter(self, Stage(name, wanted))
        try:
            with shown(title, self.progress, self.n_rows):
                build(writer)
        except BaseException:
            writer.abandon()
            raise
        stage = writer.stage
        stage.seconds = round(time.monotonic() - started, 3)
        self._mark(stage)
        counted = ", ".join(f"{table} {rows:,} rows" for table, rows in stage.rows.items())
        log.info("  done in %.1f s%s", stage.seconds, f": {counted}" if counted else "")
        return stage

    def adopt(self, stage: Stage) -> Stage:
        """Take over a stage of another run, whose tables stay where they are."""
        self._mark(stage)
        return stage

    def _mark(self, stage: Stage) -> None:
        files.write_bytes(self.at(f"stages/{stage.name}.json"), _json(asdict(stage)))
        self.stages[stage.name] = stage

    def _committed(self, name: str) -> Stage | None:
        path = self.at(f"stages/{name}.json")
        if not files.exists(path):
            return None
        try:
            return Stage(**json.loads(files.read_bytes(path)))
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
        files.write_bytes(self.at(RUN_JSON), _json(whole))
        return whole


class StageWriter:
    """What a stage writes with: new directories, and the record of what is in them."""

    def __init__(self, store: RunStore, stage: Stage) -> None:
        self._store = store
        self.stage = stage
        self._attempt = f"{datetime.now(timezone.utc):%Y%m%dT%H%M%S}-{uuid4().hex[:8]}"

    def new_directory(self, table: str) -> str:
        """Path of a directory for `table` that does not exist yet."""
        self.stage.tables[table] = f"tables/{table}/{self._attempt}"
        return self._store.at(self.stage.tables[table])

    def discard(self, table: str) -> None:
        """Delete a directory that was only needed on the way."""
        files.delete_tree(self._store.at(self.stage.tables.pop(table)))
        _delete_if_empty(self._store.at(f"tables/{table}"))

    def report(self, table: str, rows: int, digest: str | None = None) -> None:
        """Record what was read back from `table`."""
        self.stage.rows[table] = rows
        if digest is not None:
            self.stage.digests[table] = digest

    def abandon(self) -> None:
        """Delete what a failed attempt wrote, as far as that is possible."""
        for path in self.stage.tables.values():
            try:
                files.delete_tree(self._store.at(path))
                _delete_if_empty(files.join(self._store.at(path), ".."))
            except Exception as error:
                log.warning("debris of the failed attempt stays at %s: %s", self._store.at(path), error)


@contextmanager
def opened(path: str) -> Iterator[RunStore]:
    """The store of a new or an existing run directory, locked.

    Raises
    ------
    ConfigError
        When the directory holds something that is not a run.
    ConflictError
        When another run is at work in it.
    """
    base = files.normalize(path)
    strangers = [name for name in _names(base) if name not in _OURS and not name.startswith(".")]
    if strangers:
        raise ConfigError(
            f"output.path {base} holds something that is not a run: {', '.join(strangers[:5])}",
            mend="name a new or an empty directory, or the directory of an earlier run",
        )
    try:
        with _locked(base):
            try:
                yield RunStore(base)
            finally:
                for name in ("tables", "stages"):
                    _delete_if_empty(files.join(base, name))
    finally:
        _delete_if_empty(base)


def _names(base: str) -> list[str]:
    try:
        return files.list_names(base)
    except NotADirectoryError:
        raise ConfigError(f"output.path {base} is a file", mend="name a directory") from None


@contextmanager
def _locked(base: str) -> Iterator[None]:
    """One run at a time in a directory. On object stores the lock tells, but cannot exclude a race."""
    path = files.join(base, LOCK)
    owner = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.time()}
    for _ in range(2):
        if _create_exclusively(path, _json(owner)):
            break
        holder = _read_lock(path)
        if not _is_dead(holder):
            raise ConflictError(
                f"{base} is in use by process {holder.get('pid')} on {holder.get('host')}",
                mend=f"wait for it, or delete {path} if that process is gone",
            )
        log.info("removing the lock of a run that died (process %s)", holder.get("pid"))
        _delete_file(path)
    else:
        raise ConflictError(f"{base} was locked by another run just now", mend="try again")
    try:
        yield
    finally:
        _delete_file(path)


def _create_exclusively(path: str, content: bytes) -> bool:
    if not files.is_local(path):
        if files.exists(path):
            return False
        files.write_bytes(path, content)
        return True
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with Path(path).open("xb") as stream:
            stream.write(content)
        return True
    except FileExistsError:
        return False
    except OSError as error:
        raise ConfigError(
            f"output.path: cannot write to {Path(path).parent}: {error.strerror}",
            mend="name a directory that can be written",
        ) from None


def _read_lock(path: str) -> dict[str, Any]:
    try:
        return dict(json.loads(files.read_bytes(path)))
    except (OSError, ValueError):
        return {}


def _is_dead(holder: dict[str, Any]) -> bool:
    if holder.get("host") != socket.gethostname() or not holder.get("pid"):
        return False
    try:
        os.kill(int(holder["pid"]), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def _delete_file(path: str) -> None:
    try:
        files.delete_file(path)
    except OSError as error:
        log.warning("cannot delete %s: %s", path, error)


def _delete_if_empty(path: str) -> None:
    if files.is_local(path):
        try:
            Path(path).rmdir()
        except OSError:
            return  # not empty, or not there


def _json(document: Any) -> bytes:
    return (json.dumps(document, indent=1, sort_keys=False, default=str) + "\n").encode()
