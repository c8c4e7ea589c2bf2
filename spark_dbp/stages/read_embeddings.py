"""Read what others wrote embeddings as: arrays, keys and metadata, which workers pair.

Imports `config_input`, `errors` and `io.formats`; pyspark inside functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from spark_dbp.config_input import make_format_options
from spark_dbp.io.formats.dataset import open_dataset

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession


def read_embeddings(spark: SparkSession, format: str, path: str | Sequence[str], **options: Any) -> DataFrame:
    """Embeddings, keys and metadata in a format of others, as a DataFrame.

    Parameters
    ----------
    spark : SparkSession
    format : {"clip_retrieval", "datacomp", "semdedup", "curator", "npy"}
    path : str or sequence of str
        Folders; for ``npy`` matrices. Workers read the files, and Spark where they do not reach them.
    **options
        As in ``input.options`` of the configuration: ``array``, ``columns``, ``keys`` ...

    Returns
    -------
    DataFrame
        ``embedding`` ARRAY<FLOAT>, the keys, and the columns of the metadata. It is computed each time that
        it is used.

    Raises
    ------
    ConfigError
        For options that the format does not take, or lacks.
    InputError
        When a file is missing, damaged, of a form that is not read, or does not go with its partner.

    Examples
    --------
    >>> frame = read_embeddings(spark, "datacomp", "metadata/", array="b32_img")  # doctest: +SKIP
    >>> frame.select("uid", "embedding", "clip_l14_similarity_score").show(2)  # doctest: +SKIP
    """
    paths = [path] if isinstance(path, str) else list(path)
    given = make_format_options(format, options, paths)
    return open_dataset(format, paths, given.to_dict()).choose_reader(spark).plan_rows(spark).to_frame()
