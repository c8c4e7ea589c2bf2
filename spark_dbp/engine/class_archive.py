"""Let a local Java start with the classes that it loaded before, as an archive in the user's cache.

Imports `user_cache`.

To load Spark's classes takes about a quarter of a short command. Java's class-data sharing (JEP 350) keeps
them in a file that it maps. The first job records it when its Java ends. An archive that does not fit the
Java or the jars of a session is ignored by Java itself.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import stat
import time
from pathlib import Path
from secrets import token_hex

from spark_dbp.engine.user_cache import hash_text, make_private_folder

log = logging.getLogger("spark_dbp")

# Archives that no session used for so long are deleted when a new one is recorded: they have 200 MB each. So
# are recordings that a Java began so long ago: it was killed.
_UNUSED_SECONDS, _RECORDING_SECONDS = 30 * 86_400, 3_600
# Others lack an option, or never find the class path alike on which Spark 4 has a jar twice (Java 21).
_JAVA = 17
# Java says on the standard output what it does not archive, also when the command has ended.
_QUIET = ["-Xlog:disable", "-Xlog:all=error:stderr"]


def share_classes(
    java_home: str | None, spark_home: str, *, records: bool, use: str = "classic"
) -> list[str]:
    """Options that let Java use the archive for this Java and this Spark; or record it where there is none.

    Parameters
    ----------
    java_home : str or None
        None for the ``java`` on the PATH.
    spark_home : str
    records : bool
        Whether to record the archive where there is none: that takes Java some seconds at its end.
    use : str
        What else loads other classes, for an archive of its own.

    Returns
    -------
    list of str
        Empty where there is no archive, or no place for one that other users cannot write to.
    """
    try:
        runtime = _find_runtime(java_home)
        its_own = runtime / "lib/server/classes.jsa"  # ours builds upon it
        if not its_own.exists() or _read_version(runtime) != _JAVA or not _has_plain_class_path(spark_home):
            return []
        stamps = [_stamp(path) for path in (its_own, runtime / "release", Path(spark_home, "jars"))]
        places = hash_text(f"{runtime}\n{spark_home}\n{use}")
        archive = make_private_folder("classes") / f"{places:08x}-{hash_text(str(stamps)):08x}.jsa"
        _take_recorded(archive)
        if archive.exists():
            _check_own_file(archive)
            os.utime(archive)  # it is in use
            return ["-Xshare:auto", f"-XX:SharedArchiveFile={archive}", *_QUIET]
        if not records:
            return []
        _delete_old(archive)
        log.info("Java keeps its classes below %s when it ends: later commands start sooner", archive.parent)
        fresh = archive.with_suffix(f".{token_hex(4)}.new")  # of this Java alone
        return ["-Xshare:auto", f"-XX:ArchiveClassesAtExit={fresh}", *_QUIET]
    except (OSError, RuntimeError) as error:
        log.debug("Java starts without an archive of its classes: %s", error)
        return []


def _find_runtime(java_home: str | None) -> Path:
    if java_home is not None:
        return Path(java_home)
    java = shutil.which("java")
    if java is None:
        raise FileNotFoundError("there is no java on the PATH")
    return Path(java).resolve().parent.parent


def _has_plain_class_path(spark_home: str) -> bool:
    """Whether the class path has only jars and empty directories, as Java wants it for an archive.

    Spark puts its directory of settings first.
    """
    given = [os.environ.get(name) for name in ("SPARK_CONF_DIR", "HADOOP_CONF_DIR", "YARN_CONF_DIR")]
    settings = [Path(given[0] or Path(spark_home, "conf")), *(Path(path) for path in given[1:] if path)]
    return not any(folder.is_dir() and any(folder.iterdir()) for folder in settings)


def _read_version(runtime: Path) -> int:
    """Major version of a Java runtime, from the file that says it; 1 for Java 8."""
    found = re.search(r'JAVA_VERSION="(\d+)', (runtime / "release").read_text())
    return int(found[1]) if found else 0


def _stamp(path: Path) -> tuple[int, int]:
    """What changes when a file is replaced, or the files of a directory are."""
    found = path.stat()
    return found.st_mtime_ns, found.st_size


def _take_recorded(archive: Path) -> None:
    """Put what an earlier Java has recorded in the place of the archive, if it is whole.

    Java writes the header last. What it is still writing is left.
    """
    for fresh in archive.parent.glob(f"{archive.stem}.*.new"):
        _check_own_file(fresh)
        with fresh.open("rb") as stream:
            is_whole = any(stream.read(4))
        if is_whole:
            fresh.replace(archive)


def _check_own_file(path: Path) -> None:
    """Refuse a file that is not this user's; Java lets all users read what it records.

    Raises
    ------
    OSError
    """
    found = path.lstat()
    is_written_by_others = stat.S_IMODE(found.st_mode) & (stat.S_IWGRP | stat.S_IWOTH)
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or is_written_by_others:
        raise PermissionError(f"{path} can be changed by others")


def _delete_old(archive: Path) -> None:
    """Delete archives of an earlier Java or Spark in the same places, and those that nobody uses."""
    for path in archive.parent.iterdir():
        is_replaced = path.name.startswith(archive.name[:9]) and not path.name.startswith(archive.stem)
        kept_for = _UNUSED_SECONDS if path.suffix == ".jsa" else _RECORDING_SECONDS
        if is_replaced or time.time() - path.stat().st_mtime > kept_for:
            path.unlink(missing_ok=True)
