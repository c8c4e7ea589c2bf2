"""Write embeddings in a format of others as a Parquet table. Imports `config_input`, `engine`, `io` and `lake`.

pyspark inside functions.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from spark_dbp._version import __version__
from spark_dbp.columns import KEY
from spark_dbp.config_input import DEFAULT_KEYS, make_format_options
from spark_dbp.engine.compat import to_arrow_schema
from spark_dbp.engine.mapped_rows import MappedRows
from spark_dbp.engine.probe import choose_engine
from spark_dbp.engine.session import bound_batches, describe_jobs, guard_session
from spark_dbp.engine.spark_errors import translate_errors
from spark_dbp.engine.storage import reach_storage
from spark_dbp.engine.table_writer import read_frame
from spark_dbp.errors import ConfigError, ConflictError, SparkDbpError
from spark_dbp.io.formats.dataset import Dataset, open_dataset
from spark_dbp.lake import files, parquet_files, paths

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

log = logging.getLogger("spark_dbp")

# What says that a table is whole, written last. Spark and pyarrow pass names over that begin so.
MANIFEST = "_import.json"


@dataclass(frozen=True)
class Imported:
    """A table that was written.

    Attributes
    ----------
    path : str
    rows : int
    columns : dict of str to str
        Names and types.
    """

    path: str
    rows: int
    columns: Mapping[str, str]


def import_embeddings(
    spark: SparkSession,
    format: str,  # noqa: A002  (as Spark has it)
    path: str | Sequence[str],
    out: str,
    *,
    key: str | None = None,
    **options: Any,
) -> Imported:
    """Write a Parquet table of embeddings that somebody else's program wrote.

    Parameters
    ----------
    spark : SparkSession
    format : {"clip_retrieval", "datacomp", "semdedup", "curator", "npy"}
    path : str or sequence of str
        Folders; for ``npy`` matrices.
    out : str
        A new directory.
    key : str, optional
        Column that becomes ``key``. By default the one that the format has: ``image_path``, ``uid``, ``id``.
    **options
        As in ``input.options`` of the configuration.

    Returns
    -------
    Imported

    Raises
    ------
    ConfigError
        For options that the format does not take, or lacks; or when there is no such column.
    InputError
        When a file is missing, damaged, of a form that is not read, or does not go with its partner.
    ConflictError
        When something is in `out` already.
    """
    given = [path] if isinstance(path, str) else list(path)
    parsed = make_format_options(format, options, given)
    for one in given:
        reach_storage(spark, one, "SRC")
    out = files.normalize(out)
    reach_storage(spark, out, "--out", writes=True)
    if files.list_names(out):
        raise ConflictError(f"--out {out} is not empty", mend="name a new directory")
    with guard_session(spark), translate_errors():
        dataset = open_dataset(format, given, parsed.to_dict())
        rows = name_key(dataset.plan_rows(spark), key or DEFAULT_KEYS.get(format, KEY))
...
