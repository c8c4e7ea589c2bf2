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
