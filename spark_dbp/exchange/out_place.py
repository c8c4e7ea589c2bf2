"""Refuse what is no place for an output. Imports `lake` and `errors`."""

from __future__ import annotations

import os
from pathlib import Path

from spark_dbp.errors import ConfigError
from spark_dbp.lake import files, mounts, paths
from spark_dbp.lake.lock import LOCK
from spark_dbp.lake.store import RUN_JSON

# How far above an output a run directory is looked for.
_LEVELS = 6


def check_place(out: str | os.PathLike[str], run: str | None = None) -> str:
    """The place that ``--out`` names, as `files` writes it. Nothing is looked at in a store.

    Parameters
    ----------
    out : str or path
    run : str, optional
        A run directory, which holds nothing but the run.

    Raises
    ------
    ConfigError
        When it is empty, names no file or folder, can only be read, or lies in a run directory.

    Examples
    --------
    >>> check_place("s3://lake/kept/"), check_place("/data/kept")
    ('s3://lake/kept', '/data/kept')
    >>> check_place("https://host/kept")
    Traceback (most recent call last):
    ...
    spark_dbp.errors.ConfigError: --out https://host/kept: nothing can be written to a web server
      to mend it: name a local path, or one in a store that can be written: s3://bucket/name
    """
    given = os.fspath(out)
    if not given.strip():
        raise ConfigError("--out is empty", mend="name the file or the folder to write")
    base = files.normalize(paths.expand_home(given))
    if base.startswith(("http://", "https://")):
        raise ConfigError(
            f"--out {base}: nothing can be written to a web server",
            mend="name a local path, or one in a store that can be written: s3://bucket/name",
        )
    if not files.is_local(base) and not mounts.split_root(base)[1]:
        raise ConfigError(f"--out {base} is a whole store", mend=f"name a place in it: {base}/name")
    runs = [run] if run is not None else []
    if files.is_local(base):
        runs += list_runs_above(Path(base))
    place = paths.locate(base)
    for one in runs:
        within = paths.locate(one)
        if place == within or place.startswith(f"{within}/"):
            raise ConfigError(
                f"--out {base} lies in the run directory {one}",
                mend="name a place outside it, such as beside it",
            )
    return base


def list_runs_above(place: Path) -> list[str]:
    """Directories of finished runs in which a local place lies, the nearest first."""
    above = [place, *place.absolute().parents][:_LEVELS]
    return [str(folder) for folder in above if (folder / RUN_JSON).is_file()]


def list_out(base: str) -> list[str]:
    """Names in the directory ``--out``, without the lock.

    Raises
    ------
    ConfigError
        When it is a file.
    """
    try:
        return [name for name in files.list_names(base) if name != LOCK]
    except NotADirectoryError:
        raise ConfigError(f"--out {base} is a file", mend="name a directory") from None
