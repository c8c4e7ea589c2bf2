"""The mathematics, on numpy arrays and pyarrow columns. It imports nothing of Spark."""
