"""``make bench``, or ``python -m benchmarks [--quick] [--only NAME]``."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from datetime import date

from benchmarks import (
    assignment,
    clustering,
    driver_memory,
    encoders,
    formats,
    loaders,
    minhash,
    pruning,
    reshard,
    semantic,
    trie,
    whole_run,
)
from benchmarks.common import machine


def _pruning(given: argparse.Namespace) -> None:
    runs = 1 if given.quick else given.runs
    if given.rows:
        pruning.measure(given.rows, ["ours", "ours, sql", "duckdb"], runs, given.clusters)
        return
    pruning.measure(2_000_000, ["ours", "in memory"], runs)
    pruning.measure(4_000_000 if given.quick else 20_000_000, ["ours", "ours, sql", "duckdb", "polars"], runs)
    if not given.quick:
        pruning.measure_skew(20_000_000, runs)


def _growth(given: argparse.Namespace) -> None:
    # The largest is the size of the paper's LAION-DeDup.
    small, full = [1_000_000, 4_000_000], [5_000_000, 20_000_000, 80_000_000, 280_000_000]
    pruning.measure_growth(small if given.quick else full)


def _assignment(given: argparse.Namespace) -> None:
    rows = given.rows or (100_000 if given.quick else 1_000_000)
    for dim in [384] if given.quick else [384, 1024]:
        assignment.measure(rows, dim, given.clusters, given.runs)


def _clustering(given: argparse.Namespace) -> None:
    if given.quick:
        clustering.measure_fit(20_000, 384, 100, 10, 1, mllib=False)
        clustering.measure_full(100_000, 384, 500, 1)
    else:
        clustering.measure_fit(128_000, 384, 500, 20, given.runs)
        clustering.measure_full(1_000_000, 384, 500, given.runs)


def _many_clusters(given: argparse.Namespace) -> None:
    clustering.measure_many(*((20_000, 384, 2_000) if given.quick else (1_000_000, 384, 50_000)))


def _trie(given: argparse.Namespace) -> None:
    trie.measure(500_000 if given.quick else 10_000_000, 1 if given.quick else given.runs)


def _whole_run(given: argparse.Namespace) -> None:
    runs = 1 if given.quick else given.runs
    whole_run.measure_small(runs)
    for n_rows in (
        [1_000_000] if given.quick else [given.rows] if given.rows else [10**6, 5_000_000, 20_000_000]
    ):
        whole_run.measure_clustered(n_rows, runs)
    if not given.quick and not given.rows:
        whole_run.measure_embeddings(50_000, runs, n_clusters=100)
        whole_run.measure_embeddings(1_000_000, runs)


def _whole_run_large(given: argparse.Namespace) -> None:
    if given.quick:
        return
    whole_run.measure_embeddings(4_000_000, 1)
    whole_run.measure_dedup(1_000_000, 1)
    whole_run.measure_clustered(80_000_000, 1)
    # The size of the paper's LAION-DeDup.
    whole_run.measure_clustered(280_000_000, 1, memory_limit="4GB", with_sql=False)


def _driver_memory(given: argparse.Namespace) -> None:
    sizes = [20_000] if given.quick else [100_000, 400_000, 1_600_000]
    driver_memory.measure(sizes, dim=64, n_clusters=100)


def _semantic(given: argparse.Namespace) -> None:
    semantic.measure_product(6_000 if given.quick else 8_192, 384, given.runs)
    if not given.quick:
        semantic.measure_stage(60_000, 10, 384)
        semantic.measure_stage(300_000, 1, 384)


def _minhash(given: argparse.Namespace) -> None:
    minhash.measure(20_000, 1 if given.quick else given.runs)
    if not given.quick:
        minhash.measure(200_000, given.runs, check=False)
        minhash.measure(1_000_000, given.runs, check=False)
        minhash.measure(1_000_000, given.runs, check=False, alike=True)


def _encoders(given: argparse.Namespace) -> None:
    missing = encoders.find_missing()
    if missing:
        what = f"encoders: {', '.join(missing)} not installed (pip install -r requirements-encoders.txt)"
        if given.only:
            raise SystemExit(what)
        print(f"\n{what}: left out")
        return
    runs = 1 if given.quick else given.runs
    for kind, quick, full in (("texts", 600, 63_666), ("images", 200, 10_000)):
        n_items = given.rows or (quick if given.quick else full)
        encoders.measure(kind, n_items, runs, with_tenth=not given.quick)


def _loaders(given: argparse.Namespace) -> None:
    missing = loaders.find_missing()
    if missing:
        what = f"loaders: {', '.join(missing)} not there (pip install -r requirements-encoders.txt)"
        if given.only:
            raise SystemExit(what)
        print(f"\n{what}: left out")
        return
    loaders.measure(2000 if given.quick else 10_000, 1 if given.quick else given.runs)
    if given.quick:
        loaders.measure_store(200, 10_000, [0.1, 1.0])
    else:
        loaders.measure_store(5000, 30_000, [0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 1.0])


def _formats(given: argparse.Namespace) -> None:
    n_rows = given.rows or (50_000 if given.quick else 1_000_000)
    for form in ("clip_retrieval", "datacomp"):
        formats.measure(form, n_rows, 384, 1 if given.quick else given.runs)


def _reshard(given: argparse.Namespace) -> None:
    if given.quick:
        reshard.measure(2, 1000, 100_000, [0.3, 1.0], 1)
    else:
        reshard.measure(8, 5000, 100_000, [0.3, 1.0], given.runs)
        reshard.measure(32, 5000, 100_000, [0.3], given.runs)


_BENCHMARKS: dict[str, Callable[[argparse.Namespace], None]] = {
    "whole-run": _whole_run,
    "whole-run-large": _whole_run_large,
    "pruning": _pruning,
    "assignment": _assignment,
    "clustering": _clustering,
    "trie": _trie,
    "driver-memory": _driver_memory,
    "semantic": _semantic,
    "minhash": _minhash,
    "many-clusters": _many_clusters,
    "growth": _growth,
    "encoders": _encoders,
    "formats": _formats,
    "loaders": _loaders,
    "reshard": _reshard,
}


def main() -> None:
    """Run the benchmarks and print their tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=main.__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes: a look, not a result")
    parser.add_argument("--only", choices=list(_BENCHMARKS), help="one benchmark alone")
    some = "pruning, assignment, whole run"
    parser.add_argument("--rows", type=int, help=f"rows of: {some}, encoders, formats")
    parser.add_argument("--clusters", type=int, default=500, help=f"of: {some}")
    parser.add_argument("--runs", type=int, default=3, help="counted runs of each side")
    given = parser.parse_args()
    print(f"{date.today()}, {machine()}")
    for name, benchmark in _BENCHMARKS.items():
        if given.only in (None, name):
            benchmark(given)


if __name__ == "__main__":
    main()
