"""Let an output appear only when it is whole. Imports `out_place`, `files`, `local_files` and `errors`.

A file or a folder is written beside its place under another name, and renamed. Where nothing can be renamed
(object stores, mounts of them) it is written to a local directory and copied when it is whole.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from spark_dbp.errors import ConfigError, ConflictError
from spark_dbp.exchange.out_place import check_place
from spark_dbp.lake import files, local_files


def check_output(out: str | os.PathLike[str], run: str) -> str:
    """The place of an output, as `files` writes it.

    Raises
    ------
    ConfigError
        As `check_place`.
    ConflictError
        When something is there.
    """
    base = check_place(out, run)
    _refuse_existing(base)
    return base


def _refuse_existing(base: str) -> None:
    try:
        is_there = files.exists(base) or (files.is_local(base) and os.path.lexists(base))
    except NotADirectoryError:
        raise ConfigError(f"--out {base}: a part of this path is a file", mend="name another place") from None
    if is_there:
        raise ConflictError(f"--out {base} exists", mend="name another place, or delete it first")


@contextmanager
def write_whole(base: str, *, is_folder: bool) -> Iterator[Path]:
    """Give a local path to write to; what is there at the end appears at `base`, else nothing does.

    Parameters
    ----------
    base : str
        From `check_output`.
    is_folder : bool
        Whether the path is a new directory, or none yet.

    Yields
    ------
    Path

    Raises
    ------
    ConflictError
        When something has appeared at `base` meanwhile.
    """
    draft, is_beside = find_draft(base)
    try:
        if is_folder:
            draft.mkdir(parents=True)
        yield draft
        _refuse_existing(base)
        if is_beside:
            _rename(draft, Path(base))
        else:
            _copy(draft, base)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        if not is_beside:
            shutil.rmtree(draft.parent, ignore_errors=True)


def find_draft(base: str) -> tuple[Path, bool]:
    """Where an output is written first, and whether it is renamed from there."""
    if files.is_local(base):
        place = Path(base)
        try:
            if local_files.can_rename(place.parent):
                return place.with_name(f".{place.name}.{uuid4().hex[:8]}"), True
        except (NotADirectoryError, FileExistsError):
            raise ConfigError(f"--out {base}: {place.parent} is a file", mend="name another place") from None
    return Path(tempfile.mkdtemp(prefix="spark-dbp-export-")) / "draft", False


def _rename(draft: Path, place: Path) -> None:
    if draft.is_dir():
        draft.rename(place)
        return
    try:
        os.link(draft, place)  # unlike a rename, it replaces nothing
    except FileExistsError:
        _refuse_existing(str(place))
        raise
    except OSError as error:
        if not local_files.is_unsupported(error):
            raise
        draft.replace(place)


def _copy(draft: Path, base: str) -> None:
    """Copy what is whole. A store that renames gets it under another name first."""
    is_renamed = not files.is_local(base) and files.renames(base)
    parent, _, name = base.rpartition("/")
    target = files.join(parent, f".{name}.{uuid4().hex[:8]}") if is_renamed else base
    below = sorted(path for path in draft.rglob("*") if path.is_file()) if draft.is_dir() else [draft]
    try:
        for path in below:
            inner = path.relative_to(draft).as_posix()
            files.copy_from_local(str(path), target if inner == "." else files.join(target, inner))
        if is_renamed:
            files.move_within(target, base)
    except BaseException:
        with suppress(Exception):
            files.delete(target)
        raise
