"""Where every row of the input went, and run.json, which says so. Imports `job`, `runs` and numpy."""

from __future__ import annotations

import math
import platform
from dataclasses import asdict
from typing import Any

import numpy as np

from spark_dbp.columns import D_INTRA, N_ITEMS
from spark_dbp.engine.compat import read_setting
from spark_dbp.engine.session import TIME_ZONE
from spark_dbp.errors import SparkDbpError
from spark_dbp.job import Job
from spark_dbp.kernels.histogram import DISTANCE_UNIT
from spark_dbp.runs import Run
from spark_dbp.secrets import redact


def account_for_rows(job: Job) -> dict[str, Any]:
    """Where every row of the input went."""
    samples, steps = job.info("samples"), job.directory.steps
    n_rows, n_keep = job.count_rows("assignments"), job.count_rows("keep_list")
    return {
        "rows_in": job.source.snapshot.rows,
        "dropped": {
            "input.filter": samples["filtered"],
            **samples["dropped"],
            **(steps["survivors"].info["duplicates"] if "survivors" in steps else {}),
            **(steps["score_filter"].info["left_out"] if "score_filter" in steps else {}),
            "pruned": n_rows - n_keep,
        },
        "kept": n_keep,
    }


def commit_run(job: Job, snapshot: dict[str, Any], account: dict[str, Any], base: Run | None = None) -> None:
    """Write run.json: from here on the run exists.

    Parameters
    ----------
    job : Job
        All of whose steps are carried out.
    snapshot : dict
        Of the input.
    account : dict
        Where every row of the input went: ``rows_in``, ``dropped`` by reason, ``kept``.
    base : Run, optional
        The run whose tables this one shares.

    Raises
    ------
    SparkDbpError
        When the rows do not add up.
    """
    if account["rows_in"] != account["kept"] + sum(account["dropped"].values()):
        raise SparkDbpError(f"rows do not add up: {account}", mend="please report this as a bug")
    quotas = dict(job.info("quotas"))
    n_keep = quotas.pop("n_keep")
    stats = job.read_small_table("cluster_stats")
    n_items = stats.column(N_ITEMS).to_numpy()
    used = n_items > 0
    of_clusters = n_items[used] * stats.column(D_INTRA).to_numpy()[used]
    job.directory.commit(
        {
            "config": job.config.to_redacted_dict(),
            "versions": {
                "spark": job.spark.version,
                "python": platform.python_version(),
                "numpy": np.__version__,
            },
            "engine": asdict(job.engine),
            # SQL of the configuration was evaluated in this zone.
            "session": {TIME_ZONE: read_setting(job.spark, TIME_ZONE)},
            "input": snapshot,
            "encoders": {one.name: job.info(one.table)["encoder"] for one in job.config.embed},
            "accounting": account,
            "base_run": base and {"path": redact(base.path), "run_id": base.document["run_id"]},
            "kmeans": job.info("centroids"),
            "summary": {
                "rows_to_prune": int(n_items.sum()),
                "which_to_keep": job.config.prune.which_to_keep,
                **quotas,
                "mean_distance": math.fsum(of_clusters) / int(n_items.sum()),
                "mean_distance_kept": job.info("keep_list")["whole_distance"] * DISTANCE_UNIT / n_keep,
            },
        }
    )
