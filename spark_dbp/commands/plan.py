"""The command that says what a run would do: ``plan``. Imports `explore.plan` and `config`."""

from __future__ import annotations

import argparse
import json
import shlex

from spark_dbp.commands.shared import Options
from spark_dbp.secrets import redact

_ABOUT = """\
Say what `run` would do with a configuration, and do nothing: which steps are reused and which computed anew
and why, rows and bytes that each reads, writes and shuffles, memory, time, and whether the quotas can be met.
Only metadata is read. A Spark session is started only where this program cannot look at the input itself."""
_EXAMPLES = """\
examples:
  spark-dbp plan conf.yaml
  spark-dbp plan conf.yaml --set prune.keep_ratio=0.2      what another ratio would compute anew
  spark-dbp plan conf.yaml --json | jq .total"""


def add_commands(commands: argparse._SubParsersAction, options: Options) -> None:
    """Add the parser of this command."""
    plan = commands.add_parser(
        "plan",
        parents=[options.common, options.settings],
        help="say what a run would compute, reuse and write, and at what cost",
        description=_ABOUT,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    plan.add_argument("config", metavar="CONF", help="YAML file; conf/example.yaml describes every key")
    plan.add_argument("--json", action="store_true", help="print one JSON document instead")
    plan.set_defaults(command=_plan, interrupted="nothing was written")


def _plan(parsed: argparse.Namespace) -> int:
    from spark_dbp.config import RunConfig
    from spark_dbp.explore.plan.make import plan

    made = plan(RunConfig.from_yaml(parsed.config, parsed.settings))
    if parsed.json:
        print(redact(json.dumps(made.to_dict(), indent=1, allow_nan=False)))
    else:
        settings = f" --set {shlex.join(parsed.settings)}" if parsed.settings else ""
        print(redact(f"{made}\n{'run it':<12}spark-dbp run {shlex.quote(parsed.config)}{settings}"))
    return 0 if made.quotas.is_ok else 3
