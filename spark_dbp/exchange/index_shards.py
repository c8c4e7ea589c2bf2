"""Index shards on Spark's workers: where the samples lie that a run kept.

Imports `engine`, `io.shards`, `stages.list_shards`, `loaders`, `runs`, `kept_keys`, `lake` and `errors`;
pyspark inside functions. `loaders.index_writer` says what an index consists of, and makes one in one process.
"""

from __future__ import annotations

import io
import json
import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from spark_dbp.engine.blocks import BLOCKS, make_block, number_tasks, shuffle_blocks
from spark_dbp.engine.compat import count_shuffle_partitions, map_in_arrow
from spark_dbp.engine.probe import can_workers_read, find_problem_of_workers
from spark_dbp.engine.session import guard_session
from spark_dbp.engine.spark_errors import refuse_in_worker, translate_errors
from spark_dbp.engine.storage import reach_storage
from spark_dbp.engine.whole_files import iter_contents
from spark_dbp.errors import ConflictError, InputError, SparkDbpError
from spark_dbp.exchange.kept_keys import FoundCounter, FoundKeys, add_reports, share_trie
from spark_dbp.exchange.out_place import check_place, list_out
from spark_dbp.io.shards import Shard, list_shards, read_by_spark
from spark_dbp.lake import files
from spark_dbp.lake.lock import LOCK, acquire_lock
from spark_dbp.lake.paths import escape_glob, has_glob
from spark_dbp.loaders.index_shard import SAMPLES, SampleWriter, ShardRow, index_shard
from spark_dbp.loaders.index_writer import MANIFEST, SHARDS, IndexReport, finish_index
from spark_dbp.loaders.keys import KeyForm, KeyFunction, open_key_form
from spark_dbp.runs import Run, open_run
from spark_dbp.secrets import redact

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import DataFrame, SparkSession

log = logging.getLogger("spark_dbp")

SETTING = "--shards"
REPORT = "report.json"
# What an attempt that was cut off leaves.
_OURS = {SAMPLES, SHARDS, REPORT}
# Blocks that hold no found keys: rows of shards, and files of samples that the driver writes.
_ROWS, _FILES = -1, -2


def index_shards(
    run: str | os.PathLike[str] | Run,
    shards: str | Sequence[str],
    out: str | os.PathLike[str],
    spark: SparkSession,
    *,
    key: str | KeyFunction | KeyForm = "webdataset",
) -> IndexReport:
    """Index the shards of a WebDataset for the loaders: where each sample lies that a run kept.

    One pass over the headers of the tars, on Spark's workers. ``loaders.write_index`` does the same in one
    process.

    Parameters
    ----------
    run : str or Run
        A finished run.
    shards : str or sequence of str
        Tars, folders, globs, or ranges such as ``s3://lake/shards/{00000..00127}.tar``.
    out : str
        The directory to write, new or empty.
    spark : SparkSession
    key : str or callable
        How the run's key is made of a sample: ``webdataset``, ``json:FIELD``, ``shard/key``, or a function of
        (sample's key, its json as a dict or None, path of the shard).

    Returns
    -------
    IndexReport
        Also written as ``report.json``. Kept keys that no shard has, and keys that several samples have, are
        counted, with examples.

    Raises
    ------
    InputError
        When there is no shard, or one is no whole tar, is compressed or changes meanwhile.
    ConflictError
        When `out` is not empty.
    ConfigError
        When a store is not reached.

    Examples
    --------
    >>> report = index_shards("run", "shards/", "index", spark)  # doctest: +SKIP
    >>> report.info["n_kept"], report.missing, report.twice  # doctest: +SKIP
    (3000, 0, 0)
    """
    form, opened = open_key_form(key), open_given_run(run, spark)
    base = check_place(out, opened.path)
    reach_storage(spark, base, "--out", writes=True)
    found = find_shards_named(spark, shards)
    _check_empty(base)
    try:
        with guard_session(spark), acquire_lock(base, "--out"):
            _check_empty(base)  # another one may have ended meanwhile
            try:
                for name in _OURS:
                    files.delete(files.join(base, name))
                return build_index(spark, opened, found, base, form)
            except BaseException:
                _abandon(base)
                raise
    finally:
        files.delete_if_empty(base)


def open_given_run(run: str | os.PathLike[str] | Run, spark: SparkSession) -> Run:
    """A run as it was given, or opened. Its tries are reached."""
    opened = run if isinstance(run, Run) else open_run(run, spark)
    reach_storage(spark, opened.table_path("keep_trie"), "run")
    return opened


def find_shards_named(spark: SparkSession, shards: str | Sequence[str]) -> list[Shard]:
    """The shards that ``--shards`` names, in the order of their paths."""
    patterns = [shards] if isinstance(shards, str) else [os.fspath(one) for one in shards]
    if not patterns:
        raise InputError(f"{SETTING} names no shard", mend="give tars, a folder of .tar files, or a glob")
    for number, pattern in enumerate(patterns):
        reach_storage(spark, pattern, SETTING, is_needed=False)
        if files.is_local(pattern) and has_glob(pattern) and files.exists(pattern):
            patterns[number] = escape_glob(pattern)  # a name with such characters, as a shell hands it over
    return list_shards(spark, patterns, SETTING)


def _check_empty(base: str) -> None:
    names = list_out(base)
    # A lock is there while an attempt is under way, or where it was killed.
    is_left = MANIFEST not in names and set(names) <= _OURS and files.exists(files.join(base, LOCK))
    if names and not is_left:
        what = "holds an index" if MANIFEST in names else f"is not empty: {', '.join(names[:5])}"
        raise ConflictError(f"--out {base} {what}", mend="name another directory, or delete it first")


def _abandon(base: str) -> None:
    try:
        for name in _OURS:
            files.delete(files.join(base, name))
    except (OSError, SparkDbpError) as error:
        log.warning("the failed attempt leaves files in %s: %s", base, error)


def build_index(
    spark: SparkSession,
    run: Run,
    shards: Sequence[Shard],
    base: str,
    form: KeyForm,
    *,
    workers_reach: bool = False,
) -> IndexReport:
    """Write an index to the directory `base`, of which nothing is there yet.

    Parameters
    ----------
    spark : SparkSession
    run : Run
    shards : sequence of Shard
        In the order that they have in the index.
    base : str
        Normalized.
    form : KeyForm
    workers_reach : bool
        Whether workers are known to read the shards, and to write to `base`. Else they are asked.

    Returns
    -------
    IndexReport
    """
    log.info("indexing %s shards, %s bytes ...", f"{len(shards):,}", f"{sum(s.size for s in shards):,}")
    problem = "" if workers_reach else find_problem_of_workers(spark, base)
    if problem:
        log.info("  the driver writes the index, for workers do not: %s", problem)
    by_spark = not workers_reach and not can_workers_read(spark, shards[0].path)
    with translate_errors(SETTING):
        target = None if problem else base
        blocks, n_tasks, trie = _plan_blocks(spark, run, shards, target, form, by_spark)
        counted = map_in_arrow(shuffle_blocks(blocks, n_tasks), _count(trie), "part INT, report BINARY")
        rows: list[ShardRow] = []
        reports: list[str] = []
        without, example = 0, ""
        # Files come through here only where the driver writes them, and then not all at once.
        for part, content in counted.toLocalIterator() if problem else counted.collect():
            if part == _FILES:
                name, _, body = bytes(content).partition(b"\0")
                files.write_bytes(files.join(base, SAMPLES, name.decode()), body)
            elif part == _ROWS:
                row, n_without, of_this = json.loads(content)
                rows.append(ShardRow(*row))
                without, example = without + n_without, min(filter(None, (example, of_this)), default="")
            else:
                reports.append(bytes(content).decode())
    found = add_reports(reports)
    _delete_strays(base, rows)
    digest = run.document["digests"]["keep_list"]
    report = IndexReport({}, **found, without_key=without, without_key_example=example)
    files.write_bytes(files.join(base, REPORT), describe_report(report))
    info = finish_index(base, rows, key=form.name, run=redact(run.path), keep_list_digest=digest)
    log.info("  %s of %s samples are kept", f"{info['n_kept']:,}", f"{info['n_samples']:,}")
    return IndexReport(info, **found, without_key=without, without_key_example=example)


def describe_report(report: IndexReport) -> bytes:
    """Content of ``report.json``."""
    values = asdict(report)
    del values["info"]
    return (json.dumps(values, indent=1, ensure_ascii=False) + "\n").encode()


def _plan_blocks(
    spark: SparkSession,
    run: Run,
    shards: Sequence[Shard],
    base: str | None,
    form: KeyForm,
    by_spark: bool,
) -> tuple[DataFrame, int, Any]:
    """Rows of shards and found keys, as blocks; how many tasks they go to; how a worker opens the trie."""
    keep = run.keep_trie()
    open_trie = share_trie(spark, keep)
    n_tasks = min(keep.n_shards, count_shuffle_partitions(spark))
    n_readers = max(1, min(len(shards), count_shuffle_partitions(spark)))
    paths = [(shard.path, shard.size) for shard in shards]
    source = read_by_spark(spark, shards, SETTING) if by_spark else spark.range(0, len(shards), 1, n_readers)
    tasks = number_tasks(source, n_tasks)
    numbers = {path: number for number, (path, _) in enumerate(paths)} if by_spark else {}

    def open_shards(batches: Iterator[pa.RecordBatch]) -> Iterator[tuple[int, dict[str, Any]]]:
        if by_spark:
            for path, content in iter_contents(batches):
                yield numbers[path], {"content": io.BytesIO(content), "size": len(content)}
        else:
            for batch in batches:
                yield from ((number, {}) for number in batch.column(0).to_pylist())

    def index(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        from pyspark import TaskContext

        context = TaskContext.get()
        name = f"part-{context.partitionId() if context else 0:05d}-{uuid4().hex[:8]}"
        with refuse_in_worker(), tempfile.TemporaryDirectory(prefix="spark-dbp-index-") as folder:
            trie = open_trie()
            found = FoundKeys(trie, tasks)
            with SampleWriter(base or folder, name) as writer:
                for number, opened in open_shards(batches):
                    path, size = paths[number]
                    indexed = index_shard(path, trie, form, number=number, **opened)
                    if indexed.bytes != size:
                        raise refuse_changed(path, size, indexed.bytes)
                    row = writer.add(indexed, number)
                    said = [row, indexed.without_key, indexed.without_key_example]
                    yield make_block(int(tasks[0]), _ROWS, json.dumps(said).encode())
                    yield from found.add(indexed.found)
                    if number == 0:
                        yield from found.name_all()
            yield from found.flush()
            if base is None:
                task = int(tasks[(context.partitionId() if context else 0) % len(tasks)])
                for file in sorted(Path(folder, SAMPLES).glob("*")):
                    yield make_block(task, _FILES, file.name.encode() + b"\0" + file.read_bytes())

    return map_in_arrow(source, index, BLOCKS), n_tasks, open_trie


def refuse_changed(path: str, before: int, now: int) -> InputError:
    """What to say of a shard that has another size than it had."""
    return InputError(
        f"shard {path} had {before:,} bytes and has {now:,} now",
        mend="see that nobody writes there meanwhile, then run the same command again",
    )


def _count(open_trie: Any) -> Any:
    """The function of a task that counts found keys, and passes on all else."""

    def count(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        def make_row(part: int, content: bytes) -> pa.RecordBatch:
            schema = pa.schema([("part", pa.int32()), ("report", pa.binary())])
            return pa.RecordBatch.from_pydict({"part": [part], "report": [content]}, schema)

        counter: FoundCounter | None = None
        with refuse_in_worker():
            for batch in batches:
                for part, content in zip(batch.column(0).to_pylist(), batch.column(1), strict=True):
                    if part < 0:
                        yield make_row(part, content.as_py())
                        continue
                    counter = counter or FoundCounter(open_trie())
                    for report in counter.add(part, content.as_py()):
                        yield make_row(0, report.encode())
            if counter is not None:
                for report in counter.report():
                    yield make_row(0, report.encode())

    return count


def _delete_strays(base: str, rows: Sequence[ShardRow]) -> None:
    """Delete files of tasks that ran twice."""
    named = {row.file for row in rows}
    for name in files.list_names(files.join(base, SAMPLES)):
        if name not in named:
            files.delete(files.join(base, SAMPLES, name))
