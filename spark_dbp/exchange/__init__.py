"""What goes between a run and what others read and write: tables of embeddings, keep lists, shards."""
