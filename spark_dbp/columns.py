"""Names and schemas of the run's tables. Imports nothing."""

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

# Columns and SQL types of the run's tables; the key and what refers to it have the input's own type.
KEY_TYPE = "type of the key"
TABLE_SCHEMAS = {
    "centroids": {CLUSTER_ID: "int", CENTROID: "array<float>"},
    "assignments": {KEY: KEY_TYPE, CLUSTER_ID: "int", DISTANCE: "float"},
    "duplicates": {KEY: KEY_TYPE, DUPLICATE_OF: KEY_TYPE, METHOD: "string", SIMILARITY: "float"},
    "cluster_stats": {
        CLUSTER_ID: "int",
        N_ITEMS: "bigint",
        D_INTRA: "double",
        D_INTER: "double",
        COMPLEXITY: "double",
        HISTOGRAM: f"array<struct<bin:int,{N_ITEMS}:bigint>>",
    },
    "quotas": {CLUSTER_ID: "int", N_ITEMS: "bigint", WEIGHT: "double", TARGET: "double", QUOTA: "bigint"},
    "keep_list": {KEY: KEY_TYPE, CLUSTER_ID: "int", DISTANCE: "float", RANK: "int"},
}
