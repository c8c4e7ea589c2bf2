"""Python workers that may write nowhere but to Spark's scratch space, by Landlock: `spark.python.daemon.module`."""

from __future__ import annotations

import ctypes
import os
import runpy
import struct

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF, _NO_NEW_PRIVS = 444, 445, 446, 38
# Write to files; remove directories and files; make everything but links between directories.
_WRITES = 1 << 1 | sum(1 << bit for bit in range(4, 13))


def find_landlock() -> int:
    """Version of Landlock that the kernel has; 0 where it has none."""
    return max(0, ctypes.CDLL(None).syscall(_CREATE_RULESET, None, 0, 1))


def restrict_writes(allowed: list[str]) -> None:
    """Let this process, and all that it starts, write below `allowed` only."""
    libc = ctypes.CDLL(None, use_errno=True)

    def call(*arguments) -> int:
        result = libc.syscall(*arguments)
        if result < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return result

    rules = call(_CREATE_RULESET, struct.pack("<Q", _WRITES), 8, 0)
    for folder in allowed:
        descriptor = os.open(folder, os.O_PATH)
        call(_ADD_RULE, rules, 1, struct.pack("<Qi", _WRITES, descriptor), 0)
        os.close(descriptor)
    libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0)
    call(_RESTRICT_SELF, rules, 0)


if __name__ == "__main__":
    restrict_writes(["/dev", *filter(None, os.environ.get("SPARK_LOCAL_DIRS", "").split(","))])
    runpy.run_module("pyspark.daemon", run_name="__main__")
