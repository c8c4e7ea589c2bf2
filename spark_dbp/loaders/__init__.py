"""For the training side: the keys that a run kept. Imports nothing of Spark."""

from spark_dbp.loaders.keep_trie import KeepTrie

__all__ = ["KeepTrie"]
