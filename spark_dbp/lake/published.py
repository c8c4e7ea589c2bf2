"""The mark of what a run was published to, and which run that was. Imports `errors` and `files`.

``published.json`` in the run directory: for every ``output.table`` its entry, a mapping of

- ``run_id``: of the run.json that was published; null while that is under way
- ``table_format``
- ``tables``: table of the run to name of the catalog table
- ``points_to``: paths in the run directory that catalog tables may point to; `cleaning` leaves them
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from spark_dbp.errors import InputError
from spark_dbp.lake import files

PUBLISHED = "published.json"


def read_published(base: str) -> dict[str, dict[str, Any]]:
    """The mark of a run directory; empty when nothing was published.

    Raises
    ------
    InputError
        When it cannot be read.
    """
    path = files.join(base, PUBLISHED)
    try:
        return dict(json.loads(files.read_bytes(path))) if files.exists(path) else {}
    except (ValueError, TypeError) as error:
        raise InputError(
            f"{path} cannot be read: {error}",
            mend="delete it; the run's command writes it again when it has published all tables",
        ) from None


def write_published(base: str, mark: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the mark of a run directory."""
    files.write_bytes(files.join(base, PUBLISHED), (json.dumps(mark, indent=1) + "\n").encode())


def find_same_run(run_json: str, document: Mapping[str, Any]) -> str | None:
    """Id of the run that is there, where it has the tables and the configuration of `document`.

    A command that finds everything done is then no new run, and need not be published again.

    Parameters
    ----------
    run_json : str
        Path of the run.json that is about to be replaced; there may be none.
    document : mapping
        The new one.

    Returns
    -------
    str or None
    """
    try:
        before = json.loads(files.read_bytes(run_json)) if files.exists(run_json) else {}
        after = json.loads(json.dumps(document, default=str))
        same = all(before[part] == after[part] for part in ("tables", "digests", "config"))
        return str(before["run_id"]) if same else None
    except (ValueError, KeyError, TypeError):  # none that this program wrote
        return None
