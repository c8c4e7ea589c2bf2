"""Find near-duplicate texts by MinHash.

Imports `arrow`, `candidates`, `compat`, `components`, `forms`, `group_joins`, `files`, kernels and
`exact_dedup`; pyspark and pyarrow inside functions.

MinHash signatures and LSH bands give candidate pairs. Each pair is then checked by the exact Jaccard
similarity of the shingles. Texts that the remaining pairs connect, directly or through others, form one
component of duplicates, and one row of it survives.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING

from spark_dbp.columns import DUPLICATE_OF, KEY, METHOD, SIMILARITY, describe_type, find_type
from spark_dbp.engine.candidates import find_candidate_pairs
from spark_dbp.engine.compat import column as exact_column
from spark_dbp.engine.compat import map_in_arrow
from spark_dbp.engine.components import find_components
from spark_dbp.engine.forms import to_key_column, to_plain_column
from spark_dbp.engine.group_joins import join_groups
from spark_dbp.engine.mapped_rows import write_and_read_back
from spark_dbp.errors import ConfigError, InputError
from spark_dbp.kernels.signatures import (
    BandPlan,
    cut_shingles,
    hash_bands,
    hash_shingles,
    normalize_texts,
    plan_bands,
    repair_utf8,
    sketch_parities,
)
from spark_dbp.kernels.vectors import to_binary_rows
from spark_dbp.lake import files
from spark_dbp.stages.exact_dedup import check_no_nulls, check_order

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import DataFrame

log = logging.getLogger("spark_dbp")

MAX_NGRAM = 100


def minhash_dedup(
    frame: DataFrame,
    *,
    key: str = "key",
    column: str,
    threshold: float = 0.8,
    num_perm: int = 128,
    ngram: int = 5,
    tokens: str = "characters",
    normalize: bool = True,
    order_by: str | None = None,
    scratch: str,
) -> DataFrame:
    """Rows whose text is a near-duplicate of an earlier row's.

    Parameters
    ----------
    frame : DataFrame
    key : str
        Column of unique keys.
    column : str
        Column of texts. Rows with a null or empty text are never duplicates.
    threshold : float
        Least Jaccard similarity of the shingles of two near-duplicates, in (0, 1].
    num_perm : int
        Length of the signatures.
    ngram, tokens
        See `cut_shingles`.
    normalize : bool
        Whether to compare texts in Unicode's NFKC form, in lower case and with single spaces, or as they are.
    order_by : str, optional
        Of a component, the first row by this column and then by key survives. Without it, the first by key.
    scratch : str
        New directory, reachable from the workers. It may be deleted once the result is written.

    Returns
    -------
    DataFrame
        ``key``, ``duplicate_of`` (the survivor), ``method`` "minhash", ``similarity`` FLOAT (exact, to the
        survivor). The similarity may lie below the threshold, where other texts connect the two.

    Raises
    ------
    ConfigError, InputError
        For settings out of range, a missing or non-text column, nulls in `order_by`.

    Notes
    -----
    Rows with equal texts are combined first, so a caption that many rows share makes no pairs. In a bucket of
    more than 100 different texts, each is compared with the 100 that follow it by the hash of the text.
    """
    from pyspark.sql import functions as F

    plan = plan_bands(threshold, num_perm)
    if not 1 <= ngram <= MAX_NGRAM:
        raise ConfigError(
            f"dedup.minhash.ngram {ngram} is outside 1 to {MAX_NGRAM}",
            mend="5 characters or 3 words are common",
        )
    if tokens not in ("characters", "words"):
        raise ConfigError(
            f"dedup.minhash.tokens {tokens!r} is neither 'characters' nor 'words'", mend="give one of the two"
        )
    log.info(
        "  %d bands of %d: expected recall %.3f at a similarity of %g",
        plan.bands,
        plan.rows,
        plan.expected_recall,
        threshold,
    )
    rows = _rows(frame, key, column, normalize, order_by)
    texts = write_and_read_back(
        _with_bands(_different(rows), plan, num_perm, ngram, tokens), files.join(scratch, "texts")
    )
    candidates = find_candidate_pairs(texts, plan.bands, threshold, files.join(scratch, "candidates"))
    similar = _similar(candidates, texts, threshold, ngram, tokens)
    pairs = write_and_read_back(similar.select("a", "b"), files.join(scratch, "pairs"))
    members = find_components(pairs, files.join(scratch, "components"))
    survivors = write_and_read_back(
        _survivors(texts, members, ngram, tokens), files.join(scratch, "survivors")
    )
    # `survivors` has one row for each text. Where several rows share a text, a join finds the others.
    alone = survivors.where("times = 1").select(F.col("node").alias(KEY), DUPLICATE_OF, SIMILARITY)
    shared = join_groups(rows, survivors.where("times > 1"), ["text"])
    shared = shared.select(KEY, DUPLICATE_OF, SIMILARITY)
    return (
        alone.unionByName(shared)
        .where(F.col(KEY) != F.col(DUPLICATE_OF))
        .select(
            KEY,
            DUPLICATE_OF,
            F.lit("minhash").alias(METHOD),
            F.col(SIMILARITY).cast("float").alias(SIMILARITY),
        )
    )


def _rows(frame: DataFrame, key: str, column: str, normalize: bool, order_by: str | None) -> DataFrame:
    """``key``, ``first_by`` and ``text`` (normalized where asked for) of the rows that have a text."""
    from pyspark.sql import functions as F

    check_text(frame, column)
    first_by = F.lit(0)
    if order_by is not None:
        check_order(frame, order_by, "dedup.minhash.order_by")
        check_no_nulls(frame, order_by, "dedup.minhash.order_by")
        first_by = to_plain_column(frame, order_by)
    rows = frame.select(
        to_key_column(frame, key).alias(KEY),
        first_by.alias("first_by"),
        exact_column(column).cast("string").alias("text"),
    )

    def in_normal_form(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa
        import pyarrow.compute as pc

        for batch in batches:
            given = repair_utf8(batch.column(2))
            normal = normalize_texts(given)
            compared = normal if normalize else given
            made = pa.RecordBatch.from_arrays([*batch.columns[:2], compared], batch.schema.names)
            yield made.filter(pc.greater(pc.binary_length(normal), 0))  # null where the text is null

    return map_in_arrow(rows, in_normal_form, rows.schema)


def check_text(frame: DataFrame, name: str) -> None:
    """Refuse a column of texts that is missing or not of type STRING.

    Raises
    ------
    InputError
    """
    from pyspark.sql import types as T

    data_type = find_type(frame, name, "dedup.minhash.column")
    if not isinstance(data_type, T.StringType):
        raise InputError(
            f"dedup.minhash.column: {name!r} is {describe_type(data_type)}, not text",
            mend="name a column of strings, or make one: dedup.minhash.column: {sql: concat_ws(' ', ...)}",
        )


def _different(rows: DataFrame) -> DataFrame:
    """Each text once, with ``id`` (its hash), ``node`` (key of its first row), ``times`` (number of rows)."""
    from pyspark.sql import functions as F

    # The hash comes first in the grouping, because longs are compared faster than texts.
    return (
        rows.groupBy(F.xxhash64("text").alias("id"), "text")
        .agg(F.min(F.struct("first_by", KEY)).alias("first"), F.count(F.lit(1)).alias("times"))
        .select("id", "text", "first.first_by", F.col(f"first.{KEY}").alias("node"), "times")
    )


def _with_bands(texts: DataFrame, plan: BandPlan, num_perm: int, ngram: int, tokens: str) -> DataFrame:
    """`texts` with ``n_shingles``, ``parity`` and ``bands``, the hashes of the bands as bytes."""
    from pyspark.sql import types as T

    def bands_of(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        for batch in batches:
            if batch.num_rows:
                hashes, owner = hash_shingles(batch.column("text").to_pylist(), ngram, tokens)
                n_shingles, parity = sketch_parities(hashes, owner)
                bands = to_binary_rows(hash_bands(hashes, owner, plan, num_perm))
                columns = [*batch.columns, pa.array(n_shingles), pa.array(parity), bands]
                yield pa.RecordBatch.from_arrays(columns, schema.names)

    schema = T.StructType(
        [
            *texts.schema.fields,
            T.StructField("n_shingles", T.IntegerType()),
            T.StructField("parity", T.LongType()),
            T.StructField("bands", T.BinaryType()),
        ]
    )
    return map_in_arrow(texts, bands_of, schema)


def _similar(candidates: DataFrame, texts: DataFrame, threshold: float, ngram: int, tokens: str) -> DataFrame:
    """The candidate pairs whose similarity reaches the threshold, as keys ``a``, ``b``."""
    from pyspark.sql import functions as F

    one = texts.select(F.col("id").alias("a"), F.col("node").alias("node_a"), "text")
    two = texts.select(F.col("id").alias("b"), F.col("node").alias("node_b"), F.col("text").alias("other"))
    compared = candidates.join(one, "a").join(two, "b")
    compared = compared.select(F.col("node_a").alias("a"), F.col("node_b").alias("b"), "text", "other")
    return _with_similarity(compared, ngram, tokens).where(F.col(SIMILARITY) >= threshold)


def _survivors(texts: DataFrame, members: DataFrame, ngram: int, tokens: str) -> DataFrame:
    """``node``, ``times``, ``duplicate_of``, ``text``, ``similarity`` of texts with rows to leave out."""
    from pyspark.sql import functions as F

    # A text has rows to leave out only if it is like another text, or if several rows share it.
    groups = (
        texts.drop("id", "n_shingles", "parity", "bands")
        .join(members, "node", "left")
        .where("component IS NOT NULL OR times > 1")
        .withColumn("component", F.coalesce("component", "node"))
    )
    firsts = groups.groupBy("component").agg(
        F.min(F.struct("first_by", "node", "text")).alias("first"), F.count(F.lit(1)).alias("n_texts")
    )
    compared = join_groups(groups, firsts, ["component"], key="node", n_rows="n_texts").select(
        "node", "times", F.col("first.node").alias(DUPLICATE_OF), "text", F.col("first.text").alias("other")
    )
    return _with_similarity(compared, ngram, tokens)


def _with_similarity(compared: DataFrame, ngram: int, tokens: str) -> DataFrame:
    """Replace the last column, ``other``, by its exact Jaccard similarity DOUBLE to ``text``."""
    from pyspark.sql import types as T

    def jaccard(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        for batch in batches:
            similarity = []
            texts, others = (batch.column(name).to_pylist() for name in ("text", "other"))
            for text, other in zip(texts, others, strict=True):
                a, b = cut_shingles(text, ngram, tokens), cut_shingles(other, ngram, tokens)
                common = len(a & b)
                similarity.append(common / (len(a) + len(b) - common))
            columns = [*batch.columns[:-1], pa.array(similarity, pa.float64())]
            yield pa.RecordBatch.from_arrays(columns, schema.names)

    schema = T.StructType([*compared.schema.fields[:-1], T.StructField(SIMILARITY, T.DoubleType())])
    return map_in_arrow(compared, jaccard, schema)
