"""Names and schemas of the run's tables. Imports nothing.

The key keeps the input's own type, so schemas are functions of the key's SQL type.
"""

from __future__ import annotations

KEY = "key"
VECTOR = "vector"
PROBLEM = "problem"
DIMENSION = "dimension"
CLUSTER_ID = "cluster_id"
DISTANCE = "distance_to_centroid"
CENTROID = "centroid"
N_ITEMS = "n_items"
D_INTRA = "d_intra"
D_INTER = "d_inter"
COMPLEXITY = "complexity"
HISTOGRAM = "distance_histogram"
WEIGHT = "weight"
TARGET = "target"
QUOTA = "quota"
RANK = "rank"
DUPLICATE_OF = "duplicate_of"
METHOD = "method"
SIMILARITY = "similarity"

# Distances lie in [0, 2]; a bin is 1/1024 wide, so multiplying by a power of two finds it exactly.
BINS_PER_UNIT = 1024
N_BINS = 2 * BINS_PER_UNIT

# Distances are summed as longs in units of 2**-28: exact, whatever the order of addition, up to
# 1.7e10 rows of the largest distance in one cluster; far finer than a float32 distance resolves.
DISTANCE_UNIT = 2.0**-28

CENTROIDS_SCHEMA = f"{CLUSTER_ID} INT, {CENTROID} ARRAY<FLOAT>"
QUOTAS_SCHEMA = f"{CLUSTER_ID} INT, {N_ITEMS} BIGINT, {WEIGHT} DOUBLE, {TARGET} DOUBLE, {QUOTA} BIGINT"


def assignments_schema(key_type: str) -> str:
    """DDL of the assignments table for a key of SQL type `key_type`.

    Examples
    --------
    >>> assignments_schema("STRING")
    'key STRING, cluster_id INT, distance_to_centroid FLOAT'
    """
    return f"{KEY} {key_type}, {CLUSTER_ID} INT, {DISTANCE} FLOAT"
