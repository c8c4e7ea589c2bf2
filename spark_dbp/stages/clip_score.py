"""How well image and text go together: the cosine of their embeddings.

Imports `columns`, `compat`, `errors` and kernels; pyspark and pyarrow inside functions.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from spark_dbp.columns import KEY, VECTOR
from spark_dbp.engine.compat import map_in_arrow
from spark_dbp.engine.highest import SCORE
from spark_dbp.errors import InputError
from spark_dbp.kernels.geometry import normalize_rows
from spark_dbp.kernels.vectors import slice_rows, to_matrix

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import DataFrame

_FLOAT_BYTES = 4


def clip_score(image: DataFrame, text: DataFrame) -> DataFrame:
    """The cosine of two embeddings of each sample, as the CLIP score is that of its image and its text.

    Parameters
    ----------
    image, text : DataFrame
        ``key``, unique; ``vector`` BINARY (float32 little endian), all of the same dimension. Both are of one
        encoder, or of two that were trained together.

    Returns
    -------
    DataFrame
        ``key`` and ``score`` DOUBLE, in [-1, 1], one row for each key of either. It is null where one of the
        two has no vector, or a zero vector.

    Raises
    ------
    InputError
        When the two have vectors of different dimensions.

    Notes
    -----
    Vectors are put on the grid of `kernels.geometry`, so the score has the same bits on every machine.

    Examples
    --------
    ::

        from spark_dbp import clip_score, score_filter

        scores = clip_score(spark.read.parquet("images"), spark.read.parquet("texts"))
        score_filter(samples.join(scores, "key"), column="score", at_least=0.28)
    """
    from pyspark.sql import functions as F
    from pyspark.sql import types as T

    dimensions = [_read_dimension(frame) for frame in (image, text)]
    if None not in dimensions and dimensions[0] != dimensions[1]:
        raise InputError(
            f"clip_score: the vectors of image have {dimensions[0]:,} dimensions, those of text "
            f"{dimensions[1]:,}",
            mend="embed both with the two encoders of one model, such as those of CLIP",
        )
    both = image.select(KEY, F.col(VECTOR).alias("image")).join(
        text.select(KEY, F.col(VECTOR).alias("text")), KEY, "full_outer"
    )

    def multiply(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        for batch in batches:
            scores = pa.array(_multiply(batch.column(1), batch.column(2)), pa.float64(), from_pandas=True)
            yield pa.RecordBatch.from_arrays([batch.column(0), scores], [KEY, SCORE])

    schema = T.StructType([both.schema[KEY], T.StructField(SCORE, T.DoubleType())])
    return map_in_arrow(both, multiply, schema)


def _read_dimension(frame: DataFrame) -> int | None:
    from pyspark.sql import functions as F

    found = frame.where(F.col(VECTOR).isNotNull()).select(F.length(VECTOR)).limit(1).collect()
    return int(found[0][0]) // _FLOAT_BYTES if found else None


def _multiply(image: pa.Array, text: pa.Array) -> np.ndarray:
    """Cosines, shape (n,); NaN where there is none."""
    import pyarrow.compute as pc

    scores = np.full(len(image), np.nan)
    rows = np.flatnonzero(np.asarray(pc.and_(pc.is_valid(image), pc.is_valid(text))))
    if not len(rows):
        return scores
    image, text = image.take(rows), text.take(rows)
    for part in slice_rows(len(rows), 8 * len(image[0].as_py())):
        a, b = (to_matrix(vectors[part]) for vectors in (image, text))
        if a.shape != b.shape:
            raise ValueError(f"vectors of {a.shape[1]} and of {b.shape[1]} dimensions have no cosine")
        (a, no_a), (b, no_b) = normalize_rows(a), normalize_rows(b)
        cosine = np.einsum("ij,ij->i", a.astype(np.float64), b.astype(np.float64))  # exact, in any order
        scores[rows[part]] = np.where(no_a | no_b, np.nan, np.clip(cosine, -1, 1))
    return scores
