"""How a command ends that made a run: what it did, clusters at both ends, and where to look further.

Imports `output`; `explore` and `paths` inside functions.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from spark_dbp.commands.output import find_width, print_json, print_text

if TYPE_CHECKING:
    from spark_dbp.runs import Run

# Paths as Python and as a shell read them.
_NEXT = """what next
  join the keep list     spark.read.parquet({keep_list}).join(metadata, "key")
  filter while loading   "some-key" in spark_dbp.KeepTrie.open({path})
  look at it             spark-dbp report {run}
  other settings         spark-dbp sweep {run} --keep-ratio {ratios}
  prune again            spark-dbp select {run} --set prune.keep_ratio={other:g} --out {out}
  what became of a key   spark-dbp explain {run} KEY
  check it               spark-dbp verify {run}"""


def print_end(
    run: Run, *, as_json: bool = False, labels: Mapping[str, str] | None = None, mostly: str = ""
) -> int:
    """Print what a run did.

    Parameters
    ----------
    run : Run
        That was just made.
    as_json : bool
        As one JSON document.
    labels : mapping of str to str, optional
        What each sample is, by key, for small runs: what clusters mostly hold.
    mostly : str
        What the labels are.

    Returns
    -------
    int
        The exit code.
    """
    if as_json:
        print_json(to_document(run))
        return 0
    from spark_dbp.explore.clusters import find_extreme_clusters, format_clusters

    clusters = find_extreme_clusters(run, labels=labels)
    title = f"narrowest and widest clusters{f' (mostly: {mostly})' if mostly else ''}"
    print_text(
        "\n".join(
            ["", run.path, str(run.summary()), title, format_clusters(clusters, find_width()), tell_next(run)]
        )
    )
    return 0


def to_document(run: Run) -> dict[str, Any]:
    """What a run did, of JSON values: parts of run.json, hints, and clusters at both ends."""
    from spark_dbp.explore.clusters import find_extreme_clusters

    document = run.document
    return {
        "run": run.path,
        "run_id": document.get("run_id"),
        "accounting": document["accounting"],
        "summary": document["summary"],
        "hints": run.summary().hints,
        "clusters": find_extreme_clusters(run),
        "tables": {name: run.table_path(name) for name in document["tables"]},
        "rows": document.get("rows", {}),
        "digests": document.get("digests", {}),
        "published": run.published(),
        "reused_stages": document.get("reused_stages", []),
    }


def tell_next(run: Run) -> str:
    """Commands to look further, that can be pasted."""
    from spark_dbp.lake.paths import escape_glob

    share = run.document["accounting"]["kept"] / run.document["summary"]["rows_to_prune"]
    other = 0.1 if 0.15 < share <= 0.25 else 0.2
    around = [other, *(float(f"{share * times:.2g}") for times in (0.5, 1, 2))]
    ratios = [f"{ratio:g}" for ratio in sorted(set(around)) if 0 < ratio <= 1]
    return _NEXT.format(
        path=json.dumps(run.path, ensure_ascii=False),
        keep_list=json.dumps(escape_glob(run.table_path("keep_list")), ensure_ascii=False),
        run=shlex.quote(run.path),
        ratios=",".join(ratios),
        other=other,
        out=shlex.quote(f"{run.path}-{other:g}"),
    )
