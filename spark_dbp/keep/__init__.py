"""What a run leaves for the training side: tries of the kept keys. Reading them needs no pyspark."""
