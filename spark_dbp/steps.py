"""What a step of a run is: its name, what it needs, what it writes. Imports nothing of Spark.

A step is declared once, in `pipeline`. What its result depends on follows from what it needs, so a plan of
steps can be looked at, and compared with an earlier run, without running anything.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

# Outside of the run directory, steps read these.
INPUT = "input"
SHARDS = "embed.images.webdataset"
CENTROIDS = "input.centroids"


@dataclass(frozen=True)
class Needs:
    """Everything that the result of a step depends on.

    Attributes
    ----------
    tables : tuple of str
        Tables that earlier steps write.
    settings : tuple of str
        Keys or whole sections of the configuration: ``prune.seed``, ``cluster``.
    sources : tuple of str
        What is read from outside the run directory: `INPUT`, `SHARDS`, `CENTROIDS`.
    columns : tuple of str
        Columns of the input.
    carried : tuple of str
        Those of `columns` that travel for later steps, be they read for another purpose too or not.
    session : tuple of str
        Settings of the Spark session.
    encoders : tuple of str
        Names of sections of ``embed`` whose encoder is used.
    """

    tables: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    carried: tuple[str, ...] = ()
    session: tuple[str, ...] = ()
    encoders: tuple[str, ...] = ()


@dataclass(frozen=True)
class Step:
    """One step of a run.

    Attributes
    ----------
    name : str
        The name of its mark, and in run.json.
    title : str
        What it does, for people. ``{n_keep:,}`` stands for what an earlier step found.
    needs : Needs
    writes : tuple of str
        Tables.
    build : callable
        Gets the `job.Job`; reads what the step needs and writes its tables.
    vector_passes : int
        How often it goes over the vectors of all samples.
    """

    name: str
    title: str
    needs: Needs
    writes: tuple[str, ...]
    build: Callable[[Any], None]
    vector_passes: int = 0


@dataclass(frozen=True)
class Facts:
    """From where the needs of a step are known: a run under way asks its session, a plan what it has seen.

    Attributes
    ----------
    snapshot_input, digest_shards, snapshot_centroids : callable
        What the sources are like now; JSON.
    identify_encoder : callable
        Takes the name of a section of ``embed``.
    name_type : callable
        Takes the name of a column of the input.
    read_setting : callable
        Takes the name of a setting of the session.
    value_at : callable
        Takes the path of a key or a section of the configuration.
    hash_table : callable
        Takes the name of a table that an earlier step writes.
    """

    snapshot_input: Callable[[], Any]
    digest_shards: Callable[[], Any]
    snapshot_centroids: Callable[[], Any]
    identify_encoder: Callable[[str], Any]
    name_type: Callable[[str], Any]
    read_setting: Callable[[str], Any]
    value_at: Callable[[str], Any]
    hash_table: Callable[[str], Any]


def resolve_needs(needs: Needs, facts: Facts) -> dict[str, Any]:
    """What a step needs, as it is now, by the name that a message gives it; JSON.

    The fingerprint of a step is made of this, whoever asks: a run that decides what it reuses, and a plan
    that says so beforehand.

    Parameters
    ----------
    needs : Needs
    facts : Facts

    Returns
    -------
    dict
    """
    found: dict[str, Any] = {}
    if INPUT in needs.sources:
        found["the input"] = facts.snapshot_input()
    if SHARDS in needs.sources:
        found["the shards"] = facts.digest_shards()
    found |= {name_encoder(name): facts.identify_encoder(name) for name in needs.encoders}
    if CENTROIDS in needs.sources:
        found["the content of input.centroids"] = facts.snapshot_centroids()
    found |= {f"the type of column {name}": facts.name_type(name) for name in needs.columns}
    if needs.carried:
        found["the columns that later steps need"] = list(needs.carried)
    found |= {name: facts.read_setting(name) for name in needs.session}
    found |= {path: facts.value_at(path) for path in needs.settings}
    return found | {name_table(table): facts.hash_table(table) for table in needs.tables}


def name_table(table: str) -> str:
    """How a message calls a table that a step needs.

    Examples
    --------
    >>> name_table("samples")
    'table samples'
    """
    return f"table {table}"


def name_encoder(name: str) -> str:
    """How a message calls the encoder of a section of ``embed``.

    Examples
    --------
    >>> name_encoder("text")
    'the encoder of embed text'
    """
    return f"the encoder of embed {name}"
