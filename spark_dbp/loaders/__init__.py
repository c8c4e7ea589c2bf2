"""The keys that a run kept, for training code. Imports nothing of Spark."""

from spark_dbp.loaders.keep_trie import KeepTrie

__all__ = ["KeepTrie"]
