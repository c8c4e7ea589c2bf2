"""``make bench``, or ``python -m benchmarks [--quick] [--only NAME]``."""

from __future__ import annotations

import argparse
from datetime import date

from benchmarks import assignment, driver_memory, minhash, semantic
from benchmarks.common import machine


def main() -> None:
    """Run the benchmarks and print their tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=main.__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes: a look, not a result")
    parser.add_argument(
        "--only", choices=["assignment", "driver-memory", "semantic", "minhash"], help="one benchmark alone"
    )
    parser.add_argument("--rows", type=int, help="rows of the assignment (1,000,000; quick: 100,000)")
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--clusters", type=int, default=500)
    parser.add_argument("--runs", type=int, default=3)
    given = parser.parse_args()
    print(f"{date.today()}, {machine()}")
    if given.only in (None, "assignment"):
        rows = given.rows or (100_000 if given.quick else 1_000_000)
        assignment.measure(rows, given.dim, given.clusters, given.runs)
    if given.only in (None, "driver-memory"):
        sizes = [20_000, 80_000] if given.quick else [100_000, 400_000, 1_600_000]
        driver_memory.measure(sizes, dim=64, n_clusters=100)
    if given.only in (None, "semantic"):
        semantic.measure_product(6_000 if given.quick else 8_192, given.dim, given.runs)
        semantic.measure_stage(20_000 if given.quick else 60_000, 10, given.dim)
        if not given.quick:
            semantic.measure_stage(300_000, 1, given.dim)
    if given.only in (None, "minhash"):
        minhash.measure(20_000, given.runs)
        if not given.quick:
            minhash.measure(200_000, given.runs, check=False)
            minhash.measure(1_000_000, given.runs, check=False)
            minhash.measure(1_000_000, given.runs, check=False, alike=True)


if __name__ == "__main__":
    main()
