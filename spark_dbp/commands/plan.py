"""The command that says what a run would do: ``plan``. Imports `explore.plan` and `config`."""

from __future__ import annotations

import argparse
import shlex

from spark_dbp.commands.output import print_json, print_text
from spark_dbp.commands.parsers import Options, add_command


def add_commands(commands: argparse._SubParsersAction, options: Options) -> None:
    """Add the parser of this command."""
    plan = add_command(
        commands, options, "plan", _plan, "say what a run would compute, reuse and write, and at what cost",
        description="Say what `run` would do with a configuration, and do nothing: which steps are reused "
        "and which computed anew and why, rows and bytes that each reads, writes and shuffles, memory, "
        "time, and whether the quotas can be met. Only metadata is read. A Spark session is started only "
        "where this program cannot look at the input itself.",
        examples=[
            "plan conf.yaml",
            "plan conf.yaml --set prune.keep_ratio=0.2  # what another ratio would compute anew",
            "plan conf.yaml --json",
        ],
        json="print one JSON document instead",
        interrupted="nothing was written",
    )  # fmt: skip
    plan.add_argument("config", metavar="CONF", help="YAML file; conf/example.yaml describes every key")


def _plan(parsed: argparse.Namespace) -> int:
    from spark_dbp.config import RunConfig
    from spark_dbp.explore.plan.make import plan
    from spark_dbp.settings import redact_arguments

    made = plan(RunConfig.from_yaml(parsed.config, parsed.settings))
    if parsed.json:
        print_json(made.to_dict())
    else:
        settings = f" --set {shlex.join(redact_arguments(parsed.settings))}" if parsed.settings else ""
        print_text(f"{made}\n{'run it':<12}spark-dbp run {shlex.quote(parsed.config)}{settings}")
    return 0 if made.quotas.is_ok else 3
