"""Compare the demo of several versions of Spark: one table of digests, exit 1 where they differ.

``make test-matrix`` calls it with the directory of each demo. Imports only the standard library.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def compare(directories: list[str]) -> int:
    """Print what each run was made with and its digests; 0 where all digests are equal."""
    found = []
    for directory in directories:
        document = json.loads((Path(directory) / "run" / "run.json").read_text())
        versions, digests = document["versions"], document["digests"]
        print(
            f"Spark {versions['spark']:<8} Python {versions['python']:<8} numpy {versions['numpy']:<8} "
            f"keep_list {digests['keep_list']}  assignments {digests['assignments']}"
        )
        found.append(digests)
    different = [name for name in found[0] if any(other.get(name) != found[0][name] for other in found)]
    print(f"tables that differ: {', '.join(different)}" if different else f"{len(found)} lanes, one digest")
    return int(bool(different))


if __name__ == "__main__":
    sys.exit(compare(sys.argv[1:]))
