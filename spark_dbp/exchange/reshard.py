"""Write the kept samples of shards to new shards, by a Spark job that goes on where it was cut off.

Imports `index_shards`, `plan_shards`, `write_shards`, `engine`, `io.shards`, `loaders`, `runs`, `lake` and
`errors`. In the directory:

- ``00000.tar`` and so on, each with its ``00000_stats.json``, which is written after it;
- ``sizes.json``: how many samples each shard has;
- ``_plan.json`` says what the shards are made of; it is written first. Another plan is refused there.
- ``_index`` holds the index of the old shards, while the job is under way.
- ``_reshard.json`` says that the directory is complete; it is written last.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spark_dbp.engine.compat import map_in_arrow
from spark_dbp.engine.part_jobs import run_parts
from spark_dbp.engine.probe import find_problem_of_readers, find_problem_of_workers
from spark_dbp.engine.session import guard_session
from spark_dbp.engine.spark_errors import refuse_in_worker, translate_errors
from spark_dbp.engine.storage import reach_storage
from spark_dbp.errors import ConfigError, ConflictError, InputError, SparkDbpError
from spark_dbp.exchange.index_shards import (
    REPORT,
    SETTING,
    build_index,
    find_shards_named,
    open_given_run,
)
from spark_dbp.exchange.out_place import check_place, list_out
from spark_dbp.exchange.plan_shards import SAMPLES_A_SHARD, ShardPlan, parse_size, plan_shards
from spark_dbp.exchange.write_shards import STATS, NewShard, find_draft_of, write_shard
from spark_dbp.io.shards import Shard, digest_shards
from spark_dbp.lake import files
from spark_dbp.lake.local_files import can_rename
from spark_dbp.lake.lock import Lock, acquire_lock
from spark_dbp.loaders.index import ShardIndex, open_index
from spark_dbp.loaders.index_writer import MANIFEST
from spark_dbp.loaders.keys import KeyForm, KeyFunction, open_key_form
from spark_dbp.runs import Run
from spark_dbp.secrets import redact

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import SparkSession

log = logging.getLogger("spark_dbp")

FORMAT, VERSION = "spark-dbp reshard", 1
PLAN, DONE, SIZES, INDEX = "_plan.json", "_reshard.json", "sizes.json", "_index"
# Most Spark jobs; seconds between two lines of the log.
_MOST_JOBS, _LOGGED = 4096, 20.0
# What a plan consists of, as messages name it.
_NAMES = {
    "keep_list": "the keep list of the run",
    "trie_key": "trie.key of the run",
    "key": "--key",
    "samples": "--samples",
    "size": "--size",
    "shards": f"{SETTING} (which, of what size, or changed when)",
}


@dataclass(frozen=True)
class ReshardReport:
    """What `reshard` wrote.

    Attributes
    ----------
    out : str
    info : dict
        Content of ``_reshard.json``: the plan, sums, what was missing, samples and bytes of each shard.
    taken_over : int
        New shards that an earlier attempt had finished.
    seconds : float
    """

    out: str
    info: dict[str, Any]
    taken_over: int = 0
    seconds: float = 0.0

    @property
    def shards(self) -> dict[str, list[int]]:
        """Samples and bytes of each new shard, by its name."""
        return dict(self.info["shards"])

    @property
    def missing(self) -> int:
        """Kept keys that no old shard has."""
        return int(self.info["missing"])

    @property
    def share_kept(self) -> float:
        """Bytes of the kept samples, of all bytes of the old shards."""
        return float(self.info["bytes_kept"] / self.info["bytes_in"])


def reshard(
    run: str | os.PathLike[str] | Run,
    shards: str | Sequence[str],
    out: str | os.PathLike[str],
    spark: SparkSession,
    *,
    samples: int | None = None,
    size: int | str | None = None,
    key: str | KeyFunction | KeyForm = "webdataset",
) -> ReshardReport:
    """Write the samples that a run kept to new shards, in the order of the old ones.

    Members are copied with their headers, to the byte. The new shards are the same whatever the number of
    tasks. After a kill, the same call goes on with those that are not finished.

    Parameters
    ----------
    run : str or Run
        A finished run.
    shards : str or sequence of str
        Tars, folders, globs, or ranges such as ``s3://lake/shards/{00000..00127}.tar``. Workers read them.
    out : str
        The directory to write: new, empty, or that of the same call before. Workers write there.
    spark : SparkSession
    samples : int, optional
        Samples of a new shard: 10,000, where neither this nor `size` is given.
    size : int or str, optional
        Most bytes of a new shard: ``500MB``.
    key : str or callable
        As for `index_shards`.

    Returns
    -------
    ReshardReport

    Raises
    ------
    InputError
        When there is no shard, or one is no whole tar, or changes; when no kept key is in them.
    ConflictError
        When `out` holds something else, or another plan.
    ConfigError
        When workers do not reach `shards` or `out`.

    Examples
    --------
    >>> report = reshard("run", "shards/", "new-shards", spark, samples=5000)  # doctest: +SKIP
    >>> report.missing, report.share_kept  # doctest: +SKIP
    (0, 0.299)
    """
    started = time.monotonic()
    form, options = open_key_form(key), _check_options(samples, size)
    opened = open_given_run(run, spark)
    base = check_place(out, opened.path)
    reach_storage(spark, base, "--out", writes=True)
    found = find_shards_named(spark, shards)
    wanted = {
        "keep_list": opened.document["digests"]["keep_list"],
        "trie_key": opened.keep_trie().manifest.get("expression"),
        "key": form.name,
        **options,
        "shards": digest_shards(found),
    }
    _check_plan(base, wanted)
    try:
        with guard_session(spark), acquire_lock(base, "--out") as lock:
            goes_on = _check_plan(base, wanted)
            if not goes_on:
                _clean(base)
            done = _read(files.join(base, DONE))
            if done is not None and _is_whole(base, done):
                log.info("%s is complete already", base)
                _clean(base)
                return ReshardReport(base, done, len(done["shards"]), time.monotonic() - started)
            files.delete(files.join(base, DONE))
            return _Resharding(spark, base, lock, form, wanted, goes_on).carry_out(opened, found, started)
    finally:
        files.delete_if_empty(base)


def _check_options(samples: int | None, size: int | str | None) -> dict[str, int | None]:
    if samples is not None and size is not None:
        raise ConfigError("--samples and --size are both given", mend="give one of them")
    if samples is not None and (not isinstance(samples, int) or isinstance(samples, bool) or samples < 1):
        raise ConfigError(f"--samples is {samples!r}", mend="give a whole number, 1 or more")
    n_bytes = None if size is None else parse_size(str(size))
    return {"samples": SAMPLES_A_SHARD if samples is None and size is None else samples, "size": n_bytes}


def _read(path: str) -> dict[str, Any] | None:
    """A document of ours; None where there is none, or half of one."""
    try:
        document = json.loads(files.read_bytes(path)) if files.exists(path) else None
    except ValueError:
        return None
    is_ours = isinstance(document, dict) and document.get("format") == FORMAT
    return document if is_ours else None


def _check_plan(base: str, wanted: dict[str, Any]) -> bool:
    """Refuse a directory that holds something else, or what another plan has made.

    Returns
    -------
    bool
        Whether it holds an attempt to go on with. One of another plan that has made no shards is none.
    """
    names = list_out(base)
    if not names:
        return False
    known = _read(files.join(base, PLAN))
    if known is None:
        raise ConflictError(
            f"--out {base} is not empty, and holds no {PLAN}: {', '.join(names[:5])}",
            mend="name a new or an empty directory, or that of an earlier reshard",
        )
    if known.get("version") != VERSION:
        raise ConflictError(
            f"--out {base} was begun by another version of spark-dbp",
            mend="go on with that version, or name another directory",
        )
    before = known["plan"]
    other = [name for name in _NAMES if before.get(name) != wanted[name]]
    if other and not all(name in (PLAN, INDEX) or find_draft_of(name) for name in names):
        told = (f"{_NAMES[name]} was {before.get(name)}, is {wanted[name]}" for name in other)
        raise ConflictError(
            f"--out {base} holds shards of another plan: {'; '.join(told)}",
            mend="name another directory, delete this one, or give what was given before",
        )
    return not other


def _is_whole(base: str, done: dict[str, Any]) -> bool:
    sizes = files.list_sizes(base)
    return all(sizes.get(name) == n_bytes for name, (_, n_bytes) in done["shards"].items())


def _clean(base: str) -> None:
    """Delete what is needed only while the job is under way, and drafts of tasks that failed."""
    files.delete(files.join(base, INDEX))
    for name in files.list_names(base):
        if find_draft_of(name):
            files.delete(files.join(base, name))


class _Resharding:
    """A job under way: it holds the lock of its directory."""

    def __init__(
        self,
        spark: SparkSession,
        base: str,
        lock: Lock,
        form: KeyForm,
        plan: dict[str, Any],
        goes_on: bool,
    ) -> None:
        self.spark, self.base, self.lock, self.form, self.plan = spark, base, lock, form, plan
        self.goes_on = goes_on
        self.renames = files.is_local(base) and can_rename(Path(base))

    def at(self, name: str) -> str:
        return files.join(self.base, name)

    def carry_out(self, run: Run, shards: Sequence[Shard], started: float) -> ReshardReport:
        head = {"format": FORMAT, "version": VERSION, "run": redact(run.path), "plan": self.plan}
        self.write(PLAN, head)
        self.check_workers(shards)
        report = self.find_samples(run, shards)
        index = open_index(self.at(INDEX))
        if not len(index):
            shown = ", ".join(map(repr, report["missing_examples"][:2]))
            self.abandon()
            raise InputError(
                f"none of the kept keys is in the {index.n_shards:,} shards; kept are keys such as {shown}",
                mend="say with --key how keys are made of samples: webdataset, json:FIELD, shard/key",
            )
        cuts = plan_shards(index, samples=self.plan["samples"], size=self.plan["size"])
        finished = self.find_finished(cuts)
        if finished:
            log.info("  %s of %s new shards are there already", f"{len(finished):,}", f"{len(cuts):,}")
        self.write_shards(index, cuts, [n for n in range(len(cuts)) if n not in finished])
        self.check_written(cuts)
        named = {f"{cuts.name(n)}.tar": [cuts.samples[n], cuts.size(n)] for n in range(len(cuts))}
        self.write(SIZES, {name: n_samples for name, (n_samples, _) in named.items()})
        info = {
            **head,
            "samples_in": int(index.samples.sum()),
            "samples": sum(cuts.samples),
            "bytes_in": int(index.bytes.sum()),
            "bytes_kept": sum(cuts.bytes),
            "bytes_out": sum(size for _, size in named.values()),
            **report,
            "shards": named,
        }
        self.lock.check()
        self.write(DONE, info)
        _clean(self.base)
        return ReshardReport(self.base, info, len(finished), time.monotonic() - started)

    def write(self, name: str, document: Any) -> None:
        files.write_bytes(self.at(name), (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode())

    def abandon(self) -> None:
        """Leave nothing of an attempt that made nothing. What an earlier one made stays, with its plan."""
        for name in () if self.goes_on else (INDEX, PLAN):
            files.delete(self.at(name))

    def check_workers(self, shards: Sequence[Shard]) -> None:
        """Refuse storage that workers do not reach: they read and write the bytes themselves."""
        reads = [*sorted({shards[0].path, shards[-1].path}), self.at(PLAN)]
        if self.renames or not files.is_local(self.base):
            problem = find_problem_of_workers(self.spark, self.base, reads)
        else:  # whether they can write to such a mount shows with the first shard
            problem = find_problem_of_readers(self.spark, reads)
        if problem:
            self.abandon()
            raise ConfigError(
                f"reshard: workers must read {SETTING} and write --out {self.base} themselves: {problem}",
                mend="name a store or a mount that workers reach; or filter while loading instead, for which "
                "`spark-dbp index` needs no more than Spark reaches",
            )

    def find_samples(self, run: Run, shards: Sequence[Shard]) -> dict[str, Any]:
        """Index the old shards, where an earlier attempt has not. Returns what was missing."""
        at = self.at(INDEX)
        if not files.exists(files.join(at, MANIFEST)):
            files.delete(at)
            build_index(self.spark, run, shards, at, self.form, workers_reach=True)
        return dict(json.loads(files.read_bytes(files.join(at, REPORT))))

    def find_finished(self, cuts: ShardPlan) -> set[int]:
        """New shards that are there as planned, each with its stats."""
        sizes = files.list_sizes(self.base)
        return {
            number
            for number in range(len(cuts))
            if sizes.get(f"{cuts.name(number)}.tar") == cuts.size(number)
            and self.read_count(cuts.name(number), sizes) == cuts.samples[number]
        }

    def read_count(self, name: str, sizes: dict[str, int]) -> int | None:
        if f"{name}{STATS}" not in sizes:
            return None
        try:
            return int(json.loads(files.read_bytes(self.at(f"{name}{STATS}")))["successes"])
        except (ValueError, KeyError, TypeError):
            return None

    def write_shards(self, index: ShardIndex, cuts: ShardPlan, numbers: list[int]) -> None:
        """Write new shards: a Spark job for a few of them, some jobs at a time."""
        log.info("writing %s shards, %s bytes ...", f"{len(numbers):,}", f"{sum(map(cuts.size, numbers)):,}")
        a_job = max(1, -(-len(numbers) // _MOST_JOBS))
        groups = [numbers[at : at + a_job] for at in range(0, len(numbers), a_job)]
        done, logged = 0, time.monotonic()

        def work(group: list[int]) -> None:
            new = [
                NewShard(cuts.name(n), cuts.list_pieces(n, index.kept), cuts.samples[n], cuts.bytes[n])
                for n in group
            ]
            _write_in_worker(self.spark, index.path, new, self.base, self.renames)

        with translate_errors("--out"):
            for group, _ in run_parts(self.spark, groups, work):
                done += len(group)
                self.lock.check()
                if time.monotonic() - logged > _LOGGED:
                    logged = time.monotonic()
                    log.info("  %s of %s shards are written", f"{done:,}", f"{len(numbers):,}")

    def check_written(self, cuts: ShardPlan) -> None:
        sizes = files.list_sizes(self.base)
        for number in range(len(cuts)):
            name = f"{cuts.name(number)}.tar"
            if sizes.get(name) != cuts.size(number):
                raise SparkDbpError(
                    f"{self.at(name)} has {sizes.get(name, 0):,} bytes, not {cuts.size(number):,} as written",
                    mend="run the same command again, and see that nothing else writes there",
                )


def _write_in_worker(spark: SparkSession, index: str, new: list[NewShard], out: str, renames: bool) -> None:
    """One Spark job of one task, which writes shards."""

    def write(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        for _ in batches:
            pass
        with refuse_in_worker():
            opened = open_index(index)
            for shard in new:
                write_shard(opened, shard, out, renames=renames)
        yield pa.RecordBatch.from_pydict({"n": pa.array([len(new)], pa.int32())})

    map_in_arrow(spark.range(0, 1, 1, 1), write, "n INT").collect()
