"""How work reaches Spark's workers: sessions, reading and writing in workers, shuffles, what stages share."""
