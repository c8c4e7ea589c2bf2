"""The lock of a run directory: one run at a time. Imports `files`; never pyspark.

``lock.json`` names its owner, who renews it while at work. A lock is dead when its process is gone from this
machine, or, where the process cannot be looked up, when it is not renewed while another run watches it: no
two clocks are compared. A run that was thought dead and was not finds its lock taken before it commits
anything further.
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

# Seconds between two renewals; how long a lock is watched before it counts as dead; how long after writing it
# an object store, which cannot create exclusively, is asked whose lock it is; and the age at which the mark
# of a takeover, a matter of milliseconds, was left by a run that died in it.
RENEWED, WATCHED, SETTLED, TAKEOVER_AGE = 20.0, 70.0, 1.0, 60.0


class Lock:
    """A lock that this process holds; `held` makes one."""

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
        """What the lock's file holds, new at each renewal."""
        return (json.dumps({**self._owner, "renewals": self._renewals}) + "\n").encode()

    def is_ours(self) -> bool:
        """Whether the file is still the one that this process wrote."""
        return _parsed(_read(self.path)).get("token") == self._owner["token"]

    def check(self) -> None:
        """Refuse to go on when another run has taken the lock.

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
        """Begin to renew the lock."""
        self._keeper.start()

    def release(self) -> None:
        """Stop renewing the lock and delete it, unless it is another's by now."""
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
                    return  # `check` will say so
                self._renewals += 1
                files.write_bytes(self.path, self.content())
            except (OSError, SparkDbpError) as error:
                log.warning("cannot renew %s: %s", self.path, error)


@contextmanager
def acquire_lock(base: str) -> Iterator[Lock]:
    """The lock of the directory `base`, which is made as needed.

    Raises
    ------
    ConflictError
        When another run holds it.
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
            continue  # released just now
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
        time.sleep(SETTLED)  # of two that wrote at once, the last one's is there now
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
    return started is not None and started != _start_of(pid)  # its number was given to another process


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
    """Replace the lock `dead` by ours; False when another run was faster."""
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
            pass  # that takeover has ended
        return False
    try:
        # Whoever has the mark looks again: another may have taken the lock over and removed its mark.
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
    """What tells containers apart that share a host name; the same number means the same process in one."""
    try:
        return os.readlink("/proc/self/ns/pid")  # noqa: PTH115 - no path, a name that the kernel makes
    except OSError:
        return ""


def _start_of(pid: int) -> str | None:
    """When a process of this machine started, in any unit; None when that cannot be told."""
    try:
        # The name in parentheses may hold spaces; the 3rd and the 22nd field are the 1st and 20th behind it.
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
