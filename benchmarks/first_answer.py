"""The demo as a user starts it, against starting and stopping an empty Spark session."""

from __future__ import annotations

import shutil
import subprocess
import sys

from benchmarks.common import in_turn, report, scratch

_EMPTY = """
from spark_dbp.engine.session import start_local_session
spark = start_local_session()
spark.range(10).count()
spark.stop()
"""


def measure(runs: int) -> None:
    """Print the medians and their difference.

    Parameters
    ----------
    runs : int
    """
    with scratch() as folder:

        def demo() -> None:
            shutil.rmtree(folder / "demo", ignore_errors=True)
            _run([sys.executable, "-m", "spark_dbp", "demo", str(folder / "demo")])

        seconds = in_turn(runs, 0, demo=demo, empty=lambda: _run([sys.executable, "-c", _EMPTY]))
    report(
        f"the demo, from the command to its end (median of {runs}, in turn)",
        [
            ("spark-dbp demo", f"{seconds['demo']:.1f} s"),
            ("an empty Spark session, started and stopped", f"{seconds['empty']:.1f} s"),
            ("what the demo adds", f"{seconds['demo'] - seconds['empty']:.1f} s"),
        ],
    )


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True)
