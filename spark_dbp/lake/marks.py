"""The record of a finished step, and whether a later run may take it over. Imports `_version`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from spark_dbp._version import __version__

# Format of run.json and of the marks. Runs whose run.json names no format have format 1.
FORMAT_VERSION = 2


@dataclass
class FinishedStep:
    """The record of a finished step: what it wrote and what it found. It is the mark, and goes into run.json.

    Attributes
    ----------
    name, fingerprint : str
    tables : dict of str to str
        Table name to path, relative to the run directory.
    rows, digests, key_digests : dict
        Table name to its number of rows, its digest, and the digest of its column ``key``.
    files, bytes : dict
        Table name to the size in bytes of each of its files, and of all of them.
    schemas : dict of str to str
        Table name to its columns as Spark describes them in JSON. Without it, Spark must look into files.
    ignored : dict of str to list
        Table name to the names of files that lay in its directory from the start and are no part of it.
    version : str
        Version of this package that wrote the tables.
    format_version : int
        Format of the record. Records that do not name it have format 1.
    depends : dict of str to str
        Everything that the result depends on, by name, each as a hash.
    info : dict
        What later steps and reports need to know. It can be written as JSON.
    seconds : float
    engine : str
        The engine that computed it. Records of earlier versions do not name it.
    """

    name: str
    fingerprint: str
    tables: dict[str, str] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    key_digests: dict[str, str] = field(default_factory=dict)
    files: dict[str, dict[str, int]] = field(default_factory=dict)
    version: str = __version__
    format_version: int = 1
    depends: dict[str, str] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    bytes: dict[str, int] = field(default_factory=dict)
    ignored: dict[str, list[str]] = field(default_factory=dict)
    engine: str = ""
    schemas: dict[str, str] = field(default_factory=dict)

    def hash_table(self, table: str) -> str:
        """Hash of how a table was made and of its content. Later steps depend on it.

        A damaged step is computed anew with the same fingerprint. Its result may then differ, because the
        embeddings of a model may differ in the last bit. So later steps must depend on the content too.
        """
        return hash_value([self.fingerprint, table, self.digests.get(table)])


def make_fingerprint(name: str, depends: Mapping[str, str]) -> str:
    """SHA-256 of a step's name, what it depends on and the version of this package.

    Examples
    --------
    >>> make_fingerprint("a", {"x": "1"}) == make_fingerprint("a", {"x": "1"})
    True
    >>> make_fingerprint("a", {"x": "1"}) == make_fingerprint("b", {"x": "1"})
    False
    """
    return hash_value([__version__, FORMAT_VERSION, name, dict(depends)])


def hash_value(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def hash_leaves(depends_on: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Hash of every value in nested mappings, by its path (``a.b``).

    Hashes are enough to name what changed, and they hide values, which may be secret.
    """
    found: dict[str, str] = {}
    for name, value in depends_on.items():
        if isinstance(value, Mapping):
            found |= hash_leaves(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = hash_value(value)[:16]
    return found


def compare_steps(known: FinishedStep, name: str, depends: Mapping[str, str]) -> str:
    """What has changed since a step was finished; empty when nothing has."""
    if known.fingerprint == make_fingerprint(name, depends):
        return ""
    if known.version != __version__ or known.format_version != FORMAT_VERSION:
        return f"it was made by {describe_version(known.version, known.format_version)}"
    return f"{', '.join(list_changed(known, depends))} changed"


def list_changed(known: FinishedStep, depends: Mapping[str, str]) -> list[str]:
    """Names of what a finished step depended on that is not as it was.

    Examples
    --------
    >>> list_changed(FinishedStep("quota", "", depends={"a": "1", "b": "2"}), {"a": "1", "b": "3"})
    ['b']
    """
    names = known.depends.keys() | depends.keys()
    return sorted(name for name in names if known.depends.get(name) != depends.get(name))


def describe_version(version: str | None, format_version: int) -> str:
    """Name of the version that wrote something, for messages.

    Examples
    --------
    >>> describe_version("0.1.0", 1)
    'version 0.1.0 of spark-dbp (format 1)'
    """
    return f"version {version or 'unknown'} of spark-dbp (format {format_version})"
