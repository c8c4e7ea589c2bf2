"""Lock a run directory, so that one run at a time works in it. Imports `files` and `errors`; never pyspark.

``lock.json`` names its owner, a process, which rewrites the file every few seconds. If the process ran on
this machine, the lock is dead when the process has ended. If it cannot be looked up, the lock is dead when it
stays the same while another run watches it. So the clocks of two machines are never compared. A run that was
wrongly taken for dead notices that its lock is gone before it commits anything.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from uuid import uuid4

from spark_dbp.errors import ConfigError, ConflictError, SparkDbpError
from spark_dbp.lake import files

log = logging.getLogger("spark_dbp")

LOCK = "lock.json"
_TAKEOVER = ".lock.takeover"

# All in seconds. RENEWED: between two renewals. WATCHED: how long a lock is watched before it counts as dead.
# SETTLED: how long to wait before reading back whose lock an object store holds, as it cannot create a file
# exclusively. TAKEOVER_AGE: a takeover takes milliseconds, so a mark older than this was left by a dead run.
RENEWED, WATCHED, SETTLED, TAKEOVER_AGE = 20.0, 70.0, 1.0, 60.0


class Lock:
    """A lock that this process holds. `acquire_lock` makes one."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._owner = {
            "host": socket.gethostname(),
            "process_space": _process_space(),
            "pid": os.getpid(),
            "started": _start_of(os.getpid()),
            "since": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "token": uuid4().hex,
        }
        self._renewals = 0
        self._done = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="spark-dbp-lock", daemon=True)

    def content(self) -> bytes:
        """Content of the lock file; it differs at each renewal."""
        return (json.dumps({**self._owner, "renewals": self._renewals}) + "\n").encode()

    def is_ours(self) -> bool:
        """Whether the lock file is still that of this process."""
        return _parsed(_read(self.path)).get("token") == self._owner["token"]

    def check(self) -> None:
        """Refuse to go on when another run has taken the lock, or someone has deleted it.

        Raises
        ------
        ConflictError
        """
        if not self.is_ours():
            holder = _parsed(_read(self.path))
            raise ConflictError(
                f"{self.path} is no longer this run's: {_named(holder) if holder else 'it was deleted'}",
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
            if self.is_ours():
                files.delete(self.path)
        except (OSError, SparkDbpError) as error:
            log.warning("cannot delete %s: %s", self.path, error)

    def _keep(self) -> None:
        while not self._done.wait(RENEWED):
            try:
                if not self.is_ours():
                    return  # `check` will raise the error
                self._renewals += 1
                files.write_bytes(self.path, self.content())
            except (OSError, SparkDbpError) as error:
                log.warning("cannot renew %s: %s", self.path, error)


@contextmanager
def acquire_lock(base: str) -> Iterator[Lock]:
    """Take the lock of the directory `base`, and make the directory if needed.

    Raises
    ------
    ConflictError
        When another run holds the lock.
    ConfigError
        When the directory cannot be written.
    """
    lock = Lock(files.join(base, LOCK))
    _acquire(lock, base)
    lock.start()
    try:
        yield lock
    finally:
        lock.release()


def _acquire(lock: Lock, base: str) -> None:
    for _ in range(3):
        if _create_exclusively(lock.path, lock.content()):
            return
        before = _read(lock.path)
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


def _named(holder: dict[str, Any]) -> str:
    if not holder:
        return "an unknown process (the lock cannot be read)"
    return f"process {holder.get('pid')} on {holder.get('host')} since {holder.get('since')}"


def _create_exclusively(path: str, content: bytes) -> bool:
    if not files.is_local(path):
        if files.exists(path):
            return False
        files.write_bytes(path, content)
        time.sleep(SETTLED)  # if two runs wrote at once, only the last one's lock is there by now
        return _parsed(_read(path)).get("token") == json.loads(content)["token"]
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


def _is_gone(holder: dict[str, Any]) -> bool:
    """Whether the owner ran on this machine and has ended."""
    pid = holder.get("pid")
    if holder.get("host") != socket.gethostname() or not isinstance(pid, int):
        return False
    if holder.get("process_space", _process_space()) != _process_space():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    started = holder.get("started")
    return started is not None and started != _start_of(pid)  # another process may have the number by now


def _is_dead(path: str, content: bytes) -> bool:
    holder = _parsed(content)
    if _is_gone(holder):
        return True
    if holder.get("host") == socket.gethostname() and holder.get("process_space") == _process_space():
        return False
    log.info("watching whether the lock of %s is renewed", _named(holder))
    until = time.monotonic() + WATCHED
    while time.monotonic() < until:
        time.sleep(min(1.0, WATCHED / 10))
        if _read(path) != content:
            return False
    return True


def _take_over(lock: Lock, base: str, dead: bytes) -> bool:
    """Replace the lock with the content `dead` by ours. False when another run was faster."""
    if not files.is_local(base):
        files.delete(lock.path)
        return _create_exclusively(lock.path, lock.content())
    mark = Path(base) / _TAKEOVER
    try:
        mark.open("xb").close()
    except FileExistsError:
        try:
            if time.time() - mark.stat().st_mtime > TAKEOVER_AGE:
                mark.unlink(missing_ok=True)
        except FileNotFoundError:
            pass  # the other takeover has just ended
        return False
    try:
        # Look again: before we made our mark, another run may have taken over the lock and removed its mark.
        if _read(lock.path) != dead:
            return False
        files.write_bytes(lock.path, lock.content())
        return True
    finally:
        mark.unlink(missing_ok=True)


def _read(path: str) -> bytes | None:
    try:
        return files.read_bytes(path)
    except OSError:
        return None


def _parsed(content: bytes | None) -> dict[str, Any]:
    try:
        return dict(json.loads(content or b"{}"))
    except (ValueError, TypeError):
        return {}


def _process_space() -> str:
    """Name of the space in which process numbers are unique. Containers may share a host name, not this."""
    try:
        return os.readlink("/proc/self/ns/pid")  # noqa: PTH115 - the kernel's name of the space, not a path
    except OSError:
        return ""


def _start_of(pid: int) -> str | None:
    """When a process of this machine started, as a text to compare; None when that is not known."""
    try:
        # Field 2 is the name in parentheses, which may hold spaces. Fields 3 and 22 are the 1st and the 20th
        # after it.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "ended" if fields[0] == "Z" else fields[19]
    except (OSError, IndexError):
        pass
    try:
        done = subprocess.run(
            ["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
        )
    except OSError:
        return None
    return done.stdout.strip() or None
