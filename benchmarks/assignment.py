"""Assignment of all rows to their centroids, against reading the file with pyarrow and one matrix product."""

from __future__ import annotations

import shutil

import numpy as np
import pyarrow.parquet as pq

from benchmarks.common import in_turn, report, scratch, write_vectors
from spark_dbp.engine.arrow import CommittedTable
from spark_dbp.engine.session import start_local_session
from spark_dbp.kernels.vectors import to_matrix
from spark_dbp.stages.kmeans import assign, plan_assignment


def measure(n_rows: int, dim: int, n_clusters: int, runs: int) -> None:
    """Print the medians and their ratio.

    Parameters
    ----------
    n_rows, dim, n_clusters : int
    runs : int
        Counted runs of each side.
    """
    with scratch() as folder:
        source = folder / "vectors"
        write_vectors(source, n_rows, dim)
        first = pq.ParquetFile(next(iter(sorted(source.iterdir())))).read_row_group(0)
        centroids = np.concatenate([to_matrix(c) for c in first.column("vector").chunks])[:n_clusters].copy()
        spark = start_local_session()
        frame = spark.read.parquet(str(source))
        table = CommittedTable(spark, str(source), frame, dim, has_problems=False)

        def ours() -> None:
            shutil.rmtree(folder / "out", ignore_errors=True)
            plan_assignment(table, centroids).write_parquet(str(folder / "out"))

        def through_spark() -> None:
            assign(frame, centroids).write.mode("overwrite").parquet(str(folder / "rows"))

        def floor() -> None:
            for file in sorted(source.iterdir()):
                for chunk in pq.read_table(file, columns=["key", "vector"]).column("vector").chunks:
                    matrix = to_matrix(chunk)
                    for start in range(0, len(matrix), 8192):
                        (matrix[start : start + 8192] @ centroids.T).argmax(axis=1)

        seconds = in_turn(runs, ours=ours, floor=floor, rows=through_spark)
        spark.stop()
    report(
        f"assignment of {n_rows:,} x {dim} to {n_clusters} centroids (median of {runs}, in turn)",
        [
            ("pyarrow read + numpy product and argmax", f"{seconds['floor']:.2f} s"),
            ("ours: scan, assign, exact distance, write", f"{seconds['ours']:.2f} s"),
            ("ours on a DataFrame (rows through Spark)", f"{seconds['rows']:.2f} s"),
            ("ratio of ours to the floor", f"{seconds['ours'] / seconds['floor']:.2f}"),
        ],
    )
