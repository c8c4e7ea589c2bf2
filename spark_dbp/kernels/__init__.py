"""The mathematics, on numpy arrays and pyarrow columns. Imports nothing of Spark."""
