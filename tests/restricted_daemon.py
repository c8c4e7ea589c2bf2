"""Python workers that may write nowhere but to Spark's scratch space, and not read a folder either, by Landlock.

For `spark.python.daemon.module`.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import struct
from pathlib import Path

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF, _NO_NEW_PRIVS = 444, 445, 446, 38
# Write to files; remove directories and files; make everything but links between directories.
_WRITES = 1 << 1 | sum(1 << bit for bit in range(4, 13))
_READS = 1 << 2  # of files


def find_landlock() -> int:
    """Version of Landlock that the kernel has; 0 where it has none."""
    return max(0, ctypes.CDLL(None).syscall(_CREATE_RULESET, None, 0, 1))


def restrict(writable: list[str], hidden: Path | None) -> None:
    """Let this process, and all that it starts, write below `writable` only, and read no file in `hidden`."""
    libc = ctypes.CDLL(None, use_errno=True)

    def call(*arguments) -> int:
        result = libc.syscall(*arguments)
        if result < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return result

    def allow(rights: int, path: os.PathLike | str) -> None:
        descriptor = os.open(path, os.O_PATH)
        if not Path(path).is_dir():
            rights &= _READS | 1 << 1
        call(_ADD_RULE, rules, 1, struct.pack("<Qi", rights, descriptor), 0)
        os.close(descriptor)

    handled = _WRITES | (_READS if hidden else 0)
    rules = call(_CREATE_RULESET, struct.pack("<Q", handled), 8, 0)
    for folder in writable:
        allow(handled, folder)
    if hidden:  # what is not allowed is forbidden: so all that lies beside the way to it is allowed
        for folder, name in zip(reversed(hidden.parents), hidden.parts[1:], strict=True):
            for path in folder.iterdir():
                if path.name != name and path.exists() and not path.is_symlink():
                    allow(_READS, path)
    libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0)
    call(_RESTRICT_SELF, rules, 0)


if __name__ == "__main__":
    scratch = filter(None, os.environ.get("SPARK_LOCAL_DIRS", "").split(","))
    kept_away = os.environ.get("SPARK_DBP_TEST_HIDDEN")
    restrict(["/dev", *scratch], Path(kept_away) if kept_away else None)
    runpy.run_module("pyspark.daemon", run_name="__main__")
