"""Write files to local directories, also to those that cannot rename, or create a file exclusively.

Imports the standard library only.

Such a directory is a store behind a mount, as Databricks shows its Volumes: a file is written as a whole,
from beginning to end, and nothing else is to be relied on. Some are known by their place, others by what they
answer.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from uuid import uuid4

# Stores that Databricks shows as directories.
STORE_MOUNTS = ("/Volumes/", "/Workspace/", "/dbfs/")
# What a mount answers to a request that it does not know.
_UNSUPPORTED = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL, errno.EXDEV}


def is_store_mount(path: str) -> bool:
    """Whether an absolute path is known to be below a mount of a store."""
    return path.startswith(STORE_MOUNTS)


def is_unsupported(error: OSError) -> bool:
    """Whether a rename, or an exclusive creation, was refused because this directory knows none.

    Examples
    --------
    >>> is_unsupported(OSError(errno.EOPNOTSUPP, "")), is_unsupported(OSError(errno.ENOSPC, ""))
    (True, False)
    """
    return error.errno in _UNSUPPORTED


def write_file(target: Path, content: bytes) -> None:
    """Write a file so that readers see all of it or nothing, where the directory can rename.

    Elsewhere the file itself is written from beginning to end, and a reader may see a part of it.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if is_store_mount(str(target)):
        _write_whole(target, content)
        return
    draft = target.with_name(f".{target.name}.{uuid4().hex[:8]}")
    _write_whole(draft, content)
    try:
        draft.replace(target)
    except OSError as error:
        draft.unlink(missing_ok=True)
        if not is_unsupported(error):
            raise
        _write_whole(target, content)


def _write_whole(target: Path, content: bytes) -> None:
    with target.open("wb") as stream:
        stream.write(content)
        stream.flush()
        try:
            os.fsync(stream.fileno())
        except OSError as error:
            if not is_unsupported(error):
                raise


def create_file(target: Path, content: bytes) -> bool:
    """Write a file where there is none yet. Of several processes that try at once, one creates it.

    Returns
    -------
    bool
        False where there is a file already.

    Raises
    ------
    OSError
        Also where the directory cannot do this (`is_unsupported`).
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with target.open("xb") as stream:
            try:
                stream.write(content)
                stream.flush()
            except OSError:
                target.unlink(missing_ok=True)  # half a file would be taken for that of another process
                raise
    except FileExistsError:
        return False
    return True


def can_rename(folder: Path) -> bool:
    """Whether files of a directory can be renamed. It is tried, and the directory is made as needed."""
    if is_store_mount(f"{folder}/"):
        return False
    folder.mkdir(parents=True, exist_ok=True)
    before, after = folder / f".{uuid4().hex[:8]}", folder / f".{uuid4().hex[:8]}"
    before.touch()
    try:
        before.rename(after)
    except OSError as error:
        if not is_unsupported(error):
            raise
        return False
    finally:
        before.unlink(missing_ok=True)
        after.unlink(missing_ok=True)
    return True
