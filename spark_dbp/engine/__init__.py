"""How work reaches Spark's workers: sessions, reading and writing by workers, shuffles, what stages share."""
