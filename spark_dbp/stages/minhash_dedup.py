"""Near-duplicate texts by MinHash. Imports pyspark, datasketch and pyarrow inside functions.

Signatures and LSH bands find candidate pairs; every pair is then verified by the exact Jaccard similarity of
the texts' shingles, and what verified pairs connect, directly or through others, is one group of duplicates.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING
from zlib import crc32

from spark_dbp import files
from spark_dbp.columns import DUPLICATE_OF, KEY, METHOD, SIMILARITY
from spark_dbp.compat import column as exact_column
from spark_dbp.errors import ConfigError, InputError
from spark_dbp.stages.connected_components import connected_components
from spark_dbp.stages.exact_dedup import checked_order
from spark_dbp.stages.ingest import type_of

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import Column, DataFrame

log = logging.getLogger("spark_dbp")

# Of two texts exactly as similar as the threshold, this share at least is to become a candidate pair.
EXPECTED_RECALL = 0.97
# In a bucket each text is compared with this many that follow it by key; in smaller ones with all.
_NEIGHBOURS = 100


@dataclass(frozen=True)
class BandPlan:
    """How signatures are cut into bands.

    Attributes
    ----------
    bands, rows : int
        Bands, and signature values in each.
    expected_recall : float
        Probability that two texts of exactly the threshold's similarity share a band.
    """

    bands: int
    rows: int
    expected_recall: float


def band_plan(threshold: float, num_perm: int) -> BandPlan:
    """The longest bands whose expected recall at the threshold reaches `EXPECTED_RECALL`.

    Long bands keep unlike texts apart. With r rows in each of b bands, two texts of similarity s share a
    band with probability ``1 - (1 - s**r)**b`` (Leskovec et al., Mining of Massive Datasets, 3.4).

    Parameters
    ----------
    threshold : float
        In (0, 1].
    num_perm : int
        Length of the signatures.

    Returns
    -------
    BandPlan

    Raises
    ------
    ConfigError
        When the threshold is outside (0, 1], or the signatures are too short for it.

    Examples
    --------
    >>> plan = band_plan(0.8, 128)
    >>> plan.bands, plan.rows, round(plan.expected_recall, 3)
    (18, 7, 0.986)
    """
    if not 0 < threshold <= 1:
        raise ConfigError(
            f"dedup.minhash.threshold {threshold} is outside (0, 1]", mend="0.8 is a common choice"
        )
    if num_perm < 2:
        raise ConfigError(f"dedup.minhash.num_perm {num_perm} is below 2", mend="128 is a common choice")
    for rows in range(num_perm, 0, -1):
        bands = num_perm // rows
        recall = 1 - (1 - threshold**rows) ** bands
        if recall >= EXPECTED_RECALL:
            return BandPlan(bands, rows, recall)
    needed = math.ceil(math.log(1 - EXPECTED_RECALL) / math.log1p(-threshold))
    raise ConfigError(
        f"dedup.minhash.num_perm {num_perm} is too small for dedup.minhash.threshold {threshold}: at most "
        f"{1 - (1 - threshold) ** num_perm:.0%} of such pairs would be found",
        mend=f"set dedup.minhash.num_perm to at least {needed}, or raise the threshold",
    )


def shingles(text: str, ngram: int, tokens: str = "characters") -> set[str]:
    """Overlapping runs of `ngram` characters or words; a shorter text is one shingle.

    Parameters
    ----------
    text : str
        Normalized: lower case, single spaces.
    ngram : int
        At least 1.
    tokens : {"characters", "words"}

    Returns
    -------
    set of str
        Empty for an empty text.

    Examples
    --------
    >>> sorted(shingles("abcd", 3)), sorted(shingles("a b c", 2, "words"))
    (['abc', 'bcd'], ['a b', 'b c'])
    """
    if not text:
        return set()
    if tokens == "characters":
        return {text[i : i + ngram] for i in range(max(1, len(text) - ngram + 1))}
    words = text.split(" ")
    return {" ".join(words[i : i + ngram]) for i in range(max(1, len(words) - ngram + 1))}


def normalized(name: str) -> Column:
    """Text in lower case with single spaces and none at the ends."""
    from pyspark.sql import functions as F

    return F.trim(F.regexp_replace(F.lower(exact_column(name)), r"[\s\p{Z}]+", " "))


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
        Text. Null and empty texts are never duplicates of each other.
    threshold : float
        Of the Jaccard similarity of two texts' shingles, in (0, 1].
    num_perm : int
        Length of the signatures.
    ngram, tokens
        See `shingles`.
    normalize : bool
        Compare texts in lower case with single spaces; as they are otherwise.
    order_by : str, optional
        The survivor of a group is the first by this column, then by key; by key alone without it.
    scratch : str
        New directory, reachable from the workers; may be deleted once the result is written.

    Returns
    -------
    DataFrame
        ``key``, ``duplicate_of`` (the survivor), ``method`` "minhash", ``similarity`` FLOAT: exact, to the
        survivor. It may lie below the threshold where others connect the two.

    Raises
    ------
    ConfigError, InputError
        For settings out of range, a missing or non-text column, nulls in `order_by`.

    Notes
    -----
    Equal texts are taken together first, so that a caption which many rows share costs no pairs. In a
    bucket of more than 100 different texts each is compared with the 100 that follow it by key.
    """
    from pyspark.sql import functions as F

    plan = band_plan(threshold, num_perm)
    if ngram < 1:
        raise ConfigError(
            f"dedup.minhash.ngram {ngram} is below 1", mend="5 characters or 3 words are common"
        )
    if tokens not in ("characters", "words"):
        raise ConfigError(f"dedup.minhash.tokens {tokens!r} is neither 'characters' nor 'words'")
    type_of(frame, key, "key")
    log.info(
        "  %d bands of %d: expected recall %.3f at a similarity of %g",
        plan.bands,
        plan.rows,
        plan.expected_recall,
        threshold,
    )
    rows = _rows(frame, key, column, normalize, order_by)
    same = rows.groupBy("text").agg(
        F.min(F.struct("first_by", KEY)).alias("first"), F.count(F.lit(1)).alias("times")
    )
    texts = _kept(same.select(F.col(f"first.{KEY}").alias("node"), "text", "times"), scratch, "texts")
    pairs = _verified_pairs(texts.drop("times"), plan, threshold, num_perm, ngram, tokens, scratch)
    edges = _kept(pairs, scratch, "pairs")
    members = connected_components(edges, files.join(scratch, "components"))
    # Only texts that are like another or occur more than once have anything to leave out.
    groups = texts.join(members, "node", "left").where("component IS NOT NULL OR times > 1")
    groups = groups.select("text", F.coalesce("component", "node").alias("component"))
    grouped = _kept(rows.join(groups, "text"), scratch, "grouped")
    firsts = grouped.groupBy("component").agg(F.min(F.struct("first_by", KEY)).alias("first"))
    found = (
        grouped.join(firsts, "component")
        .select(KEY, "text", F.col(f"first.{KEY}").alias(DUPLICATE_OF))
        .where(F.col(KEY) != F.col(DUPLICATE_OF))
    )
    survivors = grouped.select(F.col(KEY).alias(DUPLICATE_OF), F.col("text").alias("other"))
    compared = found.join(survivors, DUPLICATE_OF).select(KEY, DUPLICATE_OF, "text", "other")
    return _with_similarity(compared, KEY, DUPLICATE_OF, ngram, tokens).select(
        KEY, DUPLICATE_OF, F.lit("minhash").alias(METHOD), F.col(SIMILARITY).cast("float").alias(SIMILARITY)
    )


def _rows(frame: DataFrame, key: str, text: str, normalize: bool, order_by: str | None) -> DataFrame:
    """``key``, ``first_by``, ``text`` normalized, of the rows that have a text."""
    from pyspark.sql import functions as F
    from pyspark.sql import types as T

    data_type = type_of(frame, text, "column", section="dedup.minhash")
    if not isinstance(data_type, T.StringType):
        raise InputError(
            f"dedup.minhash.column: {text!r} is {data_type.simpleString().upper()}, not text",
            mend="name a column of strings, or cast it in a view",
        )
    first_by = F.lit(0) if order_by is None else checked_order(frame, order_by, "dedup.minhash.order_by")
    return frame.where(normalized(text) != "").select(
        exact_column(key).alias(KEY),
        first_by.alias("first_by"),
        (normalized(text) if normalize else exact_column(text)).alias("text"),
    )


def _kept(frame: DataFrame, scratch: str, name: str) -> DataFrame:
    """`frame` written to `scratch` and read back: it is used more than once."""
    path = files.spark_path(files.join(scratch, name))
    frame.write.parquet(path)
    return frame.sparkSession.read.schema(frame.schema).parquet(path)


def _verified_pairs(
    texts: DataFrame,
    plan: BandPlan,
    threshold: float,
    num_perm: int,
    ngram: int,
    tokens: str,
    scratch: str,
) -> DataFrame:
    """Pairs ``a``, ``b`` of nodes whose texts' similarity reaches the threshold."""
    from pyspark.sql import Window
    from pyspark.sql import functions as F
    from pyspark.sql import types as T

    def bands_of(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        for batch in batches:
            hashes = _band_hashes(batch.column(1).to_pylist(), plan, num_perm, ngram, tokens)
            yield pa.RecordBatch.from_arrays([batch.column(0), hashes], ["node", "bands"])

    schema = T.StructType([texts.schema["node"], T.StructField("bands", T.ArrayType(T.LongType()))])
    bands = texts.mapInArrow(bands_of, schema).select("node", F.explode("bands").alias("band"))
    in_bucket = Window.partitionBy("band")
    shared = bands.withColumn("size", F.count(F.lit(1)).over(in_bucket)).where("size > 1")
    placed = shared.withColumn("place", F.row_number().over(in_bucket.orderBy("node")))
    placed = _kept(placed, scratch, "buckets")  # or both sides of the join would compute signatures
    last = F.least(F.col("size").cast("int"), F.col("place") + _NEIGHBOURS)
    left = placed.where("place < size").select(
        F.col("node").alias("a"), "band", F.explode(F.sequence(F.col("place") + 1, last)).alias("place")
    )
    right = placed.select(F.col("node").alias("b"), "band", "place")
    candidates = left.join(right, ["band", "place"]).select("a", "b").distinct()
    compared = (
        candidates.join(texts.withColumnsRenamed({"node": "a"}), "a")
        .join(texts.withColumnsRenamed({"node": "b", "text": "other"}), "b")
        .select("a", "b", "text", "other")
    )
    return _with_similarity(compared, "a", "b", ngram, tokens).where(F.col(SIMILARITY) >= threshold)


def _band_hashes(texts: list[str], plan: BandPlan, num_perm: int, ngram: int, tokens: str) -> pa.Array:
    """For each text the hash of each of its bands, as lists of longs."""
    import numpy as np
    import pyarrow as pa
    from datasketch import MinHash

    encoded = ([s.encode() for s in shingles(text, ngram, tokens)] for text in texts)
    signatures = np.stack(
        [m.hashvalues for m in MinHash.generator(encoded, num_perm=num_perm, seed=1, hashfunc=crc32)]
    ).astype(np.uint64)
    used = signatures[:, : plan.bands * plan.rows].reshape(len(texts), plan.bands, plan.rows)
    # Polynomial hash modulo 2**64, then mixed: equal bands give equal hashes, in every worker.
    mixed = np.broadcast_to(np.arange(1, plan.bands + 1, dtype=np.uint64), used.shape[:2]).copy()
    for row in range(plan.rows):
        mixed = (mixed ^ used[:, :, row]) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
    flat = pa.array(mixed.reshape(-1).view(np.int64))
    offsets = pa.array(np.arange(len(texts) + 1, dtype=np.int32) * plan.bands)
    return pa.ListArray.from_arrays(offsets, flat)


def _with_similarity(compared: DataFrame, first: str, second: str, ngram: int, tokens: str) -> DataFrame:
    """Exact Jaccard similarity DOUBLE of ``text`` and ``other``, beside the two key columns."""
    from pyspark.sql import types as T

    def jaccard(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        for batch in batches:
            similarity = []
            for text, other in zip(batch.column(2).to_pylist(), batch.column(3).to_pylist(), strict=True):
                a, b = shingles(text, ngram, tokens), shingles(other, ngram, tokens)
                common = len(a & b)
                similarity.append(common / (len(a) + len(b) - common))
            yield pa.RecordBatch.from_arrays(
                [batch.column(0), batch.column(1), pa.array(similarity, pa.float64())],
                [first, second, SIMILARITY],
            )

    fields = [compared.schema[first], compared.schema[second], T.StructField(SIMILARITY, T.DoubleType())]
    return compared.mapInArrow(jaccard, T.StructType(fields))
