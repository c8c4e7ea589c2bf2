"""The commands on what became of rows: ``explain``, ``diff``. Imports `explore` and what is below."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

from spark_dbp.commands.shared import Options, keep_spark_settings, open_run
from spark_dbp.errors import InputError
from spark_dbp.secrets import redact

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from spark_dbp.runs import Run


def add_commands(commands: argparse._SubParsersAction, options: Options) -> None:
    """Add the parsers of these commands."""
    explain = commands.add_parser(
        "explain",
        parents=[options.common, options.settings],
        help="tell what became of some keys, and why",
        description="Tell what became of some keys, and why. Keys are read by their type: BINARY in "
        "hexadecimal, times as SQL writes them. Of all rows: spark-dbp export RUN --to verdicts.",
        epilog="example: spark-dbp explain RUN part/0000007.jpg 'a key with blanks' --json",
    )
    explain.add_argument("run", metavar="RUN", help="directory of a finished run")
    explain.add_argument("keys", metavar="KEY", nargs="+", help="keys; after -- also those that begin with -")
    explain.add_argument("--json", action="store_true", help="print a list, one object a key, as JSON")
    explain.add_argument(
        "--no-input", action="store_true", help="do not look up where the keys lie in the input"
    )
    explain.set_defaults(command=_explain, interrupted="the same command begins anew")

    diff = commands.add_parser(
        "diff",
        parents=[options.common, options.settings],
        help="show what two runs keep differently, and why",
    )
    diff.add_argument("run", metavar="RUN", help="directory of a finished run")
    diff.add_argument("other", metavar="RUN2", help="directory of another one")
    diff.add_argument("--json", action="store_true", help="print the differences as one JSON document")
    diff.add_argument(
        "--out", metavar="DIR", help="a new directory: the keys gained and lost as a Parquet table"
    )
    diff.set_defaults(command=_diff, interrupted="the same command begins anew")


def _explain(parsed: argparse.Namespace) -> int:
    from spark_dbp.explore.explain import explain
    from spark_dbp.explore.story import UNKNOWN

    run, spark = _open(parsed.run, "explain", parsed.settings)
    told = explain(run, parsed.keys, spark, look_at_input=not parsed.no_input)
    print(json.dumps([one.to_dict() for one in told], indent=1, ensure_ascii=False) if parsed.json else told)
    unknown = [one for one in told if one.reason == UNKNOWN]
    if unknown:
        sys.stdout.flush()
        names = ", ".join(repr(one.key) for one in unknown[:5])
        alike = next((one.near_misses for one in unknown if one.near_misses), [])
        raise InputError(
            f"not in {run.path}: {len(unknown):,} of the keys, {names}",
            mend=f"did you mean {alike[0]!r}?" if alike else "give keys as the input has them",
        )
    return 0


def _diff(parsed: argparse.Namespace) -> int:
    from spark_dbp.explore.diff import diff

    run, spark = _open(parsed.run, "diff", parsed.settings)
    other, _ = open_run(parsed.other, parsed.settings)
    found = diff(run, other, spark, out=parsed.out)
    print(redact(json.dumps(found.to_dict(), indent=1, ensure_ascii=False) if parsed.json else str(found)))
    return 0


def _open(path: str, command: str, settings: list[str]) -> tuple[Run, SparkSession]:
    from spark_dbp.engine.session import get_session
    from spark_dbp.settings import apply_settings

    run, spark = open_run(path, keep_spark_settings(command, settings))
    return run, spark or get_session(apply_settings({}, settings).get("spark"))
