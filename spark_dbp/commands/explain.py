"""The commands on what became of rows: ``explain``, ``diff``. Imports `explore` and what is below."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from spark_dbp.commands.output import print_json, print_text
from spark_dbp.commands.parsers import Options, add_command
from spark_dbp.commands.shared import keep_spark_settings, open_run
from spark_dbp.errors import ConfigError, InputError

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from spark_dbp.runs import Run


def add_commands(commands: argparse._SubParsersAction, options: Options) -> None:
    """Add the parsers of these commands."""
    explain = add_command(
        commands, options, "explain", _explain, "tell what became of some keys, and why",
        description="Tell what became of some keys, and why. Keys are read by their type: BINARY in "
        "hexadecimal, times as SQL writes them. Of all rows: spark-dbp export RUN --to verdicts.",
        examples=[
            "explain RUN part/0000007.jpg 'a key with blanks' --json",
            "explain RUN --json -- -a-key-that-begins-with-a-dash",
        ],
        json="print a list, one object a key, as JSON",
    )  # fmt: skip
    explain.add_argument("run", metavar="RUN", help="directory of a finished run")
    explain.add_argument("keys", metavar="KEY", nargs="*", help="keys; after -- also those that begin with -")
    explain.add_argument(
        "--no-input", action="store_true", help="do not look up where the keys lie in the input"
    )

    diff = add_command(
        commands, options, "diff", _diff, "show what two runs keep differently, and why",
        examples=["diff RUN RUN2", "diff RUN RUN2 --out CHANGED  # the keys gained and lost, as a table"],
        json="print the differences as one JSON document",
    )  # fmt: skip
    diff.add_argument("run", metavar="RUN", help="directory of a finished run")
    diff.add_argument("other", metavar="RUN2", help="directory of another one")
    diff.add_argument(
        "--out", metavar="DIR", help="a new directory: the keys gained and lost as a Parquet table"
    )


def _explain(parsed: argparse.Namespace) -> int:
    from spark_dbp.explore.explain import explain
    from spark_dbp.explore.story import UNKNOWN

    if not parsed.keys:  # argparse would take those after an option for none
        raise ConfigError(
            "explain is given no keys", mend="name some, or write all rows: export --to verdicts"
        )
    run, spark = _open(parsed.run, "explain", parsed.settings)
    told = explain(run, parsed.keys, spark, look_at_input=not parsed.no_input)
    if parsed.json:
        print_json([one.to_dict() for one in told], redacts=False)
    else:
        print_text(str(told), redacts=False)
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
    if parsed.json:
        print_json(found.to_dict())
    else:
        print_text(str(found))
    return 0


def _open(path: str, command: str, settings: list[str]) -> tuple[Run, SparkSession]:
    from spark_dbp.engine.session import get_session
    from spark_dbp.settings import apply_settings

    run, spark = open_run(path, keep_spark_settings(command, settings))
    return run, spark or get_session(apply_settings({}, settings).get("spark"))
