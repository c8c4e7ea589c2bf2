"""Write embeddings that another program wrote as a Parquet table. Imports `config_input`, `engine` and `io`.

pyspark inside functions.
"""

from __future__ import annotations

import json
import logging
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
from spark_dbp.engine.table_writer import read_frame
from spark_dbp.errors import ConfigError, ConflictError, SparkDbpError
from spark_dbp.io.formats.dataset import Dataset, open_dataset
from spark_dbp.lake import files
from spark_dbp.lake.table_files import read_footers

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

log = logging.getLogger("spark_dbp")

# Written last: a table without it is not whole. Spark and pyarrow pass over names that begin so.
MANIFEST = "_import.json"


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
    out = files.normalize(out)
    reach_storage(spark, out, "--out", writes=True)
    _refuse_what_is_there(out)
    with guard_session(spark), translate_errors():
        dataset = open_dataset(format, paths, given.to_dict()).choose_reader(spark)
        names = _name_columns(dataset, key or DEFAULT_KEYS.get(format, KEY))
        log.info("%s: %s rows, %s bytes", ", ".join(paths), f"{dataset.n_rows:,}", f"{dataset.n_bytes:,}")
        try:
            with describe_jobs(spark, f"spark_dbp import of {format}"):
                _write(spark, dataset, dataset.plan_rows(spark, names), out)
            table = ImportedTable(out, dataset.n_rows, dict(read_frame(spark, out).dtypes))
        except BaseException:
            files.delete(out)  # there was nothing in it
            raise
    document = {
        "format": format, "paths": paths, "options": given.to_dict(), "rows": table.rows,
        "columns": dict(table.columns), "input_digest": dataset.digest, "version": __version__,
    }  # fmt: skip
    files.write_bytes(files.join(out, MANIFEST), json.dumps(document, indent=1, ensure_ascii=False).encode())
    return table


def _refuse_what_is_there(out: str) -> None:
    names = files.list_names(out) if files.exists(out) else []
    if names:
        raise ConflictError(
            f"--out {out} is not empty: {names[0]} is there",
            mend="name a new directory; or delete this one, if it is what a stopped import left",
        )


def _name_columns(dataset: Dataset, key: str) -> dict[str, str]:
    """Columns of the dataset by the names that they get: first the key, then the embedding."""
    known = dataset.schema.names
    if key not in known:
        raise ConfigError(f"there is no column {key!r} to take as the key", mend=f"--key: {', '.join(known)}")
    if key != KEY and KEY in known:
        raise ConfigError(
            f"the key is to be {key!r}, and another column is named {KEY!r}",
            mend=f"take that one as the key, or leave it out: --set input.options.columns=[{key}, ...]",
        )
    if EMBEDDING not in known:
        raise ConfigError(
            "there are no embeddings to import", mend="name their file: --set input.options.embeddings=..."
        )
    return {KEY: key, EMBEDDING: EMBEDDING, **{name: name for name in known if name not in (key, EMBEDDING)}}


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
    names = [name for name in files.list_names(out) if name.endswith(".parquet")]
    found = sum(n_rows for n_rows, _ in read_footers(out, names))
    if found != dataset.n_rows:
        raise SparkDbpError(
            f"{out} has {found:,} rows of {dataset.n_rows:,}", mend="see whether the input changed; run again"
        )
