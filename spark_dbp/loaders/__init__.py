"""The keys that a run kept, for training code. Imports nothing of Spark.

`spark_dbp.loaders.webdataset` and `spark_dbp.loaders.torch` are imported by their names.
"""

from spark_dbp.loaders.index import ShardIndex, open_index, write_index
from spark_dbp.loaders.keep_trie import KeepTrie

__all__ = ["KeepTrie", "ShardIndex", "open_index", "write_index"]
