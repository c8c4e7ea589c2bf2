"""Look some keys up in the tables of a run, each table once for all of them.

Imports numpy, `columns`, `engine`, `kernels`, `lake` and what is beside it; pyspark and pyarrow in functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from spark_dbp.columns import (
    BIN,
    CLUSTER_ID,
    DISTANCE,
    DUPLICATE_OF,
    KEY,
    METHOD,
    PROBLEM,
    REASON,
    SIMILARITY,
)
from spark_dbp.engine.compat import collect_arrow, collect_rows, create_frame
from spark_dbp.engine.highest import GROUP, SCORE
from spark_dbp.explore.check_filter import read_scores
from spark_dbp.explore.given_input import FILE, FILTER, PASSES, GivenInput, count_outside
from spark_dbp.explore.keys import NUMBER, TOKEN, make_key_frame, to_text, to_token
from spark_dbp.explore.left_out import find_bad
from spark_dbp.explore.run_tables import RunTables
from spark_dbp.kernels.histogram import BIN_SQL, find_bins
from spark_dbp.kernels.ranking import FARTHEST_FIRST
from spark_dbp.kernels.samples import NULL_KEY
from spark_dbp.stages.score_filter import REFUSED, find_reason

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import Column, DataFrame
    from pyspark.sql.types import DataType

# A chain of duplicates is followed so far: each method adds one link or few.
_MOST_LINKS = 50
# Of larger tables, only keys whose first or last half is that of the unknown key are compared with it.
_MANY_ROWS = 500_000
_ALIKE, _CONTAINS, _LEAST_PART = 5, 100, 4
_HASH = "hash"


class KeyLookup:
    """Some keys, and what the tables of a run hold of them.

    Parameters
    ----------
    tables : RunTables
    key_type : DataType
    tokens : sequence of bytes
        See `keys`.
    """

    def __init__(self, tables: RunTables, key_type: DataType, tokens: Sequence[bytes]) -> None:
        self.tables, self.run, self.spark = tables, tables.run, tables.spark
        self.key_type = key_type
        self.tokens = list(dict.fromkeys(tokens))

    # Rows of tables.

    def _make_frame(self, tokens: Sequence[bytes], **more: pa.Array) -> DataFrame:
        return make_key_frame(self.spark, tokens, self.key_type, more)

    def _find(self, rows: DataFrame, tokens: Sequence[bytes], *columns: Column | str) -> dict[bytes, dict]:
        """Of each key that `rows` has, the values of some columns. No two rows have the same key."""
        from pyspark.sql import functions as F

        if not tokens:
            return {}
        found = rows.join(F.broadcast(self._make_frame(tokens)), KEY).select(NUMBER, *columns)
        return {tokens[row.pop(NUMBER)]: row for row in collect_arrow(found).to_pylist()}

    def _find_first(self, rows: DataFrame, tokens: Sequence[bytes], name: str) -> dict[bytes, str]:
        """Of each key that `rows` has, perhaps often, the smallest text in a column."""
        from pyspark.sql import functions as F

        if not tokens:
            return {}
        found = rows.join(F.broadcast(self._make_frame(tokens)), KEY).groupBy(NUMBER)
        texts = collect_rows(found.agg(F.min(name).alias(name)))
        return {tokens[number]: text for number, text in texts}

    def follow_duplicates(self) -> dict[bytes, dict[str, Any]]:
        """What each key repeats, and what that repeats: ``duplicate_of`` (a token), ``method``,
        ``similarity``.

        The keys that are repeated are among `tokens` from then on.
        """
        if "duplicates" not in self.run.document["tables"]:
            return {}
        rows = self.tables.read("duplicates")
        links: dict[bytes, dict[str, Any]] = {}
        ahead, known = self.tokens, set(self.tokens)
        for _ in range(_MOST_LINKS):
            token = to_token(DUPLICATE_OF, self.key_type).alias(DUPLICATE_OF)
            links |= (found := self._find(rows, ahead, token, METHOD, SIMILARITY))
            ahead = [t for t in dict.fromkeys(row[DUPLICATE_OF] for row in found.values()) if t not in known]
            if not ahead:
                break
            known |= set(ahead)
            self.tokens += ahead
        return links

    def find_kept(self) -> set[bytes]:
        """Which keys the keep list has."""
        return set(self._find(self.tables.read("keep_list"), self.tokens))

    def find_assignments(self) -> dict[bytes, dict[str, Any]]:
        """Cluster and distance of the keys that were clustered; for ``random`` their hash too."""
        from pyspark.sql import functions as F

        hashed = self._hash().alias(_HASH) if self._is_random else F.lit(0).cast("bigint").alias(_HASH)
        return self._find(
            self.tables.read("assignments").withColumn(_HASH, hashed),
            self.tokens,
            CLUSTER_ID,
            DISTANCE,
            _HASH,
        )

    @property
    def _is_random(self) -> bool:
        return self.tables.config.prune.which_to_keep == "random"

    def _hash(self) -> Column:
        from pyspark.sql import functions as F

        return F.xxhash64(KEY, F.lit(self.tables.config.prune.seed).cast("bigint"))

    def count_before(self, assigned: dict[bytes, dict[str, Any]]) -> dict[bytes, int]:
        """The rank of each sample among all of its cluster, in the order of ``which_to_keep``."""
        import pyarrow as pa
        from pyspark.sql import functions as F

        if not assigned:
            return {}
        tokens = list(assigned)
        clusters = np.array([assigned[token][CLUSTER_ID] for token in tokens], dtype=np.int32)
        distances = np.array([assigned[token][DISTANCE] for token in tokens], dtype=np.float32)
        hashes = np.array([assigned[token][_HASH] for token in tokens], dtype=np.int64)
        bins = find_bins(distances).astype(np.int32)
        targets = self._make_frame(
            tokens,
            of_cluster=pa.array(clusters),
            of_bin=pa.array(bins),
            of_distance=pa.array(distances),
            of_hash=pa.array(hashes),
        ).withColumnRenamed(KEY, "of_key")
        # Renamed, so that no name stands for two columns.
        rows = self.tables.read("assignments").select(KEY, CLUSTER_ID, DISTANCE)
        same = F.col(CLUSTER_ID) == F.col("of_cluster")
        if self._is_random:
            rows = rows.withColumn(_HASH, self._hash())
            mine, other, before = F.col(_HASH), F.col("of_hash"), F.col(_HASH) < F.col("of_hash")
        else:
            rows = rows.withColumn(BIN, F.expr(BIN_SQL))
            same = same & (F.col(BIN) == F.col("of_bin"))
            mine, other = F.col(DISTANCE), F.col("of_distance")
            before = mine > other if self._is_farthest_first else mine < other
        ahead = before | ((mine == other) & (F.col(KEY) < F.col("of_key")))
        counted = rows.join(F.broadcast(targets), same).where(ahead).groupBy(NUMBER).count()
        found = {int(row[NUMBER]): int(row["count"]) for row in counted.collect()}
        earlier = [0] * len(tokens) if self._is_random else self._count_in_earlier_bins(clusters, bins)
        return {token: 1 + found.get(n, 0) + earlier[n] for n, token in enumerate(tokens)}

    @property
    def _is_farthest_first(self) -> bool:
        return self.tables.config.prune.which_to_keep in FARTHEST_FIRST

    def _count_in_earlier_bins(self, clusters: Any, bins: Any) -> list[int]:
        """Samples of the same cluster in bins that come before, by the histograms."""
        of = self.tables.clusters
        pairs = zip(clusters.tolist(), bins.tolist(), strict=True)
        return [of.distances.count_before(of.find_row(cluster), bin_) for cluster, bin_ in pairs]

    # Rows that were left out.

    def find_left_out(self, tokens: Sequence[bytes]) -> dict[bytes, tuple[str, str]]:
        """Step and reason of bad rows that the run's tables hold."""
        rows = find_bad(self.tables)
        found = self._find_first(rows, tokens, REASON) if rows is not None else {}
        return {token: (self.tables.first_step, problem) for token, problem in found.items()}

    def find_scores(self) -> dict[bytes, tuple[Any, Any, str]]:
        """Score, group, and why the score filter leaves a key out, if it is no duplicate."""
        from pyspark.sql import functions as F

        settings = self.tables.config.score_filter
        assert settings is not None
        scores = read_scores(self.tables, self._make_frame(self.tokens))
        reason = F.coalesce(find_reason(scores.schema[SCORE].dataType, settings.at_least), F.lit(REFUSED))
        group = F.col(GROUP).cast("string") if GROUP in scores.columns else F.lit(None).cast("string")
        # As text, for any type of score; collected by `collect_rows`, for any text.
        keys = F.broadcast(self._make_frame(self.tokens))
        rows = scores.join(keys, KEY).select(
            NUMBER, F.col(SCORE).cast("string").alias(SCORE), group.alias(GROUP), reason.alias(REASON)
        )
        return {
            self.tokens[number]: (_to_number(score), of, why) for number, score, of, why in collect_rows(rows)
        }

    def count_outside(self) -> dict[str, int]:
        """Rows left out of which the tables of the run hold no keys, by reason."""
        return count_outside(self.tables)

    def find_in_input(
        self, given: GivenInput, tokens: Sequence[bytes]
    ) -> dict[bytes, tuple[bool, str | None]]:
        """Whether the filter lets the row of a key through, and its file; of several, one that passes."""
        from pyspark.sql import functions as F

        rows, passes = given.find_keys(self._make_frame(tokens)), F.max(PASSES)
        file = F.when(passes, F.min(F.when(F.col(PASSES), F.col(FILE)))).otherwise(F.min(FILE))
        # Of rows that were left out, any number may have one key.
        found = collect_rows(rows.groupBy(NUMBER).agg(passes.alias(PASSES), file.alias(FILE)))
        return {tokens[number]: (bool(passes), file) for number, passes, file in found}

    def find_bad_rows(self, given: GivenInput, tokens: Sequence[bytes]) -> dict[bytes, str]:
        """What is wrong with rows that the filter lets through and no table of the run holds."""
        if not tokens or set(self.count_outside()) <= {FILTER, NULL_KEY}:
            return {}
        return self._find_first(given.bad_rows(), tokens, PROBLEM)

    # Keys that look alike.

    def find_alike(self, texts: Sequence[str]) -> dict[str, list[str]]:
        """A few keys of the run that look like each of some texts, the most alike first.

        That is: but for case, with few letters changed, or as a part of one another.
        """
        import pyarrow as pa
        from pyspark.sql import Window
        from pyspark.sql import functions as F

        few = [max(1, min(3, len(text) // 4)) for text in texts]
        columns = {NUMBER: pa.array(range(len(texts)), pa.int32()), "given": list(texts), "few": few}
        given = create_frame(self.spark, pa.table(columns))
        samples = self.tables.read("samples")
        rows = samples.select(to_text(KEY, self.key_type).alias(TOKEN)).where(F.col(TOKEN).isNotNull())
        pairs = rows.crossJoin(F.broadcast(given))
        if self.run.document["rows"]["samples"] > _MANY_ROWS:
            half = "greatest(1, length(given) div 2)"
            pairs = pairs.where(
                " OR ".join(
                    f"lower({end}({TOKEN}, {half})) = lower({end}(given, {half}))"
                    for end in ("left", "right")
                )
            )
        # A part of the other comes after all with changed letters, the longest part first.
        pairs = pairs.withColumn("changed", F.expr(f"levenshtein(lower({TOKEN}), lower(given), few)"))
        pairs = pairs.withColumn(
            "changed",
            F.expr(
                f"CASE WHEN changed >= 0 THEN changed "
                f"WHEN least(length(given), length({TOKEN})) >= {_LEAST_PART} "
                f"AND (contains({TOKEN}, given) OR contains(given, {TOKEN})) "
                f"THEN {_CONTAINS} + abs(length({TOKEN}) - length(given)) END"
            ),
        ).where("changed IS NOT NULL")
        best = Window.partitionBy(NUMBER).orderBy("changed", TOKEN)
        ranked = pairs.withColumn("place", F.row_number().over(best)).where(f"place <= {_ALIKE}")
        found: dict[str, list[str]] = {}
        for number, _, text in sorted(collect_rows(ranked.select(NUMBER, "place", TOKEN))):
            found.setdefault(texts[number], []).append(text)
        return found


def _to_number(text: str | None) -> Any:
    """A score for JSON."""
    if text in (None, "true", "false"):
        return None if text is None else text == "true"
    number = float(text)
    return number if abs(number) < float("inf") else text
