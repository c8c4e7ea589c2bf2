"""Lock a run directory, so that one run at a time works in it. Imports `files`, `local_files`, `errors`.

``lock.json`` names its owner, a process, which rewrites the file every few seconds. If the process ran on
this machine, the lock is dead when the process has ended. If it cannot be looked up, the lock is dead when it
stays the same while another run watches it. A run that was wrongly taken for dead notices that its lock is
gone before it commits anything.

A file that cannot be read now says nothing about the lock: it is read again, for a while. Only a file that is
missing, or that names another owner, is a lock that was lost.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

from spark_dbp.errors import ConfigError, ConflictError, SparkDbpError
from spark_dbp.lake import files
from spark_dbp.lake.local_files import is_unsupported

log = logging.getLogger("spark_dbp")

LOCK = "lock.json"
_TAKEOVER = ".lock.takeover"

# All in seconds. RENEWED: between two renewals. WATCHED: how long a lock is watched before it counts as dead.
# SETTLED: how long to wait before reading back whose lock is there, where files are not created
# exclusively. TAKEOVER_AGE: a takeover takes milliseconds, so a mark older than this was left by a dead run.
RENEWED, WATCHED, SETTLED, TAKEOVER_AGE = 20.0, 70.0, 1.0, 60.0
# RETRIED: between a renewal that failed and the next try. PATIENCE: how long a lock that cannot be read is
# read again before that is an error.
RETRIED, PATIENCE = 2.0, 10.0

Result = TypeVar("Result")


class Lock:
    """A lock that this process holds. `acquire_lock` makes one."""

    def __init__(self, path: str, setting: str = "output.path") -> None:
        self.path, self.setting = path, setting
        self._owner = {
            **_find_process_space(),
            "pid": os.getpid(),
            "started": _start_of(os.getpid()),
            "since": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "token": uuid4().hex,
        }
        self._renewals = 0
        self._done = threading.Event()
        # Where no file is replaced in one step, a renewal hides the lock for a moment. Our own checks wait.
        self._renewing = threading.Lock()
        self._keeper = threading.Thread(target=self._keep, name="spark-dbp-lock", daemon=True)

    def content(self) -> bytes:
        """Content of the lock file; it differs at each renewal."""
        return (json.dumps({**self._owner, "renewals": self._renewals}) + "\n").encode()

    def is_ours(self) -> bool:
        """Whether the lock file is still that of this process.

        Raises
        ------
        SparkDbpError
            When the file cannot be read, so that this is not known.
        """
        return self._find_loss() is None

    def _find_loss(self) -> str | None:
        """How the lock was lost; None when it is still ours."""
        with self._renewing:
            holder = _read_holder(self.path)
        if holder is None:
            return "it was deleted"
        return None if holder["token"] == self._owner["token"] else _named(holder)

    def check(self) -> None:
        """Refuse to go on when another run has taken the lock, or someone has deleted it.

        Raises
        ------
        ConflictError
        SparkDbpError
            When the lock file cannot be read, for longer than a passing error takes.
        """
        loss = _try_patiently(self._find_loss)
        if loss is not None:
            raise ConflictError(
                f"{self.path} is no longer this run's: {loss}",
                mend="let one run at a time work in a directory; the same command goes on after the last "
                "finished step",
            )

    def start(self) -> None:
        """Start to renew the lock, in a thread."""
        self._keeper.start()

    def release(self) -> None:
        """Stop renewing the lock, and delete it unless another run has taken it."""
        self._done.set()
        self._keeper.join()
        try:
            _try_patiently(self._delete)
        except (OSError, SparkDbpError) as error:
            log.warning("cannot delete %s: %s", self.path, _describe(error))

    def _delete(self) -> None:
        if self.is_ours():
            files.delete(self.path)

    def _keep(self) -> None:
        """Renew the lock until it is released or lost. An error is no reason to stop: it may pass."""
        renewed, n_failed, is_late = time.monotonic(), 0, False
        while not self._done.wait(RETRIED if n_failed else RENEWED):
            try:
                if not self.is_ours():
                    return  # `check` will raise the error
                self._renewals += 1
                with self._renewing:
                    files.write_bytes(self.path, self.content())
            except (OSError, SparkDbpError) as error:
                # Until WATCHED is over, nobody takes the lock for dead. After that it is ours as long as it
                # names us, so trying on is right then too.
                n_failed += 1
                if n_failed == 1:
                    log.warning("cannot renew %s, trying on: %s", self.path, _describe(error))
                if not is_late and time.monotonic() - renewed > WATCHED - RENEWED:
                    is_late = True
                    log.warning("%s was not renewed for long: another run may take it for dead", self.path)
            else:
                renewed, n_failed, is_late = time.monotonic(), 0, False


@contextmanager
def acquire_lock(base: str, setting: str = "output.path") -> Iterator[Lock]:
    """Take the lock of the directory `base`, which `setting` names, and make the directory if needed.

    Raises
    ------
    ConflictError
        When another run holds the lock.
    ConfigError
        When the directory cannot be written.
    """
    lock = Lock(files.join(base, LOCK), setting)
    _acquire(lock, base)
    lock.start()
    try:
        yield lock
    finally:
        lock.release()


def _acquire(lock: Lock, base: str) -> None:
    for _ in range(3):
        if _create_exclusively(lock):
            return
        before = _try_patiently(lambda: _read(lock.path))
        if before is None:
            continue  # it was released just now
        if not _is_dead(lock.path, before):
            raise _in_use(base, _parsed(before))
        if _take_over(lock, base, before):
            log.info("took over the lock of a run that died: %s", _named(_parsed(before)))
            return
    raise ConflictError(f"{base} was locked by another run just now", mend="try again")


def _in_use(base: str, holder: dict[str, Any]) -> ConflictError:
    return ConflictError(
        f"{base} is in use by {_named(holder)}",
        mend=f"wait for it, or delete {files.join(base, LOCK)} if that process is gone",
    )


def describe_holder(base: str) -> str | None:
    """Who works in the directory `base`; None when nobody does, as far as this machine can tell. Only reads.

    Raises
    ------
    SparkDbpError
        When the lock cannot be read.
    """
    content = _read(files.join(base, LOCK))
    if content is None:
        return None
    holder = _parsed(content)
    return None if _is_gone(holder) else _named(holder)


def _named(holder: dict[str, Any]) -> str:
    if not holder:
        return "an unknown process (the lock cannot be read)"
    return f"process {holder.get('pid')} on {holder.get('host')} since {holder.get('since')}"


def _create_exclusively(lock: Lock) -> bool:
    path, content = lock.path, lock.content()
    try:
        is_created, is_certain = files.create_file(path, content)
    except OSError as error:
        raise ConfigError(
            f"{lock.setting}: cannot write to {Path(path).parent}: {error.strerror}",
            mend="name a directory that can be written",
        ) from None
    if is_certain or not is_created:
        return is_created
    time.sleep(SETTLED)  # if two runs wrote at once, only the last one's lock is there by now
    return _parsed(_try_patiently(lambda: _read(path))).get("token") == json.loads(content)["token"]


def _is_of_this_machine(holder: dict[str, Any]) -> bool:
    """Whether the owner's process number is one of those that this process sees.

    A lock of an earlier version names no boot. It may be another machine's.
    """
    here = _find_process_space()
    return all(here.values()) and all(holder.get(name) == value for name, value in here.items())


def _is_gone(holder: dict[str, Any]) -> bool:
    """Whether the owner ran on this machine and has ended."""
    pid = holder.get("pid")
    if not _is_of_this_machine(holder) or not isinstance(pid, int):
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    started, found = holder.get("started"), _start_of(pid)
    # Another process may have the number by now.
    return started is not None and found is not None and started != found


def _is_dead(path: str, content: bytes) -> bool:
    holder = _parsed(content)
    if _is_of_this_machine(holder):
        return _is_gone(holder)
    log.info("watching whether the lock of %s is renewed", _named(holder))
    watched, pause = 0.0, min(1.0, WATCHED / 10)
    while watched < WATCHED:
        time.sleep(pause)
        # A disk that cannot be read may be one that the owner cannot write, so that time does not count.
        if _try_patiently(lambda: _read(path)) != content:
            return False
        watched += pause
    return True


def _take_over(lock: Lock, base: str, dead: bytes) -> bool:
    """Replace the lock with the content `dead` by ours. False when another run was faster."""
    if not files.is_local(base) or files.is_store_mount(base):
        return _replace_dead(lock, dead)
    mark = Path(base) / _TAKEOVER
    try:
        mark.open("xb").close()
    except OSError as error:
        if is_unsupported(error):
            return _replace_dead(lock, dead)
        if not isinstance(error, FileExistsError):
            raise
        try:
            if time.time() - mark.stat().st_mtime > TAKEOVER_AGE:
                mark.unlink(missing_ok=True)
        except FileNotFoundError:
            pass  # the other takeover has just ended
        return False
    try:
        # Look again: before we made our mark, another run may have taken over the lock and removed its mark.
        if _try_patiently(lambda: _read(lock.path)) != dead:
            return False
        files.write_bytes(lock.path, lock.content())
        return True
    finally:
        mark.unlink(missing_ok=True)


def _replace_dead(lock: Lock, dead: bytes) -> bool:
    """Take over a dead lock where no file is created exclusively: the last run that writes has it."""
    if _try_patiently(lambda: _read(lock.path)) != dead:
        return False
    files.delete(lock.path)
    return _create_exclusively(lock)


def _try_patiently(action: Callable[[], Result]) -> Result:
    """Call `action` until it works; after `PATIENCE` seconds its error is raised."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            return action()
        except (OSError, SparkDbpError):
            if time.monotonic() >= until:
                raise
            time.sleep(min(0.5, PATIENCE / 10))


def _read(path: str) -> bytes | None:
    """Content of the lock file; None when there is none.

    Raises
    ------
    SparkDbpError
        When it cannot be read.
    """
    try:
        return files.read_bytes(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _cannot_read(path, _describe(error)) from error
    except SparkDbpError as error:
        raise _cannot_read(path, error.what) from error


def _read_holder(path: str) -> dict[str, Any] | None:
    """Who the lock file names; None when there is none. Half a file, as a mount may show, is an error."""
    content = _read(path)
    if content is None:
        return None
    holder = _parsed(content)
    if "token" not in holder:
        raise _cannot_read(path, "its content is not that of a lock")
    return holder


def _cannot_read(path: str, reason: str) -> SparkDbpError:
    return SparkDbpError(
        f"the lock {path} cannot be read, so it is not known whose it is: {reason}",
        mend="see to that disk or store; the same command goes on after the last finished step",
    )


def _describe(error: OSError | SparkDbpError) -> str:
    return error.what if isinstance(error, SparkDbpError) else error.strerror or str(error)


def _parsed(content: bytes | None) -> dict[str, Any]:
    try:
        return dict(json.loads(content or b"{}"))
    except (ValueError, TypeError):
        return {}


def _find_process_space() -> dict[str, str]:
    """What a process number is unique in: the machine, its boot, the name space. Empty texts: not known.

    Two machines may share a host name, and so may containers. The first name space has the same number on
    every machine, so only the boot tells machines apart.
    """
    try:
        # The kernel's name of the space, not a path.
        space = os.readlink("/proc/self/ns/pid")  # noqa: PTH115
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:  # no Linux
        space, boot = "all", _ask("sysctl", "-n", "kern.bootsessionuuid")
    return {"host": socket.gethostname(), "boot": boot, "process_space": space}


def _start_of(pid: int) -> str | None:
    """When a process of this machine started, as a text to compare; None when that is not known."""
    try:
        # Field 2 is the name in parentheses, which may hold spaces. Fields 3 and 22 are the 1st and the 20th
        # after it.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "ended" if fields[0] == "Z" else fields[19]
    except (OSError, IndexError):
        pass
    return _ask("ps", "-o", "lstart=", "-p", str(pid)) or None


def _ask(*command: str) -> str:
    """What a command prints; empty when it cannot be run."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""
