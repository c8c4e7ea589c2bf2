"""A directory of the user's cache that nobody else can change: programs and classes that are run lie there.

Imports nothing of the package.
"""

from __future__ import annotations

import os
import stat
import zlib
from collections.abc import Callable
from pathlib import Path


def make_private_folder(*names: str) -> Path:
    """The directory ``spark-dbp/...`` in the user's cache; it is this user's alone.

    Parameters
    ----------
    *names : str
        Of the directories below ``spark-dbp``, each in the one before.

    Raises
    ------
    OSError, RuntimeError
        When there is none: RuntimeError where this user has no home.
    """
    folder = _find_user_cache()
    for name in ("spark-dbp", *names):
        folder /= name
        folder.mkdir(mode=0o700, exist_ok=True)
        check_private(folder, stat.S_ISDIR)
    return folder


def check_private(path: Path, has_kind: Callable[[int], bool]) -> None:
    """Refuse what is not of the right kind (a link never is), or not this user's alone.

    Raises
    ------
    OSError
    """
    found = path.lstat()
    is_shared = stat.S_IMODE(found.st_mode) & (stat.S_IRWXG | stat.S_IRWXO)
    if not has_kind(found.st_mode) or found.st_uid != os.geteuid() or is_shared:
        raise PermissionError(f"{path} is not this user's alone")


def hash_text(text: str) -> int:
    """CRC-32 of `text` in UTF-8, for a short name that does not change.

    Examples
    --------
    >>> hash_text("a")
    3904355907
    """
    return zlib.crc32(text.encode())


def _find_user_cache() -> Path:
    """The user's directory for caches, in which no other user can put or rename anything."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    cache = Path(given) if given.startswith("/") else Path.home() / ".cache"
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    cache = cache.resolve()
    for folder in (cache, *cache.parents):
        found = folder.stat()
        others_write = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not found.st_mode & stat.S_ISVTX
        if found.st_uid not in (0, os.geteuid()) or others_write:
            raise PermissionError(f"other users can change {folder}")
    return cache
