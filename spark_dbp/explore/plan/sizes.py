"""Rows and bytes of every table that a run would write. Imports `seen`, `config` and `stages.keep_trie`.

How bytes follow from rows was measured on real tables: vectors are stored as they are; keys and texts with
the codec of the session and no dictionary, so some of them are written to memory and measured; cluster ids
take as many bits as they need; distances do not shrink.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from spark_dbp.columns import KEY, name_carried
from spark_dbp.config import RunConfig
from spark_dbp.config_base import name_column
from spark_dbp.config_embed import MAIN
from spark_dbp.engine.compat import name_codec
from spark_dbp.engine.file_scan import share_groups
from spark_dbp.errors import ConfigError, SparkDbpError
from spark_dbp.explore.plan.look_at_rows import SAMPLED_PLACES
from spark_dbp.explore.plan.reuse import Judged
from spark_dbp.explore.plan.seen import Count, Seen
from spark_dbp.kernels.histogram import N_BINS
from spark_dbp.loaders.key_text import write_key_texts
from spark_dbp.stages.keep_trie import count_shards
from spark_dbp.steps import Step

if TYPE_CHECKING:
    import numpy.typing as npt
    import pyarrow as pa

# Bytes of columns of a row, besides those that are measured.
_DISTANCE, _DIMENSION, _RANK, _SIMILARITY, _OFFSETS = 4.0, 0.2, 0.6, 4.0, 10.0
# Of a file: its footer. Of one with statistics of k clusters.
_FOOTER, _SMALL_FOOTER = 800, 1600
# Bytes of a trie that holds next to nothing; runs of rising keys up to which a sample counts as sorted.
_EMPTY_TRIE, _MOST_RUNS = 3400, 2 * SAMPLED_PLACES
# Bins over which the distances of a cluster are spread where nothing is known of them, and bytes of one.
_BINS, _BIN = 290, 1.45
# A Parquet dictionary takes this many FLOATs; what comes after is stored as it is.
_DICTIONARY = 1 << 18
# Bytes of a task that reads files, as `engine.file_scan` shares them; and of a row of unknown size.
_TASK_BYTES, _FEW_BYTES = 64 << 20, 4 << 20
_PARTITIONS = "spark.sql.shuffle.partitions"
_UNKNOWN_BYTES, _UNKNOWN_KEY, _UNKNOWN_DIMENSION = 16.0, 24.0, 768


@dataclass(frozen=True)
class TableSize:
    """What a table would hold.

    Attributes
    ----------
    rows : Count
    bytes : int
    files : int
    is_known : bool
        Whether the table is there already, and these are its own numbers.
    is_assumed : bool
        Whether the bytes are of vectors whose dimension was not seen.
    """

    rows: Count
    bytes: int
    files: int
    is_known: bool = False
    is_assumed: bool = False

    @property
    def bytes_are(self) -> str:
        """How far the bytes can be trusted, as `Count.kind`."""
        return "about" if self.is_assumed else self.rows.kind

    @property
    def row_bytes(self) -> float:
        """Bytes of a row."""
        return self.bytes / max(1, self.rows.n)


class Widths:
    """Bytes that columns of samples take in the files of a run.

    Parameters
    ----------
    config : RunConfig
    seen : Seen
    steps : iterable of Step
    """

    def __init__(self, config: RunConfig, seen: Seen, steps: Iterable[Step]) -> None:
        codec = config.spark.get("spark.sql.parquet.compression.codec")
        self._codec = (
            "snappy" if config.engine == "sql" else name_codec(None if codec is None else str(codec))
        )
        self.key = self.shuffled_key = _UNKNOWN_KEY
        self.carried: dict[str, float] = {}
        sample = seen.sample
        if sample is not None and sample.num_rows and KEY in sample.column_names:
            self.key = self._measure(sample.column(KEY))
            self.shuffled_key = self._measure(_mix(sample.column(KEY)))
        carried = list(dict.fromkeys(name for step in steps for name in step.needs.carried))
        for number, name in enumerate(carried):
            new = name_carried(number)
            if sample is not None and sample.num_rows and new in sample.column_names:
                self.carried[name] = self._measure(sample.column(new))
            else:
                self.carried[name] = seen.stored.get(name, _UNKNOWN_BYTES)
        self.dimension = seen.dimension or (seen.centroids[1] if seen.centroids else 0) or _UNKNOWN_DIMENSION
        self.vector = 4.0 * self.dimension + 4

    def _measure(self, column: pa.ChunkedArray) -> float:
        """Bytes of a value where workers write it."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        sink = pa.BufferOutputStream()
        table = pa.table({"c": column})
        pq.write_table(table, sink, compression=self._codec, use_dictionary=False, write_statistics=False)
        groups = pq.read_metadata(pa.BufferReader(sink.getvalue())).row_group(0)
        stored = sum(groups.column(n).total_compressed_size for n in range(groups.num_columns))
        return stored / max(1, len(column))


def _mix(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The values in another order, as keys of a keep list are: neighbours are not alike any more."""
    return column.take(_mix_rows(len(column)))


def _mix_rows(n: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng(0).permutation(n)


def count_partitions(config: RunConfig) -> int:
    """Partitions of a shuffle: as set, or as a local session has them.

    Raises
    ------
    ConfigError
        When they are set to what Spark refuses.
    """
    given = str(config.spark.get(_PARTITIONS, "auto")).strip()
    if given == "auto":  # as Databricks has it
        return max(8, 4 * (os.cpu_count() or 2))
    if not re.fullmatch(r"\+?[0-9]+", given) or not 0 < int(given) < 2**31:
        raise ConfigError(
            f"spark: {_PARTITIONS} cannot be {given!r}: it must be a positive whole number",
            mend="correct the spark section of the configuration",
        )
    return int(given)


def count_clusters(config: RunConfig, seen: Seen) -> Count:
    """Number of clusters; of given ones without centroids, at most as many as their largest id says."""
    if config.input.cluster_id is None:
        return Count(int(config.cluster.n_clusters or 0))
    if seen.centroids is not None:
        return Count(seen.centroids[0])
    if seen.most_clusters is not None:
        return Count(min(seen.most_clusters, seen.rows.n), "at most")
    return Count(max(1, min(1000, seen.rows.n)), "about")


class Sizer:
    """Sizes of the tables of a run, one step after the other.

    Parameters
    ----------
    config : RunConfig
    seen : Seen
    steps : iterable of Step
    """

    def __init__(self, config: RunConfig, seen: Seen, steps: Iterable[Step]) -> None:
        steps = list(steps)
        self.config, self.seen = config, seen
        self.widths = Widths(config, seen, steps)
        self.has_dimension = bool(seen.dimension or seen.centroids)
        self.k = count_clusters(config, seen)
        self.tables: dict[str, TableSize] = {}
        self._has_vectors = {
            table: bool(getattr(step.build, "keywords", {}).get("with_vectors"))
            for step in steps
            for table in step.writes
        }
        self._first = next((step for step in steps if "samples" in step.writes), steps[0])

    def add(self, judged: Judged) -> None:
        """Size the tables of a step; those that it has already are as they are."""
        step = judged.step
        if judged.is_reused and judged.known is not None:
            known = judged.known
            for table in step.writes:
                rows = known.info.get("n_rows") if table == "samples" else None
                self.tables[table] = TableSize(
                    Count(int(known.rows[table] if rows is None else rows)),
                    int(known.bytes[table]),
                    len(known.files.get(table, {})),
                    True,
                )
            if known.info.get("dimension"):
                self.has_dimension = True
                self.widths.dimension = int(known.info["dimension"])
                self.widths.vector = 4.0 * self.widths.dimension + 4
            return
        for table in step.writes:
            size = self._size(table, step)
            self.tables[table] = replace(size, is_assumed=self._assumes(table, step))

    def _assumes(self, table: str, step: Step) -> bool:
        """Whether a table has vectors of a dimension that nothing told."""
        how = getattr(step.build, "keywords", {})
        sections = {one.table: one.name for one in self.config.embed}
        if table in sections:
            return not self.has_dimension or sections[table] != MAIN
        if self.has_dimension:
            return False
        has_vectors = how.get("with_vectors") or how.get("has_vectors")
        return (
            bool(has_vectors)
            or table.endswith("centroids")
            or (table == "samples" and self.config.embeds_main)
        )

    def vectors_of(self, table: str) -> tuple[str, bool]:
        """The table that has the vectors of the samples in `table`, and whether keys must be joined to it."""
        has_own = table == "samples" or self._has_vectors.get(table, False)
        return (table, False) if has_own else ("samples", True)

    def _size(self, table: str, step: Step) -> TableSize:
        how: dict[str, Any] = getattr(step.build, "keywords", {})
        make: Callable[[], TableSize] | None = {
            "samples": lambda: self._size_samples(how),
            "centroids": lambda: self._size_centroids(self.k),
            "semantic_centroids": lambda: self._size_centroids(self._semantic_k),
            "semantic_assignments": lambda: self._size_assignments(how["rows"], self._semantic_k),
            "assignments": lambda: self._size_assignments(how["rows"], self.k),
            "cluster_stats": self._size_stats,
            "quotas": lambda: _small(self.k, 32 * self.k.n),
            "keep_list": self._size_keep_list,
            "keep_trie": self._size_trie,
            "shard_samples": lambda: self._make(self.seen.rows, self.widths.key + 3 * _OFFSETS),
            "filtered": lambda: self._size_filtered(how),
        }.get(table)
        if make is not None:
            return make()
        if table.startswith("embeddings"):
            return self._size_embeddings(table, how)
        if table.startswith("rejected"):
            return self._make(self._count_rejected(table), self.widths.key + _UNKNOWN_BYTES)
        if table.endswith("survivors"):
            return self._size_survivors(table, how)
        return self._size_duplicates(table, how)

    def _make(self, rows: Count, row_bytes: float, files: int | None = None) -> TableSize:
        n_bytes = rows.n * row_bytes
        if files is None:
            files = self._count_files(n_bytes)
        return TableSize(rows, round(n_bytes + files * _FOOTER), files)

    def _count_files(self, n_bytes: float) -> int:
        """Tasks that read, and so write, so many bytes."""
        even = max(_FEW_BYTES, min(_TASK_BYTES, n_bytes / count_partitions(self.config)))
        return max(1, math.ceil(n_bytes / even))

    @property
    def rows_of_input(self) -> Count:
        """Rows that come out of the step `ingest`."""
        given = self.config.input
        drops = given.on_bad_rows == "drop" or any(one.on_bad_items == "drop" for one in self.config.embed)
        return self.seen.rows.at_most() if given.filter is not None or drops else self.seen.rows

    @property
    def _semantic_k(self) -> Count:
        semantic = self.config.dedup.semantic
        own = semantic.n_clusters if semantic is not None else None
        return self.k if own is None else Count(own)

    def _size_samples(self, how: Mapping[str, Any]) -> TableSize:
        if self.config.embeds_main:
            return self.tables["embeddings"]
        given, widths = self.config.input, self.widths
        row = widths.key + sum(widths.carried.values())
        if how.get("has_vectors"):
            row += widths.vector + _DIMENSION
        row += _count_id_bytes(self.k) if given.cluster_id is not None else 0
        row += _DISTANCE if given.distance_to_centroid is not None else 0
        in_memory = self.seen.in_memory * self.seen.rows.n
        files = self._count_files(in_memory) if in_memory else None
        if self.seen.groups and self.config.engine != "sql":
            files = len(share_groups(self.seen.groups, count_partitions(self.config)))
        return self._make(self.rows_of_input, row, files)

    def _size_embeddings(self, table: str, how: Mapping[str, Any]) -> TableSize:
        if table.endswith("_files"):
            return self._make(Count(self.seen.files or 1, "about"), 60, 1)
        carried = sum(self.widths.carried[name] for name in how.get("carried", ()))
        return self._make(self.rows_of_input, self.widths.key + self.widths.vector + _DIMENSION + carried)

    def _count_rejected(self, table: str) -> Count:
        """Items that may be bad before a run refuses them: none, or a share of the rows."""
        section = next(one for one in self.config.embed if one.rejected_table == table)
        share = 0.0 if section.on_bad_items == "fail" else section.max_bad_share
        return self.seen.rows.at_most(int(share * self.seen.rows.n))

    def _size_survivors(self, table: str, how: Mapping[str, Any]) -> TableSize:
        given, widths = self.config.input, self.widths
        row = widths.key + sum(widths.carried[name] for name in how["carried"])
        row += widths.vector if how["with_vectors"] else 0
        row += _count_id_bytes(self.k) if given.cluster_id is not None else 0
        row += _DISTANCE if given.distance_to_centroid is not None else 0
        return self._make(self.tables["samples"].rows.at_most(), row)

    def _size_duplicates(self, table: str, how: Mapping[str, Any]) -> TableSize:
        rows = self.tables["samples"].rows
        source = how.get("rows")
        rows = self.tables[source].rows if source in self.tables else rows
        most = rows.at_most(max(0, rows.n - 1))
        return self._make(most, 2 * self.widths.shuffled_key + _SIMILARITY)

    def _size_filtered(self, how: Mapping[str, Any]) -> TableSize:
        settings = self.config.score_filter
        assert settings is not None
        rows = self.tables[how["rows"]].rows
        if settings.keep_fraction is not None:
            kept = rows.share(settings.count_to_keep)
            # A row without a score, null or NaN, does not count.
            is_certain = settings.within is None and name_column(settings.column) in self.seen.full_columns
            rows = kept if is_certain else kept.at_most()
        else:
            rows = rows.at_most()
        widths, given = self.widths, self.config.input
        row = widths.key + 8 + (widths.vector if how["with_vectors"] else 0)
        row += _count_id_bytes(self.k) if given.cluster_id is not None else 0
        row += _DISTANCE if given.distance_to_centroid is not None else 0
        return self._make(rows, row)

    def _size_centroids(self, k: Count) -> TableSize:
        values = k.n * self.widths.dimension
        with_dictionary = min(values, _DICTIONARY)
        bits = math.ceil(math.log2(max(2, with_dictionary)))
        n_bytes = 4 * values + with_dictionary * bits / 8 + 5 * k.n + _FOOTER
        return TableSize(k, round(n_bytes), 1)

    def _size_assignments(self, rows: str, k: Count) -> TableSize:
        table = self.tables[rows]
        only_clusters = self.config.input.distance_to_centroid is not None
        if rows == "samples" and only_clusters and not self._samples_are_wide:
            return TableSize(table.rows, table.bytes, table.files)
        row = self.widths.key + _count_id_bytes(k) + _DISTANCE
        return self._make(table.rows, row, table.files)

    @property
    def _samples_are_wide(self) -> bool:
        return bool(self.widths.carried) or bool(
            getattr(self._first.build, "keywords", {}).get("has_vectors")
        )

    def _size_stats(self) -> TableSize:
        spread = self.seen.distance_spread
        n_bins = _BINS if spread is None else max(1.0, N_BINS / 2 * math.sqrt(12) * spread)
        of_cluster = self.tables["assignments"].rows.n / max(1, self.k.n)
        bins = n_bins * (1 - math.exp(-of_cluster / n_bins))
        return _small(self.k, self.k.n * (40 + _BIN * bins) + _SMALL_FOOTER)

    @property
    def n_keep(self) -> Count:
        """Rows that pruning keeps."""
        if "quotas" in self.tables and self.tables["quotas"].is_known and "keep_list" in self.tables:
            return self.tables["keep_list"].rows
        prune, rows = self.config.prune, self.tables["assignments"].rows
        return Count(prune.n_keep) if prune.n_keep is not None else rows.share(prune.count_to_keep)

    def _size_keep_list(self) -> TableSize:
        n_keep = self.n_keep
        row = self.widths.shuffled_key + _DISTANCE + _RANK + 0.05
        return self._make(n_keep, row)

    def _size_trie(self) -> TableSize:
        n_keep = self.tables["keep_list"].rows
        per_key, is_whole = self._measure_trie(n_keep.n)
        shards = self.config.trie.shards or count_shards(n_keep.n, self.widths.key)
        kind = n_keep.kind if is_whole else "about"
        return TableSize(
            Count(n_keep.n, kind), round(n_keep.n * per_key + shards * (_EMPTY_TRIE + 120) + 300), shards + 1
        )

    def _measure_trie(self, n_keep: int) -> tuple[float, bool]:
        """Bytes of a key in a trie, from one made of sampled keys; and whether these are as many."""
        sample = self.seen.sample
        if sample is None or KEY not in sample.column_names or not sample.num_rows:
            return _UNKNOWN_KEY / 4, False
        try:
            import marisa_trie

            kind = self.seen.name_type(str(self.config.input.key))
            keys = sample.column(KEY).drop_null().combine_chunks()
            texts = write_key_texts(keys, kind if isinstance(kind, str) else "string").to_pylist()

            def measure(some: list[bytes]) -> float:
                made = len(marisa_trie.BinaryTrie(some).tobytes()) - _EMPTY_TRIE
                return max(1, made) / len(some)

            shuffled = [texts[row] for row in _mix_rows(len(texts))]
            in_order = sum(a > b for a, b in pairwise(texts)) <= _MOST_RUNS
            if in_order:  # as thin as the keep list: neighbours that are left share fewer beginnings
                some = shuffled[: max(1, round(len(texts) * n_keep / max(1, self.seen.rows.n)))]
                return measure(some), len(some) >= n_keep
            some = shuffled[: max(1, n_keep)]
            whole, doublings = measure(some), max(0.0, math.log2(n_keep / len(some)))
            # The more keys, the more beginnings they share.
            less = max(0.0, measure(some[: (len(some) + 1) // 2]) - whole)
            return max(whole / 2, whole - less * doublings), len(some) >= n_keep
        except (ImportError, ArithmeticError, ValueError, TypeError, SparkDbpError):  # keys of an odd type
            return _UNKNOWN_KEY / 4, False


def _small(k: Count, n_bytes: float) -> TableSize:
    return TableSize(k, round(n_bytes + _SMALL_FOOTER), 1)


def _count_id_bytes(k: Count) -> float:
    return math.ceil(math.log2(max(2, k.n))) / 8
