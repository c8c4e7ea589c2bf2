"""The demos that embed, as users start them, with the real models."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pyarrow.parquet as pq

from spark_dbp import Run, demo_data, open_run


def start_demo(*arguments: str | Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "spark_dbp", "demo", *map(str, arguments)],
        capture_output=True, text=True, timeout=900, env=os.environ,
    )  # fmt: skip


def measure_share(run: Run, labels: Mapping[str, str]) -> float:
    """Share of the samples whose cluster's most frequent label is theirs."""
    rows = pq.read_table(run.table_path("assignments")).select(["key", "cluster_id"]).to_pylist()
    found = Counter((row["cluster_id"], labels[row["key"]]) for row in rows)
    most: Counter[int] = Counter()
    for (cluster, _), number in found.items():
        most[cluster] = max(most[cluster], number)
    return sum(most.values()) / len(rows)


def check_output(done: subprocess.CompletedProcess, n: int) -> None:
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"rows in     {n:,}" in done.stdout
    assert f"kept        {n * 3 // 10:,} of {n:,} (30.0%)" in done.stdout
    table = done.stdout.split("narrowest and widest clusters")[1].splitlines()
    assert table[1].split()[-1] == "mostly"
    assert table[2 + 6] == "what next"
    # Of the libraries of models nothing is heard.
    for noise in ("Loading weights", "it/s", "Traceback", "UserWarning", "FutureWarning"):
        assert noise not in done.stderr


def check_accounting(run: Run, n: int) -> None:
    account = run.document["accounting"]
    assert (account["rows_in"], account["kept"]) == (n, n * 3 // 10)
    assert run.document["rows"]["embeddings"] == n
    assert run.document["rows"]["rejected"] == 0


def test_pictures(tmp_path: Path):
    check_output(start_demo("--images", tmp_path), 600)
    run = open_run(tmp_path / "run")
    check_accounting(run, 600)
    # Measured: 0.74. With the labels shuffled: 0.19.
    assert measure_share(run, demo_data.read_digit_labels()) > 0.6


def test_texts_and_what_a_second_demo_takes_over(tmp_path: Path):
    check_output(start_demo("--texts", tmp_path), 1500)
    run = open_run(tmp_path / "run")
    check_accounting(run, 1500)
    # Measured: 0.55. With the labels shuffled: 0.29.
    assert measure_share(run, demo_data.read_packages(str(tmp_path / "input"))) > 0.45
    again = start_demo("--texts", tmp_path)
    check_output(again, 1500)
    same = open_run(tmp_path / "run")
    assert same.table_path("embeddings") == run.table_path("embeddings")
    assert same.document["digests"] == run.document["digests"]
