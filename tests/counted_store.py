"""A store for tests: a local directory behind fsspec, which counts requests and may fail."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import fsspec
from fsspec.spec import AbstractFileSystem


class CountedStore(AbstractFileSystem):
    """``counted:///a/path`` is the local file ``/a/path``."""

    protocol = "counted"
    cachable = False
    requests: list[tuple[str, int | None, int | None]] = []  # noqa: RUF012
    fails: list[Exception] = []  # noqa: RUF012
    ignores_ranges = False
    seconds = 0.0
    lock = threading.Lock()

    @classmethod
    def reset(cls) -> None:
        cls.requests, cls.fails, cls.ignores_ranges, cls.seconds = [], [], False, 0.0

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + path.removeprefix("counted://").lstrip("/")

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        local = self._strip_protocol(path)
        with self.lock:
            type(self).requests.append((local, start, end))
            if self.fails:
                raise type(self).fails.pop(0)
        if self.seconds:
            time.sleep(self.seconds)
        body = Path(local).read_bytes()
        return body if self.ignores_ranges else body[start:end]

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        local = self._strip_protocol(path)
        return {"name": local, "size": os.stat(local).st_size, "type": "file"}  # noqa: PTH116

    def _open(self, path: str, mode: str = "rb", **_: Any) -> Any:
        return Path(self._strip_protocol(path)).open(mode)


def register() -> type[CountedStore]:
    fsspec.register_implementation("counted", CountedStore, clobber=True)
    CountedStore.reset()
    return CountedStore
