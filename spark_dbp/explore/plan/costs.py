"""What each step reads, shuffles and takes: bytes, arithmetic, seconds, memory. Imports `sizes` and numpy.

The model of time is small on purpose. A step takes a fixed time, and time for the rows, for the bytes that
it reads, writes and shuffles, and for the multiplications of vectors, of which this machine does some as a
probe. The rates are those of ordinary disks and cores; nothing is asked of a cluster's workers.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from spark_dbp.config import RunConfig
from spark_dbp.explore.plan.sizes import Sizer
from spark_dbp.steps import Step

# How far the time of whole runs was from this model (docs/plan.md names the runs).
FACTOR = 2.0
# Seconds to start a session, look at the input and end; and what a step takes of any size.
START = 10.0
_FIXED = {
    "ingest": 3.5,
    "cluster": 2.5,
    "semantic_clusters": 3.0,
    "semantic_dedup": 6.0,
    "minhash_dedup": 5.0,
    "exact_dedup": 2.5,
    "score_filter": 3.0,
    "cluster_stats": 1.5,
    "select": 1.5,
    "assign": 1.0,
    "quota": 0.1,
    "keep_trie": 0.8,
}
_OTHER_FIXED, _PASS = 2.5, 0.4
# For each core and second: rows that are checked, ranked or sorted; bytes read, written, shuffled; and the
# share of the probe's rate that k-means reaches beside all else.
_ROWS, _READ, _WRITTEN, _SHUFFLED, _REACHED = 400_000, 200e6, 60e6, 60e6, 0.2
# Rows of steps that only look at clusters and distances.
_FAST_ROWS = {"cluster_stats": 8_000_000, "select": 4_000_000, "keep_trie": 4_000_000}
# Texts that MinHash takes in a second on a core; keys that a trie takes.
_TEXTS, _KEYS = 15_000, 500_000
# Memory, in bytes: of a Python process with its libraries; of the batches that a worker holds at a time.
_PROCESS, _BATCHES = 250 << 20, 3 * (64 << 20)
_HISTOGRAM_BYTES = 290 * 24


@dataclass(frozen=True)
class Cost:
    """What a step would take.

    Attributes
    ----------
    rows_read : int
    bytes_read, bytes_written, bytes_shuffled : int
    flops : float
        Multiplications and additions of vectors.
    seconds : float or None
        None where no model is known: encoders.
    driver_bytes, worker_bytes : int
        Memory of the driver's Python process, and of each Python worker.
    """

    rows_read: int
    bytes_read: int
    bytes_written: int
    bytes_shuffled: int
    flops: float
    seconds: float | None
    driver_bytes: int
    worker_bytes: int


@dataclass(frozen=True)
class Machine:
    """How fast work is done.

    Attributes
    ----------
    cores : int
    flops : float
        Of all cores together, in a second.
    what : str
        For people.
    """

    cores: int
    flops: float
    what: str


def measure_machine(cores: int | None = None) -> Machine:
    """Let this machine multiply matrices for a few hundredths of a second.

    Parameters
    ----------
    cores : int, optional
        Tasks that run at once, where a session knows; else those of this machine.
    """
    here = os.cpu_count() or 2
    a = np.ones((768, 768), np.float32)
    _ = a @ a
    best = float("inf")
    for _ in range(3):
        begun = time.process_time()  # of all threads: what else runs here does not count
        _ = a @ a
        best = min(best, time.process_time() - begun)
    used = cores or here
    rate = 2 * 768**3 / max(best, 1e-4) * used
    whose = (
        "this machine's" if cores is None or cores == here else f"{cores:,} cores as fast as this machine's"
    )
    return Machine(used, rate, f"{used:,} cores, {rate / 1e9:,.0f} Gflop/s ({whose})")


def estimate_cost(step: Step, config: RunConfig, sizer: Sizer, machine: Machine) -> Cost:
    """What a step would read, write and take, where it is computed.

    Parameters
    ----------
    step : Step
    config : RunConfig
    sizer : Sizer
        Knows the tables of this step and of those before it.
    machine : Machine
    """
    work = _find_work(step, config, sizer)
    written = sum(sizer.tables[table].bytes for table in step.writes if table not in work.shared)
    cores = machine.cores
    fixed = _FIXED.get(step.name, _OTHER_FIXED) if not work.shared else _FIXED["quota"]
    seconds = fixed + _PASS * max(0, work.passes - 1)
    seconds += (
        work.rows * max(1, work.passes) / (_FAST_ROWS.get(step.name, _ROWS) * cores)
        + work.more_seconds / cores
    )
    seconds += work.read / (_READ * cores) + written / (_WRITTEN * cores)
    seconds += work.shuffled / (_SHUFFLED * cores) + work.flops / (_REACHED * machine.flops)
    worker = _PROCESS + _BATCHES + work.worker if work.rows else 0
    return Cost(
        work.rows,
        round(work.read),
        written,
        round(work.shuffled),
        work.flops,
        None if step.name.startswith("embed_") else round(seconds, 1),
        round(_PROCESS + work.driver),
        round(worker),
    )


@dataclass
class _Work:
    rows: int = 0
    read: float = 0.0
    shuffled: float = 0.0
    flops: float = 0.0
    passes: int = 1
    driver: float = 0.0
    worker: float = 0.0
    more_seconds: float = 0.0
    shared: tuple[str, ...] = ()


def _find_work(step: Step, config: RunConfig, sizer: Sizer) -> _Work:
    how: Mapping[str, Any] = getattr(step.build, "keywords", {})
    rows, seen = how.get("rows"), sizer.seen
    n = sizer.tables[rows].rows.n if rows in sizer.tables else seen.rows.n
    dim, key = sizer.widths.dimension, sizer.widths.key
    name = step.name
    if name == "list_shards":
        return _Work(seen.rows.n, 2048.0 * seen.rows.n)
    if name.startswith("embed_"):
        return _Work(seen.rows.n, float(seen.bytes or 0), worker=1 << 30)
    if name == "ingest":
        return _work_of_ingest(config, sizer)
    if name == "quota":
        return _Work(0, sizer.tables["cluster_stats"].bytes, driver=sizer.k.n * 200.0)
    if name == "cluster_stats":
        k = sizer.k.n
        assignments = sizer.tables["assignments"]
        bins = min(assignments.rows.n, k * 290) * 24.0
        return _Work(
            assignments.rows.n, 5.0 * assignments.rows.n, bins, driver=k * (_HISTOGRAM_BYTES + 12.0 * dim)
        )
    if name == "select":
        assignments, kept = sizer.tables["assignments"], sizer.tables["keep_list"]
        return _Work(assignments.rows.n, assignments.bytes, kept.bytes * 1.2, driver=sizer.k.n * 300.0)
    if name == "keep_trie":
        kept = sizer.tables["keep_list"]
        return _Work(kept.rows.n, key * kept.rows.n, key * kept.rows.n, more_seconds=kept.rows.n / _KEYS)
    if name in ("cluster", "semantic_clusters"):
        return _work_of_clusters(step, config, sizer, n)
    if name == "assign":
        if sizer.config.input.distance_to_centroid is not None and sizer.tables["assignments"].bytes == (
            sizer.tables[how["rows"]].bytes
        ):
            return _Work(0, shared=("assignments",))
        read, moved = _read_vectors(sizer, how["rows"])
        matrix = 4.0 * sizer.k.n * dim
        return _Work(n, read, moved, 2.0 * n * sizer.k.n * dim, driver=3 * matrix, worker=2 * matrix)
    if name == "semantic_dedup":
        read, moved = _read_vectors(sizer, how["rows"])
        own = config.dedup.semantic.n_clusters if config.dedup.semantic is not None else None
        k = own or max(1, sizer.k.n)
        return _Work(n, read, moved + read, 2.0 * dim * n * n / k, worker=256 << 20)
    if name == "exact_dedup":
        texts = sum(sizer.widths.carried.values())
        return _Work(n, n * (key + texts), n * (key + 16.0))
    if name == "minhash_dedup":
        settings = config.dedup.minhash
        assert settings is not None
        work = _Work(n, n * (key + sum(sizer.widths.carried.values())), n * settings.num_perm / 4 * 16.0)
        work.more_seconds = n / _TEXTS * settings.num_perm / 128
        return work
    if name == "score_filter":
        read = n * (key + 16.0)
        return _Work(n, read + sum(sizer.tables[t].bytes for t in step.needs.tables[1:]), read)
    if name.endswith("survivors"):
        width = sizer.tables[name].row_bytes
        before = sizer.tables["samples"].rows.n
        return _Work(before, before * width, before * (width + 8))
    return _Work(n, float(sizer.tables[step.needs.tables[0]].bytes) if step.needs.tables else 0.0)


def _work_of_ingest(config: RunConfig, sizer: Sizer) -> _Work:
    if config.embeds_main:
        return _Work(0, shared=("samples",))
    seen = sizer.seen
    stored = sum(seen.stored.values())
    given = config.input
    names = [str(c) for c in (given.key, given.cluster_id, given.distance_to_centroid) if c is not None]
    names += [str(given.embedding), *sizer.widths.carried]
    read = sum(seen.stored.get(name.split(".")[0], 0.0) for name in dict.fromkeys(names))
    n = seen.rows.n
    n_bytes = (read if 0 < read <= stored else stored) * n or float(seen.bytes or 0)
    return _Work(n, n_bytes, 8.0 * n)


def _work_of_clusters(step: Step, config: RunConfig, sizer: Sizer, n: int) -> _Work:
    dim, rows = sizer.widths.dimension, getattr(step.build, "keywords", {}).get("rows", "samples")
    semantic = config.dedup.semantic
    settings: Any = semantic if step.name == "semantic_clusters" else config.cluster
    k = int(settings.n_clusters or 0) if settings is not None else 0
    read, moved = _read_vectors(sizer, rows)
    is_own = k > 0 and (step.name == "semantic_clusters" or config.input.cluster_id is None)
    if not is_own:
        if step.vector_passes == 0:
            return _Work(0, driver=4.0 * sizer.k.n * dim * 3)
        return _Work(n, read, moved + 8.0 * sizer.k.n * dim, 2.0 * n * dim, driver=8.0 * sizer.k.n * dim * 3)
    n_train = min(n, k * settings.max_points_per_centroid)
    matrix = 4.0 * k * dim
    if getattr(settings, "train", "sample") == "full":
        n_iter = settings.n_iter
        flops = 2.0 * n * k * dim * n_iter
        return _Work(
            n, read * n_iter, moved * n_iter, flops, n_iter, driver=12.0 * n_train * dim, worker=3 * matrix
        )
    flops = 2.0 * n_train * k * dim * settings.n_iter
    passes, assigned = 1, 0.0
    if step.name == "semantic_clusters":
        passes, assigned = 2, 2.0 * n * k * dim
    sent = 4.0 * n_train * dim
    return _Work(n, read * passes, moved * passes + sent, flops + assigned, passes, 3 * sent, 2 * matrix)


def _read_vectors(sizer: Sizer, rows: str) -> tuple[float, float]:
    """Bytes that are read, and moved by a join, to have the vectors of the samples in a table."""
    table, is_joined = sizer.vectors_of(rows)
    size = sizer.tables.get(table)
    n_bytes = 0.0 if size is None else size.rows.n * (sizer.widths.vector + sizer.widths.key)
    return n_bytes, n_bytes if is_joined else 0.0
