"""Write embeddings that another program wrote as a Parquet table. Imports `config_input`, `engine` and `io`.

pyspark inside functions.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from spark_dbp._version import __version__
from spark_dbp.columns import EMBEDDING, KEY
from spark_dbp.config_input import DEFAULT_KEYS, make_format_options
from spark_dbp.engine.mapped_rows import MappedRows
from spark_dbp.engine.probe import find_problem_of_spark, find_problem_of_workers
from spark_dbp.engine.session import describe_jobs, guard_session
from spark_dbp.engine.spark_errors import translate_errors
from spark_dbp.engine.storage import reach_storage
from spark_dbp.errors import ConfigError, ConflictError, SparkDbpError
from spark_dbp.exchange.out_place import check_place, list_out
from spark_dbp.io.formats.dataset import Dataset, open_dataset
from spark_dbp.io.passed_over import IMPORT_MARK, is_unfinished_import
from spark_dbp.lake import files
from spark_dbp.lake.lock import Lock, acquire_lock
from spark_dbp.lake.paths import to_spark_source
from spark_dbp.lake.table_files import read_footers
from spark_dbp.secrets import redact

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

log = logging.getLogger("spark_dbp")

# What an import writes to its directory.
_OURS = re.compile(r"_import\.json|part-.*\.parquet|_draft-.*|_temporary|_SUCCESS|\..*\.crc|\.probe-.*")


@dataclass(frozen=True)
class ImportedTable:
    """A table that `import_embeddings` wrote.

    Attributes
    ----------
    path : str
    rows : int
    columns : dict of str to str
        Their names and types, as SQL writes these.
    """

    path: str
    rows: int
    columns: Mapping[str, str]

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return asdict(self)


def import_embeddings(
    spark: SparkSession,
    format: str,
    path: str | Sequence[str],
    out: str,
    *,
    key: str | None = None,
    **options: Any,
) -> ImportedTable:
    """Write a Parquet table of embeddings, keys and metadata that another program wrote.

    Parameters
    ----------
    spark : SparkSession
    format : {"clip_retrieval", "datacomp", "semdedup", "curator", "npy"}
    path : str or sequence of str
        Folders; for ``npy`` matrices.
    out : str
        A new or empty directory.
    key : str, optional
        Column that becomes ``key``. By default the format's own: ``image_path``, ``uid``, ``id``, ``key``.
    **options
        As in ``input.options`` of the configuration: ``array``, ``columns``, ``keys`` ...

    Returns
    -------
    ImportedTable
        Of ``key``, ``embedding`` (ARRAY<FLOAT>) and the columns of the metadata.

    Raises
    ------
    ConfigError
        For options that the format does not take, or lacks; or when there is no such column.
    InputError
        When a file is missing, damaged, of a form that is not read, or does not go with its partner.
    ConflictError
        When something is in `out` already.

    Examples
    --------
    >>> import_embeddings(spark, "npy", "x.npy", "table", keys="x.txt").rows  # doctest: +SKIP
    1000
    """
    paths = [path] if isinstance(path, str) else list(path)
    given = make_format_options(format, options, paths)
    for one in paths:
        reach_storage(spark, one, "SRC")
    base = check_place(out)
    reach_storage(spark, base, "--out", writes=True)
    list_out(base)  # refuses a file
    try:
        with guard_session(spark), translate_errors(), acquire_lock(base, "--out") as lock:
            _refuse_what_is_there(base)
            dataset = open_dataset(format, paths, given.to_dict()).choose_reader(spark)
            names = _name_columns(dataset, key or DEFAULT_KEYS.get(format, KEY))
            log.info("%s: %s rows, %s bytes", ", ".join(paths), f"{dataset.n_rows:,}", f"{dataset.n_bytes:,}")
            document = {
                "complete": False, "format": format, "paths": paths, "options": given.to_dict(),
                "rows": dataset.n_rows, "input_digest": dataset.digest, "version": __version__,
            }  # fmt: skip
            try:
                _clear(base)  # of what a killed attempt left
                _note(base, document)
                with describe_jobs(spark, f"spark-dbp: import of {format}"):
                    _write(spark, dataset, dataset.plan_rows(spark, names), base)
                lock.check()
                columns = spark.read.parquet(*map(to_spark_source, _list_parquet(base))).dtypes
                _note(base, {**document, "complete": True, "columns": dict(columns)})
            except BaseException:
                if _holds(lock):
                    _clear(base)
                raise
    finally:
        files.delete_if_empty(base)
    return ImportedTable(base, dataset.n_rows, dict(columns))


def _note(out: str, document: dict[str, Any]) -> None:
    content = json.dumps(redact(document), indent=1, ensure_ascii=False)
    files.write_bytes(files.join(out, IMPORT_MARK), content.encode())


def _refuse_what_is_there(out: str) -> None:
    names = list_out(out)
    others = [name for name in names if not (_OURS.fullmatch(name) and is_unfinished_import(out))]
    if others:
        raise ConflictError(f"--out {out} is not empty: {others[0]} is there", mend="name a new directory")


def _clear(out: str) -> None:
    """Delete what this attempt wrote, or one that was killed."""
    for name in list_out(out):
        if _OURS.fullmatch(name):
            files.delete(files.join(out, name))


def _holds(lock: Lock) -> bool:
    """Whether nobody has taken the directory over."""
    try:
        lock.check()
    except SparkDbpError:
        return False
    return True


def _list_parquet(out: str) -> list[str]:
    return [files.join(out, name) for name in files.list_names(out) if name.endswith(".parquet")]


def _name_columns(dataset: Dataset, key: str) -> dict[str, str]:
    """Columns of the dataset by the names that they get: first the key, then the embedding."""
    known = dataset.schema.names
    if key not in known:
        raise ConfigError(f"there is no column {key!r} to take as the key", mend=f"--key: {', '.join(known)}")
    others = [name for name in known if name not in (key, EMBEDDING)]
    taken = {KEY: f"the key {key!r}", EMBEDDING: "the embedding"}
    for name in others:  # which Spark does not tell apart by case
        if name.casefold() in taken:
            raise ConfigError(
                f"{taken[name.casefold()]} and the column {name!r} would both be named {name.casefold()!r}",
                mend="leave one of them out: --set input.options.columns=[...]; or take another --key",
            )
        taken[name.casefold()] = f"the column {name!r}"
    if EMBEDDING not in known:
        raise ConfigError(
            "there are no embeddings to import", mend="name their file: --set input.options.embeddings=..."
        )
    return {KEY: key, EMBEDDING: EMBEDDING, **{name: name for name in others}}


def _write(spark: SparkSession, dataset: Dataset, rows: MappedRows, out: str) -> None:
    """Write the table, by workers where they can, and see that all of it is there."""
    problem = find_problem_of_workers(spark, out)
    if problem:
        log.info("  Spark writes the table: %s", problem)
        of_spark = find_problem_of_spark(spark, out)
        if of_spark:
            raise ConfigError(
                f"--out {out} cannot be used on this cluster: {of_spark}",
                mend="name a store that all machines share",
            )
        rows.to_frame().write.mode("append").parquet(files.to_spark_path(out))
    else:
        rows.write_any(out, as_they_are=[EMBEDDING])
    names = [path.rpartition("/")[2] for path in _list_parquet(out)]
    found = sum(n_rows for n_rows, _ in read_footers(out, names))
    if found != dataset.n_rows:
        raise SparkDbpError(
            f"{out} has {found:,} rows of {dataset.n_rows:,}", mend="see whether the input changed; run again"
        )
