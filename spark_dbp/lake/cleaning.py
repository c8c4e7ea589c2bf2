"""Delete what failed or replaced attempts left in a run directory.

Imports `files`, `published` and `store`.
"""

from __future__ import annotations

import json
import re
from typing import Any

from spark_dbp.errors import InputError
from spark_dbp.lake import files
from spark_dbp.lake.published import PUBLISHED
from spark_dbp.lake.store import DERIVED, RUN_JSON, RunDirectory, list_directory, open_run_directory

_OUR_HIDDEN = re.compile(r"\.progress|\.probe-[0-9a-f]{8}|\.lock\.takeover|\.\w+\.json\.[0-9a-f]{8}")


def clean(path: str, dry_run: bool = False) -> list[tuple[str, int]]:
    """Delete what failed or replaced attempts left in a run directory.

    Parameters
    ----------
    path : str
        The run directory.
    dry_run : bool
        Delete nothing, only list it.

    Returns
    -------
    list of (str, int)
        Path of what was (or would be) deleted, and its size in bytes.

    Raises
    ------
    InputError
        When there is no run directory at `path`.
    ConflictError
        When a run is at work in it.
    """
    base = files.normalize(path)
    if not {RUN_JSON, "stages", "tables"} & set(list_directory(base)):
        raise InputError(f"no run directory at {base}", mend="give the directory that output.path named")
    with open_run_directory(base) as directory:
        paths = map(directory.at, find_debris(directory))
        found = [(path, files.measure_tree(path)) for path in paths]
        for name, _ in found if not dry_run else ():
            files.delete(name)
        for table in () if dry_run else files.list_names(directory.at("tables")):
            files.delete_if_empty(directory.at(f"tables/{table}"))
    return found


def find_debris(directory: RunDirectory) -> list[str]:
    """Find what no mark, no run.json, no catalog table and no run that shares tables names.

    Returns
    -------
    list of str
        Directories and files of attempts that failed, or whose result was replaced. Paths are relative to
        the run directory.

    Raises
    ------
    InputError
        When run.json, a mark or a note of a derived run cannot be read. Then nothing is safe to delete.
    """
    used: set[str] = set()
    for file in (RUN_JSON, *(f"stages/{name}" for name in _list_visible(directory.at("stages")))):
        if files.exists(directory.at(file)):
            used |= set(_read_document(directory, file).get("tables", {}).values())
    if files.exists(directory.at(PUBLISHED)):  # catalog tables may point to what an earlier run.json named
        used |= {path for mark in _read_document(directory, PUBLISHED).values() for path in mark["points_to"]}
    found = []
    for name in _list_visible(directory.at(DERIVED)):
        note = _read_document(directory, f"{DERIVED}/{name}")
        if files.exists(directory.at(note["run"])):
            used |= set(note["tables"])
        else:
            found.append(f"{DERIVED}/{name}")
    used = {directory.at(path) for path in used}
    for table in files.list_names(directory.at("tables")):
        for attempt in files.list_names(directory.at(f"tables/{table}")):
            path = f"tables/{table}/{attempt}"
            if directory.at(path) not in used:
                found.append(path)
            else:  # a task that was cancelled may have left drafts in a table that is used
                inside = files.list_names(directory.at(path))
                found += [f"{path}/{name}" for name in inside if name.startswith(("_draft-", "_temporary"))]
    # Of hidden files, only our own: notes of progress, probes, the mark of a takeover, drafts of small files.
    for folder in ("", "stages/", f"{DERIVED}/"):
        names = files.list_names(directory.at(folder or "."))
        found += [folder + name for name in names if _OUR_HIDDEN.fullmatch(name)]
    return found


def _read_document(directory: RunDirectory, file: str) -> dict[str, Any]:
    try:
        return dict(json.loads(files.read_bytes(directory.at(file))))
    except (ValueError, TypeError, OSError) as error:
        raise InputError(
            f"{directory.at(file)} cannot be read: {error}",
            mend="nothing is deleted; run the job again, or delete the whole directory",
        ) from None


def _list_visible(path: str) -> list[str]:
    return [name for name in files.list_names(path) if not name.startswith(".")]
