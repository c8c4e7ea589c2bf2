"""Bound the processes that hold a model on one GPU, with locks on files. Imports `errors`.

A lock belongs to its process: the system releases it when the process ends, however it ends.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from spark_dbp.errors import SparkDbpError

_PAUSE_S = 0.2


@dataclass
class Slot:
    """The right to hold a model on a GPU."""

    device: str
    _lock: int
    _base: str

    def release(self) -> None:
        """Let another process have it."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def is_awaited(self) -> bool:
        """Whether another process waits for a slot of this GPU."""
        lock = _try_lock(f"{self._base}-waiting", exclusive=True)
        if lock is None:
            return True
        os.close(lock)
        return False


def acquire_slot(devices: Sequence[str], workers_per_gpu: int, patience_s: float = 24 * 3600.0) -> Slot:
    """Wait for a slot of one of these GPUs.

    Parameters
    ----------
    devices : sequence of str
        ``cuda:N``; the first with a free slot is taken.
    workers_per_gpu : int
        Slots of each.
    patience_s : float
        Seconds to wait.

    Raises
    ------
    SparkDbpError
        None was free in time.
    """
    bases = {device: _name_base(device) for device in devices}
    waiting: list[int | None] = []
    end = time.monotonic() + patience_s
    try:
        while True:
            for number in range(workers_per_gpu):
                for device, base in bases.items():
                    lock = _try_lock(f"{base}-{number}", exclusive=True)
                    if lock is not None:
                        return Slot(device, lock, base)
            if not waiting:
                waiting = [_try_lock(f"{base}-waiting", exclusive=False) for base in bases.values()]
            if time.monotonic() > end:
                raise SparkDbpError(
                    f"no process gave up {' or '.join(devices)} within {patience_s:.0f} seconds",
                    mend="raise embed.workers_per_gpu where the GPU's memory holds more models, or give "
                    "each task "
                    "a GPU of its own (spark.task.resource.gpu.amount)",
                )
            time.sleep(_PAUSE_S)
    finally:
        for held in waiting:
            if held is not None:
                os.close(held)


def _name_base(device: str) -> str:
    # Numbers of torch count what CUDA_VISIBLE_DEVICES leaves: the same number may be another GPU elsewhere.
    visible = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    number = device.partition(":")[2]
    card = visible[int(number)] if number.isdigit() and int(number) < len(visible) else number
    user = os.getuid() if hasattr(os, "getuid") else 0
    return str(Path(tempfile.gettempdir()) / f"spark-dbp-gpu-{user}-{card}")


def _try_lock(path: str, *, exclusive: bool) -> int | None:
    """A descriptor that holds the lock on a file, or None where another process does."""
    import fcntl  # not on Windows, where no slot is asked for

    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(lock, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return lock
